from __future__ import annotations

import pytest
from pydantic import ValidationError

from sagellm_protocol import (
    EmbedRequest,
    ErrorCode,
    Message,
    Request,
    SageLLMError,
    SamplingParams,
    ScoreRequest,
    StructuredOutput,
    features,
    remote,
)


def request(**fields) -> Request:
    return Request.model_validate({"request_id": "r", "model": "m", "prompt": "x", **fields})


def test_a_message_given_as_a_string_is_one_text_part() -> None:
    message = Message.model_validate({"role": "user", "content": "hello"})
    assert [part.type for part in message.content] == ["text"]
    assert message.text == "hello"


def test_one_stop_string_stands_for_itself() -> None:
    assert SamplingParams.model_validate({"stop": "\n\n"}).stop == ("\n\n",)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt_token_ids": [1]}, "prompt, prompt_token_ids"),
        ({"sampling": {"stop": [""]}}, "cannot be empty"),
        ({"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}, "no traceparent"),
        ({"sampling": {"beam_width": 2, "n": 3}}, "n (3) is larger than beam_width (2)"),
        ({"sampling": {"beam_width": 2, "top_k": 5}}, "top_k (5)"),
        ({"sampling": {"beam_width": 2, "min_p": 0.5}}, "min_p (0.5)"),
        ({"sampling": {"beam_width": 2, "max_tokens": 0}}, "at least 1"),
        ({"sampling": {"length_penalty": 2.0}}, "set beam_width"),
        ({"sampling": {"early_stopping": True}}, "set beam_width"),
        ({"sampling": {"beam_width": 2}, "stream": True}, "stream=false"),
        ({"sampling": {"beam_width": 2}, "structured": {"regex": "a"}}, "leave out structured"),
        ({"sampling": {"temperature": float("nan")}}, "finite"),
        ({"sampling": {"logit_bias": {"-1": 1}}}, "greater than or equal to 0"),
        ({"continue_final_message": True}, "add_generation_prompt=false"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"name": "a"}, "tools": [{"name": "b"}]}, "'a', which is not among the tools (b)"),
        ({"reasoning_effort": "low"}, "reasoning_effort needs messages"),
        ({"chat_template": "x"}, "chat_template needs messages"),
        ({"kv_transfer": {"role": "consume"}}, "a consumer needs a ticket"),
        ({"structured": {"regex": "a", "json_object": True}}, "got regex, json_object"),
        ({"slo": {"deadline_ms": 0}}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, says) -> None:
    with pytest.raises(ValidationError) as refusal:
        request(**fields)
    assert says in str(refusal.value)


def test_a_structured_output_has_exactly_one_form() -> None:
    assert StructuredOutput(json_object=True).json_object
    with pytest.raises(ValidationError, match="got none"):
        StructuredOutput()


@pytest.mark.parametrize(
    ("fields", "used"),
    [
        ({}, {features.GENERATE}),
        ({"prompt": None, "messages": [{"role": "user", "content": "x"}]}, {features.GENERATE, features.CHAT}),
        ({"tools": [{"name": "t"}]}, {features.GENERATE, features.TOOLS}),
        (
            {"tools": [{"name": "t"}], "tool_choice": "required"},
            {features.GENERATE, features.TOOLS, features.TOOL_CHOICE},
        ),
        (
            {"tools": [{"name": "t"}], "tool_choice": {"name": "t"}},
            {features.GENERATE, features.TOOLS, features.TOOL_CHOICE},
        ),
        (
            {"prompt": None, "messages": [{"role": "user"}], "reasoning_effort": "low", "chat_template": "x"},
            {features.GENERATE, features.CHAT, features.REASONING_EFFORT, features.CHAT_TEMPLATE},
        ),
        ({"structured": {"regex": "a"}}, {features.GENERATE, features.STRUCTURED_OUTPUT}),
        ({"sampling": {"logprobs": 0}}, {features.GENERATE, features.LOGPROBS}),
        ({"sampling": {"prompt_logprobs": 0}}, {features.GENERATE, features.PROMPT_LOGPROBS}),
        ({"sampling": {"logit_bias": {"1": 1}}}, {features.GENERATE, features.LOGIT_BIAS}),
        ({"sampling": {"allowed_token_ids": [1]}}, {features.GENERATE, features.ALLOWED_TOKEN_IDS}),
        ({"sampling": {"bad_words": ["a"]}}, {features.GENERATE, features.BAD_WORDS}),
        ({"echo": True}, {features.GENERATE, features.ECHO}),
        ({"adapter": "a"}, {features.GENERATE, features.ADAPTER}),
        ({"cache_salt": "a"}, {features.GENERATE, features.CACHE_SALT}),
        ({"kv_transfer": {"role": "produce"}}, {features.GENERATE, features.KV_TRANSFER}),
        ({"requires": ["later"]}, {features.GENERATE, "later"}),
    ],
)
def test_a_request_shows_the_features_it_depends_on(fields, used) -> None:
    assert set(features.features_of(request(**fields))) == used


def test_other_requests_show_theirs() -> None:
    embed = EmbedRequest(request_id="r", model="m", inputs=("x",), dimensions=4)
    score = ScoreRequest(request_id="r", model="m", query="q", documents=("d",), adapter="a")
    assert set(features.features_of(embed)) == {features.EMBED, features.DIMENSIONS}
    assert set(features.features_of(score)) == {features.SCORE, features.ADAPTER}


def test_a_required_feature_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(SageLLMError) as refusal:
        features.refuse_unknown(request(requires=("video",)), {features.GENERATE})
    assert refusal.value.code is ErrorCode.UNSUPPORTED
    assert refusal.value.param == "requires"
    assert "'video'" in refusal.value.message
    assert "it offers generate" in refusal.value.message


def test_a_request_of_known_features_is_let_through() -> None:
    features.refuse_unknown(request(echo=True), {features.GENERATE, features.ECHO})


def test_every_feature_with_a_name_is_listed() -> None:
    constants = {value for name, value in vars(features).items() if name.isupper() and isinstance(value, str)}
    assert constants == features.ALL


@pytest.mark.parametrize("theirs", [None, "0.1"])
def test_a_peer_of_our_wire_version_is_let_in(theirs: str | None) -> None:
    remote.check_version(theirs)


@pytest.mark.parametrize("theirs", ["0.2", "1.0", "", "nonsense"])
def test_a_peer_of_another_wire_version_is_refused_naming_both(theirs: str) -> None:
    with pytest.raises(SageLLMError) as refusal:
        remote.check_version(theirs)
    assert refusal.value.code is ErrorCode.UNSUPPORTED
    assert f"wire version {theirs}" in refusal.value.message
    assert "0.1" in refusal.value.message
