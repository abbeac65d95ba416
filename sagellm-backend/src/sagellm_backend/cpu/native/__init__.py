"""Native kernels: C++ behind a plain C interface, loaded with ctypes, on the threads of torch's own OpenMP runtime.

Built when the package is (``hatch_build.py``); without them the backend computes with torch alone.
"""

from __future__ import annotations

from .attention import attend
from .decoder import fuse_decoder
from .library import Library, load
from .matrix import KINDS, MatrixStore, NativeMatrix
from .pool import LARGEST_BLOCK, NativeKV, fits
from .sampling import logprobs_of, sample
from .step import NativePlan

__all__ = [
    "KINDS",
    "LARGEST_BLOCK",
    "Library",
    "MatrixStore",
    "NativeKV",
    "NativeMatrix",
    "NativePlan",
    "attend",
    "fits",
    "fuse_decoder",
    "load",
    "logprobs_of",
    "sample",
]
