"""The fake control plane is a control plane."""

from __future__ import annotations

from sagellm_protocol.testing import FakeControlPlane
from sagellm_protocol.testing.conformance.control_plane import ControlPlaneConformance


class TestFakeControlPlane(ControlPlaneConformance):
    def make_plane(self) -> FakeControlPlane:
        return FakeControlPlane()
