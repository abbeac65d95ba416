from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from sagellm_protocol import (
    DeltaEvent,
    EngineInfo,
    EngineSpec,
    Message,
    Metrics,
    PositionLogprobs,
    Request,
    SageLLMError,
    SamplingParams,
    TextPart,
    parse_event,
    schemas,
)
from sagellm_protocol._wire import Ask, Report

PYDANTIC = tuple(int(part) for part in pydantic.VERSION.split(".")[:2])
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def name_of(file: Path) -> str:
    return file.name.split(".")[0]


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_a_golden_payload_parses_and_is_written_as_it_was(file: Path) -> None:
    message: Any = TypeAdapter(schemas.MESSAGES[name_of(file)]).validate_json(file.read_text())
    assert json.loads(message.to_wire()) == json.loads(file.read_text())


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_a_golden_payload_fits_the_shipped_schema(file: Path) -> None:
    jsonschema.validate(json.loads(file.read_text()), schemas.read(name_of(file)))


@pytest.mark.skipif(PYDANTIC < (2, 11), reason="before 2.11 pydantic leaves the keys of mappings out of schemas")
@pytest.mark.parametrize("name", schemas.MESSAGES)
def test_the_shipped_schema_is_that_of_the_model(name: str) -> None:
    assert schemas.read(name) == schemas.generate(name), (
        "the wire has changed; if WIRE.md allows it, run `python -m sagellm_protocol.schemas`"
    )


def test_every_message_has_a_schema_and_a_golden_payload() -> None:
    shipped = {file.stem for file in schemas.path("").parent.glob("*.json")}
    assert shipped == set(schemas.MESSAGES)
    assert {name_of(file) for file in GOLDEN} == set(schemas.MESSAGES)


def test_every_model_on_the_wire_is_part_of_some_message() -> None:
    known = set(schemas.MESSAGES)
    for name in schemas.MESSAGES:
        known |= set(schemas.read(name).get("$defs", {}))
    assert {model.__name__ for model in leaves(Ask) | leaves(Report)} <= known


def leaves(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Messages that stand for themselves: what they share through a base class is no message."""
    children = [child for child in model.__subclasses__() if ".testing." not in child.__module__]
    return set().union(*(leaves(child) for child in children)) if children else {model}


REPORTS = [file for file in GOLDEN if "additionalProperties" not in schemas.read(name_of(file))]


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_a_report_with_a_field_of_a_later_version_still_parses(file: Path) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(schemas.MESSAGES[name_of(file)])
    payload = json.loads(file.read_text())
    assert adapter.validate_python({**payload, "later": 1}) == adapter.validate_python(payload)


@pytest.mark.parametrize("file", [file for file in GOLDEN if file not in REPORTS], ids=lambda file: file.stem)
def test_an_ask_with_an_unknown_field_is_refused_by_name(file: Path) -> None:
    payload = {**json.loads(file.read_text()), "later": 1}
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(schemas.MESSAGES[name_of(file)]).validate_python(payload)
    error = SageLLMError.from_validation(refusal.value)
    assert error.param == "later"
    assert error.message == "later: unknown field"


def test_an_ask_leaves_out_what_is_at_its_default() -> None:
    request = Request(request_id="r", model="m", prompt="x", sampling=SamplingParams(top_k=3, temperature=1.0))
    assert json.loads(request.to_wire()) == {
        "request_id": "r",
        "model": "m",
        "prompt": "x",
        "sampling": {"top_k": 3},
    }
    assert json.loads(EngineSpec(model="m").to_wire()) == {"model": "m"}


def test_a_part_of_a_message_always_says_its_type() -> None:
    request = Request(request_id="r", model="m", messages=(Message(role="user", content=(TextPart(text="x"),)),))
    assert json.loads(request.to_wire())["messages"][0]["content"] == [{"type": "text", "text": "x"}]


def test_what_was_not_measured_is_left_out_rather_than_zero() -> None:
    assert Metrics(ttft_ms=1.0).to_wire() == b'{"ttft_ms":1.0}'


def test_an_impossible_token_survives_json() -> None:
    position = PositionLogprobs(token_id=1, token="x", logprob=-math.inf)
    event = DeltaEvent(request_id="r", token_ids=(1,), logprobs=(position,))
    assert position.logprob == -9999.0
    assert parse_event(event.to_wire()) == event


def test_an_event_of_an_unknown_type_is_not_an_event() -> None:
    with pytest.raises(ValidationError):
        parse_event('{"type":"later","request_id":"r"}')


def test_messages_are_frozen() -> None:
    info = EngineInfo.model_validate_json((Path(__file__).parent / "golden" / "EngineInfo.full.json").read_text())
    with pytest.raises(ValidationError):
        info.model = "other"  # type: ignore[misc]
