"""Circuit breakers at work: told how attempts fare, they take engines out of the choice and let them be tried again.

An engine that dies is found out by those who watch it; this is for one that lives and fails what it is sent.
"""

from __future__ import annotations

import asyncio
import logging

from sagellm_protocol import ErrorCode, SageLLMError

from .circuit import CircuitState
from .dispatch import Dispatcher
from .fleet import Fleet, Member

log = logging.getLogger(__name__)
TROUBLE = frozenset({ErrorCode.ENGINE_FAILED, ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL})
"""Failures that are the engine's own; other refusals are the request's."""


class Breakers:
    """Opens and closes circuits.

    The last engine of a model that takes requests is never shut out, however it fares: refusing what it might serve
    would help nobody, and a caller whose requests break engines shall not take a model from all the others.

    Args:
        fleet: The engines.
        dispatcher: Told when one may be tried again.
    """

    def __init__(self, fleet: Fleet, dispatcher: Dispatcher) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self.opened = 0
        """Times that any opened."""

    def began(self, member: Member, number: int) -> None:
        """A request was given output."""
        if member.circuit.probe == number:
            log.info("engine %s serves again: its circuit closes", member.engine_id)
            member.circuit.began(number)
            member.refresh()

    def succeeded(self, member: Member, number: int) -> None:
        """A request was completed."""
        self.began(member, number)
        member.circuit.succeeded()

    def failed(self, member: Member, number: int, error: SageLLMError) -> None:
        """An attempt failed."""
        if error.code in TROUBLE and member.circuit.failed(number):
            if self._spared(member):
                self._open(member)
            else:
                self._let_in(member)

    def fleet_changed(self) -> None:
        """Let engines in whose model has no other left."""
        for member in self._fleet:
            if member.circuit.state is not CircuitState.CLOSED and not self._spared(member):
                self._let_in(member)

    def _spared(self, member: Member) -> bool:
        """Whether every name that it serves has another engine that takes requests."""
        return all(
            any(other.ready for other in self._fleet.serving(name) if other is not member) for name in member.names
        )

    def _let_in(self, member: Member) -> None:
        member.circuit.reset()
        member.refresh()

    def _open(self, member: Member) -> None:
        member.circuit.open()
        self.opened += 1
        member.refresh()
        log.warning("engine %s fails what it is sent: nothing is, for %g s", member.engine_id, member.circuit.open_s)
        asyncio.get_running_loop().call_later(member.circuit.open_s, self._half_open, member)

    def _half_open(self, member: Member) -> None:
        if member.circuit.state is CircuitState.OPEN and member.row is not None:
            member.circuit.half_open()
            member.refresh()
            self._dispatcher.pump()
