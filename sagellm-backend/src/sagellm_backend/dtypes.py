"""The contract's element types and torch's, and how host values become tensors.

Knows nothing of devices or operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from typing_extensions import Buffer

from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

TORCH: dict[DType, torch.dtype] = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
    DType.FLOAT8_E4M3: torch.float8_e4m3fn,
    DType.FLOAT8_E5M2: torch.float8_e5m2,
    DType.INT64: torch.int64,
    DType.INT32: torch.int32,
    DType.INT8: torch.int8,
    DType.UINT8: torch.uint8,
    DType.BOOL: torch.bool,
}


def parse_dtype(name: str, offered: Sequence[DType], backend: str) -> DType:
    """The type called ``name``; ``auto`` is the first of those ``offered``.

    Raises:
        SageLLMError: ``UNSUPPORTED`` when it is not offered, naming those that are.
    """
    if name == "auto":
        return offered[0]
    for dtype in offered:
        if dtype.value == name:
            return dtype
    known = ", ".join(["auto", *(dtype.value for dtype in offered)])
    raise SageLLMError(
        ErrorCode.UNSUPPORTED,
        f"dtype {name!r} is not one that backend {backend!r} computes in here; it may be {known}",
        "dtype",
    )


def host_tensor(values: Sequence[int] | Sequence[float] | Buffer, dtype: torch.dtype) -> torch.Tensor:
    """A new one-dimensional tensor of host numbers; a buffer holds elements of ``dtype``."""
    try:
        data = memoryview(cast(Buffer, values))
    except TypeError:
        return torch.tensor(values, dtype=dtype)
    return bytes_tensor(data).view(dtype)


def bytes_tensor(data: Buffer) -> torch.Tensor:
    """A copy of a buffer's bytes, ``[n]`` uint8; the buffer may be read-only."""
    held = byte_array(data)
    # torch gives a view of an empty array strides that it then refuses to view as another type.
    return torch.from_numpy(held.copy()) if held.size else torch.empty(0, dtype=torch.uint8)


def byte_array(data: Buffer) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a buffer, ``[n]`` uint8, without a copy."""
    view = memoryview(data)
    return np.frombuffer(view, dtype=np.uint8) if view.nbytes else np.empty(0, dtype=np.uint8)
