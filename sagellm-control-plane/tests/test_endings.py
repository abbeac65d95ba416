"""Whatever arrives, is cancelled or fails: each accepted request ends once, counts add up, nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ask, mock
from sagellm_control_plane.hedging import LEAST_KNOWN
from sagellm_control_plane.policies import TABLE as POLICIES
from sagellm_control_plane.routing import TABLE as ROUTERS
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.settings import PlaneSettings
from sagellm_protocol import SLO, DeltaEvent, EndEvent, EngineState, ErrorEvent, StreamEvent, is_terminal
from sagellm_protocol.testing.mock.text import answer, encode
from sagellm_protocol.testing.mock_engine import MockEngine

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Client:
    """What one caller does."""

    name: str
    prompt: int
    tokens: int
    choices: int
    priority: int
    deadline_ms: float | None
    leaves_after: int | None
    """Events after which it closes its stream."""
    cancels_after: int | None
    """Turns of the loop after which it cancels its id."""
    arrives_after: int
    greedy: bool = False


clients = st.builds(
    Client,
    name=st.sampled_from("abcde"),
    prompt=st.integers(1, 80),
    tokens=st.integers(1, 12),
    choices=st.integers(1, 3),
    priority=st.integers(-2, 2),
    deadline_ms=st.none() | st.just(0.01) | st.just(5000.0),
    leaves_after=st.none() | st.integers(0, 4),
    cancels_after=st.none() | st.integers(0, 20),
    arrives_after=st.integers(0, 20),
    greedy=st.booleans(),
)
troubles = st.sampled_from(
    [
        {},
        {},
        {"fail_after_tokens": 0},
        {"fail_after_tokens": 3},
        {"die_after_tokens": 0},
        {"die_after_tokens": 9},
        {"hang_after_tokens": 5},
        {"refuse": "unavailable"},
        {"refuse": "queue_full"},
        {"refuse": "invalid_request"},
        {"max_waiting": 0},
        {"total_blocks": 8},
        {"itl_ms": 0.5},
    ]
)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def be(client: Client, plane: ControlPlaneService) -> list[StreamEvent] | None:
    """Events that a client saw; ``None`` if it left before the end."""
    await turns(client.arrives_after)
    slo = None if client.deadline_ms is None else SLO(deadline_ms=client.deadline_ms)
    request = ask(
        request_id=client.name, prompt="x" * client.prompt, max_tokens=client.tokens, slo=slo, priority=client.priority
    )
    sampling = request.sampling.model_copy(update={"n": client.choices, "temperature": 0.0 if client.greedy else 1.0})
    stream = plane.submit(request.model_copy(update={"sampling": sampling}))
    seen: list[StreamEvent] = []
    async for event in stream:
        seen.append(event)
        if client.leaves_after is not None and len(seen) > client.leaves_after and not is_terminal(event):
            await stream.aclose()
            return None
    return seen


def check_text(client: Client, seen: list[StreamEvent]) -> None:
    """However often an answer was begun anew, what was read of it is its beginning, each token once."""
    script = encode(answer(encode("x" * client.prompt)))
    for index in range(client.choices):
        deltas = [event for event in seen if isinstance(event, DeltaEvent) and event.index == index]
        tokens = [token for event in deltas for token in event.token_ids]
        assert tokens == [script[at % len(script)] for at in range(len(tokens))]
        assert "".join(event.text for event in deltas) == bytes(tokens).decode()
        if isinstance(seen[-1], EndEvent):
            assert len(tokens) <= client.tokens


async def cancel(client: Client, plane: ControlPlaneService) -> None:
    if client.cancels_after is not None:
        await turns(client.arrives_after + client.cancels_after)
        await plane.cancel(client.name)


async def scenario(
    crowd: list[Client],
    engines: list[dict[str, Any]],
    blows: list[tuple[str, int]],
    policy: str,
    router: str,
    seats: int,
    hedge: float | None,
) -> None:
    options = PlaneSettings(
        policy=policy,
        routing=router,
        max_queued=6,
        queue_timeout_s=0.3,
        poll_interval_s=0.02,
        poll_timeout_s=1.0,
        restart_backoff_s=0.0,
        max_restarts=1,
        slack=0.0,
        breaker_failures=2,
        breaker_open_s=0.02,
        hedge_percentile=hedge,
    )
    plane = ControlPlaneService(options, rng=random.Random(0))
    if plane.attempts.hedger is not None:
        for _ in range(LEAST_KNOWN):
            plane.attempts.hedger.delays.note("m", 0.0)
    await plane.start()
    for number, trouble in enumerate(engines):
        await plane.start_engine(mock(max_num_seqs=seats, **trouble), engine_id=f"e{number}")

    async def strike(blow: str, number: int) -> None:
        await turns(10 + number)
        member = plane.fleet.get(f"e{number}")
        if member is None:
            return
        if blow == "stop":
            await plane.stop_engine(member.engine_id)
        elif blow == "drain" and member.state is EngineState.READY:
            plane.crew.begin_drain(member)
        elif blow == "die" and isinstance(member.engine, MockEngine):
            member.engine.die("struck")

    answers = [asyncio.create_task(be(client, plane)) for client in crowd]
    others = [asyncio.create_task(cancel(client, plane)) for client in crowd]
    others += [asyncio.create_task(strike(*blow)) for blow in blows]
    done, late = await asyncio.wait(answers, timeout=1.5)
    # What an engine that hangs still holds is nobody's fault here: it ends when the plane stops.
    await plane.stop()
    for client, seen in zip(crowd, await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S), strict=True):
        if seen is not None:
            assert [is_terminal(event) for event in seen].count(True) == 1
            assert is_terminal(seen[-1])
            check_text(client, seen)
    assert not late or any("hang_after_tokens" in trouble for trouble in engines)
    await asyncio.gather(*others)
    status = plane.status_now()
    assert status.in_flight == status.queued == 0
    assert status.accepted == sum(status.ended.values())
    assert status.accepted + status.refused_early == len(crowd)
    assert plane.dispatcher.placed == len(plane.dispatcher.queue) == 0
    assert len(done) + len(late) == len(crowd)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    crowd=st.lists(clients, min_size=1, max_size=16),
    engines=st.lists(troubles, min_size=1, max_size=3),
    blows=st.lists(st.tuples(st.sampled_from(["stop", "drain", "die"]), st.integers(0, 2)), max_size=2),
    policy=st.sampled_from(sorted(POLICIES)),
    router=st.sampled_from(sorted(ROUTERS)),
    seats=st.integers(1, 4),
    hedge=st.none() | st.just(0.5),
)
def test_every_request_ends_once_whatever_happens(
    crowd: list[Client],
    engines: list[dict[str, Any]],
    blows: list[tuple[str, int]],
    policy: str,
    router: str,
    seats: int,
    hedge: float | None,
) -> None:
    asyncio.run(scenario(crowd, engines, blows, policy, router, seats, hedge))


def test_loads_return_to_nothing_after_a_mixed_crowd() -> None:
    async def run() -> None:
        plane = ControlPlaneService(PlaneSettings(slack=0.0, max_queued=1000))
        await plane.start()
        for name in "ab":
            await plane.start_engine(mock(max_num_seqs=3, itl_ms=0.2), engine_id=name)
        crowd = [
            Client(f"c{i}", 5, 1 + i % 7, 1 + i % 3, 0, None, i % 5 if i % 4 == 0 else None, None, i % 9)
            for i in range(80)
        ]
        seen = await asyncio.wait_for(asyncio.gather(*(be(client, plane) for client in crowd)), PATIENCE_S)
        assert not any(isinstance(events[-1], ErrorEvent) for events in seen if events is not None)
        for member in plane.fleet:
            load = member.load
            assert (load.sequences, load.queued_tokens, load.held_tokens) == (0, 0, 0)
            assert load.throughput_tps is None or load.throughput_tps > 0
        await plane.stop()

    asyncio.run(run())
