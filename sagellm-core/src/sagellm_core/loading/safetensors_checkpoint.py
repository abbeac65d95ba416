"""A Hugging Face folder of safetensors, one file or several behind an index, as a :class:`Checkpoint`.

Knows nothing of what a model does with a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sagellm_protocol.backend import RawWeight

from .base import Checkpoint
from .errors import corrupt, not_a_checkpoint
from .fields import read_object
from .hf_config import read_hf_config
from .safetensors import SafetensorsFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class SafetensorsCheckpoint(Checkpoint):
    """A model in a folder with a ``config.json``."""

    def __init__(self, path: Path) -> None:
        """Open a folder, or one weights file beside its ``config.json``.

        Raises:
            SageLLMError: As :func:`read_hf_config` and :class:`SafetensorsFile`; ``INVALID_REQUEST`` for a missing
                shard.
        """
        self.path = path
        folder = path if path.is_dir() else path.parent
        self.config = read_hf_config(folder)
        if path.is_dir() and (folder / INDEX).is_file():
            self._where = _read_index(folder)
        else:
            file = SafetensorsFile(path if path.is_file() else _only_file(folder))
            self._where = dict.fromkeys(file.tensors, file)

    def names(self) -> Iterable[str]:
        """File by file, in the order of each."""
        return self._where.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def release(self) -> None:
        for file in set(self._where.values()):
            file.release()

    def _read(self, name: str) -> RawWeight:
        file = self._where[name]
        tensor = file.tensors[name]
        return RawWeight(name, tensor.format, tensor.shape, file.data(tensor))


def _only_file(folder: Path) -> Path:
    if (folder / SINGLE).is_file():
        return folder / SINGLE
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise not_a_checkpoint(folder, f"has no weights: neither {SINGLE} nor {INDEX}")
    names = ", ".join(path.name for path in found)
    raise corrupt(folder, f"has several weights files ({names}) but no {INDEX} that says what is where")


def _read_index(folder: Path) -> dict[str, SafetensorsFile]:
    source = folder / INDEX
    weight_map = read_object(source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise corrupt(source, "has no weight_map")
    for name, shard in weight_map.items():
        # A shard is a file of this folder: an index must not reach elsewhere.
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise corrupt(source, f"places tensor {name!r} in {shard!r}, which is not a file name")
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise corrupt(folder, f"lacks {len(missing)} of {len(shards)} weights files: {', '.join(missing[:5])}")
    files = {shard: SafetensorsFile(folder / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            raise corrupt(folder / shard, f"lacks tensor {name!r}, which {INDEX} places there")
    return {name: files[shard] for shard in shards for name in files[shard].tensors if weight_map.get(name) == shard}
