"""compressed-tensors, as LLM Compressor saves it: packed integers, 8-bit integers and 8-bit floats.

Packed, a module has ``weight_packed`` ``[O, ceil(E bits / 32)]``, unsigned, columns packed densely along it;
``weight_shape``; ``weight_scale`` ``[O, G]``; ``weight_zero_point``, packed along rows, where it is not the middle; and
``weight_g_idx`` ``[E]``, the group of each column, where they are not in order (compressed-tensors,
``compressors/pack_quantized``). Of one byte, it has ``weight``, ``weight_scale`` and perhaps ``weight_zero_point``
(``compressors/naive_quantized``). Which of the groups of settings a module is in need not be worked out: its tensors
tell. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_core.loading.errors import corrupt, unsupported
from sagellm_core.loading.fields import Fields
from sagellm_protocol.backend import RawWeight

from .base import SCALES, Groups, Module, Scheme, groups_in_order, groups_of
from .bytewide import read
from .fp8 import SPARE
from .integers import integers, unpack

METHOD = "compressed-tensors"
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")
_POINTS = frozenset({"input_zero_point", "output_zero_point", "q_zero_point", "k_zero_point", "v_zero_point"})


@dataclass(frozen=True)
class _Settings:
    """What groups of settings say of weights, where tensors leave it open.

    Attributes:
        bits: Of packed integers, of any group.
        sizes: Columns of a group of columns.
        blocks: Rows and columns of a block.
    """

    bits: frozenset[int]
    sizes: frozenset[int]
    blocks: frozenset[tuple[int, int]]

    def __call__(self, module: Module) -> RawWeight:
        """A module's weight."""
        if "weight_packed" in module.tensors:
            return self._packed(module)
        return read(module, "weight_scale", _only(self.sizes), _only(self.blocks))

    def _packed(self, module: Module) -> RawWeight:
        words, scales = module.array("weight_packed", "i32"), module.array("weight_scale", *SCALES)
        shape = module.array("weight_shape", "i64", "i32", dims=1).tolist()
        rows, groups = scales.shape
        width = int(shape[-1])
        fitting = [bits for bits in sorted(self.bits) if -(-width * bits // 32) == words.shape[1]]
        if len(shape) != 2 or shape[0] != rows or len(words) != rows or len(fitting) != 1:
            raise module.unsound(
                "weight_packed",
                f"is {list(words.shape)} for a weight of {shape} with scales of {list(scales.shape)}, which is not one"
                f" of {', '.join(map(str, sorted(self.bits)))} bits",
            )
        bits = fitting[0]
        of_columns = self._groups(module, width, groups)
        numbers = of_columns.sorted(unpack(words, bits, width)).astype(np.uint8, copy=False)
        zeros = self._zeros(module, bits, rows, groups)
        return integers(
            module,
            bits,
            numbers,
            module.grid("weight_scale", of_columns.spread(scales)),
            None if zeros is None else of_columns.spread(zeros),
            of_columns,
        )

    def _zeros(self, module: Module, bits: int, rows: int, groups: int) -> NDArray[Any] | None:
        raw = module.tensors.get("weight_zero_point")
        if raw is None:
            return None
        if raw.format == "i8":  # not packed, and signed, by earlier versions
            zeros: NDArray[Any] = module.array("weight_zero_point", "i8").astype(np.int16) + (1 << (bits - 1))
        else:
            words = module.array("weight_zero_point", "i32")
            if words.shape[0] * 32 < rows * bits:
                raise module.unsound("weight_zero_point", f"is {list(words.shape)}, too few for {rows} rows")
            zeros = unpack(words.T, bits, rows).T
        if zeros.shape != (rows, groups):
            raise module.unsound("weight_zero_point", f"is {list(raw.shape)} for scales of {[rows, groups]}")
        return zeros

    def _groups(self, module: Module, width: int, groups: int) -> Groups:
        if "weight_g_idx" in module.tensors:
            index = module.array("weight_g_idx", "i32", "i64", dims=1).astype(np.int64)
            if len(index) != width or index.max() != groups - 1 or index.min() < 0 or not np.bincount(index).all():
                raise module.unsound("weight_g_idx", f"does not place {width} columns in {groups} groups")
            return groups_of(index)
        found = groups_in_order(width, groups, _only(self.sizes))
        if found is None:
            raise module.unsound("weight_scale", f"has {groups} groups, which {width} columns cannot be divided into")
        return found


def scheme(fields: Fields) -> Scheme:
    """Read the settings of a checkpoint.

    Raises:
        SageLLMError: ``UNSUPPORTED`` naming one that is not offered; ``INVALID_REQUEST`` for one that cannot be.
    """
    status = fields.text("quantization_status", "compressed")
    if status != "compressed":
        raise unsupported(fields.source, f"quantization_status {status!r} is not offered; compressed is")
    sparsity = fields.table("sparsity_config")
    if sparsity is not None and sparsity.text("format", "dense") != "dense":
        raise unsupported(fields.source, f"sparsity {sparsity.text('format')!r} is not offered; dense weights are")
    if fields.values.get("transform_config"):
        raise unsupported(fields.source, "transform_config, which turns activations as they come, is not offered")
    stated = fields.text("format", None)
    groups = fields.table("config_groups")
    named = [_group(fields, name, group) for name, group in (groups.values if groups else {}).items()]
    for form in (stated, *(group.text("format", None) for group in named)):
        if form not in (None, "mixed-precision", "dense", *FORMATS):
            raise unsupported(fields.source, f"format {form!r} is not offered; known are {', '.join(FORMATS)}")
    weights = [found for group in named if (found := group.table("weights")) is not None]
    for found in weights:
        _refuse(found)
    return Scheme(
        method=METHOD,
        marks=frozenset({"weight_packed", "weight_scale"}),
        needs=frozenset(),
        may=frozenset({"weight", "weight_shape", "weight_zero_point", "weight_g_idx"}),
        spare=SPARE | _POINTS,
        read=_Settings(
            frozenset(found.integer("num_bits", 8) for found in weights),
            frozenset(size for found in weights if (size := found.integer("group_size", None, minimum=-1)) is not None),
            frozenset(block for found in weights if (block := _block(found)) is not None),
        ),
    )


def _group(fields: Fields, name: str, group: Any) -> Fields:
    if not isinstance(group, Mapping):
        raise corrupt(fields.source, f"config_groups: {name} is {group!r}; it must be an object")
    return Fields(f"{fields.source}: config_groups: {name}", group)


def _refuse(weights: Fields) -> None:
    kind, bits = weights.text("type", "int"), weights.integer("num_bits", 8)
    if (kind, bits) != ("float", 8) and not (kind == "int" and 2 <= bits <= 8):
        raise unsupported(
            weights.source, f"weights of {bits} bits as {kind} are not offered; int of 2 to 8 and float of 8 are"
        )
    strategy = weights.text("strategy", "tensor")
    if strategy not in _STRATEGIES:
        raise unsupported(weights.source, f"strategy {strategy!r} is not offered; known are {', '.join(_STRATEGIES)}")


def _block(weights: Fields) -> tuple[int, int] | None:
    """Rows and columns of a block, where it is stated."""
    stated = weights.values.get("block_structure")
    if stated is None:
        return None
    if isinstance(stated, str):  # "128x128", as earlier versions wrote it
        sides = tuple(int(side) if side.isdecimal() else 0 for side in stated.split("x"))
    else:
        sides = weights.integers("block_structure")
    if len(sides) != 2 or 0 in sides:
        raise corrupt(weights.source, f"block_structure is {stated!r}; it must be rows and columns of a block")
    return sides[0], sides[1]


def _only(values: frozenset[Any]) -> Any:
    """The one value there is, if there is one."""
    return next(iter(values)) if len(values) == 1 else None
