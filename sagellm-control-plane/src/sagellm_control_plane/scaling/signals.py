"""What happened to a model's requests in a span of time, learned from the events that all observers are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagellm_control_plane.board import Board
from sagellm_control_plane.observing import EngineWork, Observer, Subject

from .costs import CostMeter


@dataclass(frozen=True)
class Signals:
    """One span. Times are seconds; what was not observed is ``None``."""

    span_s: float
    arrivals: int
    prompt_tokens: int
    """Of those that arrived."""
    output_tokens: int
    """Produced by all."""
    ended: int
    ttft_s: float | None
    """Mean, of those that began."""
    itl_s: float | None
    """Mean: time that answers spent under way, divided by the tokens they grew by."""
    concurrency: float
    """Requests in flight, the mean over the span."""
    pending: int
    """Requests that have not begun, at its end."""
    pending_tokens: int
    """Of their prompts."""
    in_flight: int
    """At its end."""
    idle_s: float
    """For so long, at its end, nothing was in flight."""


class SignalMeter(Observer):
    """Counts for the requests of one model, and measures the engines that serve it.

    Costs nothing a token: the time between tokens follows from how long answers are under way (Little's law).

    Args:
        serves: Whether requests for a name count.
        owns: Whether the engine of a row does.
    """

    def __init__(self, serves: Callable[[str], bool], owns: Callable[[int], bool]) -> None:
        self.costs = CostMeter()
        self._serves, self._owns = serves, owns
        self._pending: dict[int, int] = {}
        self._begun: set[int] = set()
        self._produced: dict[int, int] = {}
        self._since = self._moved = self._busy_at = 0.0
        self.started = False
        """Whether a span is under way."""
        self._reset()

    def _reset(self) -> None:
        self._arrivals = self._prompt_tokens = self._output_tokens = self._ended = self._begins = 0
        self._ttft_s = self._decoding = self._flying = 0.0

    # --- what happens -------------------------------------------------------------------------------------------------

    def queued(self, request: Subject, now: float) -> None:
        """A request waits for its turn, be it again after a failure: it is work once more."""
        if not self._serves(request.model):
            return
        self._move(now)
        self._arrivals += 1
        self._prompt_tokens += request.prompt_tokens
        self._pending[request.number] = request.prompt_tokens

    def dropped(self, request: Subject, now: float) -> None:
        """It waits no longer, and was not placed."""
        if request.number in self._pending:
            self._move(now)
            del self._pending[request.number]

    def began(self, request: Subject, row: int, now: float) -> None:
        """Its first token came."""
        if request.number in self._pending:
            self._move(now)
            del self._pending[request.number]
            self._begun.add(request.number)
            self._begins += 1
            self._ttft_s += now - request.arrived

    def left(self, request: Subject, row: int, now: float) -> None:
        """It ended, or moved elsewhere."""
        begun = request.number in self._begun
        if begun or request.number in self._pending:
            self._move(now)
            self._pending.pop(request.number, None)
            self._begun.discard(request.number)
            self._ended += begun

    def measured(self, row: int, work: EngineWork) -> None:
        """An engine tells what it has done since it started."""
        if not self._owns(row):
            return
        self.costs.measured(row, work)
        before = self._produced.get(row)
        self._produced[row] = work.output_tokens
        if before is not None and work.output_tokens > before:
            self._output_tokens += work.output_tokens - before

    def joined(self, row: int, board: Board) -> None:
        """An engine took a row: whatever was known of the row's last one is not of this one."""
        self.gone(row)

    def gone(self, row: int) -> None:
        """An engine left."""
        self._produced.pop(row, None)
        self.costs.gone(row)

    # --- what is asked ------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return len(self._pending) + len(self._begun)

    @property
    def pending(self) -> int:
        """Requests that have not begun."""
        return len(self._pending)

    def begin(self, now: float) -> None:
        """Count from now on."""
        self._since = self._moved = self._busy_at = now
        self.started = True
        self._reset()

    def span_s(self, now: float) -> float:
        """How long the present span is."""
        return now - self._since

    def take(self, now: float) -> Signals:
        """Close the span and begin the next."""
        self._move(now)
        span = max(now - self._since, 1e-9)
        signals = Signals(
            span_s=span,
            arrivals=self._arrivals,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            ended=self._ended,
            ttft_s=self._ttft_s / self._begins if self._begins else None,
            itl_s=self._decoding / self._output_tokens if self._output_tokens else None,
            concurrency=self._flying / span,
            pending=len(self._pending),
            pending_tokens=sum(self._pending.values()),
            in_flight=self.in_flight,
            idle_s=0.0 if self.in_flight else now - self._busy_at,
        )
        self._since = now
        self._reset()
        return signals

    def _move(self, now: float) -> None:
        """Let time pass for the sums over it, before anything changes."""
        if not self.started:
            self.begin(now)
        passed, self._moved = now - self._moved, now
        flying = self.in_flight
        self._decoding += passed * len(self._begun)
        self._flying += passed * flying
        if flying:
            self._busy_at = now
