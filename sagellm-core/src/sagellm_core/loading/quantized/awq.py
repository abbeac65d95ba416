"""AWQ (Lin et al. 2023) as AutoAWQ saves it in its ``gemm`` version.

A module has ``qweight`` ``[E, O / 8]``, eight rows of the weight packed into a word in the order of :data:`_ORDER`;
``scales`` ``[G, O]``; and ``qzeros`` ``[G, O / 8]``, packed likewise (AutoAWQ, ``awq/modules/linear/gemm.py``). Knows
nothing of files.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from sagellm_core.loading.errors import unsupported
from sagellm_core.loading.fields import Fields
from sagellm_protocol.backend import RawWeight

from .base import SCALES, Array, Module, Scheme, groups_in_order
from .integers import integers, unpack

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which row of eight each four bits of a word are of, lowest first."""
_PLACES = np.argsort(_ORDER)


def scheme(fields: Fields) -> Scheme:
    """Read the settings of a checkpoint, by the names of either of its tools' versions.

    Raises:
        SageLLMError: ``UNSUPPORTED`` naming one that is not offered.
    """
    bits = fields.integer("bits", fields.integer("w_bit", 4))
    if bits != 4:
        raise unsupported(fields.source, f"bits {bits} is not offered for awq; 4 is")
    version = fields.text("version", "gemm").lower()
    if version != "gemm":
        raise unsupported(fields.source, f"version {version!r} is not offered for awq; gemm is")
    size = fields.integer("group_size", fields.integer("q_group_size", -1, minimum=-1), minimum=-1)
    return Scheme(
        method="awq",
        marks=frozenset({"qweight"}),
        # Quantised about the middle, it may have no zero points.
        needs=frozenset({"scales", "qzeros"} if fields.flag("zero_point", True) else {"scales"}),
        may=frozenset({"qzeros"}),
        read=partial(_read, size),
    )


def _read(size: int, module: Module) -> RawWeight:
    packed, scales = module.array("qweight", "i32"), module.array("scales", *SCALES)
    (width, words), (groups, rows) = packed.shape, scales.shape
    of_columns = groups_in_order(width, groups, size) if groups else None
    if of_columns is None or words * 8 != rows:
        raise module.unsound("qweight", f"is {list(packed.shape)} beside scales of {list(scales.shape)}")
    zeros = None
    if "qzeros" in module.tensors:
        points = module.array("qzeros", "i32")
        if points.shape != (groups, words):
            raise module.unsound("qzeros", f"is {list(points.shape)} beside scales of {list(scales.shape)}")
        zeros = of_columns.spread(_rows(points))
    return integers(module, 4, _rows(packed), module.grid("scales", of_columns.spread(scales.T)), zeros, of_columns)


def _rows(words: Array) -> NDArray[np.uint8]:
    """``[n, O / 8]`` to ``[O, n]``."""
    numbers = unpack(words, 4, 8 * words.shape[1]).reshape(len(words), -1, 8)[..., _PLACES]
    return np.ascontiguousarray(numbers.reshape(len(words), -1).T)
