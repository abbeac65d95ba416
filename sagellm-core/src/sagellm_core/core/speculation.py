"""How many tokens to draft for each sequence: as many as pay, by what steps were measured to cost and drafts to bring.

A draft costs the time it adds to a step, and brings a token if it is accepted, which is worth what a token costs in a
step without drafts. So the next draft pays while the chance that all drafts before it and itself are accepted exceeds
its price: seconds it adds, divided by seconds a token costs without. Where reading the weights is most of a step (a
stream or two on a CPU) the price is a few per cent; where products are (many streams) it nears or passes one, and
nothing is drafted. Prices are measured at each number of sequences, chances for each sequence.

Knows nothing of who drafts. Pure decisions over counts and a clock that is passed in.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

SAMPLES = 3
"""Measured steps of a kind that make it known."""
KEPT = 12
"""Measured steps of a kind that are remembered."""
PLAIN_EVERY = 64
"""Steps after which one goes without drafts, so that its cost stays known."""
PRICE_LASTS = 1024
"""Steps without a draft after which the price is measured anew."""
FIRST_REST, LONGEST_REST = 8, 256
"""Tokens that a sequence makes without drafts where they do not pay, before it tries again; doubled each time."""

_MARGIN = 0.9
"""Of a chance that a draft pays with: a gain of less is within what measurements are wrong by."""
_FADE = 0.9
_WEIGHT = 2.0
"""Drafts' worth of weight that other sequences' chances have beside a sequence's own."""


@dataclass
class Chance:
    """The share of drafts that are accepted of those that were looked at; old ones fade."""

    accepted: float = 0.0
    looked_at: float = 0.0

    def note(self, accepted: int, looked_at: int, fade: float) -> None:
        """Take in what became of some drafts."""
        self.accepted = self.accepted * fade + accepted
        self.looked_at = self.looked_at * fade + looked_at

    def given(self, prior: float) -> float:
        """The share, where ``prior`` is expected of one of which nothing is known."""
        return (self.accepted + _WEIGHT * prior) / (self.looked_at + _WEIGHT)


@dataclass
class Drafting:
    """What drafts brought one sequence.

    Attributes:
        drafted: Draft tokens that were verified.
        accepted: Those that were accepted.
        chance: Of the next one.
        rests_until: Length of the sequence before which it has none; 0 where it does not rest.
        trying: A rest is over, and the next draft tells whether another begins.
        rest: How long its next rest is.
    """

    drafted: int = 0
    accepted: int = 0
    chance: Chance = field(default_factory=Chance)
    rests_until: int = 0
    trying: bool = False
    rest: int = FIRST_REST


@dataclass
class _Costs:
    """Measured steps of one number of sequences: seconds without drafts; seconds that drafts added, and how many."""

    plain: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    added: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=KEPT))
    since_plain: int = 0
    since_draft: int = 0

    def price(self, rows: int) -> float | None:
        """What a draft costs, in tokens; ``None`` where that is not known."""
        if len(self.added) < SAMPLES:
            return None
        # A neighbour on the machine, or a text that had to be read first, makes single steps long.
        fair = sorted(self.added, key=lambda one: one[0] / one[1])[: math.ceil(len(self.added) * 0.75)]
        each = sum(seconds for seconds, _ in fair) / sum(drafts for _, drafts in fair)
        return max(0.0, each) * rows / median(self.plain)


class DraftPolicy:
    """Decides step after step.

    Args:
        tokens: Most drafts of a sequence in a step.
        adaptive: Decide by what pays; otherwise all have as many as there is room for.
        clock: Monotonic seconds, as :meth:`note` is given differences of.

    Attributes:
        drafted: Draft tokens that were verified, ever.
        accepted: Those that were accepted.
    """

    def __init__(self, tokens: int, *, adaptive: bool = True, clock: Callable[[], float] = time.perf_counter) -> None:
        self.tokens = tokens
        self.clock = clock
        self.drafted = 0
        self.accepted = 0
        self._adaptive = adaptive
        self._everyone = Chance(accepted=3.0, looked_at=4.0)  # hopeful, until something is known
        self._costs: dict[int, _Costs] = {}

    def begin(self, rows: int) -> Terms:
        """Decide for a step in which ``rows`` sequences have their next token made."""
        if not self._adaptive:
            return Terms(self.tokens, 0.0, 1.0)
        costs = self._costs.setdefault(rows, _Costs())
        if len(costs.plain) < SAMPLES or costs.since_plain >= PLAIN_EVERY:
            return Terms(0, 1.0, 0.0)
        if costs.since_draft >= PRICE_LASTS:
            costs.added.clear()
            costs.since_draft = 0
        return Terms(self.tokens, costs.price(rows), self._everyone.given(0.5))

    def note(self, rows: int, seconds: float, results: Iterable[tuple[Drafting, int, int, int]], *, pure: bool) -> None:
        """Take in what a step cost and brought.

        Args:
            rows: As :meth:`begin` was told.
            seconds: It took.
            results: For each of them what is known of it, its length now, its drafts and those accepted.
            pure: Nothing but next tokens was computed, so that other such steps take as long.
        """
        total = 0
        for drafting, length, drafted, accepted in results:
            if not drafted:
                continue
            total += drafted
            self._take_in(drafting, drafted, accepted)
            if drafting.trying:
                drafting.trying = False
                drafting.rest = FIRST_REST if accepted else min(LONGEST_REST, drafting.rest * 2)
                drafting.rests_until = 0 if accepted else length + drafting.rest
        self._measure(rows, seconds, total, pure)

    def _take_in(self, drafting: Drafting, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted
        drafting.drafted += drafted
        drafting.accepted += accepted
        looked_at = min(drafted, accepted + 1)  # those behind the first that was rejected say nothing
        drafting.chance.note(accepted, looked_at, _FADE)
        self._everyone.note(accepted, looked_at, _FADE**0.1)

    def _measure(self, rows: int, seconds: float, drafts: int, pure: bool) -> None:
        costs = self._costs.get(rows)
        if costs is None or not pure:
            return
        if not drafts:
            costs.plain.append(seconds)
            costs.since_plain = 0
            costs.since_draft += 1
            return
        costs.since_plain += 1
        costs.since_draft = 0
        # What few drafts among many sequences add is lost in the noise.
        if costs.plain and drafts >= min(self.tokens, max(2, rows // 4)):
            costs.added.append((seconds - median(costs.plain), drafts))


@dataclass(frozen=True)
class Terms:
    """On what terms drafts are had in one step.

    Attributes:
        most: Most drafts of a sequence.
        price: Of a draft, in tokens; ``None`` where it is to be found out.
        prior: Chance of a draft of which nothing is known.
    """

    most: int
    price: float | None
    prior: float

    def wanted(self, drafting: Drafting, length: int) -> int:
        """How many tokens to draft for a sequence.

        Args:
            drafting: What is known of it; that it rests or tries is noted here.
            length: Of its prompt and output.
        """
        if not self.most or length < drafting.rests_until:
            return 0
        chance = drafting.chance.given(self.prior)
        count = self.most if self.price is None else self._paying(chance, self.price)
        if drafting.rests_until:  # the rest is over: what was before it counts for less
            drafting.chance.note(0, 0, 0.5)
            drafting.rests_until, drafting.trying = 0, True
        if drafting.trying:
            return max(1, count) if self.price is None or self.price < _MARGIN else 0
        if not count:
            drafting.rests_until = length + drafting.rest
        return count

    def _paying(self, chance: float, price: float) -> int:
        """How many drafts in a row pay: as long as the chance that all are accepted exceeds the price of one."""
        least = price / _MARGIN
        if chance <= least:
            return 0
        if price <= 0 or chance >= 1:
            return self.most
        return min(self.most, int(math.log(least) / math.log(chance)))
