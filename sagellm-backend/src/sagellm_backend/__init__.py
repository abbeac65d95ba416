"""Devices behind one interface: discovery, capabilities, memory, kernels, quantised weights, collectives.

Importing this imports no torch. Knows nothing of models, requests or scheduling.
"""

from __future__ import annotations

from .discovery import TorchReport, discover, doctor_report, select

__all__ = ["TorchReport", "discover", "doctor_report", "select"]
