"""Whatever is asked in whatever order, books balance after every step and tokens are those of a request run alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core_harness import Harness, assert_all_free
from fake_executor import FULL, FakeExecutor, alone
from sagellm_core.core.sequence import Finish
from sagellm_core.core.speculation import DraftPolicy
from sagellm_core.offload.host import HostTier
from sagellm_core.offload.layout import BlockLayout
from sagellm_core.offload.shelf import Shelf
from sagellm_protocol import KVSpec


def _host(limit: int) -> Callable[[BlockLayout], Shelf]:
    """Host memory for what the pool gives up."""
    return lambda layout: Shelf([HostTier(limit)])


WINDOWED = KVSpec(1, 2, 2, window=5)
LAYERS = [(FULL,), (WINDOWED,), (FULL, WINDOWED)]
# Prompts are cut from few texts, so that prefixes are shared often.
TEXTS = [[(7 * text + 3 * position) % 96 + 1 for position in range(40)] for text in range(3)]


class CoreMachine(RuleBasedStateMachine):
    @initialize(
        specs=st.sampled_from(LAYERS),
        num_blocks=st.integers(4, 14),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 5),
        spare_tokens=st.integers(0, 12),
        pace=st.sampled_from([(1,), (1,), (1, 3, 1, 2), (2, 0, 1)]),
        luck=st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple),
        adaptive=st.booleans(),
        prefix_caching=st.booleans(),
        kept=st.sampled_from([0, 0, 3, 100]),
        max_adapters=st.integers(1, 2),
    )
    def start(
        self,
        specs: tuple[KVSpec, ...],
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        spare_tokens: int,
        pace: tuple[int, ...],
        luck: tuple[int, ...] | None,
        adaptive: bool,
        prefix_caching: bool,
        kept: int,
        max_adapters: int,
    ) -> None:
        self.windows = tuple(spec.window for spec in dict.fromkeys(specs))
        # What comes of drafts is their own doing, and not of a pace.
        executor = FakeExecutor(*specs, pace=pace) if luck is None else FakeExecutor(*specs, luck=luck, token_s=0.01)
        drafting = None if luck is None else DraftPolicy(4, adaptive=adaptive, clock=executor.clock)
        self.harness = Harness(
            executor,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_tokens,
            prefix_caching=prefix_caching,
            open_shelf=_host(kept * 16 * block_size) if kept and prefix_caching and specs == (FULL,) else None,
            drafting=drafting,
            max_adapters=max_adapters,
        )
        self.harness.adapters.missing = {"gone"}
        self.max_adapters = max_adapters
        self.core = self.harness.core
        self.asked: dict[tuple[int, int], tuple[list[int], int, int | None, str | None]] = {}
        self.tickets = 0
        self.leases: list[tuple[int, list[int]]] = []
        self.ever_leased = False

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, 40),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from([None, None, "a"]),
        eos=st.sampled_from([None, 3, 17, 42]),
        adapter=st.sampled_from([None, None, "a", "b", "c", "gone"]),
    )
    def add(
        self,
        text: list[int],
        length: int,
        max_tokens: int,
        n: int,
        priority: int,
        salt: str | None,
        eos: int | None,
        adapter: str | None,
    ) -> None:
        prompt = text[: min(length, self.core.limits.max_model_len - 1)]
        if not prompt:
            return
        options: dict[str, Any] = {} if eos is None else {"end_ids": (eos,)}
        options["adapter"] = adapter
        self.harness.add(self.tickets, prompt, max_tokens, n=n, priority=priority, cache_salt=salt, **options)
        for index in range(n):
            self.asked[self.tickets, index] = prompt, max_tokens, eos, adapter
        self.tickets += 1

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.harness.settle()
            self.harness.step()

    @rule(count=st.integers(1, 2))
    def read_adapters(self, count: int) -> None:
        self.harness.adapters.finish(count)
        self.harness.settle()

    @rule(key=st.sampled_from(["a", "b", "c"]))
    def forget_adapter(self, key: str) -> None:
        assert self.core.adapters is not None
        self.core.adapters.forget(key)
        self.core.check_integrity()

    @rule(data=st.data(), whole=st.booleans())
    def abort(self, data: st.DataObject, whole: bool) -> None:
        live = sorted(self.asked.keys() - self.harness.endings.keys())
        if live:
            ticket, index = data.draw(st.sampled_from(live))
            self.harness.abort(ticket, None if whole else index)
            assert (ticket, index) in self.harness.endings

    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        # As a transfer would: blocks of known content, whether someone holds them or not.
        group = data.draw(st.integers(0, len(self.windows) - 1))
        pool = self.core._blocks.pools[group]
        known = sorted(pool._by_hash.values())
        if known:
            chosen = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
            pool.lease(chosen)
            self.leases.append((group, chosen))
            self.ever_leased = True
            self.core.check_integrity()

    @rule()
    def end_lease(self) -> None:
        if self.leases:
            group, chosen = self.leases.pop()
            self.core._blocks.pools[group].end_lease(chosen)
            self.core.check_integrity()

    @invariant()
    def states_sum_to_the_total(self) -> None:
        if hasattr(self, "core"):
            stats = self.core.stats()
            states = stats.free_blocks + stats.cached_blocks + stats.used_blocks + stats.leased_blocks
            assert states == stats.total_blocks == self.core.limits.num_blocks * len(self.windows)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        while self.leases:
            self.end_lease()
        self.harness.run()
        self.core.stop()
        assert_all_free(self.core)
        assert self.harness.endings.keys() == self.asked.keys()
        assert self.harness.adapters.most <= self.max_adapters
        for place, asked in self.asked.items():
            self._check(place, *asked)

    def _check(
        self, place: tuple[int, int], prompt: list[int], max_tokens: int, eos: int | None, adapter: str | None
    ) -> None:
        produced, ending = self.harness.tokens[place], self.harness.endings[place]
        room = min(max_tokens, self.core.limits.max_model_len - len(prompt))
        if adapter == "gone":
            assert not produced
            assert ending.finish in (Finish.UNREADABLE, Finish.CANCELLED)
            return
        expected = alone(prompt, room, eos=eos, windows=self.windows, adapter=adapter)
        # An abort, or a pool that leases have made small, may end it early; nothing may change what it said.
        assert produced == expected[: len(produced)]
        if ending.finish is Finish.STOP:
            assert produced == expected
            assert produced[-1] == eos == ending.stop_token
        elif ending.finish is Finish.LENGTH and not self.ever_leased:
            assert produced == expected
        else:
            assert ending.finish in (Finish.LENGTH, Finish.CANCELLED)


CoreMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCore = CoreMachine.TestCase
