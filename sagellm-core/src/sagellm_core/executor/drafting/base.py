"""What drafts tokens: the interface of its siblings.

Knows nothing of how drafts are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sagellm_core.executor.base import CacheLayout
from sagellm_core.executor.constraints import Constraints
from sagellm_core.executor.slots import Slots
from sagellm_protocol.backend import KVSpec
from sagellm_protocol.devices import DType

AddDraft = Callable[[int, int], bool]
"""Puts a draft token, the second argument, behind the tokens and drafts of a slot, the first. Where that returns
False the token was not taken, and none can be behind it."""


class Drafter(Protocol):
    """A way of drafting, with what it keeps of each slot."""

    def drop(self, slot: int) -> None:
        """Forget a slot, whether anything is known of it or not."""
        ...

    def propose(self, wanted: Mapping[int, int], add: AddDraft) -> None:
        """Draft tokens, fewer than wanted or none where there is nothing to say.

        Args:
            wanted: For each slot that may have drafts, how many at most; it has none yet.
            add: Takes each, in order of position within a slot.
        """
        ...

    def settle(self, slot: int) -> None:
        """Hear that a slot's drafts have been verified: its tokens are those that the model chose."""
        ...


class DraftStage(Protocol):
    """A way of drafting before the cache is made: what it has loaded, and what it will keep."""

    @property
    def weight_bytes(self) -> int:
        """Bytes its weights occupy."""
        ...

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each of its layers keeps of a token."""
        ...

    def drafter(self, layout: CacheLayout, kv_dtype: DType, slots: Slots, constraints: Constraints) -> Drafter:
        """Make its own cache, if it has one, and begin.

        Args:
            layout: Sizes of the runner's cache.
            kv_dtype: Type that keeps.
            slots: The runner's.
            constraints: The runner's.
        """
        ...
