"""The GGUF container, versions 2 and 3: metadata and a table of tensors over one mapped file.

The layout is that of ggml's ``docs/gguf.md``. Knows nothing of models: names and values are the file's own. Every
length is checked before it is trusted, so that a truncated or mutated file ends in one typed error, quickly and in
little memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagellm_protocol.backend import BLOCK_ELEMENTS, WeightFormat

from .errors import corrupt, not_a_checkpoint, unsupported

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_U32, _U64, _TENSOR_END = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_HEADER = struct.Struct("<4sIQQ")
_SMALLEST_ENTRY = 8 + 4 + 1
"""Bytes of a metadata entry with an empty key and a one-byte value."""
_SMALLEST_TENSOR = 8 + 4 + 4 + 8

FORMATS: Mapping[int, WeightFormat] = {
    0: WeightFormat.F32,
    1: WeightFormat.F16,
    2: WeightFormat.Q4_0,
    3: WeightFormat.Q4_1,
    6: WeightFormat.Q5_0,
    7: WeightFormat.Q5_1,
    8: WeightFormat.Q8_0,
    10: WeightFormat.Q2_K,
    11: WeightFormat.Q3_K,
    12: WeightFormat.Q4_K,
    13: WeightFormat.Q5_K,
    14: WeightFormat.Q6_K,
    30: WeightFormat.BF16,
    39: WeightFormat.MXFP4,
}
"""Tensor types of ggml by number, as far as they can be read here."""

_OTHER_FORMATS: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor is.

    Attributes:
        name: As the file calls it.
        format: How its bytes are to be read.
        shape: Rows first: the reverse of the file's order.
        start: First byte within the file.
        nbytes: Length in bytes.
    """

    name: str
    format: WeightFormat
    shape: tuple[int, ...]
    start: int
    nbytes: int


class GGUFFile:
    """An open GGUF file.

    Attributes:
        path: The file.
        version: Of the container.
        metadata: All key/value pairs; arrays are lists (of ``str`` for strings).
        tensors: The table, by name, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Map ``path`` and read its header.

        Raises:
            SageLLMError: ``MODEL_NOT_FOUND`` when there is no such file; ``INVALID_REQUEST`` when it is not sound;
                ``UNSUPPORTED`` for a version or tensor type that is not offered.
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
        self._size = len(self._map)
        self._at = 0
        try:
            self.version, tensors, entries = self._header()
            self.metadata = self._metadata(entries)
            self.tensors = self._table(tensors)
        except struct.error:
            raise corrupt(path, f"the file ends within its header ({self._size} bytes)") from None
        except UnicodeDecodeError as error:
            raise corrupt(
                path, f"a string in the header is not UTF-8 ({error.reason} before byte {self._at})"
            ) from None

    def data(self, tensor: GGUFTensor) -> memoryview:
        """A tensor's bytes; a view of the mapped file."""
        return memoryview(self._map)[tensor.start : tensor.start + tensor.nbytes]

    def release(self) -> None:
        """Let go of the file's pages in memory; they are read again when they are looked at."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _header(self) -> tuple[int, int, int]:
        if self._map[:4] != MAGIC:
            raise corrupt(self.path, f"is not a GGUF file: it begins with {self._map[:4]!r} instead of {MAGIC!r}")
        _, version, tensors, entries = _HEADER.unpack_from(self._map, 0)
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "big-endian files are" if swapped in VERSIONS else f"GGUF version {version} is"
            raise unsupported(self.path, f"{what} not offered; known are little-endian versions 2 and 3")
        self._at = _HEADER.size
        self._room_for(entries, _SMALLEST_ENTRY, "metadata entries")
        self._room_for(tensors, _SMALLEST_TENSOR, "tensors")
        return version, tensors, entries

    def _room_for(self, count: int, smallest: int, what: str) -> None:
        left = self._size - self._at
        if count * smallest > left:
            raise corrupt(self.path, f"claims {count} {what}, but only {left} bytes follow: truncated or damaged")

    def _string(self) -> str:
        (length,) = _U64.unpack_from(self._map, self._at)
        start = self._at + 8
        end = start + length
        if end > self._size:
            raise corrupt(self.path, f"a string of {length} bytes at byte {self._at} reaches past the end of the file")
        self._at = end
        return self._map[start:end].decode()

    def _strings(self, count: int) -> list[str]:
        # The hot loop: a vocabulary is two such arrays of 50 to 250 thousand entries.
        self._room_for(count, 8, "strings in an array")
        data, at, size, unpack = self._map, self._at, self._size, _U64.unpack_from
        strings: list[str] = []
        append = strings.append
        for _ in range(count):
            (length,) = unpack(data, at)
            at += 8
            end = at + length
            if end > size:
                raise corrupt(self.path, f"a string of {length} bytes at byte {at} reaches past the end of the file")
            append(data[at:end].decode())
            at = end
        self._at = at
        return strings

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            (item_kind,) = _U32.unpack_from(self._map, self._at)
            (count,) = _U64.unpack_from(self._map, self._at + 4)
            self._at += 12
            return self._array(key, item_kind, count)
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise corrupt(self.path, f"{key!r} has a value of unknown type {kind}")
        (value,) = scalar.unpack_from(self._map, self._at)
        self._at += scalar.size
        return value

    def _array(self, key: str, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return self._strings(count)
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise corrupt(self.path, f"{key!r} is an array whose items have type {kind}, which is not known")
        self._room_for(count, scalar.size, "array items")
        values = struct.unpack_from(f"<{count}{scalar.format[1:]}", self._map, self._at)
        self._at += count * scalar.size
        return list(values)

    def _metadata(self, entries: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            (kind,) = _U32.unpack_from(self._map, self._at)
            self._at += 4
            if key in metadata:
                raise corrupt(self.path, f"metadata key {key!r} appears twice")
            metadata[key] = self._value(key, kind)
        return metadata

    def _table(self, count: int) -> dict[str, GGUFTensor]:
        rows = [self._tensor_row() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or alignment <= 0
            or alignment & (alignment - 1)
        ):
            raise corrupt(self.path, f"general.alignment is {alignment!r}; it must be a power of two")
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset in rows:
            if name in tensors:
                raise corrupt(self.path, f"tensor {name!r} appears twice")
            tensors[name] = self._placed(name, kind, shape, base + offset)
        return tensors

    def _tensor_row(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        (dimensions,) = _U32.unpack_from(self._map, self._at)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise corrupt(
                self.path, f"tensor {name!r} claims {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are possible"
            )
        shape = struct.unpack_from(f"<{dimensions}Q", self._map, self._at + 4)
        kind, offset = _TENSOR_END.unpack_from(self._map, self._at + 4 + 8 * dimensions)
        self._at += 4 + 8 * dimensions + _TENSOR_END.size
        return name, kind, shape[::-1], offset

    def _placed(self, name: str, kind: int, shape: tuple[int, ...], start: int) -> GGUFTensor:
        form = FORMATS.get(kind)
        if form is None:
            known = ", ".join(f.name for f in FORMATS.values())
            called = _OTHER_FORMATS.get(kind, f"type {kind}")
            raise unsupported(
                self.path, f"tensor {name!r} is stored as {called}, which is not offered; known are {known}"
            )
        elements, block_bytes = BLOCK_ELEMENTS[form]
        if 0 in shape or shape[-1] % elements:
            raise corrupt(
                self.path, f"tensor {name!r} of shape {shape} does not divide into {form.name} blocks of {elements}"
            )
        count = 1
        for size in shape:
            count *= size
        nbytes = count // elements * block_bytes
        if start + nbytes > self._size:
            raise corrupt(
                self.path,
                f"tensor {name!r} ends at byte {start + nbytes}, past the file's {self._size}: truncated or damaged",
            )
        return GGUFTensor(name, form, shape, start, nbytes)
