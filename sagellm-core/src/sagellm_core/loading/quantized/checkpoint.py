"""A checkpoint whose quantised modules look like any other: each has one ``weight``, in a scaled format.

Knows nothing of any method: a scheme says which tensors are whose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property

from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import RawWeight

from .base import Module, Scheme


class QuantizedCheckpoint(Checkpoint):
    """Another checkpoint's tensors, those of quantised modules put together as they are asked for."""

    def __init__(self, stored: Checkpoint, scheme: Scheme) -> None:
        """Find out which modules are quantised.

        Args:
            stored: The tensors as they are stored.
            scheme: How a module's are to be read.
        """
        self.path = stored.path
        self.config = stored.config
        self._stored = stored
        self._scheme = scheme
        present: dict[str, set[str]] = {}
        for name in stored.names():
            module, part = _split(name)
            present.setdefault(module, set()).add(part)
        self._modules = {name: parts & scheme.parts for name, parts in present.items() if parts & scheme.marks}

    def names(self) -> Iterable[str]:
        """In the order of what is stored."""
        found: dict[str, None] = {}
        for name in self._stored.names():
            module, part = _split(name)
            if part in self._modules.get(module, ()):
                found[f"{module}.weight"] = None
            elif part not in self._scheme.spare:
                found[name] = None
        return found.keys()

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        module, part = _split(name)
        return (part == "weight" and module in self._modules) or name in self._stored

    def release(self) -> None:
        self._stored.release()

    @cached_property
    def key(self) -> str:
        """Identity of the weights: of what is stored, and of how it is read."""
        settings = self.config.raw.get("quantization_config") or self.config.raw.get("compression_config")
        return hashlib.sha256(f"{self._stored.key}\0{self._scheme.method}\0{settings!r}".encode()).hexdigest()

    def _read(self, name: str) -> RawWeight:
        module, part = _split(name)
        if part != "weight" or module not in self._modules:
            return self._stored.weight(name)
        parts = self._modules[module] | self._scheme.needs
        tensors = {part: self._stored.weight(f"{module}.{part}") for part in sorted(parts)}
        return self._scheme.read(Module(str(self.path), module, tensors))

    def _may_be_left(self, name: str) -> bool:
        module, part = _split(name)
        # AutoGPTQ's first versions gave a bias to each module that they quantised, and left it at zero.
        if part == "bias" and module in self._modules and not any(memoryview(self._read(name).data).cast("B")):
            return True
        return super()._may_be_left(name)


def _split(name: str) -> tuple[str, str]:
    module, _, part = name.rpartition(".")
    return module, part
