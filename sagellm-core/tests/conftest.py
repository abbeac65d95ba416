"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagellm_core.store import DEFAULT_MODEL, pull
from sagellm_protocol.errors import ErrorCode, SageLLMError


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's file, really fetched unless it is on this machine already."""
    try:
        return pull(DEFAULT_MODEL).path
    except SageLLMError as error:
        if error.code is not ErrorCode.UNAVAILABLE:
            raise
        pytest.skip(f"no source of the model can be reached: {error.message}")
