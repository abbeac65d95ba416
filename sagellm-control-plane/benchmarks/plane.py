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
from dataclasses import dataclass

from sagellm_control_plane.routing import TABLE
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
class View:
    """An engine as a router sees it."""

    engine_id: str
    sequences: int = 0
    capacity: int = 256
    queued_tokens: int = 0
    held_tokens: int = 0
    foreign_tokens: int = 0
    latency_s: float | None = None
    throughput_tps: float | None = None
    devices: int = 1


@dataclass
class Routed:
    """A request as a router sees it."""

    prompt_tokens: int = 100
    user: str | None = "someone"
    session_id: str | None = None


async def main(requests: int, tokens: int) -> None:
    """Print both tables."""
    plane = create()
    await plane.start()
    await plane.start_engine(EngineSpec(engine="mock", model="m"), engine_id="e")
    engine = plane.fleet.member("e").engine
    assert engine is not None
    own = [await cost(engine, requests, n) for n in (1, 1 + tokens)]
    through = [await cost(plane, requests, n) for n in (1, 1 + tokens)]
    await plane.stop()
    extra = [b - a for a, b in zip(own, through, strict=True)]
    an_event = (extra[1] - extra[0]) / tokens
    print(f"the plane's own CPU: {extra[0] * 1e6:.0f} us a request, {an_event * 1e6:.1f} us an event")
    print(f"\n{'us a decision':16}" + "".join(f"{n:>10}" for n in (1, 8, 64, 1000)))
    rng = random.Random(0)
    for name, make in TABLE.items():
        row = []
        for n in (1, 8, 64, 1000):
            engines, router, rounds = [View(f"e{i}", queued_tokens=i) for i in range(n)], make(), max(20, 2000 // n)
            began = time.process_time()
            for _ in range(rounds):
                router.choose(Routed(), engines, 0.0, rng)
            row.append((time.process_time() - began) / rounds * 1e6)
        print(f"{name:16}" + "".join(f"{value:10.1f}" for value in row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.requests, arguments.tokens))
