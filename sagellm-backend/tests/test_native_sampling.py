"""Native sampling against NumPy's: every instruction set that runs here, one thread and two, odd vocabularies."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sagellm_backend import cpu
from sagellm_backend.cpu import CpuBackend, native, sampling
from sagellm_backend.cpu.native.library import AVX2, AVX512, PORTABLE
from sagellm_protocol.backend import SamplingBatch
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError
from test_sampling import ROWS, batch_of

kernels = native.load()
pytestmark = pytest.mark.skipif(kernels is None, reason="the package was built without native kernels")
LEVELS = [level for level in (PORTABLE, AVX2, AVX512) if kernels is not None and level <= kernels.level]
VOCABULARIES = [1, 15, 17, 64, 331, 20_011, 49_152]
EDITS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "bias", "banned", "allowed")
UNEDITED = [row for row in ROWS if not set(row).intersection(EDITS)]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def scores_of(rows, vocabulary, seed=0, spread=3.0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def drawn_by_both(logits, batch, level):
    got = native.sample(kernels, logits.clone(), batch, level)
    want = sampling.sample(logits.clone(), batch)
    assert list(got.token_ids) == list(want.token_ids)
    for one, other in zip(got.logprobs, want.logprobs, strict=True):
        agree(one, other)
    return got


def agree(one, other):
    if other is None:
        assert one is None
        return
    assert one.rank == other.rank
    assert one.logprob == pytest.approx(other.logprob, abs=2e-5)
    assert [token for token, _ in one.top] == [token for token, _ in other.top]
    assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=2e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_kind_of_row_draws_what_numpy_draws(level, dtype, ties, vocabulary):
    rows = ROWS if vocabulary > 50 else UNEDITED
    logits = scores_of(len(rows), vocabulary)
    logits = (logits.round() if ties else logits).to(dtype)
    uniform = np.random.default_rng(vocabulary).random(len(rows))
    asked = [
        {**row, "uniform": float(u), "logprobs": i % 4 * 3 if i % 3 else None}
        for i, (row, u) in enumerate(zip(rows, uniform, strict=True))
    ]
    drawn_by_both(logits, batch_of(*asked), level)


@st.composite
def batches(draw):
    vocabulary = draw(st.one_of(st.integers(1, 200), st.sampled_from([1000, 9001, 20_011])))
    rows = [
        {
            "temperature": draw(st.sampled_from([0.0, 1e-6, 0.3, 0.8, 1.0, 2.0, 50.0])),
            "top_k": draw(st.one_of(st.just(0), st.integers(1, 2 * vocabulary))),
            "top_p": draw(st.one_of(st.just(1.0), st.floats(0.013, 0.987))),
            "min_p": draw(st.sampled_from([0.0, 0.0, 0.01, 0.31, 1.0])),
            "logprobs": draw(st.one_of(st.none(), st.integers(0, 20))),
        }
        for _ in range(draw(st.integers(1, 4)))
    ]
    seed = draw(st.integers(0, 2**32 - 1))
    dice = np.random.default_rng(seed)
    # Drawn apart from what is shrunk: a round number would ask for a token at the very border between two.
    rows = [{**row, "uniform": float(u)} for row, u in zip(rows, dice.random(len(rows)), strict=True)]
    scores = dice.standard_normal((len(rows), vocabulary), dtype=np.float32) * draw(st.sampled_from([0.1, 1, 4, 30]))
    if draw(st.booleans()):
        scores = scores.round()
    impossible = dice.random(scores.shape) < draw(st.sampled_from([0.0, 0.3, 0.97]))
    impossible[np.arange(len(rows)), dice.integers(vocabulary, size=len(rows))] = False
    scores[impossible] = -math.inf
    logits = torch.from_numpy(scores)
    return (logits.bfloat16() if draw(st.booleans()) else logits), batch_of(*rows)


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(LEVELS or [0]))
def test_random_batches_draw_what_numpy_draws(made, level):
    drawn_by_both(*made, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [*VOCABULARIES, 48, 63, 65, 127])
def test_of_equal_scores_the_lowest_id_is_the_likeliest(level, dtype, vocabulary):
    scores = torch.zeros(3, vocabulary, dtype=dtype)
    scores[1] = -math.inf
    scores[2, vocabulary // 2 :] = 1.0
    rows = [{"temperature": 0.0}] * 3
    want = [0, 0, vocabulary // 2]
    assert native.sample(kernels, scores, batch_of(*rows), level).token_ids == want
    # Reported on as well, they are drawn by another way.
    got = native.sample(kernels, scores, batch_of(*({**row, "logprobs": 0} for row in rows)), level)
    assert got.token_ids == want
    assert math.isnan(got.logprobs[1].logprob)
    one = native.sample(kernels, scores[2:].clone(), batch_of({"top_k": 1, "uniform": 0.99}), level)
    assert one.token_ids == want[2:]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [{"temperature": 0.0}, {"temperature": 0.0, "logprobs": 2}, {}, {"top_p": 0.5}])
@pytest.mark.parametrize("place", [0, 5, 63, 70, 130])
def test_scores_that_are_no_numbers_are_refused(level, dtype, row, place):
    logits = scores_of(3, 131).to(dtype)
    logits[1, place] = math.nan
    with pytest.raises(SageLLMError, match="no numbers") as refused:
        native.sample(kernels, logits.clone(), batch_of(row, row, row), level)
    assert refused.value.code is ErrorCode.INTERNAL
    with pytest.raises(SageLLMError, match="no numbers"):
        sampling.sample(logits.clone(), batch_of(row, row, row))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_a_row_without_a_finite_largest_score_is_drawn_from_only_greedily(level, value):
    logits = torch.full((1, 100), -math.inf)
    logits[0, 40:] = value
    greedy = native.sample(kernels, logits.clone(), batch_of({"temperature": 0.0}), level)
    assert greedy.token_ids == [40 if value > 0 else 0]
    with pytest.raises(SageLLMError, match="no numbers"):
        native.sample(kernels, logits.clone(), batch_of({}), level)


@pytest.mark.parametrize("level", LEVELS)
def test_uniforms_at_both_ends_draw_the_first_and_the_last_possible_token(level):
    logits = torch.full((1, 300), -math.inf)
    logits[0, [3, 70]] = 0.0
    last = math.nextafter(1.0, 0.0)
    for asked in ({}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 0.5}, {"top_k": 200}):
        for uniform, token in ((0.0, 3), (0.5, 70), (last, 70)):
            got = native.sample(kernels, logits.clone(), batch_of({**asked, "uniform": uniform}), level)
            assert got.token_ids == [token], (asked, uniform)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logprobs_of_given_tokens_agree_with_numpy(level, dtype):
    logits = scores_of(4, 20_011).to(dtype)
    logits[3, 17] = math.nan
    tokens = [0, 20_010, 777, 17]
    got = native.logprobs_of(kernels, logits, tokens, 20, level)
    for one, other in zip(got[:3], sampling.logprobs_of(logits.float(), tokens, 20), strict=False):
        agree(one, other)
    assert (math.isnan(got[3].logprob), got[3].rank, got[3].top) == (True, 1, ())
    everything = native.logprobs_of(kernels, logits[:1, :5], [4], 9, level)[0]
    assert sorted(token for token, _ in everything.top) == list(range(5))


@pytest.mark.parametrize("library", [None, kernels])
@pytest.mark.parametrize("token", [-1, 8])
def test_a_given_token_outside_the_vocabulary_is_refused_by_number(library, token):
    with pytest.raises(SageLLMError, match=rf"token id {token} .* vocabulary of 8"):
        CpuBackend(DType.FLOAT32, library).logprobs_of(scores_of(2, 8), [0, token], 1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_draws_the_same_alone_and_among_others(level):
    logits = scores_of(len(ROWS), 4099)
    rows = [{**row, "uniform": 0.37 * i % 1, "logprobs": 3} for i, row in enumerate(ROWS)]
    together = native.sample(kernels, logits.clone(), batch_of(*rows), level)
    for i, row in enumerate(rows):
        alone = native.sample(kernels, logits[i : i + 1].clone(), batch_of(row), level)
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs[0] == together.logprobs[i]


def test_no_rows_draw_nothing():
    empty = SamplingBatch(**{field.name: [] for field in dataclasses.fields(SamplingBatch)})
    assert native.sample(kernels, torch.empty(0, 9), empty).token_ids == []
    assert native.logprobs_of(kernels, torch.empty(0, 9), [], 2) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_no_row_edits_are_left_as_they_were(dtype):
    logits = scores_of(3, 500).to(dtype)
    before = logits.clone()
    asked = ({"logprobs": 2}, {"top_p": 0.5, "banned": (3,), "logprobs": 1}, {"temperature": 0.0})
    native.sample(kernels, logits, batch_of(*asked))
    assert torch.equal(logits, before)


def test_the_backend_samples_natively_where_it_has_kernels():
    fast = cpu.create(threads=1)
    logits = scores_of(2, 600).bfloat16()
    batch = batch_of({"logprobs": 4}, {"top_p": 0.6})
    assert fast.sample(logits.clone(), batch) == native.sample(kernels, logits.clone(), batch)
    assert fast.logprobs_of(logits, [1, 2], 3) == native.logprobs_of(kernels, logits, [1, 2], 3)
