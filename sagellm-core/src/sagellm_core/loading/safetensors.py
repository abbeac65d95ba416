"""The safetensors container: a JSON header over one mapped file (layout: safetensors' own README).

Knows nothing of models. Every offset is checked against the file before a view of it is handed out.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagellm_protocol.backend import WeightFormat

from .errors import corrupt, not_a_checkpoint

_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000
"""What the format's own library allows."""

_PLAIN: Mapping[str, tuple[str, int]] = {
    "F32": (WeightFormat.F32.value, 4),
    "F16": (WeightFormat.F16.value, 2),
    "BF16": (WeightFormat.BF16.value, 2),
    **{name: (name.lower(), 8) for name in ("F64", "I64", "U64")},
    **{name: (name.lower(), 4) for name in ("I32", "U32")},
    **{name: (name.lower(), 2) for name in ("I16", "U16")},
    **{name: (name.lower(), 1) for name in ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")},
}
"""Element types by the format's names: ours, and bytes of one element."""


@dataclass(frozen=True)
class SafeTensor:
    """Where one tensor is.

    Attributes:
        format: How its bytes are to be read.
        shape: Rows first.
        start: First byte within the file.
        nbytes: Length in bytes.
    """

    format: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        path: The file.
        tensors: By name, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Map ``path`` and read its header.

        Raises:
            SageLLMError: ``MODEL_NOT_FOUND`` when there is no such file; ``INVALID_REQUEST`` when it is not sound.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise not_a_checkpoint(path, "no such file") from None
        except ValueError:
            raise corrupt(path, "the file is empty") from None
        except OSError as error:
            raise corrupt(path, f"cannot be read: {error.strerror}") from error
        header, self._base = self._header()
        self.tensors = {
            name: self._placed(name, entry)
            for name, entry in sorted(header.items(), key=_by_offset)
            if name != "__metadata__"
        }

    def data(self, tensor: SafeTensor) -> memoryview:
        """A tensor's bytes; a view of the mapped file."""
        return memoryview(self._map)[tensor.start : tensor.start + tensor.nbytes]

    def release(self) -> None:
        """Let go of the file's pages in memory; they are read again when they are looked at."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _header(self) -> tuple[dict[str, Any], int]:
        size = len(self._map)
        if size < _LENGTH.size:
            raise corrupt(self.path, f"the file ends within its header ({size} bytes)")
        (length,) = _LENGTH.unpack_from(self._map, 0)
        base = _LENGTH.size + length
        if length > _MAX_HEADER or base > size:
            raise corrupt(
                self.path, f"claims a header of {length} bytes in a file of {size}: truncated, or not safetensors"
            )
        try:
            header = json.loads(self._map[_LENGTH.size : base], object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise corrupt(self.path, f"its header is not sound JSON: {error}") from error
        if not isinstance(header, dict):
            raise corrupt(self.path, f"its header is a JSON {type(header).__name__}; it must be an object")
        return header, base

    def _placed(self, name: str, entry: Any) -> SafeTensor:
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise corrupt(self.path, f"the entry of tensor {name!r} lacks dtype, shape or data_offsets") from None
        if not isinstance(dtype, str) or dtype not in _PLAIN:
            raise corrupt(self.path, f"tensor {name!r} has dtype {dtype!r}; known are {', '.join(_PLAIN)}")
        if not isinstance(shape, list) or not all(type(value) is int and value >= 0 for value in (*shape, begin, end)):
            raise corrupt(
                self.path, f"tensor {name!r} has shape {shape!r} at {begin!r}..{end!r}; whole numbers were expected"
            )
        form, width = _PLAIN[dtype]
        nbytes = width
        for extent in shape:
            nbytes *= extent
        if end - begin != nbytes:
            raise corrupt(
                self.path, f"tensor {name!r} of shape {shape} in {dtype} needs {nbytes} bytes, but has {end - begin}"
            )
        if self._base + end > len(self._map):
            raise corrupt(
                self.path,
                f"tensor {name!r} ends at byte {self._base + end} of a file of {len(self._map)}: truncated or damaged",
            )
        return SafeTensor(form, tuple(shape), self._base + begin, nbytes)


def _by_offset(item: tuple[str, Any]) -> tuple[int, str]:
    name, entry = item
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    first = offsets[0] if isinstance(offsets, list) and offsets else 0
    return (first if type(first) is int else 0, name)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table
