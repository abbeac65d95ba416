"""Vectors and scores through the whole engine, of tiny models beside the reference implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import embedders
import tiny
from embedders import POSITIONS, letters
from fake_model import CHARACTERS
from sagellm_core import LLM, create
from sagellm_protocol import (
    SLO,
    EmbedRequest,
    EmbedResponse,
    EngineSpec,
    ErrorCode,
    SageLLMError,
    SamplingParams,
    ScoreRequest,
)
from sagellm_protocol.interfaces import Engine

TEXTS = ["hello", "", "a longer text about foxes", "hello", "x" * (POSITIONS - 2)]


def values(response: EmbedResponse) -> NDArray[np.float64]:
    assert [vector.index for vector in response.vectors] == list(range(len(response.vectors)))
    return np.array([vector.values for vector in response.vectors])


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector)


def hidden(model: PreTrainedModel, ids: list[int]) -> NDArray[np.float64]:
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return np.asarray(states.double())


def refusal(call: Any, *args: Any, **fields: Any) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        call(*args, **fields)
    return caught.value


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return embedders.make("BertModel")


@pytest.fixture(scope="module")
def folder(bert: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedders.save(bert, tmp_path_factory.mktemp("bert"), "mean_tokens")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), max_num_seqs=6, max_num_batched_tokens=64) as llm:
        yield llm
        stats = llm.stats()
        assert (stats.running, stats.waiting) == (0, 0)


# -- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "pick"), [("mean_tokens", None), ("cls_token", 0), ("lasttoken", -1)])
def test_an_encoder_pools_as_its_checkpoint_says(
    bert: PreTrainedModel, tmp_path: Path, pooling: str, pick: int | None
) -> None:
    with LLM(str(embedders.save(bert, tmp_path, pooling)), device="reference") as llm:
        got = values(llm.embed(TEXTS))
    for text, vector in zip(TEXTS, got, strict=True):
        states = hidden(bert, letters(text))
        want = states.mean(0) if pick is None else states[pick]
        np.testing.assert_allclose(vector, unit(want), atol=1e-5, rtol=0)


def test_a_text_has_the_same_vector_alone_and_among_others(llm: LLM) -> None:
    together = values(llm.embed(TEXTS))
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(values(llm.embed(text))[0], vector, atol=1e-6, rtol=0)


def test_two_hundred_inputs_of_mixed_lengths_come_back_in_order_and_are_counted(
    bert: PreTrainedModel, llm: LLM
) -> None:
    texts = ["abcdefghij"[number % 10] * (number * 7 % (POSITIONS - 1)) for number in range(200)]
    before = llm.stats()
    response = llm.embed(texts)
    assert response.usage.prompt_tokens == sum(len(text) + 2 for text in texts)
    for text, vector in zip(texts[::17], values(response)[::17], strict=True):
        np.testing.assert_allclose(vector, unit(hidden(bert, letters(text)).mean(0)), atol=1e-5, rtol=0)
    after = llm.stats()
    assert after.prompt_tokens is not None
    assert before.prompt_tokens is not None
    assert after.prompt_tokens - before.prompt_tokens == response.usage.prompt_tokens
    assert after.completed == before.completed + 1


def test_token_ids_are_read_as_they_are(llm: LLM) -> None:
    by_ids = values(llm.embed([letters("hello"), letters("foxes")]))
    np.testing.assert_allclose(by_ids, values(llm.embed(["hello", "foxes"])), atol=1e-6, rtol=0)
    assert llm.embed([7, 8, 9]).usage.prompt_tokens == 3


def test_fewer_dimensions_are_the_leading_ones_normalised_again(llm: LLM) -> None:
    [raw], [short] = values(llm.embed("hello", normalize=False)), values(llm.embed("hello", dimensions=5))
    assert not np.isclose(np.linalg.norm(raw), 1, atol=1e-3)
    np.testing.assert_allclose(short, unit(raw[:5]), atol=1e-6)


def test_what_is_too_long_is_refused_with_both_lengths_unless_it_may_be_cut(llm: LLM) -> None:
    text = "y" * (POSITIONS + 9)
    error = refusal(llm.embed, ["fine", text])
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert all(part in error.message for part in ("inputs[1]", str(len(text) + 2), str(POSITIONS), "truncate"))
    cut = llm.embed(text, truncate=True)
    assert cut.usage.prompt_tokens == POSITIONS
    # The tokens around it stay: what is cut is the text.
    np.testing.assert_allclose(values(cut), values(llm.embed(text[: POSITIONS - 2])), atol=1e-6)
    assert llm.embed([5] * (POSITIONS + 1), truncate=True).usage.prompt_tokens == POSITIONS


@pytest.mark.parametrize(
    ("inputs", "fields", "code", "part"),
    [
        ("a", {"dimensions": 49}, ErrorCode.INVALID_REQUEST, "have 48"),
        ([[tiny.VOCAB]], {}, ErrorCode.INVALID_REQUEST, f"vocabulary of {tiny.VOCAB}"),
        ([[]], {}, ErrorCode.INVALID_REQUEST, "inputs[0]"),
        ("half \ud800", {}, ErrorCode.INVALID_REQUEST, "U+D800"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused_in_words(
    llm: LLM, inputs: Any, fields: dict[str, Any], code: ErrorCode, part: str
) -> None:
    error = refusal(llm.embed, inputs, **fields)
    assert error.code is code
    assert part in error.message


def test_a_model_of_vectors_writes_no_text_and_says_what_does(llm: LLM) -> None:
    for call in (lambda: llm.generate("hello"), lambda: llm.chat([{"role": "user", "content": "hello"}])):
        error = refusal(call)
        assert error.code is ErrorCode.UNSUPPORTED
        assert "name a model that generates" in error.message
    assert llm.info.capabilities.features == {"embed", "dimensions", "score"}
    assert llm.info.capabilities.embedding_dimensions == 48


def test_a_step_too_small_for_the_longest_input_is_refused_with_both_numbers(folder: Path) -> None:
    error = refusal(LLM, str(folder), max_num_batched_tokens=POSITIONS - 1)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert str(POSITIONS - 1) in error.message
    assert f"at least {POSITIONS}" in error.message
    with LLM(str(folder), max_num_batched_tokens=20, max_model_len=20) as llm:
        assert llm.info.capabilities.max_model_len == 20
        assert len(llm.embed(["a" * 18] * 5).vectors) == 5


def test_options_of_a_cache_are_refused_for_a_model_that_has_none(folder: Path) -> None:
    for options in ({"kv_cache_memory_bytes": 1 << 20}, {"kv_cache_dtype": "float32"}):
        error = refusal(LLM, str(folder), **options)
        assert error.code is ErrorCode.INVALID_REQUEST
        assert error.param in options


def test_the_length_it_was_trained_at_counts_unless_told_otherwise(bert: PreTrainedModel, tmp_path: Path) -> None:
    embedders.save(bert, tmp_path, "mean_tokens", sentence_bert_config={"max_seq_length": 11})
    with LLM(str(tmp_path)) as llm:
        assert "reads 11" in refusal(llm.embed, "z" * 10).message
    with LLM(str(tmp_path), max_model_len=POSITIONS) as llm:
        assert llm.embed("z" * 38).usage.prompt_tokens == POSITIONS


def test_prompts_of_the_checkpoint_stand_before_texts(bert: PreTrainedModel, tmp_path: Path, llm: LLM) -> None:
    prompts = {"prompts": {"query": "q: ", "passage": "p: ", "all": ">"}, "default_prompt_name": "all"}
    embedders.save(bert, tmp_path, "mean_tokens", config_sentence_transformers=prompts)
    with LLM(str(tmp_path)) as prompted:
        np.testing.assert_allclose(values(prompted.embed("fox")), values(llm.embed(">fox")), atol=1e-6)
        [score] = prompted.score("fox", "hen").scores
    query, document = values(llm.embed(["q: fox", "p: hen"]))
    assert score == pytest.approx(float(query @ document), abs=1e-6)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"modules": [{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "a.Dense"}]}, "'Dense'"),
        ({"modules": [{"path": "../other", "type": "a.Pooling"}]}, "../other"),
        ({"1_Pooling/config": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
        ({"1_Pooling/config": {"pooling_mode": 5}}, "pooling_mode is 5"),
        ({"1_Pooling/config": {"pooling_mode_mean_tokens": True, "include_prompt": False}}, "include_prompt"),
        ({"config_sentence_transformers": {"default_prompt_name": "nope"}}, "nope"),
    ],
)
def test_a_way_of_pooling_that_is_not_offered_is_refused_by_name(
    bert: PreTrainedModel, tmp_path: Path, files: dict[str, Any], part: str
) -> None:
    embedders.save(bert, tmp_path, "mean_tokens")
    embedders.write(tmp_path, **files)
    assert part in refusal(LLM, str(tmp_path)).message


# -- decoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_decoder_that_is_told_how_to_pool_makes_vectors_and_still_writes(tmp_path: Path, pooling: str) -> None:
    model = tiny.make("qwen3")
    texts = ["one text, then another", "one text, then a third", "short"]
    ids = [[1 + CHARACTERS.index(character) for character in text] for text in texts]
    embedders.save(model, tmp_path)
    options = {"dtype": "float32", "block_size": 4, "max_num_batched_tokens": 7, "max_num_seqs": 3}
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    with LLM(str(tmp_path), **options) as plain:
        written = [response.output_tokens for response in plain.generate(texts, greedy)]
        error = refusal(plain.embed, "text")
        assert error.code is ErrorCode.UNSUPPORTED
        assert "pooling=last" in error.message
    with LLM(str(tmp_path), **options, options={"pooling": pooling}) as llm:
        assert {"generate", "embed", "score"} <= llm.info.capabilities.features
        first, again = llm.embed(texts), llm.embed(texts)
        assert [response.output_tokens for response in llm.generate(texts, greedy)] == written
        assert llm.stats().used_blocks == 0
    for tokens, one, other in zip(ids, values(first), values(again), strict=True):
        states = hidden(model, tokens)
        want = unit(states[-1] if pooling == "last" else states.mean(0))
        np.testing.assert_allclose(one, want, atol=1e-5, rtol=0)
        np.testing.assert_allclose(other, want, atol=1e-5, rtol=0)
    # The last token sees the prefix in the cache; a mean needs every token computed.
    assert (again.usage.cached_tokens > 0) == (pooling == "last")


@pytest.mark.parametrize("bare", [False, True])
def test_a_checkpoint_of_a_pooled_decoder_needs_no_head(tmp_path: Path, bare: bool) -> None:
    model = tiny.make("qwen3")
    embedders.save(model.model if bare else model, tmp_path, "lasttoken")
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert llm.info.capabilities.features == {"embed", "dimensions", "score"}
        [vector] = values(llm.embed([[5, 6, 7, 8]]))
    np.testing.assert_allclose(vector, unit(hidden(model, [5, 6, 7, 8])[-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("value", "part"), [("max", "mean"), ("cls", "reads before all others")])
def test_a_pooling_that_cannot_be_is_refused_with_what_can(tmp_path: Path, value: str, part: str) -> None:
    embedders.save(tiny.make("llama"), tmp_path)
    error = refusal(LLM, str(tmp_path), options={"pooling": value})
    assert part in error.message
    assert error.param == "options.pooling"


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", list(embedders.CROSS_ENCODERS))
@pytest.mark.parametrize("named", [None, "torch.nn.modules.linear.Identity"])
def test_a_cross_encoder_scores_each_pair_as_the_reference_does(
    tmp_path: Path, architecture: str, named: str | None
) -> None:
    model = embedders.make(architecture)
    if named is not None:
        model.config.sentence_transformers = {"activation_fn": named}
    embedders.save(model, tmp_path)
    documents = ["a fox", "something else", "", "fox"]
    with LLM(str(tmp_path)) as llm:
        response = llm.score("fox?", documents)
        ranked = llm.rerank("fox?", documents, top_n=2)
        assert [one.document for one in llm.rerank("fox?", "fox")] == ["fox"]
        assert refusal(llm.rerank, "fox?", documents, top_n=0).param == "top_n"
        assert refusal(llm.embed, "fox").code is ErrorCode.UNSUPPORTED
    wanted = []
    for document in documents:
        first, second = letters("fox?"), letters(document)[1:]
        types = [0] * len(first) + [int(model.config.type_vocab_size > 1)] * len(second)
        with torch.no_grad():
            logit = model(torch.tensor([first + second]), token_type_ids=torch.tensor([types])).logits[0]
        wanted.append(float(logit if named else torch.sigmoid(logit)))
    assert response.scores == pytest.approx(wanted, abs=1e-5)
    assert response.usage.prompt_tokens == sum(len("fox?") + len(document) + 3 for document in documents)
    best = sorted(range(4), key=lambda index: -wanted[index])[:2]
    assert [(one.index, one.document) for one in ranked] == [(index, documents[index]) for index in best]


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    model = embedders.make("BertForSequenceClassification")
    model.config.id2label = {0: "no", 1: "yes"}
    assert "2 labels" in refusal(LLM, str(embedders.save(model, tmp_path))).message


def test_an_embedding_model_scores_by_the_cosine(llm: LLM) -> None:
    documents = ["hello", "a fox"]
    vectors = values(llm.embed(["hello", *documents]))
    assert llm.score("hello", documents).scores == pytest.approx(list(vectors[1:] @ vectors[0]), abs=1e-6)


# -- its life ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(folder: Path, **fields: Any) -> AsyncIterator[Engine]:
    engine = create(EngineSpec(model=str(folder), core="inline", max_num_seqs=1, max_model_len=POSITIONS, **fields))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def many(folder: Path, **fields: Any) -> EmbedRequest:
    return EmbedRequest(request_id="many", model=str(folder), inputs=("word " * 7,) * 2000, **fields)


async def under_way(engine: Engine) -> None:
    """Wait until the core has some inputs behind it and others before it."""

    async def looking() -> None:
        while not ((stats := await engine.stats()).waiting and stats.steps):
            pass

    await asyncio.wait_for(looking(), 30)


async def test_an_abort_ends_what_is_being_read_and_leaves_nothing_behind(folder: Path) -> None:
    async with serving(folder) as engine:
        reading = asyncio.ensure_future(engine.embed(many(folder)))
        await under_way(engine)
        with pytest.raises(SageLLMError) as caught:
            await engine.embed(many(folder))
        assert caught.value.code is ErrorCode.CONFLICT
        assert await engine.abort("many")
        with pytest.raises(SageLLMError) as caught:
            await reading
        assert caught.value.code is ErrorCode.CANCELLED
        await asyncio.wait_for(engine.drain(), 30)
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.cancelled, stats.refused) == (0, 0, 1, 1)


async def test_a_caller_that_goes_away_takes_its_request_along(folder: Path) -> None:
    async with serving(folder) as engine:
        reading = asyncio.ensure_future(engine.embed(many(folder)))
        await under_way(engine)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        other = ScoreRequest(request_id="other", model=str(folder), query="a", documents=("b",))
        assert len((await asyncio.wait_for(engine.score(other), 30)).scores) == 1
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.cancelled, stats.completed) == (0, 0, 1, 1)


async def test_a_deadline_ends_it(folder: Path) -> None:
    async with serving(folder) as engine:
        with pytest.raises(SageLLMError) as caught:
            await engine.embed(many(folder, slo=SLO(deadline_ms=30)))
        assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
        assert (await engine.stats()).expired == 1
