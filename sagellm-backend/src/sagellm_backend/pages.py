"""Large memory straight from the system: zeros, of which a page is held only once it is touched.

Knows nothing of what is kept there.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def untouched(size: int, *, huge: bool) -> NDArray[np.uint8]:
    """``size`` bytes of zeros.

    Private to the process: shared mappings, Python's default, take no huge pages under the usual settings.

    Args:
        size: In bytes.
        huge: Ask for huge pages, for what is read from end to end. Without them, what is touched here and there is
            held here and there; NumPy's own allocations ask for them always.

    Raises:
        MemoryError: More than the system reserves.
    """
    if size == 0:
        return np.empty(0, dtype=np.uint8)
    try:
        if hasattr(mmap, "MAP_ANONYMOUS"):
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            pages = mmap.mmap(-1, size)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes cannot be reserved: {error}") from error
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=np.uint8)
