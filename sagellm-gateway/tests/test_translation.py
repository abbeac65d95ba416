"""Every parameter is honoured or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sagellm_gateway.openai.body import Body, parse
from sagellm_gateway.openai.chat import ChatBody
from sagellm_gateway.openai.completions import CompletionBody
from sagellm_gateway.openai.embeddings import EmbeddingBody
from sagellm_gateway.openai.messages import Turn
from sagellm_gateway.openai.rerank import RerankBody, ScoreBody
from sagellm_gateway.openai.sampling import StreamOptions
from sagellm_gateway.openai.structured import FunctionChoice, StructuredOutputs
from sagellm_protocol import ErrorCode, NamedTool, Request, SageLLMError
from sagellm_protocol.features import features_of

TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(ChatBody, json.dumps(body).encode()).request("m", "r", "t")


def complete(**fields: Any) -> list[Request]:
    return parse(CompletionBody, json.dumps({"model": "m", "prompt": "hi", **fields}).encode()).requests(
        "m", "r", "t", 8
    )


def refusal(call: Any, **fields: Any) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        call(**fields)
    return caught.value


SAMPLING = [
    ("n", 3, 3),
    ("temperature", 0.5, 0.5),
    ("temperature", 0, 0.0),
    ("top_p", 0.9, 0.9),
    ("top_k", 40, 40),
    ("min_p", 0.1, 0.1),
    ("seed", 7, 7),
    ("presence_penalty", 1, 1.0),
    ("frequency_penalty", -1, -1.0),
    ("repetition_penalty", 1.2, 1.2),
    ("logit_bias", {"5": -100}, {5: -100.0}),
    ("allowed_token_ids", [1, 2], (1, 2)),
    ("bad_words", ["no"], ("no",)),
    ("stop", "end", ("end",)),
    ("stop", ["a", "b"], ("a", "b")),
    ("stop_token_ids", [2], (2,)),
    ("include_stop_str_in_output", True, True),
    ("ignore_eos", True, True),
    ("max_tokens", 5, 5),
    ("prompt_logprobs", 2, 2),
    ("skip_special_tokens", False, False),
    ("truncate_prompt_tokens", 4, 4),
]


@pytest.mark.parametrize(("name", "given", "read"), SAMPLING)
def test_sampling_parameters_reach_the_contract_from_both_apis(name: str, given: Any, read: Any) -> None:
    assert getattr(chat(**{name: given}).sampling, name) == read
    assert getattr(complete(**{name: given})[0].sampling, name) == read


@pytest.mark.parametrize(
    ("name", "given", "read"), [("priority", -3, -3), ("cache_salt", "s", "s"), ("user", "u", "u")]
)
def test_routing_parameters_reach_the_contract(name: str, given: Any, read: Any) -> None:
    assert getattr(chat(**{name: given}), name) == read
    assert getattr(complete(**{name: given})[0], name) == read


def test_min_tokens_reaches_the_contract() -> None:
    assert chat(min_tokens=2, max_tokens=4).sampling.min_tokens == 2


@pytest.mark.parametrize(
    "field",
    [name for kind in (ChatBody, CompletionBody) for name in kind.model_fields if name not in {"messages", "prompt"}],
)
def test_null_is_the_same_as_leaving_a_parameter_out(field: str) -> None:
    call = chat if field in ChatBody.model_fields else complete
    assert call(**{field: None}) == call()


REFUSERS: list[tuple[type[Body], Any]] = [
    (ChatBody, lambda name, value: chat(**{name: value})),
    (CompletionBody, lambda name, value: complete(**{name: value})),
    (
        EmbeddingBody,
        lambda name, value: parse(EmbeddingBody, json.dumps({"input": "x", name: value}).encode()).request(
            "m", "r", "t", 8
        ),
    ),
    (
        RerankBody,
        lambda name, value: parse(
            RerankBody, json.dumps({"query": "x", "documents": ["y"], name: value}).encode()
        ).request("m", "r", "t", 8),
    ),
    (
        ScoreBody,
        lambda name, value: parse(
            ScoreBody, json.dumps({"text_1": "x", "text_2": ["y"], name: value}).encode()
        ).request("m", "r", "t", 8),
    ),
    (Turn, lambda name, value: chat(messages=[{"role": "assistant", "content": "x", name: value}])),
    (StreamOptions, lambda name, value: chat(stream=True, stream_options={name: value})),
    (
        StructuredOutputs,
        lambda name, value: chat(structured_outputs={"regex": "a", name: value}),
    ),
    (
        FunctionChoice,
        lambda name, value: chat(
            tools=[TOOL], tool_choice={"type": "function", "function": {"name": "now"}, name: value}
        ),
    ),
]
REFUSED = [(call, name, kind.refused[name].harmless) for kind, call in REFUSERS for name in kind.refused]


@pytest.mark.parametrize(("call", "name", "harmless"), REFUSED, ids=[name for _, name, _ in REFUSED])
def test_what_is_not_offered_is_refused_by_name_and_its_default_accepted(call: Any, name: str, harmless: Any) -> None:
    with pytest.raises(SageLLMError) as caught:
        call(name, "what nobody offers")
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert caught.value.param is not None
    assert caught.value.param.rpartition(".")[2] == name
    for value in harmless:
        call(name, value)


def test_every_parameter_of_the_openai_sdk_is_known() -> None:
    from openai.types import completion_create_params, embedding_create_params
    from openai.types.chat import completion_create_params as chat_params

    def unknown(kind: type[Body], params: Any) -> set[str]:
        return set(params.__annotations__) - set(kind.model_fields) - set(kind.refused)

    assert not unknown(ChatBody, chat_params.CompletionCreateParamsBase)
    assert not unknown(CompletionBody, completion_create_params.CompletionCreateParamsBase)
    assert not unknown(EmbeddingBody, embedding_create_params.EmbeddingCreateParams)


@pytest.mark.parametrize("call", [chat, complete])
def test_an_unknown_parameter_is_refused_with_the_nearest_known_one(call: Any) -> None:
    error = refusal(call, temprature=1)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.param == "temprature"
    assert "'temperature'" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 1, "max_tokens": 2}, "max_completion_tokens"),
        ({"min_tokens": 5, "max_tokens": 2}, None),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[1]"),
        ({"stop": [""]}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "then"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"user": "a", "safety_identifier": "b"}, "safety_identifier"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"priority": 2**40}, "priority"),
    ],
)
def test_a_wrong_value_is_refused_under_the_name_it_came_under(fields: dict[str, Any], param: str | None) -> None:
    error = refusal(chat, **fields)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.param == param
    assert param is None or param in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ],
)
def test_a_type_that_is_not_offered_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert error.code is ErrorCode.UNSUPPORTED
    assert error.param == param
    assert error.message.count("'") >= 2


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
            "json_schema",
            {"type": "object"},
        ),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"json": {"type": "string"}}}, "json_schema", {"type": "string"}),
        ({"guided_choice": ["yes", "no"]}, "choice", ("yes", "no")),
        ({"guided_json": {"type": "null"}}, "json_schema", {"type": "null"}),
        ({"guided_grammar": "start: A"}, "grammar", "start: A"),
    ],
)
def test_every_way_to_ask_for_a_form_reaches_the_contract(
    fields: dict[str, Any], field: str | None, value: Any
) -> None:
    structured = chat(**fields).structured
    if field is None:
        assert structured is None
    else:
        assert getattr(structured, field) == value


def test_tools_reach_the_contract() -> None:
    request = chat(
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "now"}}, parallel_tool_calls=False
    )
    assert request.tools[0].name == "now"
    assert request.tools[0].parameters == {"type": "object"}
    assert request.tool_choice == NamedTool(name="now")
    assert not request.parallel_tool_calls
    assert chat(tools=[], tool_choice="none").tool_choice == "none"


def test_a_whole_conversation_reaches_the_contract() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    request = chat(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "refusal": None},
            {"role": "tool", "content": "noon", "tool_call_id": "c1"},
        ]
    )
    assert request.messages is not None
    _, user, assistant, tool = request.messages
    assert (user.text, user.name) == ("ab", "Ann")
    assert assistant.tool_calls[0].arguments == "{}"
    assert assistant.reasoning == "hm"
    assert (tool.text, tool.tool_call_id) == ("noon", "c1")


def test_the_last_message_can_be_continued() -> None:
    request = chat(continue_final_message=True, chat_template_kwargs={"enable_thinking": False})
    assert request.continue_final_message
    assert not request.add_generation_prompt
    assert request.chat_template_kwargs == {"enable_thinking": False}


def test_templates_and_efforts_are_for_the_engine_to_honour_or_refuse() -> None:
    request = chat(chat_template="{{ messages }}", reasoning_effort="low")
    assert (request.chat_template, request.reasoning_effort) == ("{{ messages }}", "low")
    assert {"chat_template", "reasoning_effort"} <= set(features_of(request))
    for name in ("chat_template", "reasoning_effort"):
        assert refusal(chat, **{name: ""}).param == name


def test_chat_logprobs_ask_for_as_many_alternatives_as_top_logprobs_says() -> None:
    assert chat().sampling.logprobs is None
    assert chat(logprobs=False, top_logprobs=0).sampling.logprobs is None
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).sampling.logprobs == 3


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens"),
    [
        ("a", ["a"], [None]),
        (["a", "b"], ["a", "b"], [None, None]),
        ([1, 2], [None], [(1, 2)]),
        ([[1], [2, 3]], [None, None], [(1,), (2, 3)]),
        (["a", [1]], ["a", None], [None, (1,)]),
        ("", [""], [None]),
    ],
)
def test_prompts_take_every_form_of_the_api(prompt: Any, texts: Any, tokens: Any) -> None:
    requests = complete(prompt=prompt)
    assert [request.prompt for request in requests] == texts
    assert [request.prompt_token_ids for request in requests] == tokens
    assert len({request.request_id for request in requests}) == len(requests)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"logprobs": 1000}, "logprobs"),
    ],
)
def test_a_wrong_completion_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(complete, **fields)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.param == param


def test_completions_default_to_sixteen_tokens_and_chats_to_what_the_context_allows() -> None:
    assert complete()[0].sampling.max_tokens == 16
    assert complete(best_of=2, n=2, echo=True)[0].echo
    assert chat().sampling.max_tokens is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"nonsense", b"[1]", b'"x"', b"null", b"{}", b"\xff", b'{"messages": NaN}', b"[" * 5000]
)
@pytest.mark.parametrize("kind", [ChatBody, CompletionBody, EmbeddingBody, RerankBody, ScoreBody])
def test_a_body_that_is_no_request_is_refused_in_words(kind: type[Body], data: bytes) -> None:
    with pytest.raises(SageLLMError) as caught:
        parse(kind, data)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_echo_with_logprobs_asks_for_those_of_the_prompt_too() -> None:
    [request] = complete(echo=True, logprobs=1, max_tokens=0)
    sampling = request.sampling
    assert (sampling.logprobs, sampling.prompt_logprobs, sampling.max_tokens) == (1, 1, 0)
    assert request.echo
    assert request.return_token_ids
    assert refusal(complete, echo=True, logprobs=1, prompt_logprobs=2).param == "prompt_logprobs"
    assert refusal(complete, echo=True, logprobs=101).param == "logprobs"


def test_more_choices_may_be_drawn_than_are_given() -> None:
    [request] = complete(n=2, best_of=5)
    assert (request.sampling.n, request.sampling.logprobs) == (5, 0)
    assert complete(n=2, best_of=2)[0].sampling.logprobs is None
    assert refusal(complete, n=3, best_of=2).param == "best_of"
    assert refusal(complete, best_of=2, stream=True).param == "best_of"


def test_beam_search_reaches_the_contract_under_the_names_of_vllm() -> None:
    asked = {"use_beam_search": True, "length_penalty": 0.5, "early_stopping": "never", "temperature": 0}
    for call in (chat, lambda **fields: complete(**fields)[0]):
        request = call(n=3, **asked)
        sampling = request.sampling
        assert (sampling.beam_width, sampling.n) == (3, 3)
        assert (sampling.length_penalty, sampling.early_stopping) == (0.5, "never")
        assert features_of(request)["beam_search"] == "sampling.beam_width"
    [wide] = complete(n=2, best_of=6, use_beam_search=True)
    assert (wide.sampling.beam_width, wide.sampling.n, wide.sampling.logprobs) == (6, 2, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length_penalty": 2.0}, "length_penalty: applies to beam search"),
        ({"early_stopping": True}, "early_stopping: applies to beam search"),
        ({"use_beam_search": True, "stream": True}, "stream: beam search"),
        ({"use_beam_search": True, "top_p": 0.5}, "top_p (0.5) cannot be combined with beam search"),
    ],
)
def test_what_does_not_go_with_beam_search_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    for call in (chat, complete):
        error = refusal(call, **fields)
        assert error.code is ErrorCode.INVALID_REQUEST
        assert says in error.message


@pytest.mark.parametrize(
    ("ask", "fields", "param"),
    [
        (chat, {"use_beam_search": True, "n": 65}, "n"),
        (complete, {"use_beam_search": True, "n": 65}, "n"),
        (complete, {"use_beam_search": True, "n": 2, "best_of": 65}, "best_of"),
        (complete, {"n": 2, "best_of": 100_000}, "best_of"),
    ],
)
def test_too_many_sequences_are_refused_under_the_name_they_were_asked_for_by(
    ask: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(SageLLMError) as caught:
        ask(**fields)
    assert caught.value.param == param
    assert "beam_width" not in caught.value.message


def test_what_asks_for_nothing_without_beam_search_is_taken() -> None:
    assert chat(length_penalty=1, early_stopping=False, use_beam_search=False) == chat()


def test_token_ids_are_asked_for_by_both_apis() -> None:
    assert chat(return_token_ids=True).return_token_ids
    assert complete(return_token_ids=True)[0].return_token_ids
