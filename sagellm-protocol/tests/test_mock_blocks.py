"""Whatever is asked of a mock engine and however it ends, its blocks add up and all come back."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings, strategies as st

from sagellm_protocol import EngineSpec, Request
from sagellm_protocol.testing import MockEngine, VirtualClock, check_stream

ASKED = st.fixed_dictionaries(
    {
        "prompt": st.integers(1, 70).flatmap(lambda length: st.sampled_from([(1,) * length, (1, 2) * length])),
        "n": st.integers(1, 3),
        "output": st.integers(1, 60),
        "priority": st.integers(-1, 1),
        "deadline_ms": st.sampled_from([None, None, 40.0]),
        "leave_after": st.sampled_from([None, None, 0, 1, 7]),
        "arrives_s": st.sampled_from([0.0, 0.005, 0.05]),
    }
)
ENGINE = st.fixed_dictionaries(
    {
        "max_num_seqs": st.integers(3, 8),
        "max_num_batched_tokens": st.integers(8, 40),
        "block_size": st.integers(1, 16),
        "prefix_caching": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(ASKED, min_size=1, max_size=8), spec=ENGINE, total_blocks=st.integers(1, 40))
async def test_blocks_add_up_and_come_back(asked: list[dict], spec: dict, total_blocks: int) -> None:
    clock = VirtualClock()
    options = {"total_blocks": total_blocks, "prefill_tokens_per_s": 2000, "itl_ms": 1.0}
    engine = MockEngine(EngineSpec(engine="mock", model="m", options=options, **spec), clock)
    await engine.start()

    async def ask(number: int, wanted: dict) -> None:
        await clock.sleep(wanted["arrives_s"])
        request = Request(
            request_id=f"r{number}",
            model="m",
            prompt_token_ids=wanted["prompt"],
            priority=wanted["priority"],
            slo=None if wanted["deadline_ms"] is None else {"deadline_ms": wanted["deadline_ms"]},
            sampling={"n": wanted["n"], "max_tokens": wanted["output"], "ignore_eos": True},
        )
        stream, events = engine.generate(request), []
        async for event in stream:
            events.append(event)
            stats = await engine.stats()
            parts = (stats.free_blocks, stats.cached_blocks, stats.used_blocks, stats.leased_blocks)
            assert min(parts) >= 0
            assert sum(parts) == total_blocks
            if wanted["leave_after"] is not None and len(events) > wanted["leave_after"]:
                await stream.aclose()
                return
        check_stream(events, request)

    await asyncio.wait_for(asyncio.gather(*(ask(number, wanted) for number, wanted in enumerate(asked))), 60)
    stats = await engine.stats()
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
    ended = (stats.completed, stats.failed, stats.cancelled, stats.expired, stats.refused)
    assert sum(ended) == len(asked)
    assert stats.failed == 0
    await engine.stop()
