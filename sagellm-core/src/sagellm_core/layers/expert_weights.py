"""Where a checkpoint keeps the matrices of experts, brought to one shape: gate over up, and down, of each expert.

Five layouts are known: a tensor for each expert and projection; a tensor a projection with experts stacked (GGUF);
Llama 4's, transposed with gate before up; GPT-OSS's, transposed with gate and up in turns; and that in MXFP4, blocks
and scales apart. Knows nothing of routing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sagellm_protocol.backend import RawWeight

from . import raw
from .linear import Sharding
from .weights import Packer


@dataclass(frozen=True)
class RawExpert:
    """One expert, not packed yet.

    Attributes:
        gate_up: Matrices that stack to ``(2 I, E)``, gate first.
        down: ``(E, I)``.
        gate_up_bias, down_bias: Their biases; empty without.
    """

    gate_up: Sequence[RawWeight]
    down: Sequence[RawWeight]
    gate_up_bias: Sequence[RawWeight] = ()
    down_bias: Sequence[RawWeight] = ()


_OF_GPT_OSS = ("", "_blocks", "_scales", "_bias")
"""Endings of the tensors of GPT-OSS's layouts."""


def read_experts(
    pack: Packer,
    name: str,
    count: int,
    inner: int,
    width: int,
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    *,
    bias: bool = False,
    halves: bool = False,
) -> Iterator[RawExpert]:
    """The experts of the module ``name``, in whichever layout the checkpoint has them.

    Args:
        pack: Gives the tensors.
        name: The module that holds the experts.
        count: Experts, X.
        inner: Width of an expert, I.
        width: Hidden size, E.
        projections: Names of gate, up and down.
        bias: Whether they have biases.
        halves: Gate and up are one tensor of all experts, transposed, gate first.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming a tensor that is missing or not of the configured shape.
    """
    gate, up, down = projections
    if halves:
        return _in_halves(pack, name, count, inner, width)
    # By any tensor of a layout, so that what is missing of it is named as that layout names it.
    if any(f"{name}.{part}{kind}" in pack for part in ("gate_up_proj", "down_proj") for kind in _OF_GPT_OSS):
        return _in_turns(pack, name, count, inner, width)
    if any(f"{name}.{part}.weight" in pack for part in projections):
        return _stacked(pack, name, count, inner, width, projections, bias)
    return (
        RawExpert(
            [pack.take(f"{name}.{expert}.{part}.weight", (inner, width), Sharding.COLUMN) for part in (gate, up)],
            [pack.take(f"{name}.{expert}.{down}.weight", (width, inner), Sharding.ROW)],
        )
        for expert in range(count)
    )


def _stacked(
    pack: Packer, name: str, count: int, inner: int, width: int, projections: tuple[str, str, str], bias: bool
) -> Iterator[RawExpert]:
    shapes = ((inner, width), (inner, width), (width, inner))
    divided = (Sharding.COLUMN, Sharding.COLUMN, Sharding.ROW)
    matrices, biases = [], []
    for part, shape, sharding in zip(projections, shapes, divided, strict=True):
        matrices.append(raw.unstack(pack.take(f"{name}.{part}.weight", (count, *shape), sharding)))
        if bias:
            of_bias = Sharding.REPLICATED if sharding is Sharding.ROW else sharding
            biases.append(raw.unstack(pack.take(f"{name}.{part}.bias", (count, shape[0]), of_bias)))
    for expert in range(count):
        gate, up, down = (each[expert] for each in matrices)
        if bias:
            gate_bias, up_bias, down_bias = (each[expert] for each in biases)
            yield RawExpert([gate, up], [down], [gate_bias, up_bias], [down_bias])
        else:
            yield RawExpert([gate, up], [down])


def _in_halves(pack: Packer, name: str, count: int, inner: int, width: int) -> Iterator[RawExpert]:
    gate_up = raw.unstack(pack.take(f"{name}.gate_up_proj", (count, width, 2 * inner), Sharding.COLUMN))
    down = raw.unstack(pack.take(f"{name}.down_proj", (count, inner, width), Sharding.ROW))
    for opened, closed in zip(gate_up, down, strict=True):
        yield RawExpert([raw.transpose(opened)], [raw.transpose(closed)])


def _in_turns(pack: Packer, name: str, count: int, inner: int, width: int) -> Iterator[RawExpert]:
    order = [*range(0, 2 * inner, 2), *range(1, 2 * inner, 2)]
    gate_up = _gpt_oss(pack, f"{name}.gate_up_proj", count, 2 * inner, width, Sharding.COLUMN)
    down = _gpt_oss(pack, f"{name}.down_proj", count, width, inner, Sharding.ROW)
    gate_up_bias = raw.unstack(pack.take(f"{name}.gate_up_proj_bias", (count, 2 * inner), Sharding.COLUMN))
    down_bias = raw.unstack(pack.take(f"{name}.down_proj_bias", (count, width), Sharding.REPLICATED))
    for expert, (opened, closed) in enumerate(zip(gate_up, down, strict=True)):
        yield RawExpert(
            [raw.reorder_rows(opened, order)],
            [closed],
            [raw.reorder_rows(gate_up_bias[expert], order)],
            [down_bias[expert]],
        )


def _gpt_oss(pack: Packer, name: str, count: int, rows: int, columns: int, sharding: Sharding) -> Iterator[RawWeight]:
    """Each expert's ``(rows, columns)``: transposed, or as MXFP4 blocks and scales."""
    if f"{name}_blocks" not in pack and f"{name}_scales" not in pack:
        for matrix in raw.unstack(pack.take(name, (count, columns, rows), sharding)):
            yield raw.transpose(matrix)
        return
    blocks = pack.take(f"{name}_blocks", (count, rows, columns // 32, 16), sharding)
    scales = pack.take(f"{name}_scales", (count, rows, columns // 32), sharding)
    for of_blocks, of_scales in zip(raw.unstack(blocks), raw.unstack(scales), strict=True):
        yield raw.mxfp4(of_blocks, of_scales)
