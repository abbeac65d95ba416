"""Run where the toy is installed: it is found by name and passes the contract's suite."""

from __future__ import annotations

import sagellm_backend
from sagellm_protocol import plugins
from sagellm_protocol.testing.conformance.backend import BackendConformance


class TestToy(BackendConformance):
    def make_backend(self):
        return plugins.load(plugins.BACKENDS, "toy")()


def test_it_is_discovered_beside_ours_and_can_be_selected():
    assert [able.backend for able in sagellm_backend.discover()] == ["cpu", "reference", "toy"]
    assert sagellm_backend.select("toy:0").device.kind == "toy"
    assert sagellm_backend.select().name == "cpu"
