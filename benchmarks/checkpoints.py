"""The default model as a Hugging Face folder of BF16 weights, made from its GGUF file, for whoever cannot read that.

    python benchmarks/checkpoints.py FOLDER [--off-grid]

The file is Q4_1, so its weights, expanded, still lie on grids of 16 values a block, and quantising them to four bits
finds these grids again and loses next to nothing. ``--off-grid`` makes a fair object of them: the same function, with
the features of the residual stream, of the values and inside the MLP in a random order, so that a block's weights come
from many grids.

Knows nothing of engines. Needs ``transformers``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagellm_core.store import DEFAULT_MODEL, resolve


def bf16_folder(folder: Path, *, model: str = DEFAULT_MODEL, off_grid: bool = False) -> Path:
    """Make the folder unless it is there already.

    Args:
        folder: Where to; gets ``config.json``, ``model.safetensors`` and the tokenizer.
        model: Path or catalogue name of a GGUF file of the Llama family.
        off_grid: Reorder the features; what is computed stays the same.

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
    # Made aside and moved into place whole: one that is broken off is not taken for the folder.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
        found.to(torch.bfloat16).save_pretrained(made)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        made.rename(folder)
    return folder


def leave_the_grid(model: Any, seed: int = 0) -> None:
    """Reorder a Llama's features in place, at random; it computes what it did."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    config, decoder = model.config, model.model
    heads = config.num_key_value_heads
    group = config.num_attention_heads // heads

    def reorder(tensor: torch.Tensor, order: torch.Tensor, axis: int) -> None:
        tensor.copy_(tensor.index_select(axis, order))

    stream = torch.randperm(config.hidden_size, generator=dice)
    reorder(decoder.embed_tokens.weight, stream, 1)
    reorder(decoder.norm.weight, stream, 0)
    if not config.tie_word_embeddings:
        reorder(model.lm_head.weight, stream, 1)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reorder(reader.weight, stream, 1)
        for vector in (attention.o_proj, mlp.down_proj, layer.input_layernorm, layer.post_attention_layernorm):
            reorder(vector.weight, stream, 0)
        inner = torch.randperm(mlp.up_proj.weight.shape[0], generator=dice)
        for writer in (mlp.gate_proj, mlp.up_proj):
            reorder(writer.weight, inner, 0)
        reorder(mlp.down_proj.weight, inner, 1)
        dim = attention.v_proj.weight.shape[0] // heads
        within = torch.stack([torch.randperm(dim, generator=dice) for _ in range(heads)])  # [Hkv, D]
        reorder(attention.v_proj.weight, (within + torch.arange(heads)[:, None] * dim).flatten(), 0)
        # Each value head is read by all the query heads of its group.
        read = within.repeat_interleave(group, 0) + torch.arange(heads * group)[:, None] * dim
        reorder(attention.o_proj.weight, read.flatten(), 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a folder, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--off-grid", action="store_true", help="the same function, its features reordered")
    given = parser.parse_args(arguments)
    print(bf16_folder(given.folder, model=given.model, off_grid=given.off_grid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
