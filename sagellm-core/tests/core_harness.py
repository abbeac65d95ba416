"""Drives an ``EngineCore`` over the fake executor and keeps what came out."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

from fake_adapters import FakeAdapters, ref
from fake_executor import FakeExecutor
from sagellm_core.adapters.base import AdapterRef
from sagellm_core.core.adapter_places import AdapterPlaces
from sagellm_core.core.loop import EngineCore, Outputs
from sagellm_core.core.plan import StepPlan, TokenSampling
from sagellm_core.core.request import Beginning, CoreOutput, CoreRequest, Ending
from sagellm_core.core.sizing import CoreLimits

LONG_S = 20.0


class Harness:
    """One core; every output is gathered by ticket and index, and the books are checked after every step."""

    def __init__(
        self,
        executor: FakeExecutor | None = None,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int | None = None,
        max_adapters: int | None = None,
        **options: Any,
    ) -> None:
        self.executor = executor or FakeExecutor()
        length = max_model_len or num_blocks * block_size
        limits = CoreLimits(num_blocks, block_size, max_num_seqs, max_num_batched_tokens, length)
        self.adapters = FakeAdapters(self.executor)
        if max_adapters is not None:
            options["adapters"] = AdapterPlaces(self.adapters, max_adapters)
        self.core = EngineCore(self.executor, limits, **options)
        self.woken = threading.Event()
        self.core.wake = self.woken.set
        self.tokens: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.beginnings: dict[tuple[int, int], Beginning] = {}
        self.endings: dict[tuple[int, int], Ending] = {}

    @property
    def last_plan(self) -> StepPlan:
        return self.executor.plans[-1]

    def add(
        self,
        ticket: int,
        prompt: list[int],
        max_tokens: int = 8,
        *,
        n: int = 1,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: str | AdapterRef | None = None,
        **sampling: Any,
    ) -> None:
        request = CoreRequest(
            ticket,
            prompt,
            list(range(n)),
            max_tokens,
            TokenSampling(**sampling),
            priority,
            cache_salt,
            adapter=ref(adapter) if isinstance(adapter, str) else adapter,
        )
        self.core.add(request)

    def step(self) -> Outputs:
        return self._keep(self.core.step())

    def settle(self) -> list[CoreOutput]:
        return self._keep(self.core.settle()).get(None, [])

    def abort(self, ticket: int, index: int | None = None) -> Outputs:
        return self._keep(self.core.abort(None, ticket, index))

    def run(self, most_steps: int = 2000) -> None:
        """Do as a server does until nothing is in flight: settle, step, and wait to be woken where neither helps."""
        for _ in range(most_steps):
            self.adapters.finish()
            self.settle()
            if not self.core.in_flight:
                return
            self.step()  # also where leases had stalled it, which tests end behind its back
            if self._only_waits():
                assert self.woken.wait(LONG_S), "nothing comes"
                self.woken.clear()
        raise AssertionError(f"{self.core.in_flight} requests are still in flight after {most_steps} steps")

    def _only_waits(self) -> bool:
        """Whether all that is left to do is to wait for blocks that are being read."""
        offload = self.core._offload
        return offload is not None and offload._loading > 0 and not (self.core.has_work or self.core.has_chores)

    def _keep(self, outputs: Outputs) -> Outputs:
        for output in outputs.get(None, []):
            place = output.ticket, output.index
            assert place not in self.endings, "something came after the end"
            self.tokens[place].extend(output.token_ids)
            if output.beginning is not None:
                assert place not in self.beginnings
                self.beginnings[place] = output.beginning
            if output.ending is not None:
                self.endings[place] = output.ending
        self.core.check_integrity()
        return outputs


def assert_all_free(core: EngineCore) -> None:
    """Nobody holds anything any more."""
    stats = core.stats()
    assert (stats.used_blocks, stats.leased_blocks, stats.running, stats.waiting) == (0, 0, 0, 0)
    assert stats.free_blocks + stats.cached_blocks == stats.total_blocks
