"""How one family's ``config.json`` is read: what a table of families is made of.

Knows nothing of any family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import ModelConfig
from .fields import Fields
from .hf_rope import SLIDING

Extras = dict[str, Any]
"""Fields of a :class:`ModelConfig` to replace."""


def _listed_window(fields: Fields) -> int | None:
    return fields.integer("sliding_window", None)


@dataclass(frozen=True)
class Family:
    """How one family's configuration is read.

    Attributes:
        architecture: Class that loads it where the file names none.
        defaults: What counts where a key is absent. A null counts: it is not absence.
        part: Where the file of a model that reads images too describes the one that reads text.
        renamed: The family's key for what is usually called otherwise, and the usual one.
        inner: Width of the MLP in multiples of ``hidden_size``, where the file gives none.
        rotary: It has a rotary embedding.
        window: Tokens back that layers with a window see.
        local: What the file calls layers with a window.
        slides: Whether the layer of a number has a window, where the file lists no ``layer_types``.
        extras: What else the file says, beside the configuration read so far.
        quantizations: Methods that its weights may have been quantised with.
    """

    architecture: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    part: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    inner: int | None = None
    rotary: bool = True
    window: Callable[[Fields], int | None] = _listed_window
    local: str = SLIDING
    slides: Callable[[Fields, int], bool] = lambda fields, layer: True
    extras: Callable[[Fields, ModelConfig], Extras] = lambda fields, config: {}
    quantizations: frozenset[str] = frozenset()

    def read(self, values: Mapping[str, Any], source: Any) -> Fields:
        """The file's values by the usual names, defaults filled in."""
        if self.part is not None:
            inner = Fields(source, values).table(self.part)
            described = {} if inner is None else inner.values
            values = {**values, **described, "architectures": values.get("architectures")}
        usual = {self.renamed[key]: value for key, value in values.items() if key in self.renamed and value is not None}
        return Fields(source, {**self.defaults, **values, **usual})
