"""What every reader of weights offers: one model's configuration and its raw tensors, by Hugging Face's names.

Knows nothing of file formats, nor of what a model does with a tensor.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from sagellm_protocol.backend import RawWeight

from .config import ModelConfig
from .errors import corrupt

_SAMPLE_BYTES = 1024
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Checkpoint(ABC):
    """One model's weights and configuration, read lazily: a tensor's bytes stay in the mapped file until someone looks.

    Attributes:
        path: The file or folder it was opened from.
        config: The model's numbers.
    """

    path: Path
    config: ModelConfig

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Names of all tensors, in the order they are best read in."""

    @abstractmethod
    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""

    @abstractmethod
    def _read(self, name: str) -> RawWeight:
        """The tensor of a name that exists."""

    def weight(self, name: str) -> RawWeight:
        """The tensor called ``name``.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when there is none; the message names the nearest.
        """
        if name not in self:
            near = difflib.get_close_matches(name, list(self.names()), n=1)
            hint = f"; the nearest it has is {near[0]!r}" if near else ""
            raise corrupt(self.path, f"has no tensor {name!r}, which {self.config.architecture} needs{hint}")
        return self._read(name)

    def weights(self) -> Iterator[RawWeight]:
        """All tensors."""
        for name in self.names():
            yield self._read(name)

    def release(self) -> None:  # noqa: B027  nothing to do where no file is mapped
        """Let go of the file's pages: what was packed is held twice otherwise.

        A tensor that is looked at afterwards is read again.
        """

    def refuse_leftovers(self, used: Iterable[str], derived: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
        """Raise if there are tensors that a model did not ask for: it would not be the model that was trained.

        Buffers that are derived from the configuration and layers that predict further tokens may be left over.

        Args:
            used: Names of the tensors that were asked for.
            derived: Endings of the names of what a family derives, buffers of its own or a head that is tied.
            beside: Beginnings of the names of parts that are not run.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming the tensors.
        """
        left = sorted(set(self.names()).difference(used))
        may_be_left = (name.endswith(tuple(derived)) or name.startswith(tuple(beside)) for name in left)
        left = [name for name, may in zip(left, may_be_left, strict=True) if not may and not self._may_be_left(name)]
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise corrupt(self.path, f"holds tensors that {self.config.architecture} does not know: {shown}")

    def _may_be_left(self, name: str) -> bool:
        layer = _LAYER.match(name)
        if layer is not None and 0 <= int(layer[1]) - self.config.num_layers < self.config.draft_layers:
            return True
        return name.endswith(".rotary_emb.inv_freq")

    @cached_property
    def key(self) -> str:
        """Identity of the weights, as block hashes use it.

        A digest of every tensor's name, format, shape and a sample of its bytes: two fine-tunes of one model differ in
        it, and so do two quantisations. It reads a few pages of each tensor, not all.
        """
        digest = hashlib.sha256(self.config.architecture.encode())
        rope = self.config.rope
        if rope is not None and rope.kind == "longrope":
            # Keys are turned by one of two sets of frequencies, and those of the other are of no use.
            assert rope.context is not None
            assert rope.original_max_position_embeddings is not None
            digest.update(b"\0long" if rope.context > rope.original_max_position_embeddings else b"\0short")
        for name in sorted(self.names()):
            weight = self._read(name)
            data = memoryview(weight.data).cast("B")
            middle = len(data) // 2
            digest.update(f"\0{name}\0{weight.format}\0{weight.shape}\0".encode())
            digest.update(data[:_SAMPLE_BYTES])
            digest.update(data[middle : middle + _SAMPLE_BYTES])
            digest.update(data[-_SAMPLE_BYTES:])
        return digest.hexdigest()
