"""The backend suite passes for a right backend and fails for wrong ones."""

from __future__ import annotations

from sagellm_protocol.testing.conformance.backend import BackendConformance
from toy_backend import ToyBackend


class TestToyBackend(BackendConformance):
    def make_backend(self) -> ToyBackend:
        return ToyBackend()
