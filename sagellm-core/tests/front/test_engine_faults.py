"""A front among accidents: what is wrong with one request, at an awkward moment, stays with that request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from fake_model import build_fake, fake_engine, fake_spec, write_tokenizer
from sagellm_core.core.loop import EngineCore
from sagellm_core.core.plan import StepPlan, StepResult
from sagellm_core.front import renderer
from sagellm_core.front.engine import FrontEngine
from sagellm_core.transport.inline import InlineClient
from sagellm_core.transport.messages import CoreMessage, FrontMessage, Ready
from sagellm_protocol import (
    EndEvent,
    EngineSpec,
    EngineState,
    ErrorCode,
    ErrorEvent,
    Request,
    SageLLMError,
    StreamEvent,
)

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("fake"))


@pytest_asyncio.fixture(params=["inline", "process"])
async def engine(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[FrontEngine]:
    engine = fake_engine(folder, fake_spec(request.param, max_num_seqs=8, max_num_batched_tokens=32))
    await engine.start()
    yield engine
    await engine.stop()


def asked(number: int = 0, prompt: str = "the cat sat", **fields: Any) -> Request:
    sampling = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **fields.pop("sampling", {})}
    return Request(request_id=f"r{number}", model="fake", prompt=prompt, sampling=sampling, **fields)


async def last(engine: FrontEngine, request: Request) -> StreamEvent:
    return [event async for event in engine.generate(request)][-1]


async def test_a_top_k_beyond_any_vocabulary_keeps_all(engine: FrontEngine) -> None:
    assert isinstance(await last(engine, asked(sampling={"top_k": 2**70})), EndEvent)
    await asyncio.wait_for(engine.drain(), PATIENCE_S)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a\ud800b"}, "prompt"),
        ({"cache_salt": "\udfff"}, "cache_salt"),
        ({"sampling": {"bad_words": ("\ud800",)}}, "sampling.bad_words"),
        ({"sampling": {"bad_words": tuple(f"word {n}" for n in range(1025))}}, "sampling.bad_words"),
    ],
)
async def test_what_is_no_text_or_too_much_of_it_is_refused_by_name(
    engine: FrontEngine, fields: dict[str, Any], param: str
) -> None:
    event = await last(engine, asked(**fields))
    assert isinstance(event, ErrorEvent)
    assert event.error.code is ErrorCode.INVALID_REQUEST
    assert event.error.param == param
    assert (await engine.stats()).refused == 1


async def test_a_request_that_cannot_be_sent_ends_with_an_error_and_leaves_nothing(
    engine: FrontEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(message: FrontMessage) -> None:
        raise OverflowError("too large a number")

    with monkeypatch.context() as patched:
        assert engine._link is not None
        patched.setattr(engine._link._client, "send", fail)
        event = await last(engine, asked())
    assert isinstance(event, ErrorEvent)
    assert event.error.code is ErrorCode.INTERNAL
    assert "too large a number" in event.error.message
    assert (await engine.stats()).failed == 1
    assert isinstance(await last(engine, asked()), EndEvent)  # its id is free again
    await asyncio.wait_for(engine.drain(), PATIENCE_S)


async def test_a_request_is_aborted_while_its_prompt_is_rendered(
    engine: FrontEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer, "OFFLOAD_CHARACTERS", 1)  # in a thread
    answer = asyncio.ensure_future(last(engine, asked()))
    await asyncio.sleep(0)  # until it waits for the thread
    assert await engine.abort("r0")
    event = await answer
    assert isinstance(event, ErrorEvent)
    assert event.error.code is ErrorCode.CANCELLED
    stats = await engine.stats()
    assert (stats.cancelled, stats.prompt_tokens) == (1, 0)
    assert isinstance(await last(engine, asked()), EndEvent)


async def test_a_choice_that_fails_ends_its_request_and_the_work_on_its_siblings(folder: Path) -> None:
    def build(spec: EngineSpec, path: Path) -> EngineCore:
        core = build_fake(spec, path)
        run = core._executor.run

        def with_a_fault(plan: StepPlan) -> Any:
            done = run(plan)
            result: StepResult = done.result()
            if len(result.slots) < 2:  # until both choices run
                return done
            first, *others = result.slots
            failed = msgspec.structs.replace(first, token_ids=[], error="no choice is left")
            return type(done)(StepResult(result.step, [failed, *others]))

        core._executor.run = with_a_fault  # type: ignore[method-assign]
        return core

    engine = FrontEngine(
        fake_spec("inline"), lambda model, revision: folder, lambda spec, path: InlineClient(spec, path, build)
    )
    await engine.start()
    event = await last(engine, asked(sampling={"n": 2, "max_tokens": 900}))
    assert isinstance(event, ErrorEvent)
    assert event.error.message == "no choice is left"
    stats = await engine.stats()  # answered after the abort that was sent before
    assert (stats.failed, stats.running, stats.used_blocks) == (1, 0, 0)
    await engine.stop()


class _Line:
    """A line to a core that says it is ready at once, and then what happens next happens.

    Args:
        once_ready: Called in the turn of the loop after it said so, with the callback that tells of a loss.
        sent: Called with each message to the core.
    """

    def __init__(
        self,
        once_ready: Callable[[Callable[[str], None]], None] = lambda lost: None,
        sent: Callable[[FrontMessage], None] = lambda message: None,
    ) -> None:
        self._once_ready = once_ready
        self.send = sent

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Ready:
        asyncio.get_running_loop().call_soon(self._once_ready, lost)
        return Ready("A", "key", 97, [0], "float32", b'{"kind":"cpu","name":"x"}', 64, 1, 8, 16, 4)

    async def stop(self) -> None: ...

    def logs(self, lines: int) -> list[str]:
        return []


async def test_a_core_that_dies_while_the_tokenizer_loads_makes_no_ready_engine(folder: Path) -> None:
    line = _Line(once_ready=lambda lost: lost("it fell over"))
    engine = FrontEngine(fake_spec("process"), lambda model, revision: folder, lambda spec, path: line)
    with pytest.raises(SageLLMError, match="it fell over") as failure:
        await engine.start()
    assert failure.value.code is ErrorCode.ENGINE_FAILED
    assert engine.info.state is EngineState.ERROR
    assert engine.info.error == "it fell over"


async def test_an_engine_stopped_in_the_turn_in_which_it_has_loaded_stays_stopped(folder: Path) -> None:
    stops: list[asyncio.Task[None]] = []
    # The last thing that loading does is to have the cache watched, as somebody reads its changes.
    line = _Line(sent=lambda message: stops.append(asyncio.ensure_future(engine.stop())))
    engine = FrontEngine(fake_spec("process"), lambda model, revision: folder, lambda spec, path: line)
    feed = engine.kv_events()
    with pytest.raises(SageLLMError, match="stopped while it started"):
        await engine.start()
    [stop] = stops
    await stop
    assert engine.info.state is EngineState.STOPPED
    await feed.aclose()
