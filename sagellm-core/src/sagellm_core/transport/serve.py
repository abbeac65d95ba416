"""The core's life: take in what fronts sent, step, send what it brought; blocked while there is nothing to do.

The same wherever the core runs. Knows no particular transport.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from itertools import count
from pathlib import Path

from sagellm_core.core.loop import CoreBroken, EngineCore, Outputs as StepOutputs
from sagellm_core.core.request import CoreOutput, Ending
from sagellm_core.core.sequence import Finish
from sagellm_protocol.errors import ErrorCode

from .adapter_desk import AdapterDesk
from .base import Channel
from .failure import failure_of
from .messages import (
    Abort,
    Add,
    CheckAdapter,
    Control,
    Controlled,
    ForgetAdapter,
    FrontMessage,
    Heartbeat,
    Hello,
    KVChanges,
    Outputs,
    Ping,
    Pong,
    Pool,
    Ready,
    Stop,
    Teach,
    Watch,
    WelcomeAdapter,
)

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""A front hears something at least this often, as long as steps are shorter."""


def serve(core: EngineCore, channel: Channel) -> None:
    """Serve until a front says :class:`~.messages.Stop`.

    Raises:
        CoreBroken: The executor fails whatever it is given.
    """
    service = Service(core, channel)
    while service.turn():
        pass


class Service:
    """A core's life, turn by turn.

    Args:
        core: Served.
        channel: Its end of a transport.
    """

    def __init__(self, core: EngineCore, channel: Channel) -> None:
        self._core = core
        self._channel = channel
        core.wake = channel.wake
        self._ready = _ready(core)
        self._adapters = AdapterDesk(core, channel)
        self._watchers: set[Hashable] = set()
        self._kv_numbers = count()
        self._checked_steps = core.steps
        self._heard: dict[Hashable, float] = {}  # when each front was last sent something

    def turn(self) -> bool:
        """Take in what has arrived, or wait for it where there is nothing to do, and make one step.

        Returns:
            Whether there is another turn: nobody has said :class:`~.messages.Stop`.

        Raises:
            CoreBroken: The executor fails whatever it is given.
        """
        timeout_s = 0.0 if self._core.has_work or self._core.has_chores else HEARTBEAT_S
        arrived = self._channel.receive(timeout_s)
        if timeout_s and not arrived:
            self._check()
        for front, message in arrived:
            if isinstance(message, Stop):
                return False
            self._handle(front, message)
        self._send_all(self._core.settle())
        self._adapters.tell()
        if self._core.has_work:
            self._send_all(self._core.step())
        if self._watchers:
            self._tell_kv()
        self._beat()
        return True

    def _check(self) -> None:
        """After a second of idleness, see that the books balance; once for all steps made since.

        Raises:
            CoreBroken: They do not. Nothing is in flight that would be lost, and the core may be started anew.
        """
        if self._core.steps == self._checked_steps:
            return
        self._checked_steps = self._core.steps
        try:
            self._core.check_integrity()
        except AssertionError as error:
            raise CoreBroken(f"the books of the idle core do not balance: {error}") from error

    def _handle(self, front: Hashable, message: FrontMessage) -> None:
        if isinstance(message, Add):
            try:
                self._core.add(message.request, front)
            except ValueError as error:
                refused = message.request
                self._send_all({front: _refusal(refused.ticket, len(refused.seeds), str(error))})
        elif isinstance(message, Pool):
            try:
                self._core.add_pooled(message.request, front)
            except ValueError as error:
                self._send_all({front: _refusal(message.request.ticket, len(message.request.inputs), str(error))})
        elif isinstance(message, Abort):
            self._send_all(self._core.abort(front, message.ticket, message.index))
        elif isinstance(message, Ping):
            self._heard[front] = time.monotonic()
            self._channel.send(front, Pong(message.number, self._core.stats()))
        elif isinstance(message, Watch):
            self._core.kv_log.watched = True
            self._watchers.add(front)
        elif isinstance(message, Control):
            self._channel.send(front, self._controlled(message))
        elif isinstance(message, Teach):
            self._core.teach(message.vocabulary)
        elif isinstance(message, (CheckAdapter, WelcomeAdapter, ForgetAdapter)):
            self._adapters.handle(front, message)
        elif isinstance(message, Hello):
            self._heard[front] = time.monotonic()
            self._channel.send(front, self._ready)

    def _controlled(self, message: Control) -> Controlled:
        failure = None
        try:
            if message.action == "sleep":
                self._core.sleep(message.level)
            elif message.action == "wake":
                self._core.wake_up()
            else:
                self._core.reload(Path(message.path))
        except Exception as error:  # told to the one who asked; the core is as it was
            failure = failure_of(error)
            if failure.code == ErrorCode.INTERNAL.value:
                logger.exception("cannot %s", message.action)
        self._ready = _ready(self._core)
        return Controlled(message.number, self._ready, failure)

    def _tell_kv(self) -> None:
        changes = self._core.kv_log.take()
        if changes:
            message = KVChanges(next(self._kv_numbers), changes)
            for front in self._watchers:
                self._channel.send(front, message)

    def _send_all(self, outputs: StepOutputs) -> None:
        if outputs:
            now = time.monotonic()
            for front, produced in outputs.items():
                self._heard[front] = now
                self._channel.send(front, Outputs(produced))

    def _beat(self) -> None:
        now = time.monotonic()
        for front, heard in self._heard.items():
            if now - heard >= HEARTBEAT_S:
                self._heard[front] = now
                self._channel.send(front, Heartbeat())


def _refusal(ticket: int, count: int, message: str) -> list[CoreOutput]:
    ending = Ending(Finish.FAILED, None, message, 0, 0.0, 0, 0, None)
    return [CoreOutput(ticket, index, ending=ending) for index in range(count)]


def _ready(core: EngineCore) -> Ready:
    info, limits = core.info, core.limits
    return Ready(
        architecture=info.architecture,
        model_key=info.model_key,
        vocab_size=info.vocab_size,
        eos_token_ids=list(info.eos_token_ids),
        dtype=info.dtype.value,
        device=info.device.to_wire(),
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        block_size=limits.block_size,
        total_blocks=core.stats().total_blocks,
        generates=info.generates,
        embedding_size=info.embedding_size,
        scores=info.scores,
        adapters=core.adapters is not None,
    )
