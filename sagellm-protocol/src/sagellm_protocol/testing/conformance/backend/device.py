"""Conformance of what a backend says of itself, and of memory, graphs and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import BackendSuite


class DeviceConformance(BackendSuite):
    """A backend that was made can run here, and tells the truth about it."""

    def test_its_capabilities_are_those_of_a_backend_that_runs_here(self, backend: Backend[Any]) -> None:
        capabilities = backend.capabilities()
        assert capabilities.backend == backend.name
        assert capabilities.available
        assert capabilities.reason is None
        assert backend.device.kind in {device.kind for device in capabilities.devices}
        assert capabilities.dtypes
        assert set(capabilities.kept_quantized) <= set(capabilities.weight_formats)

    def test_every_type_it_computes_in_has_a_tolerance(self, backend: Backend[Any]) -> None:
        assert set(backend.capabilities().dtypes) <= set(self.tolerance)

    def test_memory_is_within_bounds(self, backend: Backend[Any]) -> None:
        memory = backend.memory()
        assert 0 < memory.free_bytes <= memory.total_bytes

    def test_a_group_of_one_needs_no_meeting(self, backend: Backend[Any], dtype: DType) -> None:
        group = backend.make_group(0, 1, "")
        assert (group.rank, group.size) == (0, 1)
        values = np.array([[1.0, -2.0], [0.5, 4.0]])
        for result in (
            backend.all_reduce(self.tensor(backend, values, dtype), group),
            backend.all_gather(self.tensor(backend, values, dtype), group, 0),
        ):
            self.check_tensor(backend, result, values, dtype)

    def test_a_captured_graph_computes_again_over_the_same_buffers(self, backend: Backend[Any], dtype: DType) -> None:
        x = self.tensor(backend, np.ones((2, 4)), dtype)
        weight = backend.pack_weight([self.raw(np.ones((3, 4)))], dtype)
        out = backend.empty((2, 3), dtype)

        def run() -> None:
            out[:] = backend.linear(x, weight)

        if not backend.capabilities().graphs:
            with pytest.raises(SageLLMError) as refusal:
                backend.capture(run)
            assert refusal.value.code is ErrorCode.UNSUPPORTED
            return
        graph = backend.capture(run)
        x[:] = self.tensor(backend, np.full((2, 4), 3.0), dtype)
        graph.replay()
        backend.synchronize()
        self.check_tensor(backend, out, np.full((2, 3), 12.0), dtype)
