"""Beam search beside the reference implementation's, and among other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fake_model import fake_engine, fake_spec, write_tokenizer
from sagellm_core.core.plan import TokenLogprob
from sagellm_core.front.beams import BeamSearch
from sagellm_core.front.engine import FrontEngine
from sagellm_core.llm import LLM
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import ErrorEvent
from sagellm_protocol.requests import Request
from sagellm_protocol.responses import Response, collect
from sagellm_protocol.sampling import SamplingParams
from tiny_llm import write_tiny

PROMPT = [40, 7, 90, 22, 5, 66, 13, 81, 33, 2, 50, 17, 71, 29, 8, 44, 60, 3, 19]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32", max_model_len=128, block_size=8, threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def searched(reference: Any, width: int, n: int, **fields: Any) -> list[tuple[list[int], float]]:
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        found = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=n,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **fields,
        )
    ends = fields["eos_token_id"] or []
    outputs = [up_to_its_end(row[len(PROMPT) :].tolist(), ends) for row in found.sequences]
    return list(zip(outputs, found.sequences_scores.tolist(), strict=True))


def up_to_its_end(tokens: list[int], ends: list[int]) -> list[int]:
    """Without the padding behind an end token."""
    return tokens[: next((at for at, token in enumerate(tokens, start=1) if token in ends), len(tokens))]


def tokens_of(found: Response) -> list[tuple[int, ...]]:
    return [output.token_ids for output in found.outputs]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
def test_sequences_and_scores_are_the_references(
    llm: LLM, reference: Any, length_penalty: float, early_stopping: Any
) -> None:
    how = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    # Ends that come often, for sequences of many lengths.
    ends = [0, 11, 25, 47, 63]
    expected = searched(reference, 4, 4, max_new_tokens=20, eos_token_id=ends, **how)
    [found] = llm.beam_search(PROMPT, beam_width=4, max_tokens=20, stop_token_ids=tuple(ends), **how)
    assert [list(output.token_ids) for output in found.outputs] == [tokens for tokens, _ in expected]
    assert [output.score for output in found.outputs] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert any(output.finish_reason == "stop" for output in found.outputs)


def test_without_an_end_every_sequence_is_as_long_as_it_may_be(llm: LLM, reference: Any) -> None:
    expected = searched(reference, 5, 3, max_new_tokens=12, eos_token_id=None)
    [found] = llm.beam_search(PROMPT, beam_width=5, n=3, max_tokens=12, ignore_eos=True)
    assert [list(output.token_ids) for output in found.outputs] == [tokens for tokens, _ in expected]
    assert [output.finish_reason for output in found.outputs] == ["length"] * 3


def test_no_end_comes_before_min_tokens(llm: LLM, reference: Any) -> None:
    ends = [0, 11, 25, 47, 63]
    expected = searched(reference, 3, 3, max_new_tokens=10, min_new_tokens=6, eos_token_id=ends)
    [found] = llm.beam_search(PROMPT, beam_width=3, max_tokens=10, min_tokens=6, stop_token_ids=tuple(ends))
    assert [list(output.token_ids) for output in found.outputs] == [tokens for tokens, _ in expected]


def test_several_prompts_are_searched_as_each_alone_and_beside_sampled_ones(llm: LLM) -> None:
    prompts = [PROMPT, PROMPT[3:], PROMPT[::-1]]
    alone = [tokens_of(llm.beam_search(prompt, beam_width=3, max_tokens=8)[0]) for prompt in prompts]
    each = [*[SamplingParams(beam_width=3, n=3, max_tokens=8)] * 3, SamplingParams(max_tokens=30)]
    together = llm.generate([*prompts, PROMPT], each)
    assert [tokens_of(found) for found in together[:3]] == alone


def test_logprobs_add_up_to_the_score(llm: LLM) -> None:
    [found] = llm.beam_search(PROMPT, beam_width=3, max_tokens=6, logprobs=2, length_penalty=1.0)
    for output in found.outputs:
        assert output.logprobs is not None
        assert [position.token_id for position in output.logprobs] == list(output.token_ids)
        assert all(len(position.top) == 2 for position in output.logprobs)
        mean = sum(position.logprob for position in output.logprobs) / len(output.token_ids)
        assert mean == pytest.approx(output.score, abs=1e-4)


def test_a_search_in_a_pool_too_small_for_its_beams_gives_the_same(folder: Path, llm: LLM) -> None:
    expected = tokens_of(llm.beam_search(PROMPT, beam_width=6, max_tokens=24)[0])
    with LLM(
        str(folder), dtype="float32", max_model_len=64, max_num_seqs=2, block_size=8, threads=1, prefix_caching=False
    ) as narrow:
        assert tokens_of(narrow.beam_search(PROMPT, beam_width=6, max_tokens=24)[0]) == expected


def test_prompts_are_counted_once(folder: Path) -> None:
    with LLM(str(folder), dtype="float32", max_model_len=64, threads=1) as llm:
        [found] = llm.beam_search(PROMPT, beam_width=3, max_tokens=6)
        assert found.usage.prompt_tokens == len(PROMPT)
        assert found.usage.completion_tokens == sum(len(output.token_ids) for output in found.outputs)
        assert llm.stats().prompt_tokens == len(PROMPT)
        assert llm.stats().completed == 1
        assert (found.metrics.tpot_ms, found.metrics.kv_used_tokens) == (None, None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_p": 0.5}, "top_p"),
        ({"stop": ("x",)}, "stop"),
        ({"temperature": 0.7}, "temperature"),
        ({"n": 5}, "n (5)"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_what_a_search_does_not_go_by_is_refused_by_name(llm: LLM, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SageLLMError) as refused:
        llm.beam_search(PROMPT, beam_width=4, **fields)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert named in refused.value.message


def test_sequences_that_end_leave_their_places_to_others() -> None:
    rows = TokenLogprob(-0.1, 1, [(3, -0.1), (4, -2.4)])
    search = BeamSearch(2, {4}, 2)
    search.extend([rows])
    assert [beam.tokens for beam in search.running] == [(3,)]


@pytest.fixture
async def engine(tmp_path: Path) -> Any:
    engine = fake_engine(write_tokenizer(tmp_path), fake_spec("inline"))
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_search_that_is_aborted_or_expires_leaves_nothing(engine: FrontEngine) -> None:
    def asked(request_id: str, **fields: Any) -> Request:
        sampling = SamplingParams(beam_width=4, n=2, max_tokens=900, ignore_eos=True)
        return Request(request_id=request_id, model="fake", prompt="abc", sampling=sampling, **fields)

    running = asyncio.ensure_future(collect(engine.generate(asked("a")), "fake"))
    late = asyncio.ensure_future(collect(engine.generate(asked("b", slo={"deadline_ms": 50.0})), "fake"))
    with pytest.raises(SageLLMError) as expired:
        await asyncio.wait_for(late, 30)
    assert expired.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert await engine.abort("a")
    with pytest.raises(SageLLMError) as aborted:
        await asyncio.wait_for(running, 30)
    assert aborted.value.code is ErrorCode.CANCELLED
    stats = await engine.stats()
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
    await asyncio.wait_for(engine.drain(), 30)


async def test_a_search_that_cannot_be_told_leaves_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    def lost(search: BeamSearch, rows: Any) -> None:
        raise ZeroDivisionError("one too many")

    monkeypatch.setattr(BeamSearch, "extend", lost)
    engine = fake_engine(write_tokenizer(tmp_path), fake_spec("inline"))
    await engine.start()
    sampling = SamplingParams(temperature=0, max_tokens=4, beam_width=2)
    request = Request(request_id="r", model="fake", prompt="hello", sampling=sampling)
    last = [event async for event in engine.generate(request)][-1]
    assert isinstance(last, ErrorEvent)
    assert last.error.code is ErrorCode.INTERNAL
    await asyncio.wait_for(engine.drain(), 30.0)
    await engine.stop()
