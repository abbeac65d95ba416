"""What one step asks of an executor, and what comes back: integers that can cross a process boundary.

A plan carries changes to state that the runner keeps for each slot (prompt, output, sampling, block tables), then the
rows to compute. Within a plan they apply in the order of its fields: drop, add, extend, copy, run.

Knows no tensors, no sequence objects and no text.
"""

from __future__ import annotations

import msgspec


class TokenSampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a sequence's tokens are chosen: a request's sampling parameters, resolved to token ids.

    Attributes:
        seed: 64 random bits; with the output position they decide every draw.
        temperature: 0 is greedy.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
        repetition_penalty, presence_penalty, frequency_penalty: Neutral at 1, 0, 0.
        logit_bias: Added to the logits of these token ids.
        allowed: Token ids that alone may be produced.
        bad_words: Token sequences that may not be completed.
        min_tokens: Before this many tokens of output none of ``end_ids`` is produced.
        end_ids: Tokens that end the sequence.
        logprobs: Report each token's log-probability and this many of the likeliest.
        grammar: What the output must follow, in the text that its compiler takes; compiled before the sequence is
            admitted.
        prompt_logprobs: Likewise for the prompt's tokens; such a sequence takes no prefix hit, which would skip some.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None


class Pooled(msgspec.Struct, frozen=True, omit_defaults=True):
    """Says that a sequence is read and not continued, and how it becomes a vector.

    Attributes:
        second: Where its second text begins, for models that read pairs.
        dimensions: Keep this many leading dimensions; ``None`` keeps all.
        normalize: Make the vector's length one.
    """

    second: int | None = None
    dimensions: int | None = None
    normalize: bool = True


class NewSequence(msgspec.Struct, frozen=True):
    """A sequence that takes a slot.

    Attributes:
        slot: The slot it takes; free, or freed by this plan.
        prompt: Its prompt's token ids.
        sampling: How its tokens are chosen.
        output: Token ids it produced before it was preempted.
        pooled: How it becomes a vector, if it is read and not continued.
        adapter: Key of the adapter it goes through; it is in memory as long as the slot is taken.
    """

    slot: int
    prompt: list[int]
    sampling: TokenSampling
    output: list[int] = []
    pooled: Pooled | None = None
    adapter: str | None = None


class NewBlocks(msgspec.Struct, frozen=True):
    """Blocks appended to a slot's tables.

    Attributes:
        slot: Whose.
        groups: For each group of layers with equal KV specs, block ids in order of position.
    """

    slot: int
    groups: list[list[int]]


class StepPlan(msgspec.Struct, frozen=True):
    """One step's work.

    Attributes:
        step: Counts up from 0.
        dropped: Slots whose sequences finished, were preempted or were aborted.
        added: Sequences that take slots.
        blocks: Blocks appended to tables.
        copies: Blocks to copy, ``(source, target)``, before anything is computed.
        slots: The slot of each row, in the order the rows are computed; each slot once. Rows without an adapter come
            first, then those of each adapter side by side.
        num_computed: Tokens of each row's sequence that are cached already.
        num_scheduled: Tokens of each row's sequence to compute now, at least one.
        samples: Whether each row produces a token, or its vector: its sequence has no tokens left uncomputed after
            this step.
        drafts: Draft tokens that each row may compute and verify beyond ``num_scheduled``: as many as have blocks;
            fewer where fewer are found. Only rows that sample have some; empty where no row has.
    """

    step: int
    dropped: list[int] = []
    added: list[NewSequence] = []
    blocks: list[NewBlocks] = []
    copies: list[tuple[int, int]] = []
    slots: list[int] = []
    num_computed: list[int] = []
    num_scheduled: list[int] = []
    samples: list[bool] = []
    drafts: list[int] = []


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token in the model's own distribution.

    Attributes:
        logprob: Of the token.
        rank: Its rank, 1 for the likeliest.
        top: The likeliest tokens with theirs, likeliest first.
    """

    logprob: float
    rank: int
    top: list[tuple[int, float]]


class SlotResult(msgspec.Struct, frozen=True):
    """What one slot produced in one step.

    Attributes:
        slot: Whose.
        token_ids: New tokens, none to several. The runner has appended them to the slot's output already.
        logprobs: One for each of them; empty if not asked for.
        prompt_logprobs: One for each prompt token whose predecessor was computed in this step; empty if not asked for.
        complete: What its grammar asks for is there, and nothing may follow.
        error: Why this slot's sequence cannot go on; others are unharmed.
        vector: What its sequence was pooled to, float32 in this host's byte order.
        drafted: Draft tokens that were verified. All of ``token_ids`` but the last were among them.
    """

    slot: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    error: str | None = None
    complete: bool = False
    vector: bytes | None = None
    drafted: int = 0


class StepResult(msgspec.Struct, frozen=True):
    """What a step produced.

    Attributes:
        step: The plan's number.
        slots: Slots that produced something, in the plan's order; others are left out.
    """

    step: int
    slots: list[SlotResult]
