"""A checkpoint with tensors replaced, added, taken away or renamed, and its configuration changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import RawWeight


class Changed(Checkpoint):
    """A checkpoint with tensors replaced, added, or (``None``) taken away."""

    def __init__(self, original: Checkpoint, changes: Mapping[str, tuple[int, ...] | None], **config: Any) -> None:
        self.path = original.path
        self.config = dataclasses.replace(original.config, **config)
        self._original = original
        self._changes = changes

    def names(self) -> list[str]:
        gone = {name for name, shape in self._changes.items() if shape is None}
        return [*(name for name in dict.fromkeys([*self._original.names(), *self._changes]) if name not in gone)]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _read(self, name: str) -> RawWeight:
        shape = self._changes.get(name)
        if shape is None:
            return self._original.weight(name)
        return RawWeight(name, "f32", shape, np.zeros(shape, dtype=np.float32).data)


class Renamed(Checkpoint):
    """A checkpoint whose tensors are called otherwise."""

    def __init__(self, original: Checkpoint, rename: Callable[[str], str]) -> None:
        self.path, self.config = original.path, original.config
        self._original = original
        self._old = {rename(name): name for name in original.names()}

    def names(self) -> list[str]:
        return list(self._old)

    def __contains__(self, name: object) -> bool:
        return name in self._old

    def _read(self, name: str) -> RawWeight:
        return dataclasses.replace(self._original.weight(self._old[name]), name=name)
