"""What happens to requests and engines, told alike by the live plane and the simulator to whatever learns from it.

Learned state (turns taken, prefixes seen, tokens served to a tenant) is a reducer of these calls and of nothing else,
so that what a policy or router has learned is a function of its past.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sagellm_protocol import KVEventBatch

from .board import Board, Role


class Subject(Protocol):
    """A request as policies and routers see it. Times are seconds of one monotonic clock."""

    @property
    def number(self) -> int:
        """Order of arrival; unique."""
        ...

    @property
    def model(self) -> str:
        """The name it asks for."""
        ...

    @property
    def arrived(self) -> float:
        """When it was accepted."""
        ...

    @property
    def deadline(self) -> float | None:
        """When it expires."""
        ...

    @property
    def ttft_slo_s(self) -> float | None:
        """Time to the first token that its caller hopes for."""
        ...

    @property
    def tpot_slo_s(self) -> float | None:
        """Time for each later token that its caller hopes for."""
        ...

    @property
    def priority(self) -> int:
        """Lower is sooner; below zero is more urgent than usual."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt, estimated where they cannot be known."""
        ...

    @property
    def block_hashes(self) -> Sequence[Hashable]:
        """Of the full blocks of its prompt, each naming the whole prefix up to its end; empty where unknown."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens in each of those blocks."""
        ...

    @property
    def cost_budget(self) -> float | None:
        """What the caller is willing to pay, in the currency of the price an hour."""
        ...

    @property
    def user(self) -> str | None:
        """Whose it is."""
        ...

    @property
    def session_id(self) -> str | None:
        """The conversation it belongs to."""
        ...

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter it asks for."""
        ...

    @property
    def embeds(self) -> bool:
        """Whether it is answered in one piece (vectors, scores) rather than token by token."""
        ...

    @property
    def role(self) -> Role:
        """Which part of its work is to be placed."""
        ...

    @property
    def source(self) -> str | None:
        """The engine that holds its blocks, if another computed its prompt."""
        ...


@dataclass(frozen=True)
class EngineWork:
    """What an engine has done since it started; all grow only, until it is started anew."""

    busy_s: float
    """Time in which it had anything to do."""
    prompt_tokens: int
    output_tokens: int
    steps: int | None = None
    """``None`` for an engine that does not tell."""


class Observer:
    """Is told what happens; every method does nothing unless it is overridden. ``row`` is a row of the board."""

    def joined(self, row: int, board: Board) -> None:
        """An engine took a row."""

    def gone(self, row: int) -> None:
        """An engine's row was taken back, with all that it had."""

    def cache_lost(self, row: int) -> None:
        """What an engine had in its cache is lost; it keeps its row."""

    def queued(self, request: Subject, now: float) -> None:
        """A request waits for its turn."""

    def dropped(self, request: Subject, now: float) -> None:
        """A request that waited waits no longer, and was not placed."""

    def placed(self, request: Subject, row: int, now: float) -> None:
        """A request was given an engine."""

    def began(self, request: Subject, row: int, now: float) -> None:
        """Its first token came."""

    def produced(self, request: Subject, row: int, tokens: int, now: float) -> None:
        """It was given that many output tokens."""

    def left(self, request: Subject, row: int, now: float) -> None:
        """It ended there, or moved elsewhere."""

    def measured(self, row: int, work: EngineWork) -> None:
        """An engine tells, every second or so, what it has done since it started."""

    def cache_changed(self, row: int, batch: KVEventBatch) -> None:
        """An engine told what its prefix cache holds."""


class Observers:
    """Several as one; a method costs nothing where none of them overrides it."""

    def __init__(self, candidates: Iterable[object]) -> None:
        found = [one for one in candidates if isinstance(one, Observer)]

        def of(name: str) -> tuple[Callable[..., None], ...]:
            base = getattr(Observer, name)
            return tuple(getattr(one, name) for one in found if getattr(type(one), name) is not base)

        self._calls: dict[str, tuple[Callable[..., None], ...]] = {
            name: of(name) for name in vars(Observer) if not name.startswith("_")
        }

    def tell(self, what: str, *arguments: Any) -> None:
        """Call one method of each.

        Args:
            what: Its name.
            arguments: Its arguments.
        """
        for call in self._calls[what]:
            call(*arguments)

    def calls(self, what: str) -> tuple[Callable[..., None], ...]:
        """The methods of that name that do something, for whoever calls them often."""
        return self._calls[what]
