"""A core's answers to fronts that ask whether an adapter fits: found in another thread, told from the core's own.

Knows no particular transport.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future

from sagellm_core.core.loop import EngineCore
from sagellm_protocol.errors import ErrorCode

from .base import Channel
from .failure import failure_of
from .messages import AdapterChecked, CheckAdapter, Failed, ForgetAdapter, WelcomeAdapter

AdapterMessage = CheckAdapter | WelcomeAdapter | ForgetAdapter


class AdapterDesk:
    """What fronts want of a core's adapters.

    Args:
        core: Whose.
        channel: The way back to them.
    """

    def __init__(self, core: EngineCore, channel: Channel) -> None:
        self._adapters = core.adapters
        self._channel = channel
        self._checked: deque[tuple[Hashable, int, Future[str]]] = deque()

    def handle(self, front: Hashable, message: AdapterMessage) -> None:
        """Act on a message."""
        if isinstance(message, CheckAdapter):
            self._check(front, message)
        elif self._adapters is not None:
            if isinstance(message, WelcomeAdapter):
                self._adapters.welcome(message.adapter)
            else:
                self._adapters.forget(message.key)

    def tell(self) -> None:
        """Answer those whose question was settled."""
        while self._checked:
            front, number, checked = self._checked.popleft()
            problem = checked.exception()
            if problem is None:
                self._channel.send(front, AdapterChecked(number, checked.result()))
            else:
                self._channel.send(front, AdapterChecked(number, failure=failure_of(problem)))

    def _check(self, front: Hashable, message: CheckAdapter) -> None:
        if self._adapters is None:
            failure = Failed(ErrorCode.UNSUPPORTED.value, "this core takes no adapters")
            self._channel.send(front, AdapterChecked(message.number, failure=failure))
            return

        def note(checked: Future[str]) -> None:
            # In the thread that looked.
            self._checked.append((front, message.number, checked))
            self._channel.wake()

        self._adapters.check(message.path).add_done_callback(note)
