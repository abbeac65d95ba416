"""What HTTP costs: the same streams through an engine front of this process, and through ``sagellm serve``.

Both serve the same model, each with a core of its own, and are asked in turn, so that a busy machine is busy for both.
The client is a bare reader of sockets, so that it takes little of the cores that are measured; what it takes is told
apart, as is what the serving process (gateway, control plane and engine front; not the core) spends.

    python benchmarks/gateway.py --rounds 3 --json http.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sagellm_core.engine import create
from sagellm_protocol import DeltaEvent, EndEvent, Engine, EngineSpec, Message, Request, SamplingParams, TextPart

DEFAULT_MODEL = "smollm2-135m"
STREAMS = 16
PROMPT = 128
OUTPUT = 128
_WORDS = [
    "river",
    "stone",
    "light",
    "paper",
    "wind",
    "house",
    "table",
    "green",
    "music",
    "salt",
    "morning",
    "bridge",
    "winter",
    "glass",
    "road",
    "garden",
]
_DONE = b"data: [DONE]"
_LAST = b"0\r\n\r\n"


class Answer(NamedTuple):
    """What one stream came to."""

    first_s: float
    """From asking to the first piece of text."""
    events: int
    """Events with text: what the front yielded, or chunks that came over the socket."""
    tokens: int
    prompt_tokens: int


Ask = Callable[[int, str, int], Awaitable[Answer]]
"""Which of the streams, what to ask, tokens to produce."""


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has had, over all its threads; finer than the clock ticks of ``stat``."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Direct:
    """The engine's front in this process; its core in one of its own."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model
        self._asked = 0
        self.pid = os.getpid()

    async def ask(self, stream: int, text: str, tokens: int) -> Answer:
        """Stream one answer."""
        begun, first_s, events = time.perf_counter(), 0.0, 0
        self._asked += 1
        request = Request(
            request_id=f"direct-{self._asked}",
            model=self._model,
            messages=(Message(role="user", content=(TextPart(text=text),)),),
            sampling=SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            stream=True,
        )
        async with aclosing(self._engine.generate(request)) as stream_events:
            async for event in stream_events:
                if isinstance(event, DeltaEvent) and event.text:
                    first_s = first_s or time.perf_counter() - begun
                    events += 1
                elif isinstance(event, EndEvent):
                    return Answer(first_s, events, event.usage.completion_tokens, event.usage.prompt_tokens)
        raise RuntimeError("the engine failed; see its log")

    async def length(self, text: str) -> int:
        """Tokens of a conversation of one turn."""
        request = Request(
            request_id="length", model=self._model, messages=(Message(role="user", content=(TextPart(text=text),)),)
        )
        return len((await self._engine.renderer.render(request)).token_ids)


class Reader(asyncio.Protocol):
    """One kept connection that asks and counts what comes, without parsing it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.received: list[bytes] = []
        self.begun = self.first_s = 0.0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Count chunks with text; an event may lie across two reads."""
        self.received.append(data)
        if not self.first_s:
            if b'"content":"' in data.replace(b'"content":""', b""):
                self.first_s = time.perf_counter() - self.begun
            elif b"HTTP/1.1 " in data and b"HTTP/1.1 200" not in data:
                self._fail(ConnectionError(data.decode(errors="replace")))
        if data.endswith(_LAST) and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """An answer that was not complete will not be."""
        self._fail(ConnectionError(f"the connection closed early ({error})"))

    async def ask(self, body: bytes) -> Answer:
        """Post, and return once the whole answer came."""
        self.received, self.first_s = [], 0.0
        self._done = asyncio.get_running_loop().create_future()
        self.begun = time.perf_counter()
        self.transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        await self._done
        answer = b"".join(self.received)
        if _DONE not in answer or b'"error"' in answer:
            raise ConnectionError(answer[-500:].decode(errors="replace"))
        usage = json.loads(answer[answer.rindex(b'"usage":{') + 8 : answer.rindex(b"}\n\ndata: [DONE]")])
        events = answer.count(b'"content":"') - answer.count(b'"content":""')
        return Answer(self.first_s, events, usage["completion_tokens"], usage["prompt_tokens"])

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class OverHttp:
    """``sagellm serve`` in a process of its own, asked over kept connections."""

    def __init__(self, pid: int, readers: Sequence[Reader], model: str) -> None:
        self.pid = pid
        self._model = model
        self._readers = readers

    async def ask(self, stream: int, text: str, tokens: int) -> Answer:
        """Stream one answer."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return await self._readers[stream].ask(json.dumps(body).encode())


@asynccontextmanager
async def direct(model: str, threads: int) -> AsyncIterator[Direct]:
    """The engine alone."""
    engine = create(EngineSpec(model=model, core="process", threads=threads))
    await engine.start()
    try:
        yield Direct(engine, model)
    finally:
        await engine.stop()


@asynccontextmanager
async def over_http(model: str, threads: int) -> AsyncIterator[OverHttp]:
    """The whole stack, as the command starts it."""
    command = [sys.executable, "-m", "sagellm", "serve", model, "--port", "0", "--threads", str(threads), "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the server did not start; it says why above")
        said = json.loads(line)
        place = urlsplit(said["url"])
        loop = asyncio.get_running_loop()
        links = [await loop.create_connection(Reader, place.hostname, place.port) for _ in range(STREAMS)]
        yield OverHttp(process.pid, [reader for _, reader in links], said["model"])
        for transport, _ in links:
            transport.close()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def texts_of(side: Direct, number: int, tokens: int, dice: random.Random) -> list[str]:
    """Texts whose conversations have about so many tokens; none begins like another."""
    texts = []
    for _ in range(number):
        words = [str(dice.randrange(10**6))]
        while await side.length(" ".join(words)) < tokens:
            words.append(dice.choice(_WORDS))
        texts.append(" ".join(words))
    return texts


class Measured(NamedTuple):
    """One round of one side."""

    tps: float
    events: int
    front_s: float
    """Processor seconds of the process that holds the front."""
    here_s: float
    """Processor seconds of this process: the client's, over HTTP."""


async def measure(pid: int, ask: Ask, texts: Sequence[str], output: int) -> Measured:
    """Ask all at once."""
    front, here, begun = cpu_s(pid), cpu_s(os.getpid()), time.perf_counter()
    answers = await asyncio.gather(*(ask(number, text, output) for number, text in enumerate(texts)))
    took = time.perf_counter() - begun
    short = [answer.tokens for answer in answers if answer.tokens != output]
    if short:
        raise RuntimeError(f"answers of {short} tokens where {output} were asked for")
    return Measured(
        tps=sum(answer.tokens for answer in answers) / took,
        events=sum(answer.events for answer in answers),
        front_s=cpu_s(pid) - front,
        here_s=cpu_s(os.getpid()) - here,
    )


async def compare(engine: Direct, server: OverHttp, rounds: int, requests: int, seed: int) -> dict[str, Any]:
    """Both parts: throughput of many streams, and the first token of one."""
    dice = random.Random(seed)
    sides: dict[str, Direct | OverHttp] = {"direct": engine, "http": server}
    loads: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first of them warms up
        texts = await texts_of(engine, STREAMS, PROMPT, dice)
        for name, side in sides.items():
            measured = await measure(side.pid, side.ask, texts, OUTPUT if number else 8)
            if number:
                loads[name].append(measured)
    firsts: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number, text in enumerate(await texts_of(engine, requests, 0, dice)):
        for name, side in sides.items() if number % 2 else reversed(sides.items()):
            before = cpu_s(side.pid)
            firsts[name].append((await side.ask(0, text, 1)).first_s * 1e3)
            spent[name].append((cpu_s(side.pid) - before) * 1e6)
    ratios = [http.tps / alone.tps for http, alone in zip(loads["http"], loads["direct"], strict=True)]
    figures: dict[str, Any] = {"ratio": statistics.median(ratios), "ratios": ratios}
    for name in sides:
        figures[name] = {
            "tps": statistics.median(one.tps for one in loads[name]),
            # Neighbours only ever add to these.
            "cpu_us_per_event": min(one.front_s / one.events for one in loads[name]) * 1e6,
            "cpu_us_per_request": statistics.median(spent[name]),
            "ttft_ms": statistics.median(firsts[name]),
        }
    figures["client_cpu_us_per_event"] = min(one.here_s / one.events for one in loads["http"]) * 1e6
    figures["ttft_cost_ms"] = statistics.median(
        http - alone for http, alone in zip(firsts["http"], firsts["direct"], strict=True)
    )
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    alone, http = figures["direct"], figures["http"]
    rows = [
        (f"{STREAMS} streams, output tokens a second", "tps", ".1f"),
        ("first token of one stream, short prompt, ms", "ttft_ms", ".2f"),
        ("processor time of the process with the front, us a streamed event", "cpu_us_per_event", ".1f"),
        ("the same, us a request of one token", "cpu_us_per_request", ".0f"),
    ]
    lines = ["| | direct | over HTTP |", "|---|---|---|"]
    lines += [f"| {label} | {alone[key]:{form}} | {http[key]:{form}} |" for label, key, form in rows]
    spread = f"{min(figures['ratios']):.3f} to {max(figures['ratios']):.3f}"
    return "\n".join(
        [
            *lines,
            "",
            f"Throughput over HTTP: {figures['ratio']:.3f} of direct, median of {len(figures['ratios'])} ({spread}). "
            f"First token: {figures['ttft_cost_ms']:+.2f} ms, median of pairs. "
            f"The client spent {figures['client_cpu_us_per_event']:.1f} us an event of its own.",
        ]
    )


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """Start both, measure, stop both."""
    async with direct(given.model, given.threads) as engine, over_http(given.model, given.threads) as server:
        return await compare(engine, server, given.rounds, given.requests, given.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="of 16 streams each way (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="for the first token (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    figures = asyncio.run(run(given))
    print(f"{given.model}, {given.threads} threads; load before {load:.1f}\n\n{table(figures)}")
    if given.json:
        settings = {"model": given.model, "threads": given.threads, "rounds": given.rounds}
        given.json.write_text(json.dumps({**settings, "load": load, **figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
