"""What a method of quantising says of its tensors, and the arithmetic of groups that all of them share.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagellm_core.loading.errors import corrupt
from sagellm_protocol.backend import RawWeight, WeightFormat
from sagellm_protocol.errors import SageLLMError

Array = NDArray[np.generic]
ELEMENTS: Mapping[str, str] = {
    WeightFormat.F32.value: "<f4",
    WeightFormat.F16.value: "<f2",
    WeightFormat.BF16.value: "<u2",
    WeightFormat.INT8.value: "i1",
    WeightFormat.F8_E4M3.value: "u1",
    "i8": "i1",
    "u8": "u1",
    "i32": "<i4",
    "i64": "<i8",
}
"""How NumPy holds what safetensors calls so; BF16 and 8-bit floats as their bits."""
SCALES = frozenset({WeightFormat.F32.value, WeightFormat.F16.value, WeightFormat.BF16.value})


@dataclass(frozen=True)
class Module:
    """The tensors of one quantised module.

    Attributes:
        path: The checkpoint, for messages.
        name: The module.
        tensors: Its tensors by their last name, those of :attr:`Scheme.parts` that are there.
    """

    path: str
    name: str
    tensors: Mapping[str, RawWeight]

    def array(self, part: str, *formats: str, dims: int = 2) -> Array:
        """A tensor as it is stored, checked for its type and number of dimensions, none of which is 0.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming it.
        """
        raw = self.tensors.get(part)
        if raw is None:
            raise self.unsound(part, "is missing")
        if raw.format not in formats or len(raw.shape) != dims:
            raise self.unsound(
                part,
                f"is {raw.format} of shape {list(raw.shape)}; {dims} dimensions of {' or '.join(formats)} expected",
            )
        if 0 in raw.shape:
            raise self.unsound(part, f"is of shape {list(raw.shape)} and holds nothing")
        array: Array = np.frombuffer(memoryview(raw.data), dtype=ELEMENTS[raw.format]).reshape(raw.shape)
        return array

    def grid(self, part: str, array: Array) -> RawWeight:
        """An array of scales of ``part``'s own type as a tensor of its own."""
        made = np.ascontiguousarray(array)
        return RawWeight(f"{self.name}.{part}", self.tensors[part].format, made.shape, made.data)

    def unsound(self, part: str, what: str) -> SageLLMError:
        """A tensor that cannot be what it should."""
        return corrupt(self.path, f"tensor '{self.name}.{part}' {what}")


@dataclass(frozen=True)
class Scheme:
    """How one method stores the weight of a module.

    Attributes:
        method: Its name, as ``quant_method`` gives it.
        marks: A module that has one of these tensors is quantised.
        needs: Tensors that make up its weight, beside the one that marks it; one that is missing is an error.
        may: Tensors that may be there besides.
        spare: Tensors of any module that are not needed: scales of activations and of caches, which are kept more
            precisely here.
        read: From a module's tensors to its weight.
    """

    method: str
    marks: frozenset[str]
    needs: frozenset[str]
    may: frozenset[str]
    read: Callable[[Module], RawWeight]
    spare: frozenset[str] = frozenset()

    @property
    def parts(self) -> frozenset[str]:
        """All that a weight is made of."""
        return self.marks | self.needs | self.may


@dataclass(frozen=True)
class Groups:
    """Columns that share scales.

    Attributes:
        order: The column that each place is for, ``[E]``, where columns are to be sorted by group.
        repeats: For each group, the equally wide parts it is made of, ``[G]``.
    """

    order: NDArray[np.int64] | None
    repeats: NDArray[np.int64]

    def spread(self, grid: Array) -> Array:
        """``[O, G]`` to a column for each part."""
        return grid if (self.repeats == 1).all() else np.repeat(grid, self.repeats, axis=1)

    def sorted(self, numbers: Array) -> Array:
        """``[O, E]`` with columns in order of their groups."""
        return numbers if self.order is None else np.ascontiguousarray(numbers[:, self.order])


def groups_of(index: NDArray[np.int64]) -> Groups:
    """Columns by the group of each, ``[E]``; groups need not be equally wide, nor together."""
    order = np.argsort(index, kind="stable")
    wide = np.bincount(index)
    part = np.gcd.reduce(wide)
    in_order = bool((order[1:] > order[:-1]).all())
    return Groups(None if in_order else order, wide // part)


def groups_in_order(columns: int, groups: int, size: int | None) -> Groups | None:
    """Groups of neighbouring columns, ``size`` each but perhaps the last; ``None`` where that is not as many.

    Args:
        columns: E.
        groups: G, as scales have it.
        size: Columns of a group, where it is stated. Modules may differ from it in groups that are equally wide.
    """
    if size is not None and size > 0 and -(-columns // size) == groups:
        return groups_of(np.arange(columns) // size)
    return Groups(None, np.ones(groups, np.int64)) if columns % groups == 0 else None


def scaled(
    module: Module,
    form: WeightFormat,
    data: Array,
    width: int,
    scales: RawWeight,
    zeros: Array | None = None,
    groups: Groups | None = None,
) -> RawWeight:
    """A weight in a scaled format.

    Args:
        module: Whose it is.
        form: The format.
        data: Its numbers, ``[O, bytes]``, columns sorted by group.
        width: E.
        scales: ``[O, G]``.
        zeros: Zero points likewise, whole numbers, where they differ from the format's own.
        groups: Says in which order columns are.
    """
    extra = {"scales": scales}
    if zeros is not None:
        made = np.ascontiguousarray(zeros, dtype="<f4")
        extra["zeros"] = RawWeight(f"{module.name} zero points", WeightFormat.F32.value, made.shape, made.data)
    if groups is not None and groups.order is not None:
        columns = groups.order.astype("<i4")
        extra["columns"] = RawWeight(f"{module.name} columns", "i32", columns.shape, columns.data)
    numbers = np.ascontiguousarray(data)
    return RawWeight(f"{module.name}.weight", form.value, (len(numbers), width), numbers.data, extra)
