"""Every sampling parameter does what it says: asked of a model through the public seam, each by what it must change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from sagellm_core.llm import LLM
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.responses import Output, Response
from sagellm_protocol.sampling import SamplingParams
from tiny_llm import write_tiny

PROMPT = [40, 7, 90, 22, 5, 66, 13, 81, 33, 2, 50, 17, 71, 29, 8, 44, 60, 3, 19]
VOCAB = 97
DRAWS = 2048


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    with LLM(str(folder), dtype="float32", max_model_len=256, max_num_seqs=64, threads=1) as llm:
        yield llm


def answer(llm: LLM, prompt: Any = PROMPT, **params: Any) -> Response:
    fields = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **params}
    [response] = llm.generate(prompt, SamplingParams(**fields), progress=False)
    return response


def tokens(llm: LLM, **params: Any) -> tuple[int, ...]:
    return answer(llm, **params).output_tokens


def drawn(llm: LLM, draws: int = DRAWS, **params: Any) -> Counter[int]:
    """How often each token was drawn as the first, by requests of seeds that follow one another."""
    each = [
        SamplingParams(**{"n": 128, "seed": seed, "max_tokens": 1, "ignore_eos": True, **params})
        for seed in range(draws // 128)
    ]
    responses = llm.generate([PROMPT] * len(each), each, progress=False)
    return Counter(output.token_ids[0] for response in responses for output in response.outputs)


def model_logprobs(llm: LLM) -> dict[int, float]:
    """The model's own distribution of the token after the prompt."""
    [position] = answer(llm, max_tokens=1, logprobs=VOCAB).outputs[0].logprobs or ()
    return {one.token_id: one.logprob for one in position.top}


def chi_square(counts: Counter[int], expected: dict[int, float]) -> tuple[float, float]:
    """Pearson's statistic over cells of at least 5 expected draws, the rest as one, and what chance exceeds it by 1e-4.

    The critical value is Wilson and Hilferty's (1931), exact to a few parts in a hundred.
    """
    total = sum(counts.values())
    assert all(expected.get(token, 0.0) > 0 for token in counts), "a token was drawn that is impossible"
    cells = [(counts[token], total * share) for token, share in expected.items() if total * share >= 5]
    rest = total - sum(want for _, want in cells)
    if rest >= 5:
        cells.append((total - sum(got for got, _ in cells), rest))
    freedom = len(cells) - 1
    statistic = sum((got - want) ** 2 / want for got, want in cells)
    spread = 2 / (9 * freedom)
    return statistic, freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


def softmax(logits: dict[int, float], temperature: float = 1.0) -> dict[int, float]:
    weights = {token: math.exp(value / temperature) for token, value in logits.items()}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def top_p_of(probabilities: dict[int, float], top_p: float) -> dict[int, float]:
    kept, so_far = {}, 0.0
    for token, share in sorted(probabilities.items(), key=lambda one: -one[1]):
        kept[token] = share
        so_far += share
        if so_far >= top_p:
            break
    return {token: share / so_far for token, share in kept.items()}


def test_draws_follow_the_models_distribution_by_every_knob_of_it(llm: LLM) -> None:
    logits = model_logprobs(llm)
    plain = softmax(logits)
    likeliest = sorted(plain, key=lambda token: -plain[token])
    some = likeliest[3:9]
    best = max(plain.values())
    cases: list[tuple[dict[str, Any], dict[int, float]]] = [
        ({}, plain),
        ({"temperature": 0.6}, softmax(logits, 0.6)),
        ({"temperature": 1.7}, softmax(logits, 1.7)),
        ({"top_k": 5}, softmax({token: logits[token] for token in likeliest[:5]})),
        ({"top_p": 0.6}, top_p_of(plain, 0.6)),
        ({"min_p": 0.2}, softmax({token: logits[token] for token in likeliest if plain[token] >= 0.2 * best})),
        ({"allowed_token_ids": tuple(some)}, softmax({token: logits[token] for token in some})),
        ({"logit_bias": {some[0]: 2.5}}, softmax({**logits, some[0]: logits[some[0]] + 2.5})),
        ({"top_k": 8, "top_p": 0.8}, top_p_of(softmax({token: logits[token] for token in likeliest[:8]}), 0.8)),
    ]
    for params, expected in cases:
        statistic, critical = chi_square(drawn(llm, **params), expected)
        assert statistic < critical, params


def test_the_statistic_would_find_a_wrong_distribution(llm: LLM) -> None:
    logits = model_logprobs(llm)
    statistic, critical = chi_square(drawn(llm), softmax(logits, 1.2))
    assert statistic > critical


def test_a_seed_gives_the_same_alone_and_under_load(llm: LLM) -> None:
    params = {"seed": 41, "n": 3, "temperature": 1.0, "max_tokens": 24}
    alone = [output.token_ids for output in answer(llm, **params).outputs]
    crowd = [SamplingParams(seed=seed, max_tokens=5 + seed % 40, ignore_eos=True) for seed in range(60)]
    mine = SamplingParams(**params, ignore_eos=True)
    responses = llm.generate([PROMPT] * 61, [*crowd[:30], mine, *crowd[30:]], progress=False)
    assert [output.token_ids for output in responses[30].outputs] == alone
    assert len(set(alone)) == 3
    other = [output.token_ids for output in answer(llm, **{**params, "seed": 42}).outputs]
    assert set(other).isdisjoint(alone)


def test_requests_without_a_seed_differ(llm: LLM) -> None:
    assert tokens(llm, temperature=1.0, max_tokens=24) != tokens(llm, temperature=1.0, max_tokens=24)


def test_temperature_zero_takes_the_likeliest(llm: LLM) -> None:
    first = answer(llm, logprobs=0)
    assert all(position.rank == 1 for position in first.outputs[0].logprobs or ())
    assert tokens(llm) == first.output_tokens


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}])
def test_penalties_count_what_was_produced(llm: LLM, penalty: dict[str, float]) -> None:
    free = Counter(tokens(llm, logit_bias={1: 100.0, 2: 99.0}, allowed_token_ids=(1, 2), max_tokens=12))
    held = Counter(tokens(llm, logit_bias={1: 100.0, 2: 99.0}, allowed_token_ids=(1, 2), max_tokens=12, **penalty))
    assert held[2] > free[2]


def test_a_repetition_penalty_counts_the_prompt_too(llm: LLM) -> None:
    assert set(tokens(llm, repetition_penalty=50.0)).isdisjoint(PROMPT)
    assert not set(tokens(llm)).isdisjoint(PROMPT)


def test_allowed_tokens_alone_are_produced_and_biases_decide_among_them(llm: LLM) -> None:
    assert set(tokens(llm, allowed_token_ids=(11, 12, 13))) <= {11, 12, 13}
    assert set(tokens(llm, logit_bias={77: 100.0})) == {77}
    assert 77 not in tokens(llm, logit_bias={77: -100.0}, temperature=2.0, seed=3, max_tokens=64)


def test_bad_words_are_not_completed(llm: LLM) -> None:
    text = answer(llm).output_text
    word = text[3:6]
    held = answer(llm, bad_words=(word,)).output_text
    assert word not in held
    assert held[:5] == text[:5], "only its last token is banned"


def test_stops_of_every_kind_end_the_answer(llm: LLM) -> None:
    whole = answer(llm)
    text, ids = whole.output_text, whole.output_tokens
    word = text[4:6]
    at = text.index(word)

    def told(**params: Any) -> tuple[str, Any, str]:
        output: Output = answer(llm, **params).outputs[0]
        return output.text, output.stop_reason, output.finish_reason.value

    assert told(stop=(word,)) == (text[:at], word, "stop")
    assert told(stop=(word,), include_stop_str_in_output=True) == (text[: at + len(word)], word, "stop")
    end = ids[5]
    first = ids.index(end)
    assert told(stop_token_ids=(end,)) == (text[:first], end, "stop")
    assert told(stop_token_ids=(end,), include_stop_str_in_output=True) == (text[: first + 1], end, "stop")
    assert told(max_tokens=7) == (text[:7], None, "length")


def test_the_end_of_text_counts_unless_it_is_ignored_or_too_early(llm: LLM) -> None:
    eager = {"logit_bias": {0: 100.0}}
    ended = answer(llm, ignore_eos=False, **eager).outputs[0]
    assert (ended.token_ids, ended.text, ended.stop_reason) == ((0,), "", None)
    assert tokens(llm, ignore_eos=True, max_tokens=4, **eager) == (0,) * 4
    late = answer(llm, ignore_eos=False, min_tokens=5, **eager).output_tokens
    assert (len(late), late[-1], 0 in late[:-1]) == (6, 0, False)


def test_special_tokens_show_when_asked_for(llm: LLM) -> None:
    eager = {"logit_bias": {0: 100.0}, "max_tokens": 2}
    assert answer(llm, **eager).output_text == ""
    assert answer(llm, skip_special_tokens=False, **eager).output_text == "</s></s>"


def test_a_truncated_prompt_is_its_last_tokens(llm: LLM) -> None:
    cut = answer(llm, truncate_prompt_tokens=6)
    assert cut.usage.prompt_tokens == 6
    assert cut.output_tokens == answer(llm, PROMPT[-6:]).output_tokens


def test_logprobs_of_output_and_prompt_are_one_truth(llm: LLM) -> None:
    produced = answer(llm, logprobs=3)
    positions = produced.outputs[0].logprobs or ()
    text = [*PROMPT, *produced.output_tokens]
    read = answer(llm, text, max_tokens=0, prompt_logprobs=3)
    assert read.output_tokens == ()
    assert read.prompt_logprobs is not None
    assert read.prompt_logprobs[0] is None
    assert read.first_token == "F"
    assert [one.token_id for one in read.prompt_logprobs[1:] if one is not None] == text[1:]
    for one, other in zip(read.prompt_logprobs[-len(positions) :], positions, strict=True):
        assert one is not None
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [top.token_id for top in one.top] == [top.token_id for top in other.top]


def test_an_echo_stands_before_the_output_of_each_choice(llm: LLM) -> None:
    [response] = llm.generate("abc", SamplingParams(n=2, max_tokens=3, seed=1), echo=True, progress=False)
    assert all(output.text.startswith("abc") and len(output.text) == 6 for output in response.outputs)
    [scored] = llm.generate("abc", SamplingParams(max_tokens=0, prompt_logprobs=0), echo=True, progress=False)
    assert (scored.output_text, scored.usage.completion_tokens, scored.finish_reason) == ("abc", 0, "length")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, "sampling.logit_bias"),
        ({"allowed_token_ids": (VOCAB,)}, "sampling.allowed_token_ids"),
        ({"stop_token_ids": (VOCAB,)}, "sampling.stop_token_ids"),
        ({"bad_words": ("",)}, "sampling.bad_words"),
    ],
)
def test_what_is_not_in_the_vocabulary_is_refused_by_name(llm: LLM, params: dict[str, Any], param: str) -> None:
    with pytest.raises(SageLLMError) as refused:
        answer(llm, **params)
    assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_REQUEST, param)
