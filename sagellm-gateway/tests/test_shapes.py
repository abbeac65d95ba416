"""What answers look like, byte for byte where clients look at bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from live import Live, live
from planes import ScriptedPlane
from sagellm_protocol import ErrorCode, ToolCallDelta
from scripts import delta, end, error, says, start, token

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}


@pytest.fixture(scope="module")
def scripted() -> Iterator[Live]:
    with live(ScriptedPlane) as serving:
        yield serving


def post(scripted: Live, path: str, *events: Any, **fields: Any) -> httpx.Response:
    scripted.plane.script = says(*events)
    asked = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    return httpx.post(scripted.url + path, json={**asked, **fields}, timeout=20, trust_env=False)


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a whole stream, which is closed by ``[DONE]``."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_chat_stream_has_the_chunks_of_openai(scripted: Live) -> None:
    response = post(scripted, CHAT, start(), delta("a"), delta(""), delta("b\n"), end(), stream=True)
    got = chunks(response)
    shared = {key: got[0][key] for key in ("id", "object", "created", "model", "system_fingerprint")}
    assert shared["object"] == "chat.completion.chunk"

    def chunk(delta: dict[str, str], finish: str | None = None, **extra: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **extra}
        return {**shared, "choices": [choice]}

    assert got == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}),
        chunk({"content": "b\n"}),
        chunk({}, "stop", stop_reason=None),
    ]


def test_usage_comes_in_a_last_chunk_without_choices_when_asked(scripted: Live) -> None:
    for path in (CHAT, COMPLETIONS):
        *others, last = chunks(
            post(scripted, path, start(), delta("a"), end(), stream=True, stream_options={"include_usage": True})
        )
        assert last["choices"] == []
        assert last["usage"] == USAGE
        assert all(chunk["usage"] is None for chunk in others)


def test_a_whole_chat_has_the_shape_of_openai(scripted: Live) -> None:
    answer = post(scripted, CHAT, start(), delta("a"), delta("b"), end("length")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "scripted"
    assert answer["usage"] == USAGE
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ab", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]


def test_tool_calls_and_reasoning_come_in_pieces_and_whole(scripted: Live) -> None:
    events = (
        start(),
        delta(reasoning="hm"),
        delta(tool_calls=(ToolCallDelta(index=0, id="c1", name="now", arguments='{"a":'),)),
        delta(tool_calls=(ToolCallDelta(index=0, arguments="1}"),)),
        end("tool_calls"),
    )
    pieces = [chunk["choices"][0] for chunk in chunks(post(scripted, CHAT, *events, stream=True))]
    assert pieces[1]["delta"] == {"reasoning_content": "hm"}
    assert pieces[2]["delta"]["tool_calls"] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a":'}}
    ]
    assert pieces[3]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": "1}"}}]
    assert pieces[4]["finish_reason"] == "tool_calls"
    message = post(scripted, CHAT, *events).json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a":1}'}}
    ]


def test_chat_logprobs_have_the_shape_of_openai(scripted: Live) -> None:
    found = token("é", -0.5, 7, ("é", -0.5, 7), ("e", float("-inf"), 8))
    events = (start(), delta("é", logprobs=(found,)), end())
    expected = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
            {"token": "e", "logprob": -9999.0, "bytes": [101]},
        ],
    }
    asked = {"logprobs": True, "top_logprobs": 2}
    whole = post(scripted, CHAT, *events, **asked).json()
    assert whole["choices"][0]["logprobs"] == {"content": [expected], "refusal": None}
    streamed = chunks(post(scripted, CHAT, *events, stream=True, **asked))
    assert streamed[1]["choices"][0]["logprobs"] == {"content": [expected], "refusal": None}
    by_id = post(scripted, CHAT, *events, return_tokens_as_token_ids=True, **asked).json()
    assert by_id["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:7"


def test_legacy_logprobs_count_offsets_over_the_whole_stream(scripted: Live) -> None:
    events = (
        start(),
        delta("ab", logprobs=(token("ab", -1.0, 1, ("c", -2.0, 2)),)),
        delta("d", logprobs=(token("d", -3.0, 3),)),
        end(),
    )
    whole = post(scripted, COMPLETIONS, *events, logprobs=1).json()["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["ab", "d"],
        "token_logprobs": [-1.0, -3.0],
        "top_logprobs": [{"ab": -1.0, "c": -2.0}, {"d": -3.0}],
        "text_offset": [0, 2],
    }
    streamed = chunks(post(scripted, COMPLETIONS, *events, logprobs=1, stream=True))
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in streamed[:2]] == [[0], [2]]


@pytest.mark.parametrize("as_ids", [False, True])
def test_echoed_logprobs_begin_with_those_of_the_prompt(scripted: Live, as_ids: bool) -> None:
    prompt = (None, token("cd", -1.0, 5, ("x", -0.5, 6)))
    events = (
        start(prompt_logprobs=prompt, prompt_token_ids=(4, 5), first_token="ab"),
        delta("abcd", token_ids=()),
        delta("e", logprobs=(token("e", -2.0, 7),)),
        end("length"),
    )
    asked = {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": as_ids}
    choice = post(scripted, COMPLETIONS, *events, **asked).json()["choices"][0]
    assert choice["text"] == "abcde"
    assert "prompt_logprobs" not in choice
    first, second, other, third = (
        ("token_id:4", "token_id:5", "token_id:6", "token_id:7") if as_ids else ("ab", "cd", "x", "e")
    )
    assert choice["logprobs"] == {
        "tokens": [first, second, third],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {other: -0.5, second: -1.0}, {third: -2.0}],
        "text_offset": [0, 2, 4],
    }
    streamed = [
        chunk["choices"][0]["logprobs"]
        for chunk in chunks(post(scripted, COMPLETIONS, *events, stream=True, **asked))
        if chunk["choices"][0]["logprobs"]
    ]
    for name, whole in choice["logprobs"].items():
        assert [value for piece in streamed for value in piece[name]] == whole


def test_of_alternatives_with_one_name_the_likeliest_counts(scripted: Live) -> None:
    position = token("a", -3.0, 1, ("?", -0.5, 2), ("?", -1.5, 3))
    choice = post(scripted, COMPLETIONS, start(), delta("a", logprobs=(position,)), end(), logprobs=2).json()["choices"]
    assert choice[0]["logprobs"]["top_logprobs"] == [{"?": -0.5, "a": -3.0}]


def test_a_prompt_that_is_only_scored_has_its_logprobs(scripted: Live) -> None:
    events = (
        start(prompt_logprobs=(None, token("b", -1.0, 5)), prompt_token_ids=(4, 5), first_token="a"),
        delta("ab", token_ids=()),
        end("length"),
    )
    choice = post(scripted, COMPLETIONS, *events, echo=True, logprobs=0, max_tokens=0).json()["choices"][0]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("ab", [None, -1.0])


def test_of_more_choices_than_wanted_the_likeliest_by_token_are_given(scripted: Live) -> None:
    events = (
        start(),
        *(
            delta("abc"[index], index=index, logprobs=(token("x", value, 1),))
            for index, value in enumerate((-3, -1, -2))
        ),
        delta("c", index=2, logprobs=(token("x", -1.5, 1),)),
        end("stop", "stop", "length"),
    )
    choices = post(scripted, COMPLETIONS, *events, n=2, best_of=3).json()["choices"]
    assert [(choice["index"], choice["text"], choice["logprobs"]) for choice in choices] == [
        (0, "b", None),
        (1, "cc", None),
    ]


def test_token_ids_stand_where_vllm_has_them(scripted: Live) -> None:
    events = (start(prompt_token_ids=(8, 9)), delta("a"), delta("", token_ids=(2,)), end())
    chat = post(scripted, CHAT, *events, return_token_ids=True).json()
    assert (chat["prompt_token_ids"], chat["choices"][0]["token_ids"]) == ([8, 9], [1, 2])
    choice = post(scripted, COMPLETIONS, *events, return_token_ids=True).json()["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([8, 9], [1, 2])
    opening, *told, _ = chunks(post(scripted, CHAT, *events, return_token_ids=True, stream=True))
    assert opening["prompt_token_ids"] == [8, 9]
    assert [chunk["choices"][0]["token_ids"] for chunk in told] == [[1], [2]]
    first, second, _ = chunks(post(scripted, COMPLETIONS, *events, return_token_ids=True, stream=True))
    assert first["choices"][0]["prompt_token_ids"] == [8, 9]
    assert "prompt_token_ids" not in second["choices"][0]
    assert [chunk["choices"][0]["token_ids"] for chunk in (first, second)] == [[1], [2]]


def test_prompt_logprobs_have_the_shape_of_vllm(scripted: Live) -> None:
    events = (start(prompt_logprobs=(None, token("b", -1.0, 5))), delta("x"), end())
    expected = [None, {"5": {"logprob": -1.0, "rank": 1, "decoded_token": "b"}}]
    assert post(scripted, CHAT, *events, prompt_logprobs=0).json()["prompt_logprobs"] == expected
    choice = post(scripted, COMPLETIONS, *events, prompt_logprobs=0).json()["choices"][0]
    assert choice["prompt_logprobs"] == expected


def test_text_of_any_kind_survives_the_stream(scripted: Live) -> None:
    text = '"\\\n\t\x00\x7f\u2028日本語🙂</script>data: [DONE]\n\n'
    got = chunks(post(scripted, CHAT, start(), delta(text), end(), stream=True))
    assert got[1]["choices"][0]["delta"]["content"] == text
    assert post(scripted, CHAT, start(), delta(text), end()).json()["choices"][0]["message"]["content"] == text


def test_half_a_surrogate_pair_breaks_nothing(scripted: Live) -> None:
    events = (start(), delta("a\ud83d"), end())
    assert chunks(post(scripted, CHAT, *events, stream=True))[1]["choices"][0]["delta"]["content"] == "a?"
    assert post(scripted, CHAT, *events).json()["choices"][0]["message"]["content"] == "a?"


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_is_an_http_error(scripted: Live, code: ErrorCode, stream: bool) -> None:
    broken = error(code, "sampling.top_k: bad", param="sampling.top_k", retry_after_s=2.5)
    response = post(scripted, CHAT, start(), broken, stream=stream)
    assert response.status_code == code.http_status
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"] == "top_k: bad"
    assert body["param"] == "top_k"
    assert ("retry-after" in response.headers) == (code.http_status in {429, 503})
    assert response.headers.get("retry-after", "3") == "3"


@pytest.mark.parametrize("events", [(error(ErrorCode.ENGINE_FAILED),), ()])
def test_an_error_after_the_first_token_ends_the_stream_without_a_finish(scripted: Live, events: Any) -> None:
    response = post(scripted, CHAT, start(), delta("a"), *events, stream=True)
    assert response.status_code == 200
    *told, rest = response.text.split("\n\n")
    assert rest == ""
    said = [json.loads(event.removeprefix("data: ")) for event in told]
    assert said[-1]["error"]["code"] == "engine_failed"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in said[:-1])
    assert "[DONE]" not in response.text


def test_a_stream_that_stops_before_its_end_is_never_a_whole_answer(scripted: Live) -> None:
    assert post(scripted, CHAT, start(), delta("a")).status_code == 502


def test_one_failing_prompt_of_a_batch_fails_the_call(scripted: Live) -> None:
    response = post(scripted, COMPLETIONS, start(), error(ErrorCode.QUEUE_FULL), prompt=["a", "b", "c"])
    assert response.status_code == 429


def test_the_answer_names_the_model_that_the_stand_in_stood_for(scripted: Live) -> None:
    for fields in ({}, {"model": "sage-default"}, {"model": None}):
        assert post(scripted, CHAT, start(), delta("a"), end(), **fields).json()["model"] == "scripted"
    assert scripted.plane.asked[-1].model == "scripted"
