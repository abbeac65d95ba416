"""The official client of OpenAI against a serving gateway over the mock engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from live import WAIT_S, Live, default_plane, live, mock_plane
from sagellm_protocol import EngineSpec

MESSAGES = [{"role": "user", "content": "hello"}]
TEXT = "Hello from the mock."


@pytest.fixture(scope="module", params=["an engine alone", "the control plane"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Live]:
    if request.param == "an engine alone":
        serving = live(mock_plane(text=TEXT))
    else:
        serving = live(default_plane, EngineSpec(engine="mock", model="mock", options={"text": TEXT}))
    with serving as found:
        yield found


@pytest.fixture
def client(gateway: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=WAIT_S, max_retries=0) as client:
        yield client


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock", messages=MESSAGES)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == TEXT
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "mock"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock", messages=MESSAGES)
    again = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "and?"}]
    assert client.chat.completions.create(model="mock", messages=again).choices[0].message.content == TEXT


def test_a_streamed_chat_says_the_same_as_a_whole_one(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="mock", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    *deltas, usage = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert usage.choices == []
    whole = client.chat.completions.create(model="mock", messages=MESSAGES)
    assert usage.usage is not None
    assert whole.usage is not None
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in deltas)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock", messages=MESSAGES, stop=" from")
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_cuts_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock", messages=MESSAGES, max_completion_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_n_choices_come_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mock", messages=MESSAGES, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = ["", "", ""]
    roles = set()
    for chunk in client.chat.completions.create(model="mock", messages=MESSAGES, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.delta.role:
                roles.add(choice.index)
    assert texts == [TEXT] * 3
    assert roles == {0, 1, 2}


def test_prompts_in_a_batch_are_numbered_throughout(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mock", prompt=["one", "two"], n=2, max_tokens=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [""] * 4
    ends = []
    for chunk in client.completions.create(model="mock", prompt=["one", "two"], n=2, max_tokens=5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends.append(choice.index)
    assert texts == [TEXT[:5]] * 4
    assert sorted(ends) == [0, 1, 2, 3]


def test_the_prompt_is_echoed_when_asked(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mock", prompt="Say: ", max_tokens=5, echo=True)
    assert answer.choices[0].text == "Say: Hello"


def test_embeddings_come_as_floats_and_as_base64(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="mock", input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model="mock", input=["a", "b"])
    assert [item.index for item in floats.data] == [0, 1]
    for one, other in zip(floats.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert math.isclose(sum(value * value for value in floats.data[0].embedding), 1, abs_tol=1e-6)
    assert len(client.embeddings.create(model="mock", input="a", dimensions=4).data[0].embedding) == 4


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    [model] = list(client.models.list())
    assert model.id == "mock"
    assert model.model_extra is not None
    assert model.model_extra["mock"] is True
    assert client.models.retrieve("mock").id == "mock"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_errors_are_the_exceptions_of_the_sdk(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="mock", messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="mock", messages=MESSAGES, logprobs=True, stream=True)
    assert unsupported.value.code == "unsupported"


def test_an_overlong_prompt_is_refused_with_both_lengths(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="mock", prompt="x" * 40_000)
    assert long.value.code == "context_length_exceeded"
    assert "32768" in long.value.message


async def test_the_asynchronous_client_streams(gateway: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=WAIT_S) as client:
        stream = await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(text) == TEXT


def _take_all(stream: Iterable[ChatCompletionChunk], into: list[ChatCompletionChunk]) -> None:
    """Take a stream's chunks, and keep those that came before an error."""
    for chunk in stream:
        into.append(chunk)  # noqa: PERF402 - extend() would lose them


def test_an_engine_that_fails_midway_is_an_error_and_never_a_finish() -> None:
    with (
        live(mock_plane(text=TEXT, fail_after_tokens=3)) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=WAIT_S, max_retries=0) as client,
    ):
        seen: list[ChatCompletionChunk] = []
        stream = client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="told to fail"):
            _take_all(stream, seen)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in seen) == TEXT[:3]
        assert all(chunk.choices[0].finish_reason is None for chunk in seen)
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="mock", messages=MESSAGES)
        assert failed.value.status_code == 502
