from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from live import Live, live, mock_plane


@pytest.fixture(scope="module")
def gateway() -> Iterator[Live]:
    """A gateway over a mock engine that never fails."""
    with live(mock_plane(text="Hello from the mock.")) as serving:
        yield serving


@pytest.fixture
def http(gateway: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=20, trust_env=False) as client:
        yield client
