"""An engine's load as one plane accounts for it: sequences and tokens it sent there, and averages of how they fared.

Knows nothing of engines; fed by whoever places requests and relays their events.
"""

from __future__ import annotations

from dataclasses import dataclass

from sagellm_protocol import EngineStats

from .board import Board

SMOOTHING = 0.2
"""Weight of the newest observation in a running mean."""


def _blend(mean: float | None, value: float) -> float:
    return value if mean is None else mean + SMOOTHING * (value - mean)


@dataclass
class Load:
    """Counters are whole: what is added for a request is taken away when it leaves. Times are monotonic seconds."""

    sequences: int = 0
    queued_tokens: int = 0
    """Prompt tokens whose answer has not begun."""
    held_tokens: int = 0
    """Prompt and output tokens of answers under way."""
    foreign_tokens: int = 0
    latency_s: float | None = None
    """Mean time from being sent to the first token."""
    throughput_tps: float | None = None
    """Output tokens a second of the time in which it had work."""
    busy_s: float = 0.0
    """Time in which it had sequences, up to the last measurement."""
    produced: int = 0
    """Output tokens up to then."""
    computed: int = 0
    """Prompt tokens whose answer has begun, ever."""
    board: Board | None = None
    """Where it is shown, in row :attr:`row`."""
    row: int = -1
    _peak_tokens: int = 0
    _produced: int = 0
    _busy_s: float = 0.0
    _busy_since: float = 0.0

    def show_on(self, board: Board, row: int) -> None:
        """Keep a board's row up to date from now on."""
        self.board, self.row = board, row
        self._show()

    def place(self, sequences: int, prompt_tokens: int, now: float) -> None:
        """A request was sent."""
        if self.sequences == 0:
            self._busy_since = now
        self.sequences += sequences
        self.queued_tokens += prompt_tokens
        self._note_peak()
        self._show()

    def begin(self, prompt_tokens: int, waited_s: float) -> None:
        """Its answer began."""
        self.queued_tokens -= prompt_tokens
        self.held_tokens += prompt_tokens
        self.computed += prompt_tokens
        self.latency_s = _blend(self.latency_s, waited_s)
        self._show()

    def produce(self, tokens: int) -> None:
        """Its answer grew."""
        self.held_tokens += tokens
        self._produced += tokens
        self._note_peak()
        if self.board is not None:
            self.board.held_tokens[self.row] = self.held_tokens

    def leave(self, sequences: int, prompt_tokens: int, produced: int, begun: bool, now: float) -> None:
        """It ended, or moved elsewhere."""
        self.sequences -= sequences
        if begun:
            self.held_tokens -= prompt_tokens + produced
        else:
            self.queued_tokens -= prompt_tokens
        if self.sequences == 0:
            self._busy_s += now - self._busy_since
        self._show()

    def measure(self, now: float) -> None:
        """Close a span of measurement and begin the next."""
        if self.sequences:
            self._busy_s += now - self._busy_since
            self._busy_since = now
        if self._produced and self._busy_s > 0:
            self.throughput_tps = _blend(self.throughput_tps, self._produced / self._busy_s)
        self.busy_s += self._busy_s
        self.produced += self._produced
        self._produced, self._busy_s = 0, 0.0
        self._show()

    def reported(self, stats: EngineStats, block_size: int | None) -> None:
        """Compare what the engine reports with what this plane sent; the rest is others'.

        A report is older than it looks: the most this plane had there since the one before counts as its own.
        """
        told = stats.queued_prompt_tokens or 0
        if stats.used_blocks is not None and block_size is not None:
            told += stats.used_blocks * block_size
        self.foreign_tokens = max(0, told - self._peak_tokens)
        self._peak_tokens = self.queued_tokens + self.held_tokens
        self._show()

    def forget_foreign(self) -> None:
        """What was reported of others is no longer so."""
        self.foreign_tokens = 0
        self._show()

    def _show(self) -> None:
        board, row = self.board, self.row
        if board is None:
            return
        board.sequences[row] = self.sequences
        board.queued_tokens[row] = self.queued_tokens
        board.held_tokens[row] = self.held_tokens
        board.foreign_tokens[row] = self.foreign_tokens
        if self.latency_s is not None:
            board.latency_s[row] = self.latency_s
        if self.throughput_tps is not None:
            board.throughput_tps[row] = self.throughput_tps

    def _note_peak(self) -> None:
        self._peak_tokens = max(self._peak_tokens, self.queued_tokens + self.held_tokens)
