"""Checkpoints whose weights were quantised before they were saved: which methods are read, by the name they give.

A method is a file and a line of the table. Each turns a module's tensors into one scaled weight of the protocol, so
that nothing else knows them apart. Knows nothing of devices, nor of what keeps a weight packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sagellm_core.loading.errors import unsupported
from sagellm_core.loading.fields import Fields, read_object

if TYPE_CHECKING:
    from .base import Scheme

_COMPRESSED = "compressed-tensors"
METHODS: Mapping[str, str] = {
    "gptq": "gptq",
    "awq": "awq",
    _COMPRESSED: "compressed",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
}
"""The module whose ``scheme`` reads the settings of each ``quant_method``. They need NumPy, so that they are imported
when they are: a process that only renders prompts does without it where nothing is quantised."""
_KEYS = ("quantization_config", "compression_config")
"""Where a ``config.json`` says how its weights are stored; the latter is what compressed-tensors wrote at first."""
_BESIDE: Mapping[str, str] = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that say it beside a ``config.json`` which does not, as the first versions of a method's tools wrote them."""

__all__ = ["METHODS", "scheme_of", "with_settings"]


def with_settings(folder: Path, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The contents of a folder's ``config.json``, with the settings that an older tool wrote to a file of its own.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a file that is not JSON.
    """
    if any(values.get(key) is not None for key in _KEYS):
        return values
    for name, method in _BESIDE.items():
        if (folder / name).is_file():
            settings = read_object(folder / name)
            return {**values, _KEYS[0]: {"quant_method": method, **settings}}
    return values


def scheme_of(values: Mapping[str, Any], source: Path | str, *, native: frozenset[str] = frozenset()) -> Scheme | None:
    """How the weights that a ``config.json`` describes are stored, or ``None`` where they are not quantised.

    Args:
        values: The parsed file, as :func:`with_settings` gives it.
        source: What to call it in messages.
        native: Methods that a family's own layers read.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a method, or a setting of one, that is not offered, naming those that are.
    """
    fields = Fields(source, values)
    settings = fields.table(_KEYS[0]) or fields.table(_KEYS[1])
    if settings is None:
        return None
    # The first files of compressed-tensors name no method, but a version or groups of settings.
    guess = _COMPRESSED if "config_groups" in settings.values else "an unnamed method"
    method = settings.text("quant_method", guess)
    if method in native:
        return None
    if method not in METHODS:
        raise unsupported(
            source,
            f"the weights are quantised with {method!r}, which is not offered; known are"
            f" {', '.join((*METHODS, *sorted(native)))}. Use such a form, a GGUF file, or the unquantised form with"
            " quantization int8 or int4",
        )
    module = import_module(f".{METHODS[method]}", __package__)
    return cast("Scheme", module.scheme(settings))
