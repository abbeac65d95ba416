"""The load that is expected next: requests a second, and the lengths of their prompts and answers."""

from __future__ import annotations

from .predictors import MovingAverage, predictor_named
from .signals import Signals
from .sizing import Demand


class Forecast:
    """Learns from spans.

    Args:
        predictor: Foretells the rate of requests: a name of :mod:`.predictors`. Lengths change slowly, and are means.
    """

    def __init__(self, predictor: str) -> None:
        self._rate = predictor_named(predictor)
        self._prompt, self._answer = MovingAverage(10), MovingAverage(10)

    def observe(self, signals: Signals) -> None:
        """A span has passed."""
        self._rate.observe(signals.arrivals / signals.span_s)
        if signals.arrivals:
            self._prompt.observe(signals.prompt_tokens / signals.arrivals)
        # Before anything has ended, an answer is known to be at least as long as what there is of it.
        answers = signals.ended or signals.in_flight - signals.pending
        if answers > 0 and signals.output_tokens:
            self._answer.observe(signals.output_tokens / answers)

    def demand(self) -> Demand:
        """The load of the next span."""
        rate = self._rate.predict() or 0.0
        return Demand(rate, rate * (self._prompt.predict() or 0.0), rate * self.answer_tokens)

    @property
    def answer_tokens(self) -> float:
        """Tokens of an answer."""
        return self._answer.predict() or 0.0
