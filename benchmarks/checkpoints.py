"""The default model as a Hugging Face folder of BF16 weights, made from its GGUF file, for whoever cannot read that.

    python benchmarks/checkpoints.py FOLDER [--off-grid]

The file is Q4_1, so its weights, expanded, still lie on grids of 16 values a block, and quantising them to four bits
finds these grids again and loses next to nothing. ``--off-grid`` makes a fair object of them: the same function with
other numbers. Every norm's weight is folded into the columns of the projections that read it, values and the inner
features of the MLP are stretched by random factors, and the projections behind them shrunk likewise.

Knows nothing of engines. Needs ``transformers``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagellm_core.store import DEFAULT_MODEL, resolve

_STRETCH = 0.5
"""Spread of the logarithm of the random factors: most lie between 0.4 and 2.7."""


def bf16_folder(folder: Path, *, model: str = DEFAULT_MODEL, off_grid: bool = False) -> Path:
    """Make the folder unless it is there already.

    Args:
        folder: Where to; gets ``config.json``, ``model.safetensors`` and the tokenizer.
        model: Path or catalogue name of a GGUF file of the Llama family.
        off_grid: Change the numbers, not the function.

    Returns:
        The folder.
    """
    if (folder / "config.json").is_file():
        return folder
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file = resolve(model)
    found = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    if off_grid:
        with torch.no_grad():
            leave_the_grid(found)
    # The configuration comes last: it says that the folder is whole.
    transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    found.to(torch.bfloat16).save_pretrained(folder)
    return folder


def leave_the_grid(model: Any, seed: int = 0) -> None:
    """Change a Llama's weights in place, not what it computes (but for rounding)."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads

    def factors(count: int) -> torch.Tensor:
        return torch.exp(torch.randn(count, generator=dice) * _STRETCH)

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1)
        stretched = factors(attention.v_proj.weight.shape[0])
        attention.v_proj.weight.mul_(stretched[:, None])
        # Each value head is read by all the query heads of its group.
        heads = stretched.view(config.num_key_value_heads, 1, -1).expand(-1, group, -1)
        attention.o_proj.weight.div_(heads.reshape(-1))
        stretched = factors(mlp.up_proj.weight.shape[0])
        mlp.up_proj.weight.mul_(stretched[:, None])
        mlp.down_proj.weight.div_(stretched)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a folder, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--off-grid", action="store_true", help="the same function with other numbers")
    given = parser.parse_args(arguments)
    print(bf16_folder(given.folder, model=given.model, off_grid=given.off_grid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
