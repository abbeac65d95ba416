"""The conformance suite of :class:`~sagellm_protocol.backend.Backend`.

Compares every operation with :mod:`sagellm_protocol.testing.truth`, at sizes that are no multiple of anything.
"""

from __future__ import annotations

from .attention import AttentionConformance
from .device import DeviceConformance
from .operations import OperationConformance
from .sampling import SamplingConformance
from .segments import SegmentConformance
from .weights import WeightConformance


class BackendConformance(
    WeightConformance,
    OperationConformance,
    AttentionConformance,
    SegmentConformance,
    SamplingConformance,
    DeviceConformance,
):
    """Subclass it, and implement :meth:`~.base.BackendSuite.make_backend`."""


__all__ = ["BackendConformance"]
