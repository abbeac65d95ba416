"""What slots' output must follow: which tokens may come next in each, and whether its text is complete.

A slot that is taken again after a preemption follows its grammar through what it had produced. Knows nothing of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
import numpy as np
import numpy.typing as npt

from sagellm_core.core.plan import NewSequence, SlotResult, StepPlan
from sagellm_core.grammar.base import GrammarError, Grammars, Matcher

from .slots import Slots

_Bits = npt.NDArray[np.uint32]
_Words = npt.NDArray[np.int32]


class Constraints:
    """The slots that follow grammars.

    Rules. Tokens that end a text may come where the grammar is complete; other tokens that end this sequence may come
    there too, and where the grammar has them. Where ends are held back, by ``min_tokens`` or because the sequence does
    not end at them, the text goes on as long as the grammar lets it, and then ends.

    Args:
        slots: All of them.
        grammars: Those that plans name, compiled.
    """

    def __init__(self, slots: Slots, grammars: Grammars | None) -> None:
        self._slots = slots
        self._grammars = grammars
        self._matchers: dict[int, Matcher] = {}
        self._lost: dict[int, GrammarError] = {}  # slots whose grammar could not be followed again
        self._words = np.zeros((0, 0), dtype=np.int32)
        self._ahead: dict[int, list[_Words]] = {}  # what may come behind each of a slot's drafts

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._matchers)

    def apply(self, plan: StepPlan) -> None:
        """Take in which slots a plan frees and which are taken."""
        for slot in plan.dropped:
            self._matchers.pop(slot, None)
            self._lost.pop(slot, None)
            self._ahead.pop(slot, None)
        for new in plan.added:
            self._add(new)

    def _add(self, new: NewSequence) -> None:
        if new.sampling.grammar is None:
            return
        assert self._grammars is not None, "a plan names a grammar, and there are none"
        if not len(self._words):
            self._words = np.zeros((len(self._slots.length), -(-self._grammars.vocab_size // 32)), dtype=np.int32)
        matcher = self._matchers[new.slot] = self._grammars.get(new.sampling.grammar).matcher()
        try:
            matcher.accept(new.output)
        except GrammarError as error:
            self._lost[new.slot] = error

    def prepare(self, slots: Sequence[int]) -> dict[int, SlotResult]:
        """Find out what may come next in each of ``slots``; those that end here, without another token."""
        ended: dict[int, SlotResult] = {}
        for slot in slots:
            matcher = self._matchers.get(slot)
            if matcher is None:
                continue
            if slot in self._lost:
                ended[slot] = _broken(slot, self._lost[slot])
                continue
            try:
                matcher.fill(self._words[slot])
            except GrammarError as error:
                ended[slot] = _broken(slot, error)
                continue
            if matcher.accepting and not self._may_go_on(slot, self._words[slot]):
                ended[slot] = SlotResult(slot, [], complete=True)
        return ended

    def masks(self, slots: Sequence[int], drafts: Sequence[int] | None = None) -> list[Sequence[int] | None]:
        """What :meth:`prepare` and :meth:`follow` found, for a batch of these rows; good until they are called again.

        Args:
            slots: The slot of each row.
            drafts: How many of its slot's drafts come before each row's token; ``None`` where none do.
        """
        if not self._matchers:
            return [None] * len(slots)
        # An array is a sequence in all but name.
        if drafts is None:
            return [cast(Sequence[int], self._words[slot]) if slot in self._matchers else None for slot in slots]
        rows = zip(slots, drafts, strict=True)
        return [
            cast(Sequence[int], self._ahead[slot][ahead - 1] if ahead else self._words[slot])
            if slot in self._matchers
            else None
            for slot, ahead in rows
        ]

    def follow(self, slot: int, token: int) -> bool:
        """Go on by one draft token, whose slot was prepared; whether it may come and another token behind it."""
        matcher = self._matchers.get(slot)
        if matcher is None:
            return True
        followed = self._ahead.setdefault(slot, [])
        before = followed[-1] if followed else self._words[slot]
        if not int(before[token >> 5]) >> (token & 31) & 1:
            return False
        words = np.zeros_like(before)
        try:
            matcher.accept([token])
            if not matcher.complete:
                matcher.fill(words)
                if not matcher.accepting or self._may_go_on(slot, words, len(followed) + 1):
                    followed.append(words)
                    return True
            matcher.rollback(1)
        except GrammarError:  # it has become too large, which is no news before this token is the model's own
            self._follow_again(slot, len(followed))
        return False

    def go_back(self) -> None:
        """Take all drafts back."""
        for slot, followed in self._ahead.items():
            if followed:
                try:
                    self._matchers[slot].rollback(len(followed))
                except GrammarError:
                    self._follow_again(slot, 0)
        self._ahead.clear()

    def accept(self, result: SlotResult) -> SlotResult:
        """Take in what a slot produced; the result, with what became of its grammar."""
        matcher = self._matchers.get(result.slot)
        if matcher is None or result.token_ids[-1] in self._slots.sampling(result.slot).end_ids:
            return result
        try:
            matcher.accept(result.token_ids)
        except GrammarError as error:
            return _broken(result.slot, error)
        if not matcher.complete:
            return result
        return msgspec.structs.replace(result, complete=True)

    def _follow_again(self, slot: int, drafts: int) -> None:
        """Follow a slot's grammar anew, through its output and this many of its drafts."""
        grammar = self._slots.sampling(slot).grammar
        assert self._grammars is not None
        assert grammar is not None
        matcher = self._matchers[slot] = self._grammars.get(grammar).matcher()
        try:
            matcher.accept(np.asarray(self._slots.output(slot, drafts)).tolist())
        except GrammarError as error:
            self._lost[slot] = error

    def _may_go_on(self, slot: int, words: _Words, drafts: int = 0) -> bool:
        """Settle in ``words`` which ends may come where the text may end; whether any token may."""
        assert self._grammars is not None
        sampling = self._slots.sampling(slot)
        bits = words.view(np.uint32)
        own = sampling.end_ids
        ignored = [token for token in self._grammars.end_ids if token not in own]
        _clear(bits, ignored)
        early = len(self._slots.output(slot, drafts)) < sampling.min_tokens
        if early:
            # They are banned anyway; what else may come decides whether anything does.
            others = bits.copy()
            _clear(others, own)
            return bool(others.any())
        for token in own:
            bits[token >> 5] |= np.uint32(1 << (token & 31))
        return not ignored or bool(bits.any())


def _clear(bits: _Bits, tokens: Sequence[int]) -> None:
    for token in tokens:
        bits[token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xFFFFFFFF)


def _broken(slot: int, error: GrammarError) -> SlotResult:
    return SlotResult(slot, [], error=f"the output's form cannot be followed any further: {error}")
