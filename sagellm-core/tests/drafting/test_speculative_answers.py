"""Drafting changes no answer: whatever is asked, however it is drafted, every token is the one without drafts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fake_model import CHARACTERS, write_tokenizer
from sagellm_core import LLM
from sagellm_protocol import ErrorCode, FinishReason, Response, SageLLMError, SamplingParams
from tiny_llm import write_tiny

PROMPTS = ["one two three, one two three, one two", "abcabcabcabcabcabc", "say something new", "x"]
WAYS = ("ngram", "twin", "stranger", "adaptive")
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "narrowed": {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    "penalised": {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "reported": {"temperature": 1.0, "logprobs": 3, "prompt_logprobs": 2},
    "several": {"temperature": 1.0, "n": 3},
    "ended": {"temperature": 1.2, "ignore_eos": False, "stop_token_ids": (5, 40), "min_tokens": 6},
    "stopped": {"temperature": 1.2, "stop": ("a", "z9", "q")},
    "forbidden": {"temperature": 1.0, "bad_words": ("ab", "e"), "logit_bias": {10: 2.0, 11: -3.0}},
    "allowed": {"temperature": 1.0, "allowed_token_ids": (2, 3, 4, 5)},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {
        name: write_tiny(tmp_path_factory.mktemp(name), context=2048, seed=seed)
        for name, seed in (("target", 5), ("stranger", 6), ("relative", 5))
    }
    # One that is like the target, and no more.
    model = transformers.LlamaForCausalLM.from_pretrained(places["relative"])
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.04 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    model.save_pretrained(places["relative"])
    return places


def opened(folders: dict[str, Path], way: str | None, **options: Any) -> LLM:
    """An engine that drafts in some way, or in none."""
    ways: dict[str | None, dict[str, Any] | None] = {
        None: None,
        "ngram": {"min_match": 1, "adaptive": False},
        "twin": {"method": "draft", "model": str(folders["target"]), "tokens": 4, "adaptive": False},
        "stranger": {"method": "draft", "model": str(folders["stranger"]), "tokens": 3, "adaptive": False},
        "relative": {"method": "draft", "model": str(folders["relative"]), "tokens": 3, "adaptive": False},
        "adaptive": {"method": "draft", "model": str(folders["target"])},
    }
    options = {"dtype": "float32", "max_num_seqs": 6, "max_model_len": 1024, "threads": 1, **options}
    return LLM(str(folders["target"]), speculative=ways[way], **options)


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Iterator[LLM]:
    with opened(folders, None) as llm:
        yield llm


@pytest.fixture(scope="module")
def drafting(folders: dict[str, Path]) -> Iterator[dict[str, LLM]]:
    with ExitStack() as stack:
        yield {way: stack.enter_context(opened(folders, way)) for way in WAYS}


def ask(llm: LLM, prompts: list[Any] = PROMPTS, **sampling: Any) -> list[Response]:
    params = SamplingParams(**{"max_tokens": 48, "seed": 11, "ignore_eos": True, **sampling})
    responses = llm.generate(prompts, params, progress=False)
    assert llm.stats().used_blocks == 0
    return responses


def said(responses: list[Response]) -> list[Any]:
    """All that an answer consists of; log-probabilities as far as sums in another order leave them equal."""
    return [
        [
            (one.text, one.token_ids, one.finish_reason, one.stop_reason, [_rounded(at) for at in one.logprobs or ()])
            for one in response.outputs
        ]
        for response in responses
    ]


def _rounded(position: Any) -> Any:
    return position.token_id, pytest.approx(position.logprob, abs=1e-4), [one.token_id for one in position.top]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", ASKED)
def test_an_answer_is_what_it_is_without_drafts(plain: LLM, drafting: dict[str, LLM], asked: str, way: str) -> None:
    llm = drafting[way]
    before = llm.stats().drafted_tokens or 0
    responses = ask(llm, **ASKED[asked])
    assert said(responses) == said(ask(plain, **ASKED[asked]))
    if way != "adaptive":
        assert (llm.stats().drafted_tokens or 0) > before


@pytest.mark.parametrize("way", ["ngram", "twin", "stranger"])
@pytest.mark.parametrize(
    "form",
    [
        {"regex": "(ab|cd){3,30}(x|yz)"},
        {"choice": ["yes, it is", "no, it is not"]},
        {"json_schema": {"type": "array", "items": {"enum": [1, "a", None]}, "minItems": 2, "maxItems": 8}},
    ],
    ids=lambda form: next(iter(form)),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_is_followed_through_drafts(
    plain: LLM, drafting: dict[str, LLM], way: str, form: dict[str, Any], temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=90)
    both = [llm.generate(PROMPTS, params, progress=False, structured=form) for llm in (plain, drafting[way])]
    assert said(both[0]) == said(both[1])
    if "json_schema" in form:
        for one in both[1]:
            if one.outputs[0].finish_reason is FinishReason.STOP:
                json.loads(one.output_text)


def test_a_model_that_drafts_for_itself_is_always_right(drafting: dict[str, LLM]) -> None:
    for sampling in (ASKED["greedy"], ASKED["sampled"], ASKED["penalised"]):
        assert [one.metrics.spec_accept_rate for one in ask(drafting["twin"], **sampling)] == [1.0] * len(PROMPTS)


def test_a_stranger_is_seldom_right(drafting: dict[str, LLM]) -> None:
    for one in ask(drafting["stranger"], temperature=1.0):
        assert one.metrics.spec_accept_rate is not None
        assert one.metrics.spec_accept_rate < 0.5


def test_without_drafts_there_is_no_rate(plain: LLM) -> None:
    assert [one.metrics.spec_accept_rate for one in ask(plain)] == [None] * len(PROMPTS)
    assert plain.stats().drafted_tokens is None


def test_copied_text_is_drafted_by_look_up(drafting: dict[str, LLM]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=400)
    form = {"regex": "(one step and another ){12}"}
    [one] = drafting["ngram"].generate("hello", params, progress=False, structured=form)
    assert one.output_text == "one step and another " * 12
    assert one.metrics.spec_accept_rate is not None
    assert one.metrics.spec_accept_rate > 0.5


@pytest.mark.parametrize("way", ["ngram", "twin"])
def test_preemption_and_prefix_hits_change_nothing(folders: dict[str, Path], plain: LLM, way: str) -> None:
    shared = "the same beginning, long enough to fill some blocks; " * 3
    prompts = [shared + one for one in "abcdef"]
    whole = said(ask(plain, prompts, temperature=1.0, max_tokens=70))
    # Blocks for a third of what all six need at once.
    per_token = 2 * 2 * 8 * 2 * 4 * (2 if way == "twin" else 1)
    with opened(folders, way, max_model_len=320, kv_cache_memory_bytes=320 * per_token) as llm:
        assert said(ask(llm, prompts, temperature=1.0, max_tokens=70)) == whole
        stats = llm.stats()
        assert stats.preemptions
        assert stats.prefix_hit_tokens
        assert said(ask(llm, prompts[:1], temperature=1.0, max_tokens=70)) == whole[:1]


def test_a_long_prompt_is_read_by_the_drafting_model_in_pieces(plain: LLM, drafting: dict[str, LLM]) -> None:
    prompt = [[(7 * place * place) % 95 + 1 for place in range(900)]]
    [one] = ask(drafting["twin"], prompt, temperature=1.0)
    assert said([one]) == said(ask(plain, prompt, temperature=1.0))
    assert one.metrics.spec_accept_rate == 1.0


def test_a_context_is_filled_to_its_end(folders: dict[str, Path]) -> None:
    answers = []
    for way in (None, "twin", "ngram"):
        with opened(folders, way, max_model_len=64) as llm:
            answers.append(said(ask(llm, ["abcabcabc"], max_tokens=64 - 9)))
    assert answers[0] == answers[1] == answers[2]


def test_sampled_answers_are_distributed_as_the_model_says(folders: dict[str, Path]) -> None:
    """The second and third token, both of which are drafted, against the model's own probabilities by transformers.

    Pearson's test over the nine pairs of the likeliest three tokens each; the seeds are fixed, and so is the verdict.
    """
    asked, kept = 1200, 3
    model = transformers.LlamaForCausalLM.from_pretrained(folders["target"])
    prompt = [CHARACTERS.index(one) + 1 for one in "hello "]

    def following(tokens: list[int]) -> dict[int, float]:
        with torch.no_grad():
            top = model(torch.tensor([tokens])).logits[0, -1].topk(kept)
        return dict(zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True))

    expected: Counter[tuple[int, ...]] = Counter()
    for first, p_first in following(prompt).items():
        for second, p_second in following([*prompt, first]).items():
            for third, p_third in following([*prompt, first, second]).items():
                expected[second, third] += p_first * p_second * p_third * asked
    params = [
        SamplingParams(temperature=1.0, top_k=kept, seed=seed, max_tokens=4, ignore_eos=True) for seed in range(asked)
    ]
    with opened(folders, "relative", max_num_seqs=64) as llm:
        answers = llm.generate([prompt] * asked, params, progress=False)
    rates = [one.metrics.spec_accept_rate for one in answers]
    assert 0.1 < sum(rate for rate in rates if rate is not None) / asked < 0.9, "too few drafts decide, or all"
    found = Counter(tuple(one.output_tokens[1:3]) for one in answers)
    assert found.keys() <= expected.keys()
    cells = [cell for cell, count in expected.items() if count >= 5]
    statistic = sum((found[cell] - expected[cell]) ** 2 / expected[cell] for cell in cells)
    # Mean n and variance 2n for n degrees of freedom: five deviations are far beyond chance.
    freedom = len(cells) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_a_model_of_another_vocabulary_cannot_draft(folders: dict[str, Path], tmp_path: Path) -> None:
    small = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(small).save_pretrained(tmp_path)
    with pytest.raises(SageLLMError, match="its vocabulary has 50 tokens and this model's 97") as raised:
        LLM(str(folders["target"]), speculative={"method": "draft", "model": str(tmp_path)})
    assert (raised.value.code, raised.value.param) == (ErrorCode.INVALID_REQUEST, "speculative.model")


def test_a_model_whose_tokens_mean_something_else_cannot_draft(folders: dict[str, Path], tmp_path: Path) -> None:
    write_tiny(tmp_path)
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    swapped = path.read_text().replace('"A":', '"B ":').replace('"B":', '"A":').replace('"B ":', '"B":')
    path.write_text(swapped)
    with pytest.raises(SageLLMError, match="does not mean the same to both"):
        LLM(str(folders["target"]), speculative={"method": "draft", "model": str(tmp_path)})


def test_a_drafting_model_that_is_not_there_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(SageLLMError, match="nowhere"):
        LLM(str(folders["target"]), speculative={"method": "draft", "model": missing})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "draft"}, "needs model"),
        ({"model": "m"}, "takes none"),
        ({"method": "eagle"}, "ngram"),
        ({"tokens": 0}, "tokens"),
    ],
)
def test_speculation_that_makes_no_sense_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(SageLLMError, match=reason):
        LLM("any", speculative=asked)
