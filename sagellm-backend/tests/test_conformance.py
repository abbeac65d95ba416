"""Both backends against the contract's own suite."""

from __future__ import annotations

from sagellm_backend import cpu, reference
from sagellm_protocol.testing.conformance.backend import BackendConformance


class TestReference(BackendConformance):
    def make_backend(self):
        return reference.create(threads=1)


class TestCpu(BackendConformance):
    def make_backend(self):
        return cpu.create(threads=1)
