"""Tiny quantised checkpoints, written as the tools of each method write them, beside the weights that they stand for.

Packing is done number by number, after the layouts' own sources: AutoGPTQ's ``qlinear_cuda.py``, AutoAWQ's
``gemm.py``, DeepSeek V3's ``fp8_cast_bf16.py``. For compressed-tensors its own package compresses and decompresses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import tiny

Tensors = dict[str, torch.Tensor]
Writer = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
"""A matrix ``[O, E]`` to the tensors of its module, and the matrix that those stand for."""
SHARD = "model-0000{}-of-00002.safetensors"


@dataclass(frozen=True)
class Method:
    """One way of quantising.

    Attributes:
        settings: What ``config.json`` says of it.
        write: Quantises a matrix.
        head: The output head is quantised too.
        left: Endings of modules that are left alone.
        beside: Further tensors of each module.
        key: Where ``config.json`` says it.
    """

    settings: Mapping[str, Any]
    write: Writer
    head: bool = False
    left: tuple[str, ...] = ()
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)
    key: str = "quantization_config"


def save(model: PreTrainedModel, folder: Path, method: Method, *, shards: bool = False) -> PreTrainedModel:
    """Save a model quantised, and return one that has the weights which the quantised ones stand for."""
    plain = folder.with_name(folder.name + " plain")
    tiny.save(model, plain)
    stored, dense = load_file(plain / "model.safetensors"), load_file(plain / "model.safetensors")
    transposed = model.config.model_type == "gpt2"
    for name in list(stored):
        module = name.removesuffix(".weight")
        if not _quantised(name, stored[name], method):
            continue
        matrix = stored.pop(name)
        made, true = method.write(matrix.T if transposed else matrix)
        stored |= {f"{module}.{part}": value.contiguous().clone() for part, value in {**made, **method.beside}.items()}
        dense[name] = (true.T if transposed else true).float().contiguous()
    save_file(dense, plain / "model.safetensors", metadata={"format": "pt"})
    folder.mkdir(exist_ok=True)
    config = json.loads((plain / "config.json").read_text())
    config[method.key] = dict(method.settings)
    (folder / "config.json").write_text(json.dumps(config))
    if shards:
        _save_shards(stored, folder)
    else:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    twin = type(model).from_pretrained(plain, attn_implementation="eager", dtype=torch.float32).eval()
    shutil.rmtree(plain)
    return twin


def rewrite(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace tensors of a checkpoint in one file, or take them out."""
    stored: dict[str, torch.Tensor | None] = {**load_file(folder / "model.safetensors"), **changes}
    left = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})


def _quantised(name: str, tensor: torch.Tensor, method: Method) -> bool:
    module = name.removesuffix(".weight")
    if not name.endswith(".weight") or tensor.ndim != 2 or module.endswith(method.left or ("\0",)):
        return False
    if "head" in module or "embed_out" in module:
        return method.head
    # Routers are not quantised; of tables there are tokens' and positions'.
    return not module.endswith(("embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", ".gate", "_gate"))


def _save_shards(stored: Tensors, folder: Path) -> None:
    names = list(stored)
    # Every other tensor, so that the tensors of one module lie in both files.
    halves = {SHARD.format(half + 1): names[half::2] for half in (0, 1)}
    for file, mine in halves.items():
        save_file({name: stored[name] for name in mine}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, mine in halves.items() for name in mine}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


# -- integers ---------------------------------------------------------------------------------------------------------
def words(numbers: np.ndarray[Any, Any], bits: int) -> torch.Tensor:
    """Pack ``[n, m]`` along the first axis, densely, lowest bits first: ``[n bits / 32, m]``."""
    columns = []
    for column in numbers.T.tolist():
        whole = sum(int(number) << (bits * place) for place, number in enumerate(column))
        columns.append(np.frombuffer(whole.to_bytes(len(column) * bits // 8, "little"), "<i4"))
    return torch.from_numpy(np.stack(columns, axis=1).copy())


def grid(
    matrix: torch.Tensor, index: torch.Tensor, bits: int, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round to a grid a group of columns: integers ``[O, E]``, scales and zero points ``[O, G]``, values ``[O, E]``."""
    top = 2**bits - 1
    scales, zeros = [], []
    for group in range(int(index.max()) + 1):
        part = matrix[:, index == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if symmetric:
            scales.append((2 * torch.maximum(-low, high) / top).half().float())
            zeros.append(torch.full_like(low, 2 ** (bits - 1)))
        else:
            scales.append(((high - low) / top).half().float())
            zeros.append((-low / scales[-1]).round().clamp(0, top))
    scale, zero = torch.stack(scales, 1), torch.stack(zeros, 1)
    of_column, about = scale[:, index], zero[:, index]
    integers = (matrix / of_column + about).round().clamp(0, top)
    return integers, scale, zero, of_column * (integers - about)


def in_order(columns: int, size: int) -> torch.Tensor:
    return torch.arange(columns) // (columns if size == -1 else size)


def gptq(
    bits: int = 4, size: int = 16, *, symmetric: bool = False, v2: bool = False, by_activation: bool = False,
    index: bool = True, **how: Any,
) -> Method:  # fmt: skip
    """GPTQ; ``by_activation`` puts columns into groups in a random order, the same for matrices of one width."""

    def write(matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        place = in_order(matrix.shape[1], size)
        if by_activation:
            place = place[torch.randperm(len(place), generator=torch.Generator().manual_seed(len(place)))]
        integers, scale, zero, true = grid(matrix, place, bits, symmetric=symmetric)
        stored = (zero - (0 if v2 else 1)) % 2**bits
        made = {
            "qweight": words(integers.T.numpy(), bits),
            "qzeros": words(stored.numpy(), bits).T,
            "scales": scale.T.half(),
            **({"g_idx": place.int()} if index else {}),
        }
        return made, true

    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "desc_act": by_activation,
        "checkpoint_format": "gptq_v2" if v2 else "gptq", "dynamic": {"-:.*left_alone": {}},
    }  # fmt: skip
    return Method(settings, write, **how)


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq_words(numbers: torch.Tensor) -> torch.Tensor:
    """Pack ``[n, 8 m]`` along the second axis, by AWQ's order: ``[n, m]``."""
    mixed = numbers.reshape(len(numbers), -1, 8)[..., list(_AWQ_ORDER)].reshape(len(numbers), -1)
    return words(mixed.T.numpy(), 4).T


def awq(size: int = 16, **how: Any) -> Method:
    def write(matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        integers, scale, zero, true = grid(matrix, in_order(matrix.shape[1], size), 4, symmetric=False)
        made = {"qweight": _awq_words(integers.T), "qzeros": _awq_words(zero.T), "scales": scale.T.half()}
        return made, true

    settings = {
        "quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip
    return Method(settings, write, **how)


# -- 8-bit floats -----------------------------------------------------------------------------------------------------
def fp8(block: tuple[int, int] | None = (32, 16), *, inverse: bool = True, **how: Any) -> Method:
    """Square blocks as DeepSeek V3 has them, or one scale for all."""

    def write(matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        high, wide = block or tuple(matrix.shape)
        rows, columns = (torch.arange(size) // step for size, step in zip(matrix.shape, (high, wide), strict=True))
        scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
        for row, column in np.ndindex(*scale.shape):
            scale[row, column] = matrix[rows == row][:, columns == column].abs().max() / 448
        spread = scale[rows][:, columns]
        weight = (matrix / spread).to(torch.float8_e4m3fn)
        name = "weight_scale_inv" if inverse else "weight_scale"
        return {"weight": weight, name: scale if block else scale.reshape(())}, weight.float() * spread

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    return Method({**settings, **({"weight_block_size": list(block)} if block else {})}, write, **how)


# -- compressed-tensors -----------------------------------------------------------------------------------------------
def compressed(form: str, *, dtype: torch.dtype = torch.bfloat16, ordered: bool = True, **args: Any) -> Method:
    """Whatever compressed-tensors itself makes of a matrix with some arguments of its own.

    Args:
        form: Name of the format.
        dtype: Of scales.
        ordered: Columns are in groups in their order.
        args: Of the weights.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    made_of = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=made_of)
    compressor = BaseCompressor.get_value_from_registry(form)

    def write(matrix: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        place = None
        if not ordered:
            place = in_order(matrix.shape[1], made_of.group_size)
            place = place[torch.randperm(len(place), generator=torch.Generator().manual_seed(len(place)))]
        order = torch.argsort(place, stable=True) if place is not None else torch.arange(matrix.shape[1])
        # The package applies groups to columns in order: it is given them so, and its numbers are put back.
        tiles = _tiles(matrix[:, order], made_of)
        scale, zero = calculate_qparams(tiles.amin((-2, -1)), tiles.amax((-2, -1)), made_of)
        state = {"weight": matrix[:, order], "weight_scale": scale.to(dtype).float(), "weight_zero_point": zero}
        packed = compressor.compress(state, scheme)
        true = compressor.decompress(dict(packed), scheme)["weight"]
        if place is not None:
            back = torch.argsort(order)
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

            numbers = unpack_from_int32(packed["weight_packed"], made_of.num_bits, matrix.shape)
            packed["weight_packed"] = pack_to_int32(numbers[:, back].contiguous(), made_of.num_bits)
            packed["weight_g_idx"] = place.int()
            true = true[:, back]
        packed["weight_scale"] = packed["weight_scale"].to(dtype)
        return packed, true

    settings = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": made_of.model_dump(mode="json")}},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {},
    }  # fmt: skip
    beside = {"input_scale": torch.tensor([0.02]), "input_zero_point": torch.tensor([0], dtype=torch.int8)}
    return Method(settings, write, beside=beside)


def _tiles(matrix: torch.Tensor, args: Any) -> torch.Tensor:
    """A matrix by what shares a scale: ``[R, G, rows, columns]``."""
    rows, columns = matrix.shape
    high, wide = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, args.group_size),
        "block": tuple(args.block_structure or ()),
    }[str(getattr(args.strategy, "value", args.strategy))]
    padded = torch.nn.functional.pad(matrix, (0, -columns % wide, 0, -rows % high))
    return padded.unfold(0, high, high).unfold(1, wide, wide)
