"""Numbers of one byte with scales for the whole weight, for each row, for groups of columns, or for square blocks.

Knows nothing of modules' names.
"""

from __future__ import annotations

import numpy as np

from sagellm_protocol.backend import RawWeight, WeightFormat

from .base import SCALES, Array, Groups, Module, groups_in_order, scaled

_FORMATS = {"i8": WeightFormat.INT8, WeightFormat.F8_E4M3.value: WeightFormat.F8_E4M3}


def read(module: Module, scale: str, size: int | None = None, block: tuple[int, int] | None = None) -> RawWeight:
    """The weight of a module.

    Args:
        module: Its tensors; ``weight`` is ``[O, E]``.
        scale: The tensor of scales: of one element, ``[O]``, ``[O, G]``, or one a block.
        size: Columns of a group.
        block: Rows and columns of a block.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for scales that do not fit the weight.
    """
    weight = module.array("weight", *_FORMATS)
    rows, width = weight.shape
    scales = _matrix(module, scale, *SCALES)
    groups = _columns(width, scales, rows, size, block)
    if groups is None:
        raise module.unsound(
            scale,
            f"is {list(module.tensors[scale].shape)}, which does not fit a weight of {rows} x {width}",
        )
    zeros = None
    if "weight_zero_point" in module.tensors:
        points = _matrix(module, "weight_zero_point", "i8")
        if points.shape != scales.shape:
            raise module.unsound("weight_zero_point", f"is {list(points.shape)} for scales of {list(scales.shape)}")
        zeros = groups.spread(_each_row(points, rows, block)) if points.any() else None
    form = _FORMATS[module.tensors["weight"].format]
    grid = module.grid(scale, groups.spread(_each_row(scales, rows, block)))
    return scaled(module, form, weight, width, grid, zeros)


def _matrix(module: Module, part: str, *formats: str) -> Array:
    """Scales as ``[R, G]``, whatever dimensions of one element are left out."""
    raw = module.tensors.get(part)
    dims = 2 if raw is None else len(raw.shape)
    array = module.array(part, *formats, dims=min(dims, 2))
    return array.reshape(1, 1) if array.size == 1 else array.reshape(len(array), -1)


def _columns(width: int, scales: Array, rows: int, size: int | None, block: tuple[int, int] | None) -> Groups | None:
    high, wide = scales.shape
    if high in (1, rows) and (wide == 1 or high == rows):
        return groups_in_order(width, wide, size or (block[1] if block else None))
    if block is None or high != -(-rows // block[0]):
        return None
    return groups_in_order(width, wide, block[1])


def _each_row(grid: Array, rows: int, block: tuple[int, int] | None) -> Array:
    """``[R, G]`` to ``[O, G]``."""
    if len(grid) == rows:
        return grid
    return np.repeat(grid, rows if len(grid) == 1 else block[0] if block else 1, axis=0)[:rows]
