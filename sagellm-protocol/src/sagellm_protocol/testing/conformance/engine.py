"""The conformance suite of :class:`~sagellm_protocol.interfaces.Engine`.

Holds for an engine of any model: what depends on the model is compared with what the same engine said before. Features
are tested where the engine offers them, and where it does not, that it refuses them by name. Needs pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, ClassVar, Literal

import pytest
import pytest_asyncio

from sagellm_protocol import features
from sagellm_protocol.blocks import block_hashes, root_hash
from sagellm_protocol.engine import EngineState, EngineStats
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import DeltaEvent, EndEvent, ErrorEvent, FinishReason, StreamEvent
from sagellm_protocol.interfaces import Engine
from sagellm_protocol.requests import (
    SLO,
    EmbedRequest,
    KVTransfer,
    Message,
    Request,
    ScoreRequest,
    StructuredOutput,
    TextPart,
    ToolDefinition,
)
from sagellm_protocol.responses import Response, ResponseBuilder
from sagellm_protocol.testing.check import check_stream, read_all

_IDS = itertools.count()


def _say(role: Literal["system", "user", "assistant"], text: str) -> Message:
    return Message(role=role, content=(TextPart(text=text),))


class EngineConformance:
    """Subclass it, and implement :meth:`make_engine`.

    One engine serves all tests but those of its life; after each test it must be idle, with every block accounted for.
    """

    pytestmark: ClassVar[Any] = pytest.mark.asyncio(loop_scope="class")

    prompt: ClassVar[str] = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy"
    """A prompt that is longer than a few tokens."""
    long_tokens: ClassVar[int] = 2000
    """Output of a request that is meant to be ended before it is done."""
    patience_s: ClassVar[float] = 60.0
    """Longest wait for anything."""

    def make_engine(self) -> Engine:
        """An engine that is not started yet."""
        raise NotImplementedError("implement make_engine")

    # -- helpers ------------------------------------------------------------------------------------------------------

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def engine(cls) -> AsyncIterator[Engine]:
        """The engine that the tests of a class share."""
        engine = cls().make_engine()
        await engine.start()
        yield engine
        await engine.stop()

    @pytest_asyncio.fixture(loop_scope="class", autouse=True)
    async def _idle_afterwards(self, engine: Engine) -> AsyncIterator[None]:
        yield
        stats = await self.settled(engine)
        assert (stats.running, stats.waiting) == (0, 0)
        if stats.used_blocks is not None:
            assert stats.used_blocks == 0

    def request(self, engine: Engine, **fields: Any) -> Request:
        """A request to ``engine``: greedy, short, and with a fresh id, unless ``fields`` say otherwise."""
        sampling = {"temperature": 0.0, "max_tokens": 8, **fields.pop("sampling", {})}
        if not fields.keys() & {"prompt", "prompt_token_ids", "messages"}:
            fields["prompt"] = self.prompt
        return Request(
            **{
                "request_id": f"conformance-{next(_IDS)}",
                "model": engine.info.served_names[0],
                "sampling": sampling,
                **fields,
            }
        )

    def long_request(self, engine: Engine, **fields: Any) -> Request:
        """A request that takes long enough to be ended from outside."""
        room = (engine.info.capabilities.max_model_len or 10**9) - 200
        sampling = {"ignore_eos": True, "max_tokens": min(self.long_tokens, room), **fields.pop("sampling", {})}
        return self.request(engine, sampling=sampling, **fields)

    async def answer(self, engine: Engine, request: Request, **kwargs: Any) -> Response:
        """The whole answer to a request, its stream checked."""
        events = await asyncio.wait_for(read_all(engine.generate(request, **kwargs)), self.patience_s)
        check_stream(events, request)
        builder = ResponseBuilder(request.model)
        for event in events:
            builder.add(event)
        return builder.response()

    async def refusal(self, engine: Engine, request: Request) -> SageLLMError:
        """The error that a request ends in, its stream checked."""
        events = await asyncio.wait_for(read_all(engine.generate(request)), self.patience_s)
        last = check_stream(events, request)
        assert isinstance(last, ErrorEvent), f"expected an error, got {last!r}"
        return SageLLMError.from_info(last.error)

    async def first_tokens(self, stream: AsyncGenerator[StreamEvent, None]) -> list[StreamEvent]:
        """Events of a stream up to the first that produces something."""
        events: list[StreamEvent] = []
        while not events or not isinstance(events[-1], DeltaEvent):
            events.append(await asyncio.wait_for(anext(stream), self.patience_s))
        return events

    async def settled(self, engine: Engine) -> EngineStats:
        """Stats once nothing runs or waits."""
        return await self.eventually(engine, lambda stats: not stats.running and not stats.waiting)

    async def eventually(self, engine: Engine, holds: Any) -> EngineStats:
        """Stats once ``holds`` is true of them; those at the end of our patience otherwise."""
        deadline = asyncio.get_running_loop().time() + self.patience_s
        while True:
            stats = await engine.stats()
            parts = (stats.free_blocks, stats.cached_blocks, stats.used_blocks, stats.leased_blocks)
            if stats.total_blocks is not None and None not in parts:
                assert sum(part or 0 for part in parts) == stats.total_blocks, f"blocks do not add up: {stats}"
            if holds(stats) or asyncio.get_running_loop().time() > deadline:
                return stats
            await asyncio.sleep(0.01)

    def need(self, engine: Engine, feature: str) -> None:
        """Skip a test of a feature that the engine does not offer."""
        if feature not in engine.info.capabilities.features:
            pytest.skip(f"the engine does not offer {feature}")

    # -- what it says of itself ---------------------------------------------------------------------------------------

    async def test_a_started_engine_says_who_it_is(self, engine: Engine) -> None:
        info = engine.info
        assert info.state is EngineState.READY
        assert info.error is None
        assert info.engine_id
        assert info.served_names
        assert features.GENERATE in info.capabilities.features
        stats = await engine.stats()
        assert stats.state is EngineState.READY
        assert stats.heartbeat_age_s is None or stats.heartbeat_age_s < self.patience_s

    # -- answering ----------------------------------------------------------------------------------------------------

    async def test_a_prompt_is_answered(self, engine: Engine) -> None:
        before = await engine.stats()
        response = await self.answer(engine, self.request(engine))
        assert response.usage.prompt_tokens > 0
        assert 0 < response.usage.completion_tokens <= 8
        after = await self.eventually(engine, lambda stats: stats.completed > before.completed)
        assert after.completed == before.completed + 1

    async def test_a_greedy_answer_is_the_same_again(self, engine: Engine) -> None:
        first = await self.answer(engine, self.request(engine))
        again = await self.answer(engine, self.request(engine))
        assert again.outputs == first.outputs

    async def test_requests_at_once_are_answered_as_each_alone(self, engine: Engine) -> None:
        prompts = [self.prompt, self.prompt[:17], self.prompt[10:40], self.prompt * 2]
        alone = [await self.answer(engine, self.request(engine, prompt=prompt)) for prompt in prompts]
        together = await asyncio.gather(
            *(self.answer(engine, self.request(engine, prompt=prompt)) for prompt in prompts)
        )
        assert [response.outputs for response in together] == [response.outputs for response in alone]

    async def test_a_rendered_prompt_is_answered_like_the_request_it_was_made_of(self, engine: Engine) -> None:
        request = self.request(engine)
        prompt = await engine.renderer.render(request)
        response = await self.answer(engine, request, prompt=prompt)
        assert response.usage.prompt_tokens == len(prompt.token_ids)
        assert response.outputs == (await self.answer(engine, self.request(engine))).outputs

    async def test_token_ids_are_answered_like_the_text_they_stand_for(self, engine: Engine) -> None:
        prompt = await engine.renderer.render(self.request(engine))
        response = await self.answer(engine, self.request(engine, prompt_token_ids=prompt.token_ids))
        assert response.outputs == (await self.answer(engine, self.request(engine))).outputs

    async def test_a_prompt_has_the_block_hashes_of_the_contract(self, engine: Engine) -> None:
        prompt = await engine.renderer.render(self.request(engine, prompt=self.prompt * 4, cache_salt="s"))
        if engine.info.model_key is not None and prompt.block_hashes:
            root = root_hash(engine.info.model_key, None, "s")
            assert prompt.block_hashes == block_hashes(root, prompt.token_ids, prompt.block_size)

    async def test_messages_are_answered(self, engine: Engine) -> None:
        self.need(engine, features.CHAT)
        messages = (
            _say("system", "You are terse."),
            _say("user", "Hello."),
            _say("assistant", "Hi."),
            _say("user", "How are you?"),
        )
        response = await self.answer(engine, self.request(engine, messages=messages))
        shorter = await self.answer(engine, self.request(engine, messages=messages[:2]))
        assert response.usage.prompt_tokens > shorter.usage.prompt_tokens > 0

    async def test_choices_are_told_apart(self, engine: Engine) -> None:
        response = await self.answer(engine, self.request(engine, sampling={"n": 3, "ignore_eos": True}))
        assert [output.index for output in response.outputs] == [0, 1, 2]
        assert response.usage.completion_tokens == 24
        assert len({output.text for output in response.outputs}) == 1, "greedy choices of one prompt are equal"

    async def test_a_seed_makes_sampling_reproducible(self, engine: Engine) -> None:
        # Without top_k a draw may fall among tokens so unlikely that rounding, which a cached prefix changes, decides.
        sampling = {"temperature": 1.0, "top_k": 20, "seed": 1234, "max_tokens": 16}
        first = await self.answer(engine, self.request(engine, sampling=sampling))
        again = await self.answer(engine, self.request(engine, sampling=sampling))
        assert again.outputs == first.outputs

    # -- ending -------------------------------------------------------------------------------------------------------

    async def test_max_tokens_ends_an_answer(self, engine: Engine) -> None:
        response = await self.answer(engine, self.request(engine, sampling={"max_tokens": 5, "ignore_eos": True}))
        assert response.usage.completion_tokens == 5
        assert response.finish_reason is FinishReason.LENGTH

    async def test_a_stop_string_ends_an_answer_and_is_left_out(self, engine: Engine) -> None:
        whole = (await self.answer(engine, self.request(engine, sampling={"max_tokens": 24}))).output_text
        stop = whole[len(whole) // 2 :][:3]
        response = await self.answer(engine, self.request(engine, sampling={"max_tokens": 24, "stop": (stop,)}))
        assert response.output_text == whole[: whole.index(stop)]
        assert response.finish_reason is FinishReason.STOP
        assert response.outputs[0].stop_reason == stop

    async def test_a_stop_string_may_be_kept(self, engine: Engine) -> None:
        whole = (await self.answer(engine, self.request(engine, sampling={"max_tokens": 24}))).output_text
        stop = whole[len(whole) // 2 :][:3]
        sampling = {"max_tokens": 24, "stop": (stop,), "include_stop_str_in_output": True}
        response = await self.answer(engine, self.request(engine, sampling=sampling))
        assert response.output_text == whole[: whole.index(stop) + len(stop)]

    async def test_a_stop_string_that_never_comes_changes_nothing(self, engine: Engine) -> None:
        whole = await self.answer(engine, self.request(engine))
        stop = whole.output_text[-2:] + "\N{SNOWMAN}"
        response = await self.answer(engine, self.request(engine, sampling={"stop": (stop,)}))
        assert response.output_text == whole.output_text

    async def test_a_stop_token_ends_an_answer(self, engine: Engine) -> None:
        tokens = (await self.answer(engine, self.request(engine, sampling={"ignore_eos": True}))).output_tokens
        stop = tokens[4]
        sampling = {"ignore_eos": True, "stop_token_ids": (stop,)}
        response = await self.answer(engine, self.request(engine, sampling=sampling))
        assert response.output_tokens == tokens[: tokens.index(stop) + 1]
        assert response.outputs[0].stop_reason == stop

    async def test_min_tokens_holds_stops_off(self, engine: Engine) -> None:
        tokens = (await self.answer(engine, self.request(engine, sampling={"ignore_eos": True}))).output_tokens
        sampling = {"stop_token_ids": tokens[:1], "min_tokens": 6}
        response = await self.answer(engine, self.request(engine, sampling=sampling))
        assert response.usage.completion_tokens >= 6

    async def test_the_context_ends_an_answer_without_max_tokens(self, engine: Engine) -> None:
        limit = engine.info.capabilities.max_model_len
        if limit is None or limit > 4096:
            pytest.skip("the engine's context is long, or unknown")
        sampling = {"max_tokens": None, "ignore_eos": True}
        response = await self.answer(engine, self.request(engine, sampling=sampling))
        assert response.usage.total_tokens == limit
        assert response.finish_reason is FinishReason.LENGTH

    # -- refusing -----------------------------------------------------------------------------------------------------

    async def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(self, engine: Engine) -> None:
        limit = engine.info.capabilities.max_model_len
        if limit is None:
            pytest.skip("the engine does not know its context")
        token = (await engine.renderer.render(self.request(engine))).token_ids[-1]
        error = await self.refusal(engine, self.request(engine, prompt_token_ids=(token,) * (limit + 3)))
        assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        assert str(limit) in error.message
        assert str(limit + 3) in error.message

    async def test_output_that_cannot_fit_is_refused(self, engine: Engine) -> None:
        limit = engine.info.capabilities.max_model_len
        if limit is None:
            pytest.skip("the engine does not know its context")
        error = await self.refusal(engine, self.request(engine, sampling={"max_tokens": limit}))
        assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED

    async def test_a_model_it_does_not_serve_is_refused_by_name(self, engine: Engine) -> None:
        error = await self.refusal(engine, self.request(engine, model="made-up"))
        assert error.code is ErrorCode.MODEL_NOT_FOUND
        assert "made-up" in error.message

    async def test_a_required_feature_it_does_not_know_is_refused_by_name(self, engine: Engine) -> None:
        before = await engine.stats()
        error = await self.refusal(engine, self.request(engine, requires=("made-up",)))
        assert error.code is ErrorCode.UNSUPPORTED
        assert "made-up" in error.message
        after = await engine.stats()
        assert after.refused == before.refused + 1

    @pytest.mark.parametrize(
        ("feature", "fields"),
        [
            (features.TOOLS, {"tools": (ToolDefinition(name="look_up"),)}),
            (features.STRUCTURED_OUTPUT, {"structured": StructuredOutput(regex="a+")}),
            (features.LOGPROBS, {"sampling": {"logprobs": 1}}),
            (features.PROMPT_LOGPROBS, {"sampling": {"prompt_logprobs": 1}}),
            (features.LOGIT_BIAS, {"sampling": {"logit_bias": {1: 1.0}}}),
            (features.ALLOWED_TOKEN_IDS, {"sampling": {"allowed_token_ids": (1,)}}),
            (features.BAD_WORDS, {"sampling": {"bad_words": ("x",)}}),
            (features.ECHO, {"echo": True}),
            (features.BEAM_SEARCH, {"sampling": {"beam_width": 2}}),
            (features.ADAPTER, {"adapter": "made-up"}),
            (features.CACHE_SALT, {"cache_salt": "s"}),
            (features.KV_TRANSFER, {"kv_transfer": KVTransfer(role="produce")}),
        ],
    )
    async def test_what_it_does_not_offer_it_refuses_by_name(
        self, engine: Engine, feature: str, fields: dict[str, Any]
    ) -> None:
        if feature in engine.info.capabilities.features:
            pytest.skip(f"the engine offers {feature}")
        error = await self.refusal(engine, self.request(engine, **fields))
        assert error.code is ErrorCode.UNSUPPORTED
        assert feature in error.message

    async def test_an_id_in_flight_is_not_given_twice(self, engine: Engine) -> None:
        first = self.long_request(engine)
        stream = engine.generate(first)
        await self.first_tokens(stream)
        error = await self.refusal(engine, self.request(engine, request_id=first.request_id))
        assert error.code is ErrorCode.CONFLICT
        assert isinstance(await asyncio.wait_for(anext(stream), self.patience_s), DeltaEvent)
        await stream.aclose()

    # -- ending early -------------------------------------------------------------------------------------------------

    async def test_an_aborted_request_ends_as_cancelled(self, engine: Engine) -> None:
        before = await engine.stats()
        request = self.long_request(engine)
        stream = engine.generate(request)
        events = await self.first_tokens(stream)
        assert await engine.abort(request.request_id)
        events += await asyncio.wait_for(read_all(stream), self.patience_s)
        last = check_stream(events, request)
        assert isinstance(last, ErrorEvent)
        assert last.error.code is ErrorCode.CANCELLED
        after = await self.eventually(engine, lambda stats: stats.cancelled > before.cancelled)
        assert after.cancelled == before.cancelled + 1
        assert not await engine.abort(request.request_id)

    async def test_closing_a_stream_aborts_its_request(self, engine: Engine) -> None:
        before = await engine.stats()
        stream = engine.generate(self.long_request(engine))
        await self.first_tokens(stream)
        await stream.aclose()
        after = await self.eventually(engine, lambda stats: stats.cancelled > before.cancelled and not stats.running)
        assert after.cancelled == before.cancelled + 1
        assert after.running == 0

    async def test_cancelling_the_reader_aborts_its_request(self, engine: Engine) -> None:
        before = await engine.stats()
        started = asyncio.Event()

        async def read() -> None:
            async for event in engine.generate(self.long_request(engine)):
                if isinstance(event, DeltaEvent):
                    started.set()

        reader = asyncio.create_task(read())
        await asyncio.wait_for(started.wait(), self.patience_s)
        reader.cancel()
        await asyncio.wait([reader], timeout=self.patience_s)
        assert reader.cancelled()
        after = await self.eventually(engine, lambda stats: stats.cancelled > before.cancelled)
        assert after.cancelled == before.cancelled + 1

    async def test_a_deadline_ends_a_request_as_expired(self, engine: Engine) -> None:
        before = await engine.stats()
        error = await self.refusal(engine, self.long_request(engine, slo=SLO(deadline_ms=1.0)))
        assert error.code is ErrorCode.DEADLINE_EXCEEDED
        after = await self.eventually(engine, lambda stats: stats.expired > before.expired)
        assert after.expired == before.expired + 1

    async def test_aborting_what_is_not_in_flight_says_so(self, engine: Engine) -> None:
        assert not await engine.abort("made-up")

    # -- features -----------------------------------------------------------------------------------------------------

    async def test_a_prefix_is_found_again_unless_salted(self, engine: Engine) -> None:
        size = engine.info.capabilities.block_size
        if size is None:
            pytest.skip("the engine has no blocks")
        request = self.request(engine, prompt=self.prompt * 8)
        tokens = (await engine.renderer.render(request)).token_ids
        if len(tokens) <= size:
            pytest.skip("the prompt is shorter than a block")
        await self.answer(engine, request)
        again = await self.answer(engine, self.request(engine, prompt=self.prompt * 8))
        if (await engine.stats()).prefix_queried_tokens == 0:
            assert again.usage.cached_tokens == 0, "an engine without a prefix cache finds nothing in it"
            return
        # The prompt's last token is always computed; whether with its block or alone is the engine's business.
        assert (len(tokens) - 1) // size * size <= again.usage.cached_tokens < len(tokens)
        if features.CACHE_SALT in engine.info.capabilities.features:
            salted = await self.answer(engine, self.request(engine, prompt=self.prompt * 8, cache_salt="a secret"))
            assert salted.usage.cached_tokens == 0
            assert salted.outputs == again.outputs

    async def test_echo_puts_the_prompt_first(self, engine: Engine) -> None:
        self.need(engine, features.ECHO)
        plain = await self.answer(engine, self.request(engine))
        echoed = await self.answer(engine, self.request(engine, echo=True))
        assert echoed.output_text == self.prompt + plain.output_text

    async def test_the_prompts_tokens_are_reported_when_asked_for(self, engine: Engine) -> None:
        request = self.request(engine, return_token_ids=True)
        response = await self.answer(engine, request)
        assert response.prompt_token_ids == (await engine.renderer.render(request)).token_ids

    async def test_a_prompt_may_be_read_without_producing_anything(self, engine: Engine) -> None:
        response = await self.answer(engine, self.request(engine, sampling={"max_tokens": 0, "n": 2}))
        assert [(output.text, output.token_ids) for output in response.outputs] == [("", ())] * 2
        assert {output.finish_reason for output in response.outputs} == {FinishReason.LENGTH}
        assert response.usage.completion_tokens == 0
        assert response.metrics.ttft_ms is None, "there was no first token"

    async def test_beams_are_given_best_first(self, engine: Engine) -> None:
        self.need(engine, features.BEAM_SEARCH)
        wide = self.request(engine, sampling={"beam_width": 4, "n": 3, "max_tokens": 5})
        response = await self.answer(engine, wide)
        scores = [output.score for output in response.outputs]
        assert None not in scores
        assert scores == sorted(scores, key=lambda score: -(score or 0.0))
        assert len({output.token_ids for output in response.outputs}) == 3
        endless = {"max_tokens": 5, "ignore_eos": True}
        greedy = await self.answer(engine, self.request(engine, sampling=endless))
        narrow = await self.answer(engine, self.request(engine, sampling={"beam_width": 1, **endless}))
        assert narrow.output_tokens == greedy.output_tokens, "one beam is greedy"

    async def test_logprobs_come_with_every_token(self, engine: Engine) -> None:
        self.need(engine, features.LOGPROBS)
        response = await self.answer(engine, self.request(engine, sampling={"logprobs": 3}))
        positions = response.outputs[0].logprobs
        assert positions is not None
        assert [position.token_id for position in positions] == list(response.output_tokens)
        for position in positions:
            assert position.logprob <= 0
            assert len(position.top) == 3
            assert position.top[0].logprob == max(other.logprob for other in position.top)
            assert position.rank == 1, "a greedy token is the likeliest"

    async def test_embeddings_are_one_vector_an_input_or_refused(self, engine: Engine) -> None:
        request = EmbedRequest(
            request_id=f"conformance-{next(_IDS)}", model=engine.info.served_names[0], inputs=("one", "two", "one")
        )
        if features.EMBED not in engine.info.capabilities.features:
            with pytest.raises(SageLLMError) as refusal:
                await engine.embed(request)
            assert refusal.value.code is ErrorCode.UNSUPPORTED
            return
        response = await engine.embed(request)
        assert [vector.index for vector in response.vectors] == [0, 1, 2]
        values = [vector.values for vector in response.vectors]
        assert values[0] == pytest.approx(values[2], abs=1e-4)
        assert values[0] != pytest.approx(values[1], abs=1e-4)
        assert sum(value * value for value in values[0]) == pytest.approx(1.0, abs=1e-3)
        assert response.usage.prompt_tokens > 0

    async def test_scores_are_one_a_document_or_refused(self, engine: Engine) -> None:
        request = ScoreRequest(
            request_id=f"conformance-{next(_IDS)}",
            model=engine.info.served_names[0],
            query="a brown fox",
            documents=("a brown fox", "an unrelated matter"),
        )
        if features.SCORE not in engine.info.capabilities.features:
            with pytest.raises(SageLLMError) as refusal:
                await engine.score(request)
            assert refusal.value.code is ErrorCode.UNSUPPORTED
            return
        response = await engine.score(request)
        assert len(response.scores) == 2
        assert response.scores[0] > response.scores[1]

    # -- its life -----------------------------------------------------------------------------------------------------

    async def test_before_it_starts_and_after_it_stops_it_takes_nothing(self) -> None:
        engine = self.make_engine()
        assert engine.info.state is EngineState.STARTING
        assert (await self.refusal(engine, self.request(engine))).code is ErrorCode.UNAVAILABLE
        await engine.stop()
        await engine.stop()
        assert (await engine.stats()).state is EngineState.STOPPED
        assert (await self.refusal(engine, self.request(engine))).code is ErrorCode.UNAVAILABLE

    async def test_draining_finishes_what_is_in_flight_and_takes_nothing_new(self) -> None:
        engine = self.make_engine()
        await engine.start()
        try:
            request = self.request(engine, sampling={"max_tokens": 24, "ignore_eos": True})
            stream = engine.generate(request)
            events = await self.first_tokens(stream)
            draining = asyncio.create_task(engine.drain())
            await self.eventually(engine, lambda stats: stats.state is EngineState.DRAINING)
            assert (await self.refusal(engine, self.request(engine))).code is ErrorCode.UNAVAILABLE
            events += await asyncio.wait_for(read_all(stream), self.patience_s)
            assert isinstance(check_stream(events, request), EndEvent)
            await asyncio.wait_for(draining, self.patience_s)
            assert engine.info.state is EngineState.DRAINING
        finally:
            await engine.stop()

    async def test_stopping_ends_what_is_in_flight_as_cancelled(self) -> None:
        engine = self.make_engine()
        await engine.start()
        request = self.long_request(engine)
        stream = engine.generate(request)
        events = await self.first_tokens(stream)
        await asyncio.wait_for(engine.stop(), self.patience_s)
        events += await asyncio.wait_for(read_all(stream), self.patience_s)
        last = check_stream(events, request)
        assert isinstance(last, ErrorEvent)
        assert last.error.code is ErrorCode.CANCELLED
        assert engine.info.state is EngineState.STOPPED
        assert (await engine.stats()).state is EngineState.STOPPED
        await engine.stop()
