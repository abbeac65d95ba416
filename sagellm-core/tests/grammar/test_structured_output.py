"""Constrained output of a random model, which says whatever it may: it follows its form, or its length ended it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fake_model import CHARACTERS
from sagellm_core import LLM
from sagellm_protocol import ErrorCode, FinishReason, Response, SageLLMError, SamplingParams, StructuredOutput
from tiny_llm import write_tiny

PROMPT = "say it, and say it as it is asked for; now:"
LIMIT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32", max_num_seqs=8, threads=1) as opened:
        yield opened


def say(llm: LLM, form: dict[str, Any], *, prompts: int = 1, **sampling: Any) -> list[Response]:
    asked = {"max_tokens": LIMIT, "temperature": 1.0, "seed": 7, **sampling}
    listed = [PROMPT + str(number) for number in range(prompts)]
    return llm.generate(
        listed, SamplingParams(**asked), progress=False, structured=StructuredOutput.model_validate(form)
    )


def finish(response: Response) -> FinishReason | None:
    return response.outputs[0].finish_reason


_NAMES = st.sampled_from(["a", "b c", 'q"', "n\\"])
_LEAVES = st.one_of(
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width}, *[st.integers(0, 99)] * 2
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6)),
    st.builds(lambda digits: {"type": "string", "pattern": f"^[0-9]{{{digits}}}$"}, st.integers(1, 4)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from([None, True, 3, "x", [1]]), min_size=1, unique_by=repr),
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"k": [1, 2]}}]),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, optional: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name not in optional],
            "additionalProperties": False,
        },
        st.dictionaries(_NAMES, inner, min_size=1, max_size=3),
        st.sets(_NAMES),
    )


_SCHEMAS = _objects(
    st.recursive(
        _LEAVES,
        lambda inner: st.one_of(
            _objects(inner),
            st.builds(
                lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)
            ),
            st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
        ),
        max_leaves=5,
    )
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=_SCHEMAS, seed=st.integers(0, 9), greedy=st.booleans())
def test_whatever_the_schema_output_validates_or_its_length_ended_it(
    llm: LLM, schema: dict[str, Any], seed: int, greedy: bool
) -> None:
    for response in say(llm, {"json_schema": schema}, prompts=2, seed=seed, temperature=0.0 if greedy else 1.0):
        if finish(response) is FinishReason.STOP:
            jsonschema.validate(json.loads(response.output_text), schema)
        else:
            assert response.usage.completion_tokens == LIMIT


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"\d{3}-\w{2,4}/[^/\d]"}, r"\d{3}-\w{2,4}/[^/\d]"),
        ({"regex": r"^(yes|no)!$"}, r"yes!|no!"),
        ({"choice": ["red", "green\n", 'b"l\\ue']}, r'red|green\n|b"l\\ue'),
        ({"grammar": 'start: "x" num ";"\nnum: /[0-9]{1,3}/ | "(" num ")"\n'}, r"x\(*[0-9]{1,3}\)*;"),
        ({"grammar": 'root ::= "<" [a-c]+ ">" | digit digit\ndigit ::= [0-9]'}, r"<[a-c]+>|\d\d"),
    ],
)
def test_each_form_is_followed_to_its_end(llm: LLM, form: dict[str, Any], pattern: str) -> None:
    for seed in range(6):
        [response] = say(llm, form, seed=seed)
        assert finish(response) is FinishReason.STOP
        assert re.fullmatch(pattern, response.output_text, re.ASCII), response.output_text


def test_a_json_object_is_one(llm: LLM) -> None:
    for seed in range(6):
        [response] = say(llm, {"json_object": True}, seed=seed)
        if finish(response) is FinishReason.STOP:
            assert isinstance(json.loads(response.output_text), dict)


def test_a_length_that_ends_it_is_told(llm: LLM) -> None:
    [response] = say(llm, {"regex": "[a-z]{50}"}, max_tokens=20)
    assert finish(response) is FinishReason.LENGTH
    assert re.fullmatch("[a-z]{20}", response.output_text)


def test_what_is_complete_with_its_last_token_was_not_cut_off(llm: LLM) -> None:
    [response] = say(llm, {"regex": "[a-z]{20}"}, max_tokens=20)
    assert finish(response) is FinishReason.STOP
    assert response.usage.completion_tokens == 20  # nothing may follow, so no token is spent on saying so


@pytest.mark.parametrize("held_back", [{"ignore_eos": True}, {"min_tokens": 100}])
def test_where_ends_are_held_back_the_text_goes_on_as_long_as_its_form_lets_it(
    llm: LLM, held_back: dict[str, Any]
) -> None:
    [response] = say(llm, {"regex": "[a-z]{3,30}"}, **held_back)
    assert finish(response) is FinishReason.STOP
    assert re.fullmatch("[a-z]{30}", response.output_text)
    [response] = say(llm, {"grammar": 'start: ""'}, **held_back)
    assert (finish(response), response.output_text) == (FinishReason.STOP, "")


def test_a_stop_token_may_come_where_the_text_may_end(llm: LLM) -> None:
    hash_sign = CHARACTERS.index("#") + 1  # no text of the form has it
    response = say(llm, {"regex": "[a-z]{3,300}"}, stop_token_ids=(hash_sign,), logit_bias={hash_sign: 100.0})[0]
    assert response.outputs[0].stop_reason == hash_sign
    assert re.fullmatch("[a-z]{3}", response.output_text)


def test_a_stop_string_ends_it_as_asked(llm: LLM) -> None:
    [response] = say(llm, {"regex": "[ab]{100}"}, stop="ab")
    assert response.outputs[0].stop_reason == "ab"
    assert re.fullmatch("b*a*", response.output_text)


def test_choices_follow_it_each_for_itself_and_seeds_reproduce(llm: LLM) -> None:
    form = {"regex": "[a-z]{5,9}[0-9]"}
    [first] = say(llm, form, n=4)
    texts = [output.text for output in first.outputs]
    assert len(set(texts)) > 1
    assert all(re.fullmatch("[a-z]{5,9}[0-9]", text) for text in texts)
    beside = say(llm, form, n=4, prompts=3)
    assert [output.text for output in beside[0].outputs] == texts


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"json_schema": {"type": "strange"}}, "strange"),
        ({"json_schema": {"type": "object", "unevaluatedProperties": False}}, "unevaluatedProperties"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "[Uu]nsatisfiable"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?<=a)b"}, "look-around"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": 'start: start "a"'}, "no text follows it"),
        ({"grammar": "root ::= ("}, "GBNF"),
        ({"grammar": "root ::= digit"}, "GBNF.*digit"),
        ({"grammar": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000}, "GBNF"),
        ({"regex": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_form_is_refused_with_its_reason_and_neighbours_are_unharmed(
    llm: LLM, form: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SageLLMError, match=reason) as refused:
        say(llm, form)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert (refused.value.param or "").startswith("structured")
    [response] = say(llm, {"regex": "[a-z]{4}"})
    assert re.fullmatch("[a-z]{4}", response.output_text)


def test_bans_that_leave_no_token_end_that_request_alone(llm: LLM) -> None:
    with pytest.raises(SageLLMError, match="no token may be produced"):
        say(llm, {"regex": "aaaa"}, bad_words=("a",))
    assert say(llm, {"regex": "aaaa"})[0].output_text == "aaaa"


def test_log_probabilities_are_the_models_own(llm: LLM) -> None:
    [response] = say(llm, {"regex": "[a-z]{4}"}, logprobs=2)
    assert response.outputs[0].logprobs is not None
    assert any(one.rank is not None and one.rank > 2 for one in response.outputs[0].logprobs)


def test_preempted_and_prefixed_sequences_say_what_they_say_alone(folder: Path, llm: LLM) -> None:
    form = {"regex": "([a-z]{2}[0-9]){20}"}
    alone = [say(llm, form, prompts=number + 1)[number].output_text for number in range(4)]
    with LLM(
        *(str(folder),),
        dtype="float32",
        threads=1,
        max_num_seqs=4,
        max_model_len=176,
        kv_cache_memory_bytes=12 * 16 * 256,
    ) as small:
        together = say(small, form, prompts=4)
        assert small.stats().preemptions > 0
        assert small.stats().prefix_hit_tokens > 0
    assert [response.output_text for response in together] == alone
    assert sum(response.metrics.evict_count or 0 for response in together) > 0


def test_a_core_of_its_own_process_compiles_too(folder: Path, llm: LLM) -> None:
    form = {
        "json_schema": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    }
    with LLM(str(folder), core="process", dtype="float32", threads=1, max_num_seqs=4) as apart:
        assert say(apart, form)[0].output_text == say(llm, form)[0].output_text
        with pytest.raises(SageLLMError, match="strange"):
            say(apart, {"json_schema": {"type": "strange"}})
