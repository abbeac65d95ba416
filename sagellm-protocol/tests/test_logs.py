from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Iterator

import pytest

from sagellm_protocol import EmbedRequest, Request
from sagellm_protocol.logs import FORMAT, RequestIds, name_of, named, naming, unnamed


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(RequestIds())
    handler.setFormatter(logging.Formatter(FORMAT.removeprefix("%(asctime)s ")))
    logger = logging.getLogger("test_logs")
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def test_a_line_says_which_request_it_is_about(written: io.StringIO) -> None:
    log = logging.getLogger("test_logs.child")
    with naming("one"):
        log.warning("within")
    log.warning("beside")
    log.warning("told", extra={"request_id": "other"})
    assert written.getvalue().splitlines() == [
        "WARNING test_logs.child [one]: within",
        "WARNING test_logs.child [-]: beside",
        "WARNING test_logs.child [other]: told",
    ]


async def test_requests_at_once_keep_their_names_and_their_tasks_go_by_them() -> None:
    async def later() -> str | None:
        await asyncio.sleep(0)
        return named()

    async def serve(name: str) -> list[str | None]:
        with naming(name):
            await asyncio.sleep(0)
            child = asyncio.ensure_future(later())
            lasting = unnamed(lambda: asyncio.ensure_future(later()))
            return [named(), await child, await lasting, await asyncio.to_thread(named)]

    assert await asyncio.gather(serve("a"), serve("b")) == [["a", "a", None, "a"], ["b", "b", None, "b"]]
    assert named() is None


def test_another_thread_works_for_nobody() -> None:
    seen: list[str | None] = []
    with naming("mine"):
        thread = threading.Thread(target=lambda: seen.append(named()))
        thread.start()
        thread.join(10)
    assert seen == [None]


def test_a_request_goes_by_its_trace_and_without_one_by_its_id() -> None:
    assert name_of(Request(request_id="r", trace_id="t", model="m", prompt="x")) == "t"
    assert name_of(EmbedRequest(request_id="r", model="m", inputs=("x",))) == "r"
    assert name_of(object()) is None
