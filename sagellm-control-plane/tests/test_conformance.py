"""The contract's own suites, over what this package implements."""

from __future__ import annotations

from typing import Any, ClassVar

from conftest import QUICK
from sagellm_control_plane.launchers import local, subprocess
from sagellm_control_plane.service import create
from sagellm_protocol import ControlPlane, Engine, EngineSpec, Launcher, Request
from sagellm_protocol.testing.conformance.control_plane import ControlPlaneConformance
from sagellm_protocol.testing.conformance.engine import EngineConformance
from sagellm_protocol.testing.conformance.launcher import LauncherConformance
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import ServedEngine


class TestControlPlane(ControlPlaneConformance):
    def make_plane(self) -> ControlPlane:
        return create(**QUICK)


class TestControlPlaneOverProcesses(ControlPlaneConformance):
    launcher: ClassVar[str] = "subprocess"

    def make_plane(self) -> ControlPlane:
        return create(**QUICK)


class TestLocalLauncher(LauncherConformance):
    def make_launcher(self) -> Launcher:
        return local.create()


class TestSubprocessLauncher(LauncherConformance):
    def make_launcher(self) -> Launcher:
        return subprocess.create()


class TestRemoteEngine(EngineConformance):
    def make_engine(self) -> Engine:
        # Not infinitely fast: a request that is to be ended from outside must not have ended by itself.
        spec = EngineSpec(engine="mock", model="m", max_model_len=2048, options={"itl_ms": 1.0})
        return ServedEngine(MockEngine(spec))

    def request(self, engine: Engine, **fields: Any) -> Request:
        # What a server serves is known once it was reached; one of these tests asks before.
        if engine.info.served_names:
            return super().request(engine, **fields)
        return Request(**{"request_id": "early", "model": "m", "prompt": self.prompt, **fields})
