"""The offline ``LLM`` on the real model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sagellm_core import LLM
from sagellm_core.store import DEFAULT_MODEL
from sagellm_protocol import ErrorCode, Message, SageLLMError, SamplingParams, TextPart

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def llm(smollm2: object) -> Iterator[LLM]:
    with LLM(DEFAULT_MODEL, max_model_len=256, max_num_seqs=8, dtype="float32") as llm:
        yield llm
        assert llm.stats().used_blocks == 0


def test_a_prompt_is_answered(llm: LLM) -> None:
    [response] = llm.generate("The capital of France is", GREEDY)
    assert response.output_text.startswith(" Paris")


def test_answers_come_in_the_order_of_their_prompts(llm: LLM) -> None:
    prompts = ["1, 2, 3, 4,", "The capital of France is", "a, b, c, d,"]
    together = llm.generate(prompts, GREEDY, progress=False)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [response.output_text for response in together] == [response.output_text for response in alone]


def test_long_work_shows_a_bar_unless_told_not_to(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sagellm_core.llm.PROGRESS_AFTER_S", 0.0)
    llm.generate(["1, 2, 3,", "a, b, c,"], GREEDY, progress=False)
    assert capsys.readouterr().err == ""
    llm.generate(["1, 2, 3,", "a, b, c,"], GREEDY)
    assert "2/2" in capsys.readouterr().err


def test_token_ids_are_a_prompt_alone_or_among_others(llm: LLM) -> None:
    ids = [504, 3575, 282, 4649, 314]
    [one] = llm.generate(ids, GREEDY)
    first, second = llm.generate([ids, "The capital of France is"], GREEDY)
    assert one.output_text == first.output_text == second.output_text


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=tokens) for tokens in (2, 5)]
    responses = llm.generate(["1, 2, 3,", "1, 2, 3,"], params)
    assert [response.usage.completion_tokens for response in responses] == [2, 5]


def test_parameters_that_do_not_match_the_prompts_are_refused(llm: LLM) -> None:
    with pytest.raises(SageLLMError, match="1 sampling_params for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])


def test_ids_may_be_numpys(llm: LLM) -> None:
    ids = llm._engine.renderer.tokenizer.encode("1, 2, 3,")  # type: ignore[attr-defined]
    [plain], [numpys] = llm.generate(ids, GREEDY), llm.generate(np.array(ids), GREEDY)
    assert numpys.output_text == plain.output_text


@pytest.mark.parametrize("prompts", [5, None, [None], [["a", 1.5]], b"bytes", {"prompt": "a"}])
def test_what_is_no_prompt_is_refused_by_name(llm: LLM, prompts: Any) -> None:
    with pytest.raises(SageLLMError) as refusal:
        llm.generate(prompts, GREEDY)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
    assert "prompt" in (refusal.value.param or refusal.value.message)


@pytest.mark.parametrize("params", [{"temperature": 0}, 0.5, [{"temperature": 0}]])
def test_what_are_no_parameters_is_refused_by_name(llm: LLM, params: Any) -> None:
    with pytest.raises(SageLLMError, match="sampling_params is SamplingParams"):
        llm.generate("1, 2, 3,", params)


def test_a_conversation_is_answered_and_several_are(llm: LLM) -> None:
    hello = [{"role": "user", "content": "Say hello."}]
    [one] = llm.chat(hello, GREEDY)
    typed = [Message(role="user", content=(TextPart(text="Say hello."),))]
    two = llm.chat([hello, typed], GREEDY)
    assert [response.output_text for response in two] == [one.output_text] * 2


def test_what_is_wrong_with_one_prompt_is_raised_and_nothing_goes_on(llm: LLM) -> None:
    with pytest.raises(SageLLMError) as refusal:
        llm.generate(["fine", [1] * 300], SamplingParams(temperature=0, max_tokens=200))
    assert refusal.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)


def test_a_wrong_field_is_refused_by_name() -> None:
    with pytest.raises(SageLLMError, match="max_model_length: unknown field"):
        LLM(DEFAULT_MODEL, max_model_length=5)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(SageLLMError, match="no-such-folder"):
        LLM("./no-such-folder")


def test_a_closed_llm_says_so(smollm2: object) -> None:
    llm = LLM(DEFAULT_MODEL, max_model_len=64, dtype="float32")
    llm.close()
    llm.close()
    with pytest.raises(SageLLMError, match="closed"):
        llm.generate("a")


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, sagellm_core; from sagellm_core import create; from sagellm_protocol import EngineSpec;"
        " create(EngineSpec(model='m')); print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_listed_and_others_are_not_found() -> None:
    import sagellm_core

    assert {"LLM", "create"} <= set(dir(sagellm_core))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sagellm_core.nonsense
