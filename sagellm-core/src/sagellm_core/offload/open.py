"""From what an operator asked for to the tiers that keep blocks outside the device.

Knows the tiers; nothing of who uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sagellm_protocol.backend import KVSpec
from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import Tier
from .disk import DiskTier
from .host import HostTier
from .layout import BlockLayout
from .shelf import Shelf

DISK_BYTES = 10 << 30
"""Unless told."""


def shelf_opener(spec: EngineSpec, kv_specs: Sequence[KVSpec]) -> Callable[[BlockLayout], Shelf] | None:
    """What opens the tiers that ``spec`` asks for; ``None`` where it asks for none.

    Args:
        spec: What the operator asked for.
        kv_specs: What each layer of the model keeps.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for options that contradict each other; ``UNSUPPORTED`` for a model whose
            blocks cannot be kept.
    """
    asked = spec.kv_offload_memory_bytes is not None or spec.kv_offload_dir is not None
    if spec.kv_offload_disk_bytes is not None and spec.kv_offload_dir is None:
        raise _wrong(
            "kv_offload_disk_bytes",
            "kv_offload_disk_bytes says how large a folder may get, and none is named: set kv_offload_dir",
        )
    if not asked:
        return None
    param = "kv_offload_dir" if spec.kv_offload_dir is not None else "kv_offload_memory_bytes"
    if not spec.prefix_caching:
        raise _wrong(param, f"{param} keeps prefixes for later requests, which prefix_caching=False forbids; drop one")
    if not kv_specs:
        raise _wrong(param, f"{param} has no meaning for an encoder, which keeps no keys and values; drop it")
    if len(set(kv_specs)) > 1 or kv_specs[0].window is not None:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"{param} is offered for models whose layers are alike and see everything; this one has layers that see a"
            " window, or of several kinds; drop it",
            param,
        )
    return lambda layout: _open(spec, layout)


def _open(spec: EngineSpec, layout: BlockLayout) -> Shelf:
    tiers: list[Tier] = []
    if spec.kv_offload_memory_bytes is not None:
        _check_size("kv_offload_memory_bytes", spec.kv_offload_memory_bytes, layout)
        tiers.append(HostTier(spec.kv_offload_memory_bytes))
    if spec.kv_offload_dir is not None:
        limit = spec.kv_offload_disk_bytes or DISK_BYTES
        _check_size("kv_offload_disk_bytes", limit, layout)
        try:
            tiers.append(DiskTier(Path(spec.kv_offload_dir).expanduser(), limit, layout))
        except OSError as error:
            raise _wrong(
                "kv_offload_dir",
                f"kv_offload_dir={spec.kv_offload_dir!r} cannot be written to: {error.strerror}; name another folder",
            ) from None
    return Shelf(tiers)


def _check_size(param: str, limit: int, layout: BlockLayout) -> None:
    if limit < layout.nbytes:
        raise _wrong(
            param,
            f"{param}={limit} holds no block: one of {layout.block_size} tokens takes {layout.nbytes} bytes; raise it",
        )


def _wrong(param: str, message: str) -> SageLLMError:
    return SageLLMError(ErrorCode.INVALID_REQUEST, message, param)
