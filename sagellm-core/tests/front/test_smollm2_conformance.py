"""The contract's own suite over the real model on the real executor, in its own process."""

from __future__ import annotations

import pytest

from sagellm_core import create
from sagellm_core.store import DEFAULT_MODEL
from sagellm_protocol import EngineSpec
from sagellm_protocol.interfaces import Engine
from sagellm_protocol.testing.conformance.engine import EngineConformance

pytestmark = pytest.mark.usefixtures("smollm2")


class TestSmolLM2(EngineConformance):
    long_tokens = 200
    patience_s = 110.0

    def make_engine(self) -> Engine:
        return create(EngineSpec(model=DEFAULT_MODEL, dtype="float32", max_model_len=400, max_num_seqs=8))
