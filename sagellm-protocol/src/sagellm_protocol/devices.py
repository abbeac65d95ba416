"""Devices as they are reported: what is there, whether it can run, and why not.

Knows nothing of how devices are found or driven.
"""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from ._wire import Report


class DType(str, Enum):
    """Element types of tensors, as they are named wherever a type crosses a seam."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_E4M3 = "float8_e4m3"
    FLOAT8_E5M2 = "float8_e5m2"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"


class DeviceInfo(Report):
    """One device of a host."""

    kind: str
    """``cpu``, ``cuda``, ``ascend``, …"""
    index: int = 0
    name: str
    memory_total_bytes: int | None = Field(default=None, ge=0)
    memory_free_bytes: int | None = Field(default=None, ge=0)
    """What may still be used here: for a CPU what the cgroup leaves."""
    cores: int | None = Field(default=None, ge=1)
    """Processors this process may really use (affinity and cgroup share)."""
    instruction_sets: tuple[str, ...] = ()
    """What kernels may use (``avx2``, ``avx512_bf16``, ``sm_90``, …)."""


class BackendCapabilities(Report):
    """What a backend can do on this machine, as probed, not as hoped."""

    backend: str
    available: bool
    reason: str | None = None
    """Why it is not available, and what to install or change."""
    devices: tuple[DeviceInfo, ...] = ()
    dtypes: tuple[DType, ...] = ()
    """Types it computes in, preferred first."""
    kv_dtypes: tuple[DType, ...] = ()
    weight_formats: tuple[str, ...] = ()
    """Formats that ``pack_weight`` takes."""
    kept_quantized: tuple[str, ...] = ()
    """Those of them that stay quantised in memory."""
    quantizations: tuple[str, ...] = ()
    """What ``pack_weight`` can quantise a weight to at load (``int8``, ``int4``)."""
    fused_units: tuple[str, ...] = ()
    """Kinds of larger units that ``fuse`` may claim."""
    graphs: bool = False
    collectives: tuple[str, ...] = ()
    """Names of collective transports (``gloo``, ``nccl``, …)."""
    native_kernels: str | None = None
    """Which build of native kernels is in use; absent when there is none."""
    rank: int = 0
    """Order of preference for ``auto``: the highest available wins."""
