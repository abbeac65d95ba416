"""``sagellm plan``: how to spread a model over devices, reckoned from memory and links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sagellm.components import component
from sagellm_protocol import DeviceInfo, ErrorCode, SageLLMError

from .console import output_console, print_json
from .options import JsonOption

GIB = 2**30


def plan(
    model: Annotated[Path, typer.Argument(help="A model's folder, or its config.json.")],
    devices: Annotated[
        str | None,
        typer.Option(help="As 8x80: eight of 80 GiB; else those here.", show_default=False),
    ] = None,
    nvlink: Annotated[bool, typer.Option(help="With --devices: whether NVLink joins them.")] = True,
    context: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer of a sequence.")] = 8192,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences of that length at once.")] = 32,
    quantization: Annotated[str | None, typer.Option(help="Of the weights, as int4.", show_default=False)] = None,
    kv_dtype: Annotated[str, typer.Option(help="Of keys and values.")] = "bfloat16",
    as_json: JsonOption = False,
) -> None:
    """Say how to spread a model over devices, and why.

    Examples:

      sagellm plan ./llama-3-70b --devices 8x80 --concurrency 64

      sagellm plan ./llama-3-70b --devices 2x80 --quantization int4
    """
    planning = component("sagellm_control_plane.devices")
    there, links = _given(planning, devices, nvlink) if devices is not None else _found(planning)
    wish = planning.Wish(context=context, concurrency=concurrency, quantization=quantization, kv_dtype=kv_dtype)
    made = planning.plan(planning.ModelShape.of(_config(model)), there, links, wish)
    parts = ("weights", "kv", "activations", "runtime", "total", "available")
    sizes = {name: getattr(made.memory, name) for name in parts}
    split = {name: getattr(made, name) for name in ("tensor_parallel", "pipeline_parallel", "data_parallel")}
    if as_json:
        print_json({**split, "memory_bytes": sizes, "kv_tokens": made.kv_tokens, "reasons": list(made.reasons)})
        return
    table = Table(title=", ".join(f"{name} {value}" for name, value in split.items()))
    table.add_column("on the fullest device")
    table.add_column("GiB", justify="right")
    for name, size in sizes.items():
        table.add_row(name, f"{size / GIB:.1f}")
    console = output_console()
    console.print(table)
    for reason in made.reasons:
        console.print(f"- {reason}", highlight=False, markup=False)


def _config(model: Path) -> dict[str, Any]:
    path = model / "config.json" if model.is_dir() else model
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"cannot read {path} as a model's config ({error}); give a config.json, or a folder with one",
        ) from error
    if not isinstance(found, dict):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{path} is not a model's config: it holds no object")
    return found


def _given(planning: Any, devices: str, nvlink: bool) -> tuple[list[Any], list[Any]]:
    told = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", devices)
    if told is None or not int(told[1]):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"--devices is written as 8x80, count and GiB (got {devices!r})")
    count, size = int(told[1]), int(float(told[2]) * GIB)
    there = [
        planning.Device(DeviceInfo(kind="cuda", index=index, name=devices, memory_total_bytes=size))
        for index in range(count)
    ]
    kind = planning.LinkKind.NVLINK if nvlink else planning.LinkKind.HOST
    return there, [planning.Link(a, b, kind) for b in range(count) for a in range(b)]


def _found(planning: Any) -> tuple[Any, Any]:
    found = planning.nvidia.find()
    if not found.devices:
        raise SageLLMError(
            ErrorCode.UNAVAILABLE, f"no device to plan for here ({found.reason}); name some, as --devices 8x80"
        )
    return found.devices, found.links
