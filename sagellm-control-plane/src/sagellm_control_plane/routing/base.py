"""The choice of an engine for one request, as a function of plain values.

Knows nothing of queues or transports. What it reads it must not change; the caller books a choice before it asks for
the next, so that the decisions of one burst see each other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable


class EngineView(Protocol):
    """An engine as a router sees it: read, never changed."""

    @property
    def engine_id(self) -> str:
        """Unique, and the same for the engine's whole life."""
        ...

    @property
    def sequences(self) -> int:
        """Sequences this plane has there."""
        ...

    @property
    def capacity(self) -> int:
        """Sequences that this plane sends there at most."""
        ...

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens sent there whose answer has not begun."""
        ...

    @property
    def held_tokens(self) -> int:
        """Tokens, prompt and output, of the answers under way there."""
        ...

    @property
    def foreign_tokens(self) -> int:
        """Tokens queued and held there on behalf of others, as last reported."""
        ...

    @property
    def latency_s(self) -> float | None:
        """Mean time to the first token of late; absent while unmeasured."""
        ...

    @property
    def throughput_tps(self) -> float | None:
        """Output tokens a second of late; absent while unmeasured."""
        ...

    @property
    def devices(self) -> int:
        """Devices it occupies."""
        ...


class Routed(Protocol):
    """A request as a router sees it."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt, estimated where they cannot be known."""
        ...

    @property
    def user(self) -> str | None:
        """Whose it is."""
        ...

    @property
    def session_id(self) -> str | None:
        """The conversation it belongs to."""
        ...


E = TypeVar("E", bound=EngineView)


@runtime_checkable
class Router(Protocol):
    """A way to choose, made without arguments: by a line of our table or an entry point of ``sagellm.policies``."""

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Choose one of ``engines``: there is at least one, and each could take the request now.

        Args:
            request: What is to be placed.
            engines: In the order in which they were added.
            now: Monotonic seconds.
            rng: The only source of chance.
        """
        ...
