"""The shared library: found beside this file, checked, and given the threads that torch uses.

Knows nothing of weights or models.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch

from .structs import ABI

PORTABLE, AVX2, AVX512 = range(3)
_LEVELS = ("portable", "avx2", "avx512")
_RUNTIME = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


class Library:
    """The loaded kernels.

    Attributes:
        level: The best instruction set this processor offers, which is what is used unless a test asks for a lower.
    """

    def __init__(self, handle: ctypes.CDLL) -> None:
        self.handle = handle
        self.level = int(handle.sage_best_level())
        handle.sage_packed_bytes.restype = ctypes.c_size_t
        handle.sage_packed_bytes.argtypes = [ctypes.c_int] * 3
        handle.sage_tile_bytes.restype = ctypes.c_size_t
        handle.sage_pack.restype = None
        handle.sage_embedding.restype = None
        runtime = _torch_openmp()
        if runtime is not None:
            handle.sage_use_openmp(*runtime)

    @property
    def build(self) -> str:
        """Name of the build in use."""
        return _LEVELS[self.level]


@lru_cache(maxsize=1)
def load() -> Library | None:
    """The kernels, or ``None`` where they were not built, or built for another version of this package."""
    path = Path(__file__).with_name("_kernels.so")
    if not path.is_file():
        return None
    try:
        handle = ctypes.CDLL(str(path))
    except OSError:
        # Built for another machine: the wheel's platform tag rules this out, a copied source tree does not.
        return None
    return Library(handle) if handle.sage_abi() == ABI else None


def _torch_openmp() -> list[ctypes.c_void_p] | None:
    """Addresses of the runtime that torch is linked to; a second one would fight it for the processors."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not path.is_file():
        return None
    linked = ctypes.CDLL(str(path))  # already loaded: this only looks symbols up, through what it depends on
    try:
        return [ctypes.cast(getattr(linked, name), ctypes.c_void_p) for name in _RUNTIME]
    except AttributeError:
        return None
