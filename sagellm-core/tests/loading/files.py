"""Small model files, written by hand so that each byte is the test's own."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sagellm_protocol.backend import BLOCK_ELEMENTS, WeightFormat

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 8, "q4_k": 12, "q6_k": 14, "bf16": 30}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A metadata value with its type before it."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    kind, parts = _array(item)
    return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(parts)


def _array(items: Sequence[Any]) -> tuple[int, list[bytes]]:
    if isinstance(items[0], str):
        return 8, [text(item) for item in items]
    if isinstance(items[0], float):
        return 6, [struct.pack("<f", item) for item in items]
    return 5, [struct.pack("<i", item) for item in items]


def gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file. Shapes are given rows first."""
    header = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    header += b"".join(text(key) + value(item) for key, item in metadata.items())
    body = b""
    for name, (form, shape, data) in tensors.items():
        body += b"\0" * (-len(body) % alignment)
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], GGML_TYPES[form], len(body))
        body += data
    return header + b"\0" * (-len(header) % alignment) + body


def nbytes(form: str, shape: tuple[int, ...]) -> int:
    elements, size = BLOCK_ELEMENTS[WeightFormat(form)]
    count = 1
    for extent in shape:
        count *= extent
    return count // elements * size


LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}
"""A model of one layer with four heads of eight dimensions."""


def llama_tensors(form: str = "q8_0") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Its tensors; every byte of a row tells the row."""

    def rows(count: int, columns: int) -> tuple[str, tuple[int, ...], bytes]:
        width = nbytes(form, (columns,))
        return form, (count, columns), b"".join(bytes([row % 256]) * width for row in range(count))

    norm = ("f32", (32,), struct.pack("<32f", *[1.0] * 32))
    return {
        "token_embd.weight": rows(16, 32),
        "output_norm.weight": norm,
        "blk.0.attn_norm.weight": norm,
        "blk.0.attn_q.weight": rows(32, 32),
        "blk.0.attn_k.weight": rows(16, 32),
        "blk.0.attn_v.weight": rows(16, 32),
        "blk.0.attn_output.weight": rows(32, 32),
        "blk.0.ffn_norm.weight": norm,
        "blk.0.ffn_gate.weight": rows(64, 32),
        "blk.0.ffn_up.weight": rows(64, 32),
        "blk.0.ffn_down.weight": rows(32, 64),
    }


def safetensors(tensors: Mapping[str, tuple[str, Sequence[int], bytes]], **metadata: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(data for _, _, data in tensors.values())


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def folder(path: Path, config: Mapping[str, Any] = CONFIG, **files: bytes) -> Path:
    """A model's folder with a config and the files named (``__`` stands for a dot)."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path
