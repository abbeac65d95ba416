"""The two ends of a transport: the client a front holds, and the channel a core serves.

Knows no particular transport.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol

from sagellm_core.core.loop import EngineCore
from sagellm_protocol.engine import EngineSpec

from .messages import CoreMessage, FrontMessage, Ready

CoreFactory = Callable[[EngineSpec, Path], EngineCore]
"""Makes a core; runs where the core will."""


class Channel(Protocol):
    """A core's end: what fronts send, and the way back to each of them."""

    def receive(self, timeout_s: float) -> Sequence[tuple[Hashable, FrontMessage]]:
        """All that has arrived, with who sent it; waits up to ``timeout_s`` for the first, blocked."""
        ...

    def wake(self) -> None:
        """Have :meth:`receive` return at once, or the next one. Called from any thread."""
        ...

    def send(self, front: Hashable, message: CoreMessage) -> None:
        """Send to one front. Never waits."""
        ...


class CoreClient(Protocol):
    """A front's end. Belongs to the event loop it was started on; its callbacks run there."""

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Ready:
        """Start the core and return once it is ready.

        Args:
            deliver: Takes what the core sends from then on.
            lost: Is told, once, that the core has ended without having been asked to, and why.

        Raises:
            SageLLMError: The core could not start; the root cause. Nothing is left running.
        """
        ...

    def send(self, message: FrontMessage) -> None:
        """Send to the core. Never waits; what is sent to a core that is gone is lost."""
        ...

    async def stop(self) -> None:
        """End the core and release everything. Safe to call twice, and in any state."""
        ...

    def logs(self, lines: int) -> Sequence[str]:
        """The last lines the core wrote; empty where its output is not kept apart."""
        ...
