"""Weights of 8-bit floats as transformers, DeepSeek V3, AutoFP8 and FBGEMM save them.

A module has ``weight`` ``[O, E]`` in E4M3 and, in ``weight_scale_inv`` or ``weight_scale``, what it is multiplied with:
one number, one a row, or one a block of 128 by 128 (DeepSeek V3's report, section 3.3). Knows nothing of files.
"""

from __future__ import annotations

from functools import partial

from sagellm_core.loading.errors import unsupported
from sagellm_core.loading.fields import Fields
from sagellm_protocol.backend import RawWeight

from .base import Module, Scheme
from .bytewide import read

_SCALES = ("weight_scale_inv", "weight_scale")
SPARE = frozenset(
    {"input_scale", "input_scale_ub", "output_scale", "q_scale", "k_scale", "v_scale", "activation_scale"}
)
"""Scales of activations and of caches, which are not rounded to 8-bit floats here."""


def scheme(fields: Fields) -> Scheme:
    """Read the settings of a checkpoint.

    Raises:
        SageLLMError: ``UNSUPPORTED`` naming one that is not offered.
    """
    form = fields.text("fmt", "e4m3")
    if form != "e4m3":
        raise unsupported(fields.source, f"fmt {form!r} is not offered; e4m3 is")
    block = fields.integers("weight_block_size")
    if len(block) not in (0, 2) or 0 in block:
        raise unsupported(fields.source, f"weight_block_size is {list(block)}; it must be rows and columns of a block")
    return Scheme(
        method=fields.text("quant_method"),
        marks=frozenset(_SCALES),
        needs=frozenset({"weight"}),
        may=frozenset(),
        spare=SPARE,
        read=partial(_read, (block[0], block[1]) if block else None),
    )


def _read(block: tuple[int, int] | None, module: Module) -> RawWeight:
    scale = next(name for name in _SCALES if name in module.tensors)
    return read(module, scale, block=block)
