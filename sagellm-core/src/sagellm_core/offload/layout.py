"""What two engines must have in common for a block of one to be read by the other.

Knows nothing of files or of memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from sagellm_core.executor.base import ModelInfo

VERSION = 1
"""Of what is hashed here, and of the files' own form."""


@dataclass(frozen=True)
class BlockLayout:
    """How a block came about and how its bytes lie.

    Attributes:
        model_key: Identity of the weights, as block hashes have it.
        dtype: Type that is computed in.
        quantization: How weights were quantised at load.
        backend: Whose kernels computed it.
        kv_dtype: Type it is kept in.
        kv_layout: The pool's own name for how it lies, with a version.
        block_size: Tokens.
        specs: What each layer keeps.
        nbytes: Of one block in all layers.
    """

    model_key: str
    dtype: str
    quantization: str | None
    backend: str
    kv_dtype: str
    kv_layout: str
    block_size: int
    specs: tuple[str, ...]
    nbytes: int

    @property
    def key(self) -> str:
        """Equal for equal layouts, in this process and any other."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def layout_of(info: ModelInfo, kv_layout: str, block_size: int, nbytes: int) -> BlockLayout:
    """The layout of the blocks that an executor exports.

    Args:
        info: What it loaded.
        kv_layout: Its pool's own name for how a block lies.
        block_size: Tokens of a block.
        nbytes: Bytes of an exported block.
    """
    return BlockLayout(
        info.model_key,
        info.dtype.value,
        info.quantization,
        info.backend,
        info.kv_dtype.value,
        kv_layout,
        block_size,
        tuple(repr(spec) for spec in info.kv_specs),
        nbytes,
    )
