"""The plane on virtual time: policies and routers over engine models, so that they are measured before they serve."""

from __future__ import annotations

from .engine_model import EngineModel, StepSample, fit
from .report import Report
from .requests import SimRequest
from .simulator import Setup, Simulation, simulate
from .traces import read_trace, scaled
from .workloads import WORKLOADS, Workload, generate, workload_named

__all__ = [
    "WORKLOADS",
    "EngineModel",
    "Report",
    "Setup",
    "SimRequest",
    "Simulation",
    "StepSample",
    "Workload",
    "fit",
    "generate",
    "read_trace",
    "scaled",
    "simulate",
    "workload_named",
]
