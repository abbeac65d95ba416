"""What the next step computes: decode and prefill under one token budget, admission, preemption.

Policy. Running sequences that decode come first, one token each; then running prefills in order of service, in chunks;
then waiting sequences in order of service, as long as a few blocks stay for those who run. A sequence that cannot be
given a block takes it from the last in order of service, which is recomputed later. The first in order is never
preempted for another, so it always gets on; alone it ends when the pool does. Admission takes the blocks of all known
tokens at once, so prefills never compete half-way. One that waits and is more urgent than some that run takes the slot
and the blocks it lacks from the least urgent of them, the newest first, if all of those together have enough; one that
is as urgent never does, whenever it came. One whose adapter is not in memory is passed over until it is. Drafts take
what all of these leave of budget and blocks.

Holds no tensors, calls no executor; plain integers in, a :class:`~.plan.StepPlan` out.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from operator import add

from .adapter_places import AdapterPlaces, Place
from .block_manager import BlockManager
from .no_blocks import NoBlocks
from .plan import NewBlocks, NewSequence, StepPlan
from .sequence import Finish, Sequence, Status
from .speculation import Drafting, DraftPolicy
from .waiting import WaitingQueue


@dataclass
class Step:
    """One step, with the sequences its plan speaks of by slot.

    Attributes:
        plan: For the executor; ``None`` when there is nothing to compute.
        rows: The sequence of each of the plan's rows.
        admitted: Those that were given a slot for it.
        preempted: Those that lost theirs for it.
        ended: Those that left because the pool has no further block for them, alone as they are.
        decoding: How many of the rows are one token and make the next, where drafts are had.
    """

    plan: StepPlan | None
    rows: list[Sequence]
    admitted: list[Sequence]
    preempted: list[Sequence]
    ended: list[Sequence]
    decoding: int = 0


@dataclass
class _Draft:
    """A step while it is put together."""

    budget: int
    rows: dict[Sequence, int] = field(default_factory=dict)
    blocks: dict[Sequence, list[list[int]]] = field(default_factory=dict)
    drafts: dict[Sequence, int] = field(default_factory=dict)
    decoding: int = 0
    added: list[NewSequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    ended: list[Sequence] = field(default_factory=list)
    crowded: bool = False  # one that waits has no place for its adapter

    def give(self, sequence: Sequence, count: int, blocks: list[list[int]]) -> None:
        """Add a row."""
        sequence.num_scheduled = count
        self.rows[sequence] = count
        self.budget -= count
        if blocks:
            self.blocks[sequence] = blocks

    def take_back(self, sequence: Sequence) -> None:
        """Remove a row, if there is one."""
        self.budget += self.rows.pop(sequence, 0)
        self.blocks.pop(sequence, None)
        sequence.num_scheduled = 0


class Scheduler:
    """Decides step after step.

    Args:
        blocks: Where sequences keep what is computed.
        max_num_seqs: Slots.
        max_num_batched_tokens: Token budget of a step; at least ``max_num_seqs``, so that all may decode.
        before_release: Called with a sequence that is about to lose its blocks.
        hold: Asked of a sequence that waits, when it might be admitted: whether it is to be passed over for now.
        drafting: Says how many tokens to draft, if any are.
        whole: Compute a sequence's tokens in one step or not at all, as a model needs that keeps nothing between steps;
            the budget is at least the longest sequence then.
        adapters: Which of them are in memory; without it, no sequence has one.
    """

    def __init__(
        self,
        blocks: BlockManager | NoBlocks,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        before_release: Callable[[Sequence], None] = lambda sequence: None,
        hold: Callable[[Sequence], bool] = lambda sequence: False,
        *,
        drafting: DraftPolicy | None = None,
        whole: bool = False,
        adapters: AdapterPlaces | None = None,
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs, "every slot must be able to decode in every step"
        self.blocks = blocks
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []  # in order of service
        self.preemptions = 0
        self._before_release = before_release
        self._hold = hold
        self._drafting = drafting
        self._whole = whole
        self._adapters = adapters
        self._budget = max_num_batched_tokens
        self._slots = list(range(max_num_seqs - 1, -1, -1))
        self._dropped: list[int] = []
        self._steps = 0
        # Blocks that admission leaves to those who run, lest it preempt in the next step what it admits in this one.
        self._spare = max(1, blocks.num_blocks // 100)

    @property
    def steps(self) -> int:
        """Plans made so far."""
        return self._steps

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for admission."""
        self.waiting.add(sequence)

    def schedule(self) -> Step | None:
        """Put the next step together; ``None`` when nothing can be computed now: blocks are leased, or all are held."""
        draft = _Draft(self._budget)
        if self.running:
            self._go_on(draft)
        if self._slots or self._outranked(self.waiting.head):
            self._admit(draft)
        if not draft.rows and not draft.ended:
            return None
        if self._drafting is not None:
            self._speculate(draft, self._drafting)
        return self._step(draft)

    def drop_again(self, plan: StepPlan) -> None:
        """Have the next plan repeat the drops of one that failed: who can say how far it got."""
        self._dropped.extend(plan.dropped)

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out, in whatever state it is; its blocks are free at once."""
        if sequence.status is Status.RUNNING:
            self._withdraw(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        sequence.leader = None

    def _go_on(self, draft: _Draft) -> None:
        decoding: list[tuple[Sequence, int]] = []
        prefilling: list[tuple[Sequence, int]] = []
        for sequence in self.running:
            left = sequence.uncomputed
            (decoding if left == 1 else prefilling).append((sequence, left))
        for sequence, left in decoding + prefilling:
            if sequence.status is not Status.RUNNING:  # preempted for one before it
                continue
            if draft.budget <= 0:
                return
            count = min(left, draft.budget)
            blocks = self._room_for(sequence, sequence.num_computed + count, draft)
            if blocks is not None:
                draft.give(sequence, count, blocks)

    def _room_for(self, sequence: Sequence, num_tokens: int, draft: _Draft) -> list[list[int]] | None:
        """Blocks for a running sequence, at the expense of the last in order; ``None`` when that is itself."""
        while (blocks := self.blocks.extend(sequence, num_tokens)) is None:
            victim = self.running[-1]
            if victim is sequence and len(self.running) == 1:
                sequence.finish = Finish.LENGTH
                draft.ended.append(sequence)
                self.leave(sequence)
                return None
            draft.take_back(victim)
            self._preempt(victim)
            draft.preempted.append(victim)
            if victim is sequence:
                return None
        return blocks

    def _admit(self, draft: _Draft) -> None:
        # A copy: those that are preempted here begin to wait.
        for sequence in tuple(self.waiting):
            if self._waits_for_leader(sequence):
                continue
            if draft.budget <= 0 and not self._outranked(sequence):
                break
            if self._waits_for_adapter(sequence, draft) or self._hold(sequence):
                continue
            if not self._budget_for(sequence, draft):
                break
            if not self._slots and not self._make_way(sequence, draft):
                break
            blocks = self._blocks_to_start(sequence, draft)
            if blocks is None:
                break
            self.waiting.remove(sequence)
            self._seat(sequence)
            draft.admitted.append(sequence)
            draft.give(sequence, min(sequence.uncomputed, draft.budget), blocks)
        for sequence in draft.admitted:
            draft.added.append(
                NewSequence(
                    sequence.slot,
                    sequence.tokens[: sequence.prompt_len],
                    sequence.sampling,
                    sequence.output,
                    sequence.pooled,
                    None if sequence.adapter is None else sequence.adapter.key,
                )
            )

    def _blocks_to_start(self, sequence: Sequence, draft: _Draft) -> list[list[int]] | None:
        """Blocks for a sequence that waits, at the expense of less urgent ones; ``None`` when it is to wait on."""
        blocks = self.blocks.admit(sequence, self._spare if self.running else 0)
        if blocks is None and self._outranked(sequence):
            # What those who run may need next, the least urgent of them can give.
            blocks = self.blocks.admit(sequence)
            if blocks is None and self._make_way(sequence, draft):
                blocks = self.blocks.admit(sequence)
        return blocks

    def _budget_for(self, sequence: Sequence, draft: _Draft) -> bool:
        """Whether the step has tokens left for a sequence that waits; less urgent prefills sit the step out for it."""
        needed = sequence.uncomputed if self._whole else 1
        for other in reversed(self.running):
            if draft.budget >= needed or other.key[0] <= sequence.key[0]:
                break
            # A row with new blocks stays: the executor is to hear of them.
            if draft.rows.get(other, 0) > 1 and other not in draft.blocks:
                draft.take_back(other)
        return draft.budget >= needed

    def _make_way(self, sequence: Sequence, draft: _Draft) -> bool:
        """Preempt as few less urgent sequences as give ``sequence`` room, from the last in order on; or none."""
        last_first = reversed(self.running)
        outranked = list(takewhile(lambda other: other.key[0] > sequence.key[0], last_first))
        count = self.blocks.needed(sequence, outranked)
        if count is None:
            return False
        for victim in outranked[:count]:
            draft.take_back(victim)
            self._preempt(victim)
            draft.preempted.append(victim)
        return True

    def _outranked(self, sequence: Sequence | None) -> bool:
        """Whether some that run are less urgent than one that waits."""
        return sequence is not None and bool(self.running) and sequence.key[0] < self.running[-1].key[0]

    def _speculate(self, draft: _Draft, drafting: DraftPolicy) -> None:
        """Let those that decode have drafts, as far as that takes nothing from anybody."""
        decoding = [s for s, count in draft.rows.items() if count == 1 and not s.uncomputed and s.pooled is None]
        draft.decoding = len(decoding)
        terms = drafting.begin(len(decoding)) if decoding else None
        if terms is None or not terms.most:
            return
        for sequence in decoding:
            length = len(sequence.tokens)
            if sequence.drafting is None:
                sequence.drafting = Drafting()
            # The last token that it may have is never a draft: its own is drawn behind the one before.
            most = min(draft.budget, sequence.limit - length - 1)
            count = min(most, terms.wanted(sequence.drafting, length)) if most > 0 else 0
            if not count:
                continue
            blocks = self.blocks.extend(sequence, length + count, self._spare)
            if blocks is None:
                count = min(count, len(sequence.tables[0]) * self.blocks.block_size - length)
            elif blocks:
                given = draft.blocks.get(sequence)
                draft.blocks[sequence] = blocks if given is None else list(map(add, given, blocks))
            if count > 0:
                draft.drafts[sequence] = count
                draft.budget -= count

    def _waits_for_leader(self, sequence: Sequence) -> bool:
        leader = sequence.leader
        if leader is None or leader.status is Status.FINISHED:
            return False
        size = self.blocks.block_size
        return leader.num_computed < (sequence.prompt_len - 1) // size * size

    def _waits_for_adapter(self, sequence: Sequence, draft: _Draft) -> bool:
        """Whether its adapter is not in memory.

        Behind one that has no place for its adapter all others with adapters wait, lest those that run never make room.
        """
        if sequence.adapter is None:
            return False
        assert self._adapters is not None, "a sequence names an adapter, and there are none"
        if draft.crowded:
            return True
        place = self._adapters.ask(sequence.adapter)
        draft.crowded = place is Place.NONE
        return place is not Place.READY

    def _seat(self, sequence: Sequence) -> None:
        if sequence.adapter is not None and self._adapters is not None:
            self._adapters.take(sequence.adapter)
        sequence.slot = self._slots.pop()
        sequence.status = Status.RUNNING
        sequence.leader = None
        insort(self.running, sequence, key=_key)

    def _withdraw(self, sequence: Sequence) -> None:
        self._before_release(sequence)
        self.blocks.release(sequence)
        self.running.remove(sequence)
        if sequence.adapter is not None and self._adapters is not None:
            self._adapters.leave(sequence.adapter)
        self._dropped.append(sequence.slot)
        self._slots.append(sequence.slot)
        sequence.slot = -1
        sequence.num_scheduled = 0

    def _preempt(self, sequence: Sequence) -> None:
        self._withdraw(sequence)
        self.preemptions += 1
        sequence.preemptions += 1
        sequence.status = Status.WAITING
        self.waiting.add(sequence)

    def _step(self, draft: _Draft) -> Step:
        rows = list(draft.rows)
        if not rows:
            return Step(None, rows, draft.admitted, draft.preempted, draft.ended)
        if self._adapters is not None:
            rows.sort(key=_adapter_key)
        plan = StepPlan(
            step=self._steps,
            dropped=self._dropped,
            added=draft.added,
            blocks=[NewBlocks(sequence.slot, groups) for sequence, groups in draft.blocks.items()],
            slots=[sequence.slot for sequence in rows],
            num_computed=[sequence.num_computed for sequence in rows],
            num_scheduled=[draft.rows[sequence] for sequence in rows],
            samples=[sequence.uncomputed == 0 for sequence in rows],
            drafts=[draft.drafts.get(sequence, 0) for sequence in rows] if draft.drafts else [],
        )
        self._dropped = []
        self._steps += 1
        return Step(plan, rows, draft.admitted, draft.preempted, draft.ended, draft.decoding)


def _key(sequence: Sequence) -> tuple[int, int]:
    return sequence.key


def _adapter_key(sequence: Sequence) -> str:
    return "" if sequence.adapter is None else sequence.adapter.key
