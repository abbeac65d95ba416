"""The conformance suite of :class:`~sagellm_protocol.interfaces.ControlPlane`.

It serves mock engines through the plane under test, started by the plane's own launcher. Needs pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from sagellm_protocol.engine import EngineSpec, EngineState
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import DeltaEvent, EndEvent, ErrorEvent, StreamEvent
from sagellm_protocol.interfaces import ControlPlane, PlaneStatus, RequestEnding
from sagellm_protocol.requests import SLO, EmbedRequest, Request, ScoreRequest
from sagellm_protocol.testing.check import check_stream, read_all

_IDS = itertools.count()
_SLOW: dict[str, Any] = {"itl_ms": 5.0}


class ControlPlaneConformance:
    """Subclass it, and implement :meth:`make_plane`.

    After each test the plane's counts must add up, and nothing may be in flight.
    """

    pytestmark: ClassVar[Any] = pytest.mark.asyncio

    patience_s: ClassVar[float] = 30.0
    """Longest wait for anything."""
    launcher: ClassVar[str] = "local"
    """Launcher that engines are started by."""

    def make_plane(self) -> ControlPlane:
        """A control plane that is not started and knows no engine."""
        raise NotImplementedError("implement make_plane")

    # -- helpers ------------------------------------------------------------------------------------------------------

    @pytest_asyncio.fixture
    async def plane(self) -> AsyncIterator[ControlPlane]:
        """A plane that runs, without engines."""
        plane = self.make_plane()
        await plane.start()
        yield plane
        status = await self.eventually(plane, lambda status: status.in_flight == 0)
        assert status.in_flight == 0
        assert sum(status.ended.values()) == status.accepted
        await asyncio.wait_for(plane.stop(), self.patience_s)

    async def serve(self, plane: ControlPlane, model: str = "m", **options: Any) -> str:
        """Start a mock engine; returns its id."""
        spec = EngineSpec(engine="mock", model=model, options=options)
        record = await asyncio.wait_for(plane.start_engine(spec, self.launcher), self.patience_s)
        return record.info.engine_id

    def request(self, model: str = "m", **fields: Any) -> Request:
        """A short request with a fresh id."""
        return Request(
            **{"request_id": f"client-{next(_IDS)}", "model": model, "prompt": "Hello, who is there?", **fields}
        )

    def long_request(self, **fields: Any) -> Request:
        """A request that takes long enough to be ended from outside, on an engine that is not infinitely fast."""
        return self.request(sampling={"ignore_eos": True, "max_tokens": 5000}, **fields)

    async def last(self, plane: ControlPlane, request: Request) -> EndEvent | ErrorEvent:
        """What closes a request's stream, which is checked."""
        events = await asyncio.wait_for(read_all(plane.submit(request)), self.patience_s)
        return check_stream(events, request)

    async def refusal(self, plane: ControlPlane, request: Request) -> ErrorCode:
        """The code of the error that closes a request's stream."""
        last = await self.last(plane, request)
        assert isinstance(last, ErrorEvent), f"expected an error, got {last!r}"
        return last.error.code

    async def first_tokens(self, stream: AsyncGenerator[StreamEvent, None]) -> list[StreamEvent]:
        """Events of a stream up to the first that produces something."""
        events: list[StreamEvent] = []
        while not events or not isinstance(events[-1], DeltaEvent):
            events.append(await asyncio.wait_for(anext(stream), self.patience_s))
        return events

    async def eventually(self, plane: ControlPlane, holds: Callable[[PlaneStatus], bool]) -> PlaneStatus:
        """Status once ``holds`` is true of it; that at the end of our patience otherwise."""
        deadline = asyncio.get_running_loop().time() + self.patience_s
        while True:
            status = await asyncio.wait_for(plane.status(), self.patience_s)
            assert sum(status.ended.values()) + status.in_flight == status.accepted, f"counts do not add up: {status}"
            if holds(status) or asyncio.get_running_loop().time() > deadline:
                return status
            await asyncio.sleep(0.01)

    # -- engines ------------------------------------------------------------------------------------------------------

    async def test_without_engines_it_is_not_ready_and_says_why(self, plane: ControlPlane) -> None:
        status = await plane.status()
        assert not status.ready
        assert status.reason
        assert list(await plane.models()) == []
        assert await self.refusal(plane, self.request()) is ErrorCode.MODEL_NOT_FOUND

    async def test_an_engine_it_starts_is_served(self, plane: ControlPlane) -> None:
        engine_id = await self.serve(plane)
        status = await self.eventually(plane, lambda status: status.ready)
        assert status.ready
        assert status.reason is None
        [record] = status.engines
        assert record.info.engine_id == engine_id
        assert record.info.state is EngineState.READY
        [model] = await plane.models()
        assert (model.name, model.engines, model.ready, model.mock) == ("m", 1, 1, True)

    async def test_an_engine_id_is_taken_once(self, plane: ControlPlane) -> None:
        spec = EngineSpec(engine="mock", model="m")
        record = await plane.start_engine(spec, self.launcher, "mine")
        assert record.info.engine_id == "mine"
        with pytest.raises(SageLLMError) as refusal:
            await plane.start_engine(spec, self.launcher, "mine")
        assert refusal.value.code is ErrorCode.CONFLICT

    async def test_an_engine_that_does_not_start_says_why_and_leaves_nothing(self, plane: ControlPlane) -> None:
        with pytest.raises(SageLLMError, match="the dog ate it"):
            await self.serve(plane, fail_start="the dog ate it")
        assert (await plane.status()).engines == ()

    async def test_an_option_the_engine_does_not_know_is_refused_by_name(self, plane: ControlPlane) -> None:
        with pytest.raises(SageLLMError, match="made_up"):
            await self.serve(plane, made_up=1)

    async def test_a_stopped_engine_is_gone(self, plane: ControlPlane) -> None:
        engine_id = await self.serve(plane)
        await asyncio.wait_for(plane.stop_engine(engine_id), self.patience_s)
        assert (await plane.status()).engines == ()
        assert await self.refusal(plane, self.request()) is ErrorCode.MODEL_NOT_FOUND

    async def test_an_unknown_engine_cannot_be_stopped_or_drained(self, plane: ControlPlane) -> None:
        for act in (plane.stop_engine, plane.drain_engine):
            with pytest.raises(SageLLMError, match="made-up") as refusal:
                await act("made-up")
            assert refusal.value.code is ErrorCode.NOT_FOUND

    async def test_a_drained_engine_finishes_and_gets_nothing_new(self, plane: ControlPlane) -> None:
        engine_id = await self.serve(plane, **_SLOW)
        request = self.request()
        stream = plane.submit(request)
        events = await self.first_tokens(stream)
        draining = asyncio.create_task(plane.drain_engine(engine_id))
        await self.eventually(plane, lambda status: not status.ready)
        assert await self.refusal(plane, self.request()) is ErrorCode.UNAVAILABLE
        events += await asyncio.wait_for(read_all(stream), self.patience_s)
        assert isinstance(check_stream(events, request), EndEvent)
        await asyncio.wait_for(draining, self.patience_s)

    async def test_nothing_answers_where_nothing_is(self, plane: ControlPlane) -> None:
        # Port 9 is the discard service's, which nobody runs.
        with pytest.raises(SageLLMError) as refusal:
            await asyncio.wait_for(plane.attach_engine("http://127.0.0.1:9"), self.patience_s)
        assert refusal.value.code is ErrorCode.UNAVAILABLE

    # -- requests -----------------------------------------------------------------------------------------------------

    async def test_a_request_is_answered_under_its_callers_id(self, plane: ControlPlane) -> None:
        await self.serve(plane)
        assert isinstance(await self.last(plane, self.request()), EndEvent)
        status = await plane.status()
        assert (status.accepted, status.ended.get(RequestEnding.COMPLETED)) == (1, 1)

    async def test_many_requests_are_answered_at_once(self, plane: ControlPlane) -> None:
        await self.serve(plane)
        await self.serve(plane)
        lasts = await asyncio.gather(*(self.last(plane, self.request()) for _ in range(40)))
        assert all(isinstance(last, EndEvent) for last in lasts)
        assert (await plane.status()).ended.get(RequestEnding.COMPLETED) == 40

    async def test_each_model_is_served_by_its_own_engine(self, plane: ControlPlane) -> None:
        await self.serve(plane, "a", text="I am a mock called a")
        await self.serve(plane, "b", text="I am a mock called b")
        for name in ("a", "b"):
            events = await asyncio.wait_for(read_all(plane.submit(self.request(name))), self.patience_s)
            text = "".join(event.text for event in events if isinstance(event, DeltaEvent))
            assert text == f"I am a mock called {name}"

    async def test_a_rendered_prompt_is_what_the_engine_would_read(self, plane: ControlPlane) -> None:
        await self.serve(plane)
        prompt = await plane.render(self.request(prompt="abc"))
        assert prompt.token_ids == (97, 98, 99)

    async def test_embeddings_and_scores_are_served(self, plane: ControlPlane) -> None:
        await self.serve(plane)
        embedded = await plane.embed(EmbedRequest(request_id="client-e", model="m", inputs=("one", "two")))
        assert embedded.request_id == "client-e"
        assert [vector.index for vector in embedded.vectors] == [0, 1]
        scored = await plane.score(ScoreRequest(request_id="client-s", model="m", query="a", documents=("a", "b")))
        assert scored.request_id == "client-s"
        assert scored.scores[0] > scored.scores[1]

    async def test_what_no_engine_offers_is_refused_by_name(self, plane: ControlPlane) -> None:
        await self.serve(plane)
        last = await self.last(plane, self.request(requires=("made-up",)))
        assert isinstance(last, ErrorEvent)
        assert last.error.code is ErrorCode.UNSUPPORTED
        assert "made-up" in last.error.message

    async def test_a_prompt_that_is_too_long_is_refused(self, plane: ControlPlane) -> None:
        await self.serve(plane)
        code = await self.refusal(plane, self.request(prompt="x" * 40000))
        assert code is ErrorCode.CONTEXT_LENGTH_EXCEEDED

    # -- ending early -------------------------------------------------------------------------------------------------

    async def test_a_cancelled_request_ends_once_as_cancelled(self, plane: ControlPlane) -> None:
        await self.serve(plane, **_SLOW)
        request = self.long_request()
        stream = plane.submit(request)
        events = await self.first_tokens(stream)
        assert await plane.cancel(request.request_id)
        events += await asyncio.wait_for(read_all(stream), self.patience_s)
        last = check_stream(events, request)
        assert isinstance(last, ErrorEvent)
        assert last.error.code is ErrorCode.CANCELLED
        assert not await plane.cancel(request.request_id)
        status = await plane.status()
        assert status.ended.get(RequestEnding.CANCELLED) == 1

    async def test_closing_a_stream_frees_the_engine(self, plane: ControlPlane) -> None:
        await self.serve(plane, **_SLOW)
        stream = plane.submit(self.long_request())
        await self.first_tokens(stream)
        await stream.aclose()

        def freed(status: PlaneStatus) -> bool:
            stats = status.engines[0].stats
            return status.in_flight == 0 and stats is not None and stats.cancelled == 1 and stats.used_blocks == 0

        status = await self.eventually(plane, freed)
        assert freed(status)
        assert status.ended.get(RequestEnding.CANCELLED) == 1

    async def test_a_deadline_ends_a_request_as_expired(self, plane: ControlPlane) -> None:
        await self.serve(plane, **_SLOW)
        code = await self.refusal(plane, self.long_request(slo=SLO(deadline_ms=30.0)))
        assert code is ErrorCode.DEADLINE_EXCEEDED
        status = await plane.status()
        assert status.ended.get(RequestEnding.EXPIRED, 0) + status.refused_early == 1

    async def test_an_engine_that_dies_fails_what_it_was_working_on(self, plane: ControlPlane) -> None:
        await self.serve(plane, die_after_tokens=5, **_SLOW)
        code = await self.refusal(plane, self.long_request())
        assert code is ErrorCode.ENGINE_FAILED
        status = await self.eventually(plane, lambda status: not status.ready)
        assert not status.ready
        assert status.ended.get(RequestEnding.FAILED) == 1

    async def test_an_engine_that_hangs_holds_up_neither_status_nor_the_others(self, plane: ControlPlane) -> None:
        await self.serve(plane, "stuck", hang_after_tokens=3, **_SLOW)
        await self.serve(plane, "m")
        stream = plane.submit(self.request("stuck"))
        await self.first_tokens(stream)
        assert isinstance(await self.last(plane, self.request("m")), EndEvent)
        status = await asyncio.wait_for(plane.status(), self.patience_s)
        assert status.in_flight == 1
        await asyncio.wait_for(stream.aclose(), self.patience_s)

    async def test_stopping_ends_what_is_in_flight_and_takes_nothing_new(self) -> None:
        plane = self.make_plane()
        await plane.start()
        await self.serve(plane, **_SLOW)
        request = self.long_request()
        stream = plane.submit(request)
        events = await self.first_tokens(stream)
        await asyncio.wait_for(plane.stop(), self.patience_s)
        events += await asyncio.wait_for(read_all(stream), self.patience_s)
        last = check_stream(events, request)
        assert isinstance(last, ErrorEvent)
        assert last.error.code is ErrorCode.CANCELLED
        assert await self.refusal(plane, self.request()) is ErrorCode.UNAVAILABLE
