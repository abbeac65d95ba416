"""Sampling of the fast backend against the readable one, and what a row may expect whatever its neighbours ask."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sagellm_backend import cpu, reference
from sagellm_protocol.backend import SamplingBatch
from sagellm_protocol.errors import SageLLMError

NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "uniform": 0.5,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "prompt_tokens": (),
    "output_tokens": (),
    "bias": {},
    "banned": (),
    "allowed": None,
    "logprobs": None,
    "mask": None,
}


def mask_of(vocabulary, *tokens):
    bits = np.zeros(-(-vocabulary // 32) * 32, dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


@pytest.fixture(scope="module")
def fast():
    return cpu.create(threads=1)


@pytest.fixture(scope="module")
def truth():
    return reference.create(threads=1)


def batch_of(*rows):
    full = [{**NEUTRAL, **row} for row in rows]
    return SamplingBatch(
        **{field.name: [row[field.name] for row in full] for field in dataclasses.fields(SamplingBatch)}
    )


def logits_of(rows, vocabulary, seed=0, spread=3.0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


ROWS = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.3},
    {"temperature": 5.0, "top_p": 0.97},
    {"temperature": 1e-6},
    {"temperature": 1e-46},
    {"temperature": 1e-46, "top_k": 5, "top_p": 0.9},
    {"temperature": 1e-46, "top_p": 0.9},
    {"temperature": 1e-46, "min_p": 0.1},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300, "top_p": 0.4},
    {"top_k": 10**9, "top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.05, "temperature": 0.7},
    {"repetition_penalty": 1.3, "prompt_tokens": (0, 1, 2, 2), "output_tokens": (3, 3)},
    {"presence_penalty": 1.5, "frequency_penalty": -0.5, "output_tokens": (4, 4, 9), "temperature": 0.0},
    {"bias": {5: 50.0, 6: -50.0}},
    {"banned": (1, 2, 3)},
    {"allowed": (17, 40), "temperature": 0.0},
    {"allowed": (17, 40, 41), "bias": {40: 3.0}, "banned": (41,), "top_p": 0.8},
]


@pytest.mark.parametrize("vocabulary", [64, 331, 5000, 20011])
@pytest.mark.parametrize("round_to_ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_kind_of_row_draws_what_the_reference_draws(fast, truth, vocabulary, round_to_ties, seed):
    masked = [
        {"mask": mask_of(vocabulary, 0, 31, 32, vocabulary - 1)},
        {"mask": mask_of(vocabulary, *range(0, vocabulary, 3)), "allowed": (3, 4, 6), "top_k": 2},
        {"mask": mask_of(vocabulary, *range(1, vocabulary)), "temperature": 0.0, "banned": (1,), "bias": {2: 1.0}},
    ]
    rows = [*ROWS, *masked]
    logits = logits_of(len(rows), vocabulary, seed)
    if round_to_ties:
        logits = logits.round()
    uniform = np.random.default_rng(seed).random(len(rows))
    batch = batch_of(*({**row, "uniform": float(u)} for row, u in zip(rows, uniform, strict=True)))
    want = truth.sample(logits.clone(), batch).token_ids
    assert list(fast.sample(logits.clone(), batch).token_ids) == list(want)


@pytest.mark.parametrize("seed", range(3))
def test_a_row_draws_the_same_alone_and_among_others(fast, seed):
    logits = logits_of(len(ROWS), 2049, seed)
    rows = [{**row, "uniform": (0.37 * i + 0.11 * seed) % 1, "logprobs": 3} for i, row in enumerate(ROWS)]
    together = fast.sample(logits.clone(), batch_of(*rows))
    for i, row in enumerate(rows):
        alone = fast.sample(logits[i : i + 1].clone(), batch_of(row))
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs[0] == together.logprobs[i]


@pytest.mark.parametrize("backend", ["fast", "truth"])
def test_draws_follow_the_distribution(backend, request):
    backend = request.getfixturevalue(backend)
    logits = torch.tensor([[0.0, 1.0, -math.inf, 2.0, 0.5]])
    want = torch.softmax(logits[0], -1)
    steps = 2000
    drawn = torch.tensor(
        [backend.sample(logits.clone(), batch_of({"uniform": (i + 0.5) / steps})).token_ids[0] for i in range(steps)]
    )
    got = torch.bincount(drawn, minlength=5) / steps
    torch.testing.assert_close(got, want, rtol=0, atol=2 / steps)
    # Ascending uniforms walk token ids in ascending order.
    assert torch.equal(drawn, drawn.sort().values)


@pytest.mark.parametrize("backend", ["fast", "truth"])
def test_the_largest_uniform_still_gives_a_possible_token(backend, request):
    backend = request.getfixturevalue(backend)
    logits = torch.full((1, 300), -math.inf)
    logits[0, [3, 70]] = 0.0
    last = math.nextafter(1.0, 0.0)
    for uniform, token in ((0.0, 3), (last, 70)):
        assert backend.sample(logits.clone(), batch_of({"uniform": uniform})).token_ids == [token]


@pytest.mark.parametrize("backend", ["fast", "truth"])
def test_logprobs_are_of_the_models_own_distribution(backend, request):
    backend = request.getfixturevalue(backend)
    logits = logits_of(2, 50)
    want = torch.log_softmax(logits, -1)
    rows = {"temperature": 0.2, "banned": (int(logits[0].argmax()),), "logprobs": 5, "top_k": 3}
    sampled = backend.sample(logits.clone(), batch_of(rows, {"temperature": 0.0}))
    report = sampled.logprobs[0]
    assert sampled.logprobs[1] is None
    token = sampled.token_ids[0]
    assert report.logprob == pytest.approx(want[0, token].item(), abs=1e-5)
    assert report.rank == int((want[0] > want[0, token]).sum()) + 1
    values, ids = want[0].topk(5)
    assert [token for token, _ in report.top] == ids.tolist()
    assert [value for _, value in report.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_logprobs_of_given_tokens_agree_with_the_reference(fast, truth):
    logits = logits_of(3, 200).round()
    got, want = fast.logprobs_of(logits, [5, 0, 199], 7), truth.logprobs_of(logits, [5, 0, 199], 7)
    for one, other in zip(got, want, strict=True):
        assert one.rank == other.rank
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
    assert fast.logprobs_of(logits, [1, 2, 3], 0)[0].top == ()


@pytest.mark.parametrize("backend", ["fast", "truth"])
@pytest.mark.parametrize("row", [{"allowed": ()}, {"allowed": (1,), "banned": (1,)}, {"banned": tuple(range(8))}])
def test_a_row_that_may_produce_nothing_is_refused(backend, row, request):
    with pytest.raises(SageLLMError, match="row 0: no token may be produced"):
        request.getfixturevalue(backend).sample(logits_of(1, 8), batch_of(row))


def test_a_token_outside_the_vocabulary_is_refused_by_number(fast):
    with pytest.raises(SageLLMError, match=r"row 1: token id 99 .* vocabulary of 8"):
        fast.sample(logits_of(2, 8), batch_of({}, {"bias": {99: 1.0}}))
