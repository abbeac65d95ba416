"""GPTQ (Frantar et al. 2022) as AutoGPTQ and GPTQModel save it.

A module has ``qweight`` ``[E bits / 32, O]``, columns of the weight packed along it; ``scales`` ``[G, O]``; ``qzeros``
``[G, O bits / 32]``; and ``g_idx`` ``[E]``, the group of each column, which are out of order where they were quantised
by activation order. In the first format zero points are stored less one (AutoGPTQ, ``qlinear_cuda.py``). Bits and
groups follow from the tensors, so that modules may differ in them. Knows nothing of files.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from sagellm_core.loading.errors import unsupported
from sagellm_core.loading.fields import Fields
from sagellm_protocol.backend import RawWeight

from .base import SCALES, Groups, Module, Scheme, groups_in_order, groups_of
from .integers import integers, unpack

BITS = (2, 3, 4, 8)


def scheme(fields: Fields) -> Scheme:
    """Read the settings of a checkpoint.

    Raises:
        SageLLMError: ``UNSUPPORTED`` naming one that is not offered.
    """
    bits = fields.integer("bits", 4)
    if bits not in BITS:
        raise unsupported(fields.source, f"bits {bits} is not offered for gptq; known are {', '.join(map(str, BITS))}")
    form = fields.text("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise unsupported(fields.source, f"checkpoint_format {form!r} is not offered; gptq and gptq_v2 are")
    size = fields.integer("group_size", -1, minimum=-1)
    return Scheme(
        method="gptq",
        marks=frozenset({"qweight"}),
        needs=frozenset({"qzeros", "scales"}),
        may=frozenset({"g_idx"}),
        read=partial(_read, size, 1 if form == "gptq" else 0),
    )


def _read(size: int, less: int, module: Module) -> RawWeight:
    packed, scales = module.array("qweight", "i32"), module.array("scales", *SCALES)
    zeros = module.array("qzeros", "i32")
    groups, rows = scales.shape
    bits = zeros.shape[1] * 32 // rows
    width = packed.shape[0] * 32 // bits if bits else 0
    if bits not in BITS or zeros.shape[0] != groups or packed.shape[1] != rows or not groups or not width:
        raise module.unsound(
            "qweight",
            f"is {list(packed.shape)} beside scales of {list(scales.shape)} and qzeros of {list(zeros.shape)}, which is"
            f" no weight of {', '.join(map(str, BITS))} bits",
        )
    of_columns = _groups(module, width, groups, size)
    numbers = of_columns.sorted(unpack(packed.T, bits, width))
    # Stored less one, a zero point of 0 has wrapped round.
    points = (unpack(zeros, bits, rows).T + np.uint8(less)) & ((1 << bits) - 1)
    return integers(
        module,
        bits,
        numbers.astype(np.uint8, copy=False),
        module.grid("scales", of_columns.spread(scales.T)),
        of_columns.spread(points),
        of_columns,
    )


def _groups(module: Module, width: int, groups: int, size: int) -> Groups:
    if "g_idx" in module.tensors:
        index = module.array("g_idx", "i32", dims=1).astype(np.int64)
        if len(index) != width or index.min() != 0 or index.max() != groups - 1 or not np.bincount(index).all():
            raise module.unsound("g_idx", f"does not place {width} columns in {groups} groups")
        return groups_of(index)
    found = groups_in_order(width, groups, size)
    if found is None:
        raise module.unsound("scales", f"has {groups} groups for {width} columns; group_size is {size}")
    return found
