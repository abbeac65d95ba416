"""A request's id stands in every log line that is about it, in the front and in the core's own process."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fake_model import fake_engine, fake_spec, write_tokenizer
from sagellm_protocol.logs import RequestIds
from sagellm_protocol.requests import Request
from sagellm_protocol.testing.check import read_all


@pytest.mark.parametrize("core", ["inline", "process"])
async def test_the_callers_id_is_in_the_lines_of_front_and_core(
    core: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sagellm_core")
    caplog.handler.addFilter(RequestIds())
    engine = fake_engine(write_tokenizer(tmp_path), fake_spec(core))
    await engine.start()
    fields = {"model": "fake", "sampling": {"max_tokens": 4}}
    requests = [
        Request.model_validate({"request_id": "r1", "trace_id": "their-id", "prompt": "abc~", **fields}),
        Request.model_validate({"request_id": "r2", "trace_id": "another", "prompt": "abc", **fields}),
    ]
    for request in requests:
        await read_all(engine.generate(request))
    await engine.stop()
    front = [record for record in caplog.records if record.name == "sagellm_core.front.engine"]
    assert [record.__dict__["request_id"] for record in front] == ["their-id"] * 2 + ["another"] * 2
    if core == "inline":
        told = [record.__dict__["request_id"] for record in caplog.records if "step 0 failed" in record.getMessage()]
        assert told == ["their-id"]
    else:
        assert any("[their-id]: step 0 failed" in record.getMessage() for record in caplog.records)
