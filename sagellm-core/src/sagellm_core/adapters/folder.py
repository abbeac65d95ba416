"""An adapter's folder: its configuration, and two matrices for each module it adapts, by the module's name.

``adapter_model.safetensors`` alone is read; ``adapter_model.bin`` is a pickle, which is a program, and is never opened.
Knows nothing of models or devices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sagellm_core.loading.errors import corrupt, not_a_checkpoint, unsupported
from sagellm_core.loading.safetensors import SafetensorsFile
from sagellm_protocol.backend import RawWeight

from .config import CONFIG, AdapterConfig, read_config

WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one module: ``up @ down``, times a scale.

    Attributes:
        down: ``[r, E]``.
        up: ``[O, r]``.
        scale: Multiplies the product.
    """

    down: RawWeight
    up: RawWeight
    scale: float


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter as its folder has it.

    Attributes:
        path: The folder.
        config: How large it is.
        key: Digest of all of it.
        pairs: By module.
    """

    path: Path
    config: AdapterConfig
    key: str
    pairs: dict[str, Pair]


def open_adapter(path: str) -> AdapterFolder:
    """Open an adapter's folder; its matrices stay views of the mapped file.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` where there is no adapter; ``UNSUPPORTED`` and ``INVALID_REQUEST`` as
            :func:`.config.read_config`, and for tensors that are no pairs of matrices, by name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise not_a_checkpoint(folder, "no such folder; an adapter is the folder that peft saved")
    if not (folder / CONFIG).is_file():
        raise not_a_checkpoint(folder, f"holds no adapter: it has no {CONFIG}")
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        hint = f" ({_PICKLED} is a pickle, which is a program; save it anew as safetensors)"
        raise not_a_checkpoint(folder, f"has no {WEIGHTS}{hint if (folder / _PICKLED).is_file() else ''}")
    file = SafetensorsFile(folder / WEIGHTS)
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for name, tensor in file.tensors.items():
        digest.update(f"\0{name}\0{tensor.format}\0{tensor.shape}\0".encode())
        digest.update(file.data(tensor))
    return AdapterFolder(folder, config, digest.hexdigest(), _pairs(file, config))


def _pairs(file: SafetensorsFile, config: AdapterConfig) -> dict[str, Pair]:
    halves: dict[str, dict[str, RawWeight]] = {}
    for name, tensor in file.tensors.items():
        half = next((half for half in (_DOWN, _UP) if name.endswith(half)), None)
        if half is None or not name.startswith(_PREFIX):
            raise unsupported(
                file.path, f"tensor {name!r} is none of the two matrices of a module ({_PREFIX}MODULE{_DOWN}, {_UP})"
            )
        module = name[len(_PREFIX) : -len(half)]
        halves.setdefault(module, {})[half] = RawWeight(name, tensor.format, tensor.shape, file.data(tensor))
    if not halves:
        raise corrupt(file.path, "holds no tensors: it adapts nothing")
    pairs = {}
    for module, found in halves.items():
        for half in (_DOWN, _UP):
            if half not in found:
                raise corrupt(file.path, f"lacks tensor {_PREFIX + module + half!r}, the other half of {module!r}")
        down, up, rank = found[_DOWN], found[_UP], config.rank_of(module)
        for raw, at in ((down, 0), (up, 1)):
            if len(raw.shape) != 2 or raw.shape[at] != rank:
                raise corrupt(
                    file.path, f"tensor {raw.name!r} is {raw.shape}; {CONFIG} makes {module!r} one of rank {rank}"
                )
        pairs[module] = Pair(down, up, config.scale_of(module))
    return pairs
