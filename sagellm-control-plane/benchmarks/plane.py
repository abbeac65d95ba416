"""CPU that the plane itself costs a request and an event, over what its engine costs; and a decision as engines grow.

::

    python benchmarks/plane.py
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from sagellm_control_plane.board import Board, Place, Role
from sagellm_control_plane.routing import TABLE, Router
from sagellm_control_plane.service import ControlPlaneService, create
from sagellm_protocol import EngineSpec, Request, SamplingParams
from sagellm_protocol.interfaces import Engine

_IDS = itertools.count()


def ask(tokens: int) -> Request:
    """A request whose answer has that many tokens."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return Request(request_id=f"r{next(_IDS)}", model="m", prompt="hello", sampling=sampling)


async def cost(target: ControlPlaneService | Engine, requests: int, tokens: int, at_once: int = 8) -> float:
    """CPU seconds a request."""

    async def one() -> None:
        stream = target.submit if isinstance(target, ControlPlaneService) else target.generate
        async for _ in stream(ask(tokens)):
            pass

    await asyncio.gather(*(one() for _ in range(at_once)))
    began = time.process_time()
    for _ in range(requests // at_once):
        await asyncio.gather(*(one() for _ in range(at_once)))
    return (time.process_time() - began) / requests


@dataclass
class Asked:
    """A request as a router sees it."""

    number: int = 1
    model: str = "m"
    arrived: float = 0.0
    deadline: float | None = None
    ttft_slo_s: float | None = 1.0
    tpot_slo_s: float | None = 0.1
    priority: int = 0
    prompt_tokens: int = 2048
    block_hashes: Sequence[Hashable] = tuple(range(32))
    block_size: int = 64
    cost_budget: float | None = None
    user: str | None = "someone"
    session_id: str | None = None
    adapter: str | None = "french"
    embeds: bool = False
    role: Role = Role.BOTH
    source: str | None = "e0"


def decision_us(make: Callable[[], Router], engines: int, rng: random.Random) -> float:
    """CPU microseconds of a choice and of learning from it, among so many engines."""
    board, router, rounds = Board(), make(), 500
    for number in range(engines):
        row = board.join(f"e{number}", Place(host=f"h{number // 8}"))
        board.queued_tokens[row] = number
        router.joined(row, board)
    rows = np.arange(engines)
    began = time.process_time()
    for number in range(rounds):
        request = Asked(number, block_hashes=tuple(range(number % 50, number % 50 + 32)))
        router.placed(request, router.choose(request, board, rows, 0.0, rng), 0.0)
        router.left(request, 0, 0.0)
    return (time.process_time() - began) / rounds * 1e6


async def overhead(launcher: str, requests: int, tokens: int) -> tuple[float, float, float]:
    """CPU microseconds: the plane's own a request and an event, and all of this process's an event."""
    plane = create()
    await plane.start()
    await plane.start_engine(EngineSpec(engine="mock", model="m"), launcher, engine_id="e")
    engine = plane.fleet.member("e").engine
    assert engine is not None
    own = [await cost(engine, requests, n) for n in (1, 1 + tokens)]
    through = [await cost(plane, requests, n) for n in (1, 1 + tokens)]
    await plane.stop()
    extra = [(b - a) * 1e6 for a, b in zip(own, through, strict=True)]
    return extra[0], (extra[1] - extra[0]) / tokens, (through[1] - through[0]) / tokens * 1e6


async def main(requests: int, tokens: int) -> None:
    """Print both tables."""
    print("the plane's own CPU, by where its engine runs:")
    for launcher, where in (("local", "in this process"), ("subprocess", "behind HTTP")):
        request, event, whole = await overhead(launcher, requests, tokens)
        print(f"{where:16} {request:4.0f} us a request, {event:4.1f} us an event; {whole:.1f} us an event in all")
    print(f"\n{'us a decision':18}" + "".join(f"{n:>10}" for n in (1, 8, 64, 1000)))
    rng = random.Random(0)
    for name, make in TABLE.items():
        print(f"{name:18}" + "".join(f"{decision_us(make, n, rng):10.1f}" for n in (1, 8, 64, 1000)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.requests, arguments.tokens))
