"""Native kernels: C++ behind a plain C interface, loaded with ctypes, on the threads of torch's own OpenMP runtime.

Built when the package is (``hatch_build.py``); without them the backend computes with torch alone.
"""

from __future__ import annotations

from .decoder import fuse_decoder
from .library import Library, load
from .matrix import KINDS, MatrixStore, NativeMatrix

__all__ = ["KINDS", "Library", "MatrixStore", "NativeMatrix", "fuse_decoder", "load"]
