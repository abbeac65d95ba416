"""Chat, completion and embedding in one plane: embeddings in batches beside the rest, neither starving the other."""

from __future__ import annotations

from collections.abc import Hashable

from sagellm_control_plane.observing import Subject

from .adaptive import Adaptive
from .base import Key, Policy, Preference, Refusal, Scene

BATCH = 32
SHARE = 0.3
"""Of the turns that embeddings get while both wait."""


class Hybrid(Policy):
    """Two kinds take turns by their shares; a turn of embeddings is a batch of one model, placed together.

    A batch is whatever waits when its turn comes: nothing is held back to fill one, as that would cost every request
    the wait. Within a kind the order is another policy's.

    Args:
        batch: Embedding requests of a turn.
        share: Of turns that are embeddings'.
        inner: The order within a kind; ``adaptive`` if absent.
    """

    def __init__(self, batch: int = BATCH, share: float = SHARE, inner: Policy | None = None) -> None:
        self._batch, self._inner = batch, inner or Adaptive()
        self.reads_load = self._inner.reads_load
        self._stride = {True: 1 / share, False: 1 / (1 - share)}
        self._passed = {True: 0.0, False: 0.0}
        self._waiting = {True: 0, False: 0}
        self._open: tuple[str, int] | None = None

    def lane(self, request: Subject) -> Hashable:
        """A kind, for embeddings a model, and the inner order's lane."""
        return (request.embeds, request.model if request.embeds else "", self._inner.lane(request))

    def rank(self, lane: Hashable, scene: Scene) -> Key:
        """The batch that is open, then the kind whose turn it is."""
        assert isinstance(lane, tuple)
        embeds, model, inner = lane
        in_batch = embeds and self._open is not None and self._open[0] == model
        return (not in_batch, self._passed[embeds], *self._inner.rank(inner, scene))

    def key(self, request: Subject, scene: Scene) -> Key:
        """The inner order's."""
        return self._inner.key(request, scene)

    def phase(self, scene: Scene) -> Hashable:
        """The inner order's."""
        return self._inner.phase(scene)

    def admit(self, request: Subject, scene: Scene) -> Refusal | None:
        """The inner order's."""
        return self._inner.admit(request, scene)

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """The rest of a batch goes where its first went."""
        if request.embeds:
            return Preference.TOGETHER if self._open is not None else Preference.BALANCE
        return self._inner.preference(request, scene)

    def reason(self, scene: Scene) -> str:
        """Both orders."""
        return f"hybrid: embeddings in batches of {self._batch} beside the rest; {self._inner.reason(scene)}"

    def queued(self, request: Subject, now: float) -> None:
        """A kind that was away is owed nothing."""
        embeds = request.embeds
        if not self._waiting[embeds] and self._waiting[not embeds]:
            self._passed[embeds] = max(self._passed[embeds], self._passed[not embeds])
        self._waiting[embeds] += 1
        self._inner.queued(request, now)

    def dropped(self, request: Subject, now: float) -> None:
        """It waits no longer."""
        self._inner.dropped(request, now)
        self._unqueue(request.embeds)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """A turn, or a part of one."""
        self._inner.placed(request, row, now)
        if not request.embeds:
            self._passed[False] += self._stride[False]
        elif self._open is not None and self._open[0] == request.model:
            self._open = (request.model, self._open[1] - 1)
        else:
            self._passed[True] += self._stride[True]
            self._open = (request.model, self._batch - 1)
        if self._open is not None and (self._open[1] <= 0 or not request.embeds):
            self._open = None
        self._unqueue(request.embeds)

    def began(self, request: Subject, row: int, now: float) -> None:
        """The inner order learns."""
        self._inner.began(request, row, now)

    def produced(self, request: Subject, row: int, tokens: int, now: float) -> None:
        """The inner order learns."""
        self._inner.produced(request, row, tokens, now)

    def left(self, request: Subject, row: int, now: float) -> None:
        """The inner order learns."""
        self._inner.left(request, row, now)

    def _unqueue(self, embeds: bool) -> None:
        self._waiting[embeds] -= 1
        if embeds and not self._waiting[True]:
            self._open = None
