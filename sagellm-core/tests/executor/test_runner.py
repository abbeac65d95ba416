"""The inline executor runs plans: what it samples, what it keeps between steps, what it reports."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import tiny
from sagellm_core.core.plan import NewBlocks, NewSequence, SlotResult, StepPlan, TokenSampling
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.base import CacheLayout
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint

LAYOUT = CacheLayout(num_blocks=160, block_size=4, max_num_seqs=8, max_model_len=64)
GREEDY = TokenSampling(temperature=0)


class Driver:
    """Plays the scheduler for an executor: hands out slots and shuffled blocks, and keeps count."""

    def __init__(self, executor: InlineExecutor) -> None:
        self.executor = executor
        self.groups = len(dict.fromkeys(executor.info.kv_specs))
        self.free = random.Random(3).sample(range(LAYOUT.num_blocks), LAYOUT.num_blocks)
        self.computed: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.blocks: dict[int, int] = {}
        self.added: list[NewSequence] = []
        self.dropped: list[int] = []
        self.steps = 0

    def add(self, slot: int, prompt: list[int], sampling: TokenSampling = GREEDY, output: tuple[int, ...] = ()) -> None:
        self.added.append(NewSequence(slot, prompt, sampling, list(output)))
        self.computed[slot], self.known[slot], self.blocks[slot] = 0, len(prompt) + len(output), 0

    def drop(self, slot: int) -> None:
        self.dropped.append(slot)

    def step(self, **counts: int) -> dict[int, SlotResult]:
        """Compute ``s0=5`` tokens of slot 0, and so on."""
        rows = {int(name[1:]): count for name, count in counts.items()}
        blocks = []
        for slot, count in rows.items():
            need = -(-(self.computed[slot] + count) // LAYOUT.block_size) - self.blocks[slot]
            if need:
                blocks.append(NewBlocks(slot, [[self.free.pop() for _ in range(need)] for _ in range(self.groups)]))
                self.blocks[slot] += need
        plan = StepPlan(
            step=self.steps,
            dropped=self.dropped,
            added=self.added,
            blocks=blocks,
            slots=list(rows),
            num_computed=[self.computed[slot] for slot in rows],
            num_scheduled=list(rows.values()),
            samples=[self.computed[slot] + count == self.known[slot] for slot, count in rows.items()],
        )
        result = self.executor.run(plan).result()
        assert result.step == self.steps
        self.steps, self.added, self.dropped = self.steps + 1, [], []
        for slot, count in rows.items():
            self.computed[slot] += count
        for made in result.slots:
            self.known[made.slot] += len(made.token_ids)
        return {made.slot: made for made in result.slots}

    def generate(self, slot: int, count: int) -> list[int]:
        """Tokens of one slot alone, the prompt in one step."""
        tokens = self.step(**{f"s{slot}": self.known[slot] - self.computed[slot]})[slot].token_ids
        while len(tokens) < count:
            tokens += self.step(**{f"s{slot}": 1})[slot].token_ids
        return tokens


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return tiny.make("qwen2, window on upper layers")


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny.save(reference, tmp_path_factory.mktemp("model")))


@pytest.fixture(params=["reference", "cpu"])
def driver(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Driver:
    executor = InlineExecutor(checkpoint, open_backend(request.param, dtype="float32", threads=1), dtype="float32")
    executor.allocate(LAYOUT)
    return Driver(executor)


def prompt(seed: int, length: int) -> list[int]:
    deck = random.Random(seed)
    return [deck.randrange(tiny.VOCAB) for _ in range(length)]


def next_logits(reference: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference(torch.tensor([tokens])).logits[0, -1]
    return logits


def greedy(reference: PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    produced: list[int] = []
    for _ in range(count):
        produced.append(int(next_logits(reference, tokens + produced).argmax()))
    return produced


def test_greedy_tokens_equal_the_reference_implementation(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(0, 11)
    driver.add(0, tokens)
    assert driver.generate(0, 20) == greedy(reference, tokens, 20)


def test_a_sequence_may_fill_the_whole_context(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(1, LAYOUT.max_model_len - 3)
    driver.add(0, tokens)
    # The fourth follows the last position that is computed; nothing is ever computed for it.
    assert driver.generate(0, 4) == greedy(reference, tokens, 4)


def test_mixed_chunks_and_neighbours_change_nothing(driver: Driver, reference: PreTrainedModel) -> None:
    prompts = {slot: prompt(slot, length) for slot, length in ((5, 9), (0, 1), (3, 14))}
    driver.add(5, prompts[5])
    driver.add(0, prompts[0])
    assert driver.step(s5=4, s0=1).keys() == {0}, "a prompt that is not through samples nothing"
    driver.add(3, prompts[3])
    driver.step(s3=7, s0=1, s5=5)
    driver.step(s5=1, s3=7, s0=1)
    made = driver.step(s0=1, s5=1, s3=1)
    assert made[0].token_ids == greedy(reference, prompts[0], 4)[3:]
    assert made[5].token_ids == greedy(reference, prompts[5], 3)[2:]
    assert made[3].token_ids == greedy(reference, prompts[3], 2)[1:]


def test_a_slot_serves_one_sequence_after_another(driver: Driver, reference: PreTrainedModel) -> None:
    driver.add(2, prompt(4, 30), TokenSampling(temperature=0, repetition_penalty=1.9))
    driver.generate(2, 3)
    driver.drop(2)
    driver.add(2, prompt(5, 6))
    assert driver.generate(2, 5) == greedy(reference, prompt(5, 6), 5)


def test_a_preempted_sequence_goes_on_where_it_was(driver: Driver) -> None:
    sampling = TokenSampling(seed=7, temperature=1.3, repetition_penalty=1.2, frequency_penalty=0.3)
    driver.add(0, prompt(6, 9), sampling)
    unbroken = driver.generate(0, 12)
    driver.drop(0)
    driver.add(1, prompt(6, 9), sampling, output=tuple(unbroken[:5]))
    assert driver.generate(1, 7) == unbroken[5:]


def test_draws_depend_on_seed_and_position_alone(driver: Driver) -> None:
    hot = TokenSampling(seed=11, temperature=1.5)
    driver.add(0, prompt(7, 8), hot)
    alone = driver.generate(0, 6)
    for slot, seed in ((1, 5), (2, 11), (3, 6)):
        driver.add(slot, prompt(7, 8), TokenSampling(seed=seed, temperature=1.5))
    driver.step(s1=8, s2=3, s3=8)
    rows = [driver.step(s1=1, s2=5, s3=1)] + [driver.step(s3=1, s2=1, s1=1) for _ in range(5)]
    assert [made[2].token_ids[0] for made in rows] == alone
    assert [made[1].token_ids[0] for made in rows] != alone


def test_logprobs_are_the_models_own(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(8, 10)
    driver.add(0, tokens, TokenSampling(temperature=0, logprobs=3, repetition_penalty=1.7))
    driver.add(1, prompt(9, 4))
    made = driver.step(s0=10, s1=4)
    assert made[1].logprobs == []
    (reported,) = made[0].logprobs
    expected = next_logits(reference, tokens).log_softmax(-1)
    assert reported.logprob == pytest.approx(float(expected[made[0].token_ids[0]]), abs=1e-4)
    values, ids = expected.topk(3)
    assert [token for token, _ in reported.top] == ids.tolist()
    np.testing.assert_allclose([value for _, value in reported.top], values.numpy(), atol=1e-4)


def test_prompt_logprobs_cover_every_prompt_token_but_the_first(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(10, 13)
    driver.add(0, tokens, TokenSampling(temperature=0, prompt_logprobs=2))
    driver.add(1, prompt(9, 6))
    reported = [
        entry
        for made in (driver.step(s1=5, s0=6), driver.step(s0=6), driver.step(s0=1, s1=1))
        for entry in made[0].prompt_logprobs
    ]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert len(reported) == len(tokens) - 1
    for position, entry in enumerate(reported):
        row = expected[position]
        assert entry.logprob == pytest.approx(float(row[tokens[position + 1]]), abs=1e-4)
        assert entry.rank == int((row > row[tokens[position + 1]]).sum()) + 1
        assert [token for token, _ in entry.top] == row.topk(2).indices.tolist()


def test_end_tokens_are_held_back_until_the_minimum(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(11, 6)
    first = greedy(reference, tokens, 1)[0]
    driver.add(0, tokens, TokenSampling(temperature=0, min_tokens=3, end_ids=(first,)))
    produced = driver.generate(0, 3)
    assert first not in produced
    everything = tuple(token for token in range(tiny.VOCAB) if token != first)
    driver.add(1, tokens, TokenSampling(temperature=0, min_tokens=1, end_ids=everything))
    assert driver.generate(1, 1) == [first]


def test_bad_words_are_not_completed(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(12, 6)
    word = tuple(greedy(reference, tokens, 3))
    driver.add(0, tokens, TokenSampling(temperature=0, bad_words=(word,)))
    produced = driver.generate(0, 3)
    assert tuple(produced[:2]) == word[:2], "the start of a bad word is nothing bad"
    assert produced[2] != word[2]
    driver.add(1, tokens, TokenSampling(temperature=0, bad_words=((word[0],),)))
    assert driver.generate(1, 1) != [word[0]]


def test_allowed_tokens_and_biases_hold_for_their_row_alone(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(13, 5)
    driver.add(0, tokens, TokenSampling(temperature=0, allowed=(4, 9)))
    driver.add(1, tokens, TokenSampling(temperature=0, logit_bias={17: 100.0}))
    driver.add(2, tokens)
    made = driver.step(s0=5, s1=5, s2=5)
    logits = next_logits(reference, tokens)
    assert made[0].token_ids == [4 if logits[4] > logits[9] else 9]
    assert made[1].token_ids == [17]
    assert made[2].token_ids == [int(logits.argmax())]


def test_a_sequence_left_without_a_choice_fails_alone(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(18, 5)
    driver.add(0, tokens, TokenSampling(temperature=0, allowed=(2,), min_tokens=1, end_ids=(2,)))
    driver.add(1, tokens)
    made = driver.step(s0=5, s1=5)
    assert made[0].token_ids == []
    assert "allowed_token_ids" in (made[0].error or "")
    assert made[1].token_ids == greedy(reference, tokens, 1)
    assert made[1].error is None


def test_a_sequence_whose_scores_are_no_numbers_fails_alone(
    driver: Driver, reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = driver.executor._runner._model  # type: ignore[union-attr]
    logits = model.logits
    bad: list[torch.Tensor] = []

    def poisoned(hidden: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = logits(hidden)
        bad.append(hidden[0].clone())
        scores[(hidden == bad[0]).all(-1)] = float("nan")
        return scores

    monkeypatch.setattr(model, "logits", poisoned)
    tokens = prompt(18, 5)
    top = next_logits(reference, tokens).topk(2)
    best, second = top.indices.tolist()
    # Applied once, the second stays second; applied again to what was drawn from already, it would be first.
    bias = {second: 0.75 * float(top.values[0] - top.values[1])}
    driver.add(0, prompt(19, 5), TokenSampling(seed=1))
    driver.add(1, tokens, TokenSampling(temperature=0, logit_bias=bias))
    made = driver.step(s0=5, s1=5)
    assert made[0].token_ids == []
    assert "no token can be drawn" in (made[0].error or "")
    assert made[1].token_ids == [best]
    assert made[1].error is None


def test_penalties_follow_what_was_produced(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(14, 7)
    driver.add(
        0, tokens, TokenSampling(temperature=0, repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=0.9)
    )
    produced = driver.generate(0, 12)
    expected: list[int] = []
    for _ in range(12):
        logits = next_logits(reference, tokens + expected)
        for token in {*tokens, *expected}:
            logits[token] = logits[token] / 1.4 if logits[token] > 0 else logits[token] * 1.4
        for token in set(expected):
            logits[token] -= 0.6 + 0.9 * expected.count(token)
        expected.append(int(logits.argmax()))
    assert produced == expected


def test_copied_blocks_serve_another_sequence(driver: Driver, reference: PreTrainedModel) -> None:
    tokens = prompt(15, 8)
    driver.add(0, tokens)
    driver.step(s0=8)
    tail = prompt(16, 3)
    source, target = driver.free[-2:]
    executor = driver.executor
    everything: list[Any] = [[source, target]] * driver.groups
    executor.run(
        StepPlan(
            step=1,
            dropped=[0],
            added=[NewSequence(1, tokens, GREEDY)],
            blocks=[NewBlocks(1, everything)],
            slots=[1],
            num_computed=[0],
            num_scheduled=[8],
            samples=[True],
        )
    )
    others = driver.free[:3]
    result = executor.run(
        StepPlan(
            step=2,
            dropped=[1],
            added=[NewSequence(2, tokens + tail, GREEDY)],
            blocks=[NewBlocks(2, [others] * driver.groups)],
            copies=[(source, others[0]), (target, others[1])],
            slots=[2],
            num_computed=[8],
            num_scheduled=[3],
            samples=[True],
        )
    ).result()
    assert result.slots[0].token_ids == greedy(reference, tokens + tail, 1)


def test_a_plan_without_rows_only_changes_slots(driver: Driver) -> None:
    driver.add(0, prompt(17, 4))
    assert driver.step() == {}
    driver.drop(0)
    assert driver.step() == {}


def test_what_is_loaded_is_told(driver: Driver, checkpoint: Checkpoint) -> None:
    info = driver.executor.info
    assert info.architecture == "Qwen2ForCausalLM"
    assert info.model_key == checkpoint.key
    assert info.vocab_size == tiny.VOCAB
    assert info.eos_token_ids == (2,)
    assert info.kv_dtype.value == info.dtype.value == "float32"
    assert driver.executor.memory().free_bytes > 0
