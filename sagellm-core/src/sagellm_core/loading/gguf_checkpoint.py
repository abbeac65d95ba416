"""A GGUF file as a :class:`Checkpoint`: its tensors by Hugging Face's names and row order, bytes untouched.

Knows nothing of how a block format is decoded: rows move whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from sagellm_protocol.backend import RawWeight

from .base import Checkpoint
from .errors import corrupt
from .gguf import GGUFFile, GGUFTensor
from .gguf_config import family_of, read_gguf_config
from .gguf_families import GGUFFamily

_CONSUMED = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that the configuration has already taken in."""
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
_QUERY_KEY = re.compile(r".*\.self_attn\.(?P<which>[qk])_proj\.(?:weight|bias)")


class GGUFCheckpoint(Checkpoint):
    """A model in one GGUF file."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            SageLLMError: As :class:`GGUFFile` and :func:`read_gguf_config`.
        """
        self.path = path
        self.file = GGUFFile(path)
        self.config = read_gguf_config(self.file)
        self.family = family_of(self.file)

    @cached_property
    def _tensors(self) -> dict[str, GGUFTensor]:
        kept = [tensor for name, tensor in self.file.tensors.items() if name not in _CONSUMED]
        return {hf_name(tensor.name, self.family): tensor for tensor in kept}

    def names(self) -> Iterable[str]:
        """In the order of the file."""
        return self._tensors.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def release(self) -> None:
        self.file.release()

    def _read(self, name: str) -> RawWeight:
        tensor = self._tensors[name]
        data: memoryview | bytes = self.file.data(tensor)
        which = _QUERY_KEY.fullmatch(name) if self.family.permuted else None
        if which is not None:
            heads = self.config.num_heads if which["which"] == "q" else self.config.num_kv_heads
            data = self._halves_first(tensor, memoryview(data), heads)
        # Converters drop axes of one element: a projection to a single number comes as a vector.
        shape = (1, *tensor.shape) if name.endswith(".shared_expert_gate.weight") and len(tensor.shape) == 1 else None
        return RawWeight(name, tensor.format.value, shape or tensor.shape, data)

    def _halves_first(self, tensor: GGUFTensor, data: memoryview, heads: int) -> bytes:
        """Reorder each head's rows from interleaved pairs ``(0, d/2, 1, d/2 + 1, …)`` back to ``(0, 1, 2, …)``."""
        rows, half = tensor.shape[0], self.config.head_dim // 2
        if rows != heads * 2 * half:
            expected = heads * self.config.head_dim
            raise corrupt(
                self.path, f"tensor {tensor.name!r} has {rows} rows; {heads} heads of {2 * half} need {expected}"
            )
        row = tensor.nbytes // rows
        order = (head + 2 * pair + part for head in range(0, rows, 2 * half) for part in (0, 1) for pair in range(half))
        return b"".join(data[index * row : (index + 1) * row] for index in order)


def hf_name(name: str, family: GGUFFamily) -> str:
    """Hugging Face's name of a family's tensor; a name that is not known stays as it is."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    if match["layer"] is None:
        part = family.top.get(match["part"])
        return f"{part}.{match['kind']}" if part else name
    part = family.in_layer.get(match["part"])
    if match["part"] in family.parameters:
        return f"{family.layers}.{match['layer']}.{part}"
    return f"{family.layers}.{match['layer']}.{part}.{match['kind']}" if part else name
