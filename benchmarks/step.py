"""Where a step's time goes outside the kernels: one core driven in this process, its parts timed from here.

Parts are wrapped from outside with a nanosecond clock; the engine's own code holds no measuring. Medians of a decode
step, microseconds. ``front`` is the other process's share: processor time to decode a step's message, detokenise it
and hand its events to a task for each stream.

    python benchmarks/step.py --streams 1 16 64
    python benchmarks/step.py --streams 16 --only greedy "top_p 0.95"
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import zmq

from sagellm_core.core.loop import EngineCore
from sagellm_core.core.plan import TokenSampling
from sagellm_core.core.request import CoreRequest
from sagellm_core.executor import runner
from sagellm_core.front.engine import FrontEngine
from sagellm_core.store import DEFAULT_MODEL, resolve
from sagellm_core.transport.messages import Add, CoreMessage, FrontMessage, Outputs, decode_core, encode
from sagellm_core.transport.serve import _ready as ready_of
from sagellm_core.transport.zeromq import RouterChannel
from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import SageLLMError
from sagellm_protocol.events import ErrorEvent
from sagellm_protocol.requests import Request
from sagellm_protocol.sampling import SamplingParams

WARM_STEPS = 4

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "top_k and top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1},
    "logit_bias of 300": {"temperature": 0.0, "logit_bias": dict.fromkeys(range(1000, 1300), 0.5)},
    "logprobs 5": {"temperature": 0.0, "logprobs": 5},
}
"""What is asked of every stream; fields of :class:`~sagellm_core.core.plan.TokenSampling`."""
PARTS = ("step", "schedule", "inputs", "plan", "native", "model", "batch", "sample", "run", "take in", "emit")


class Clock:
    """Nanoseconds of each part, summed over a step."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.steps: list[dict[str, int]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted as ``part``."""
        spent = self.spent

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter_ns() - begun

        return call

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Put a timed version in the place of ``owner.name``."""
        setattr(owner, name, self.timed(part, getattr(owner, name)))

    def turn(self) -> None:
        """A step is over."""
        self.steps.append(dict(self.spent))
        self.spent.update(dict.fromkeys(PARTS, 0))

    def median(self, *parts: str, less: Sequence[str] = ()) -> float:
        """Microseconds of some parts in a typical step, less those of others that they hold."""
        each = (sum(step[part] for part in parts) - sum(step[part] for part in less) for step in self.steps)
        return statistics.median(each) / 1e3


def watch(core: EngineCore, clock: Clock) -> None:
    """Time the parts of a core's steps."""
    executor: Any = core._executor
    clock.wrap(core._scheduler, "schedule", "schedule")
    clock.wrap(executor, "run", "run")
    clock.wrap(runner, "step_inputs", "inputs")
    clock.wrap(executor._runner._batches, "batch", "batch")
    clock.wrap(executor._ops, "plan_attention", "plan")
    clock.wrap(executor._ops, "sample", "sample")
    clock.wrap(executor._model, "forward", "model")
    clock.wrap(executor._model, "logits", "model")
    kernels = getattr(executor._ops, "_kernels", None)
    if kernels is not None:
        for name in ("sage_decoder_run", "sage_linear"):
            clock.wrap(kernels.handle, name, "native")


def measure(
    core: EngineCore, clock: Clock, channel: RouterChannel, front: bytes, case: dict[str, Any], streams: int, steps: int
) -> list[Outputs]:
    """Decode ``steps`` times with ``streams`` streams; what was sent."""
    dice, sent = random.Random(streams), []
    length = 32
    for ticket in range(streams):
        prompt = [dice.randrange(100, core.info.vocab_size) for _ in range(length)]
        core.add(CoreRequest(ticket, prompt, [dice.getrandbits(64)], 10_000, TokenSampling(**case)), front)
    while any(sequence.uncomputed != 1 for sequence in core._scheduler.running) or len(core._scheduler.waiting):
        core.step()
    clock.steps.clear()
    for turn in range(WARM_STEPS + steps):
        if turn == WARM_STEPS:
            clock.steps.clear()
        begun = time.perf_counter_ns()
        outputs = core.step()
        over = time.perf_counter_ns()
        for origin, produced in outputs.items():
            message = Outputs(produced)
            channel.send(origin, message)
            sent.append(message)
        clock.spent["emit"] += time.perf_counter_ns() - over
        clock.spent["step"] += over - begun
        clock.turn()
    for ticket in range(streams):
        core.abort(front, ticket)
    core.check_integrity()
    return sent


class Replay:
    """The way to a core that answers every request set with messages that another sent before."""

    def __init__(self, ready: CoreMessage) -> None:
        self._ready = ready
        self.tickets: list[int] = []
        self.deliver: Callable[[CoreMessage], None] | None = None

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Any:
        """Ready at once."""
        self.deliver = deliver
        return self._ready

    def send(self, message: FrontMessage) -> None:
        """Note a request's ticket."""
        if isinstance(message, Add):
            self.tickets.append(message.request.ticket)

    async def stop(self) -> None:
        """Nothing runs."""

    def logs(self, lines: int) -> Sequence[str]:
        """Nothing is written."""
        return ()


async def front_cost(
    spec: EngineSpec, path: Path, ready: CoreMessage, sent: list[Outputs], case: dict[str, Any]
) -> float:
    """Microseconds of processor that the front takes for one step's message, its streams' consumers included."""
    client = Replay(ready)
    engine = FrontEngine(spec, lambda model, revision: path, lambda spec, path: client)
    await engine.start()
    streams = len(sent[0].outputs)
    params = SamplingParams(**({"logprobs": case["logprobs"]} if "logprobs" in case else {}))

    async def consume(number: int) -> None:
        request = Request(
            request_id=f"{number}", model=spec.names[0], prompt_token_ids=(1, 2, 3), sampling=params, stream=True
        )
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, ErrorEvent):
                    raise SageLLMError.from_info(event.error)

    tasks = [asyncio.ensure_future(consume(number)) for number in range(streams)]
    while len(client.tickets) < streams:
        await asyncio.wait(tasks, timeout=0.01, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    bodies = [encode(message) for message in sent]
    assert client.deliver is not None
    spent = []
    for body in bodies:
        begun = time.thread_time_ns()
        client.deliver(decode_core(body))
        for _ in range(3):  # a task wakes in the turn after the one that called it
            await asyncio.sleep(0)
        spent.append(time.thread_time_ns() - begun)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.stop()
    return statistics.median(spent[WARM_STEPS:]) / 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=60, help="decode steps of each case (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=list(CASES), help="cases to measure")
    given = parser.parse_args(arguments)

    from sagellm_core.core.build import build_core

    path = resolve(given.model)
    spec = EngineSpec(
        model=str(path), core="inline", dtype=given.dtype, threads=given.threads, max_num_seqs=max(given.streams)
    )
    core = build_core(spec, path)
    clock = Clock()
    watch(core, clock)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    address = f"ipc:///tmp/sagellm-step-{os.getpid()}"
    channel = RouterChannel(context, address)
    reader = context.socket(zmq.DEALER)
    reader.setsockopt(zmq.IDENTITY, b"front")
    reader.connect(address)
    reader.send(b"\xc0")  # the router learns who is there from what comes first
    channel._socket.recv_multipart()
    ready = ready_of(core)
    names = ("schedule", "inputs", "plan", "call", "batch", "sample", "runner", "take in", "emit", "outside", "front")
    print(f"{given.model}, {given.dtype}, {given.threads} threads; load {os.getloadavg()[0]:.1f}; medians, us")
    print(f"{'case':20}{'streams':>8}{'step':>9}{'native':>9}" + "".join(f"{name:>9}" for name in names))
    try:
        for streams in given.streams:
            for name in given.only:
                sent = measure(core, clock, channel, b"front", CASES[name], streams, given.steps)
                part = clock.median
                front = asyncio.run(front_cost(spec, path, ready, sent, CASES[name]))
                figures = (
                    *(part("step"), part("native"), part("schedule"), part("inputs"), part("plan")),
                    *(part("model", less=["native"]), part("batch"), part("sample")),
                    part("run", less=["inputs", "plan", "model", "batch", "sample"]),
                    *(part("step", less=["schedule", "run"]), part("emit")),
                    *(part("step", "emit", less=["native"]), front),
                )
                print(f"{name:20}{streams:8}" + "".join(f"{figure:9.0f}" for figure in figures), flush=True)
                while reader.poll(0):
                    reader.recv()
    finally:
        core.stop()
        channel.close(0)
        reader.close(0)
        context.term()
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
