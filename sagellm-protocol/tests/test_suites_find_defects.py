"""A suite that nothing fails proves nothing: each implementation here has one defect, which its suite must find."""

from __future__ import annotations

import numpy as np
import pytest

# pytester forgets what its runs import, and NumPy cannot be imported twice: this module's import keeps it.
assert np.__version__

pytest_plugins = ["pytester"]

BACKEND = """
import dataclasses
import numpy as np
from sagellm_protocol.testing import truth
from sagellm_protocol.testing.conformance.backend import BackendConformance
from toy_backend import ToyBackend

class Wrong(ToyBackend):
{defect}

class TestWrong(BackendConformance):
    def make_backend(self):
        return Wrong()
"""

BACKEND_DEFECTS = {
    "soft cap dropped": """
    def attention(self, *args, scale, softcap=None):
        return super().attention(*args, scale=scale)
""",
    "norm's epsilon misplaced": """
    def rms_norm(self, x, weight, eps):
        return x / (np.sqrt((x * x).mean(-1, keepdims=True)) + 1e-3) * weight
""",
    "gate and up swapped": """
    def silu_mul(self, x):
        return truth.silu_mul(np.roll(x, x.shape[-1] // 2, -1))
""",
    "segments see their neighbours": """
    def plan_segments(self, lengths):
        return [sum(lengths)]
""",
    "rotated backwards": """
    def rope(self, q, k, positions, spec):
        return super().rope(q, k, -positions, spec)
""",
    "blocks not copied": """
    def copy_blocks(self, cache, pairs):
        pass
""",
    "bias dropped": """
    def linear(self, x, weight, adapters=None):
        return truth.linear(x, weight.values)
""",
    "adapters ignored": """
    def linear(self, x, weight, adapters=None):
        return super().linear(x, weight)
""",
    "any import accepted": """
    def import_blocks(self, cache, blocks, data):
        pass
""",
    "a penalty ignored": """
    def sample(self, logits, batch):
        return super().sample(logits, dataclasses.replace(batch, presence_penalty=[0.0] * len(logits)))
""",
    "log-probabilities shifted": """
    def logprobs_of(self, *args):
        return [dataclasses.replace(row, logprob=row.logprob - 0.01) for row in super().logprobs_of(*args)]
""",
    "capabilities that lie": """
    def capabilities(self):
        return super().capabilities().model_copy(update={"kept_quantized": ("made-up",)})
""",
}

ENGINE = """
from sagellm_protocol import *
from sagellm_protocol.testing import MockEngine
from sagellm_protocol.testing.conformance.engine import EngineConformance

class Wrong(MockEngine):
{defect}

class TestWrong(EngineConformance):
    patience_s = 1.0

    def make_engine(self):
        return Wrong(EngineSpec(engine="mock", model="m", max_model_len=4096))
"""

ENGINE_DEFECTS = {
    "abort does nothing": """
    async def abort(self, request_id):
        return request_id in self._jobs
""",
    "the end is swallowed": """
    async def generate(self, request, prompt=None):
        async for event in super().generate(request, prompt):
            if event.type != "end":
                yield event
""",
    "unknown features are let through": """
    async def generate(self, request, prompt=None):
        async for event in super().generate(request.model_copy(update={"requires": ()}), prompt):
            yield event
""",
    "blocks leak": """
    def _close(self, job, ending):
        self._batch.pool.take(1)
        super()._close(job, ending)
""",
    "stop strings are shown": """
    async def generate(self, request, prompt=None):
        sampling = request.sampling.model_copy(update={"include_stop_str_in_output": True})
        async for event in super().generate(request.model_copy(update={"sampling": sampling}), prompt):
            yield event
""",
    "usage is off by one": """
    async def generate(self, request, prompt=None):
        async for event in super().generate(request, prompt):
            if event.type == "end":
                usage = event.usage.model_copy(update={"completion_tokens": event.usage.completion_tokens + 1})
                event = event.model_copy(update={"usage": usage})
            yield event
""",
    "deadlines are forgotten": """
    async def generate(self, request, prompt=None):
        async for event in super().generate(request.model_copy(update={"slo": None}), prompt):
            yield event
""",
}

CONFIGURATION = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""


def failures(pytester: pytest.Pytester, module: str) -> int:
    pytester.makefile(".ini", pytest=CONFIGURATION)
    pytester.makepyfile(module)
    outcomes = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-q", "-x").parseoutcomes()
    assert outcomes.get("passed", 0) + outcomes.get("failed", 0) > 0, "no test ran at all"
    return outcomes.get("failed", 0) + outcomes.get("errors", 0)


@pytest.mark.parametrize("defect", BACKEND_DEFECTS)
def test_the_backend_suite_finds(pytester: pytest.Pytester, defect: str) -> None:
    assert failures(pytester, BACKEND.format(defect=BACKEND_DEFECTS[defect]))


@pytest.mark.parametrize("defect", ENGINE_DEFECTS)
def test_the_engine_suite_finds(pytester: pytest.Pytester, defect: str) -> None:
    assert failures(pytester, ENGINE.format(defect=ENGINE_DEFECTS[defect]))
