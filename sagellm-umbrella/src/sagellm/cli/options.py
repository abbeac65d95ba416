"""Options that several commands share, declared once and turned into the contract's own models.

A command decorated with :func:`takes` gains the options of a table and receives what they make as one argument.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import ValidationError

from sagellm_protocol import EngineSpec, ErrorCode, SageLLMError, SamplingParams, Speculation

DEFAULT_MODEL = "smollm2-135m"
MOCK = "mock"

Result = TypeVar("Result")

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"A folder, a .gguf file, a name of `sagellm models`, or a hub name. [default: {DEFAULT_MODEL}]",
        show_default=False,
    ),
]

HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
DrainOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Time that running requests have when it is stopped.")
]
TracesOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Send OpenTelemetry's spans there, as http://localhost:4318/v1/traces.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object with the address once it serves.")]

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes that ``text`` means: ``512MiB``, ``2GB``, ``1.5G`` (binary), or a plain number.

    Raises:
        typer.BadParameter: It is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write for example 512MiB, 2GiB or 1500000000")
    number, unit, binary = match.groups()
    decimal = unit and not binary and text.strip().upper().endswith("B")
    return int(float(number) * (1000 if decimal else 1024) ** " KMGT".index(unit.upper() or " "))


# Each entry: parameter name to (type with its option, default).
ENGINE_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "engine": (
        Annotated[str, typer.Option(help="Engine to run the model with; `mock` makes its answers up.")],
        "sagellm",
    ),
    "served_model_name": (
        Annotated[list[str] | None, typer.Option(help="Name that requests use; may be repeated.", show_default=False)],
        None,
    ),
    "device": (
        Annotated[str, typer.Option(help="Backend to compute with; `auto` takes the best that runs here.")],
        "auto",
    ),
    "dtype": (Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16, as the device offers.")], "auto"),
    "quantization": (
        Annotated[
            str | None,
            typer.Option(
                metavar="[int8|int4]",
                help="Quantise weights at load, as the device offers: on the CPU to 8 or 4 bits.",
                show_default=False,
            ),
        ],
        None,
    ),
    "load_format": (
        Annotated[
            Literal["auto", "safetensors", "gguf", "dummy"],
            typer.Option(help="Checkpoint format; `dummy` invents the weights (benchmarks)."),
        ],
        "auto",
    ),
    "revision": (Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default=False)], None),
    "tokenizer": (
        Annotated[str | None, typer.Option(help="Folder of the tokeniser, if not the model's.", show_default=False)],
        None,
    ),
    "chat_template": (
        Annotated[str | None, typer.Option(help="Template, or its file, in place of the model's.", show_default=False)],
        None,
    ),
    "trust_request_chat_template": (
        Annotated[
            bool,
            typer.Option("--trust-request-chat-template", help="Run templates that requests bring; they are programs."),
        ],
        False,
    ),
    "tool_parser": (
        Annotated[
            str | None,
            typer.Option(
                help="How the model writes tool calls, if its template misleads; or none.", show_default=False
            ),
        ],
        None,
    ),
    "reasoning_parser": (
        Annotated[
            str | None,
            typer.Option(help="How the model writes its reasoning; none leaves it in the text.", show_default=False),
        ],
        None,
    ),
    "max_model_len": (
        Annotated[int | None, typer.Option(min=1, help="Most tokens of prompt and output.", show_default=False)],
        None,
    ),
    "max_num_seqs": (
        Annotated[int | None, typer.Option(min=1, help="Most sequences in one step.", show_default=False)],
        None,
    ),
    "max_num_batched_tokens": (
        Annotated[int | None, typer.Option(min=1, help="Token budget of one step.", show_default=False)],
        None,
    ),
    "kv_cache_memory": (
        Annotated[
            Any,
            typer.Option(
                metavar="SIZE", parser=size, help="Memory for keys and values, as 512MiB.", show_default=False
            ),
        ],
        None,
    ),
    "kv_cache_dtype": (
        Annotated[
            str,
            typer.Option(help="Type of keys and values: auto, or as the device offers; int8 halves them on the CPU."),
        ],
        "auto",
    ),
    "block_size": (
        Annotated[int | None, typer.Option(min=1, help="Tokens of a KV block.", show_default=False)],
        None,
    ),
    "prefix_caching": (Annotated[bool, typer.Option(help="Reuse keys and values of equal prefixes.")], True),
    "kv_offload_memory": (
        Annotated[
            Any,
            typer.Option(
                metavar="SIZE",
                parser=size,
                help="Host memory for blocks that the cache gives up; pays where the device has memory of its own.",
                show_default=False,
            ),
        ],
        None,
    ),
    "kv_offload_dir": (
        Annotated[
            str | None,
            typer.Option(
                metavar="FOLDER",
                help="Keep blocks there for later runs and other engines, and read them instead of computing again.",
                show_default=False,
            ),
        ],
        None,
    ),
    "kv_offload_disk": (
        Annotated[
            Any,
            typer.Option(
                metavar="SIZE", parser=size, help="How large that folder may get. [default: 10GiB]", show_default=False
            ),
        ],
        None,
    ),
    "speculative": (
        Annotated[
            Literal["ngram", "draft"] | None,
            typer.Option(
                help="Draft tokens, out of the text itself or by a smaller model, and verify several in a step.",
                show_default=False,
            ),
        ],
        None,
    ),
    "speculative_model": (
        Annotated[
            str | None,
            typer.Option(metavar="MODEL", help="The smaller model; its tokens must be the same.", show_default=False),
        ],
        None,
    ),
    "num_speculative_tokens": (
        Annotated[int | None, typer.Option(min=1, max=32, help="Most tokens drafted at a time.", show_default=False)],
        None,
    ),
    "core": (
        Annotated[
            Literal["process", "inline"], typer.Option(help="Run the engine's core in its own process or in this one.")
        ],
        "process",
    ),
    "adapter": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=FOLDER", help="LoRA adapter that requests may name; may be repeated.", show_default=False
            ),
        ],
        None,
    ),
    "adapter_root": (
        Annotated[
            str | None,
            typer.Option(
                metavar="FOLDER", help="Let adapters be loaded while it runs, from within here.", show_default=False
            ),
        ],
        None,
    ),
    "max_adapters": (Annotated[int, typer.Option(min=1, help="Adapters in memory, and in a step, at once.")], 4),
    "max_adapter_rank": (Annotated[int, typer.Option(min=1, help="Largest rank of an adapter.")], 64),
    "threads": (
        Annotated[int | None, typer.Option(min=1, help="Threads to compute with.", show_default=False)],
        None,
    ),
    "deterministic": (
        Annotated[
            bool,
            typer.Option(
                "--deterministic", help="Start only where a request's numbers cannot depend on what runs beside it."
            ),
        ],
        False,
    ),
    "step_log": (
        Annotated[
            str | None,
            typer.Option(metavar="FILE", help="Write a line of JSON for each step.", show_default=False),
        ],
        None,
    ),
    "option": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=VALUE", help="Option of the engine itself; may be repeated.", show_default=False
            ),
        ],
        None,
    ),
}

SAMPLING_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "max_tokens": (
        Annotated[int | None, typer.Option(min=1, help="Most tokens to produce.", show_default=False)],
        None,
    ),
    "temperature": (Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")], 0.7),
    "top_p": (Annotated[float, typer.Option(help="Likeliest tokens that reach this probability.")], 1.0),
    "top_k": (Annotated[int, typer.Option(help="Only this many of the likeliest tokens; 0 for all.")], 0),
    "min_p": (Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")], 0.0),
    "repetition_penalty": (Annotated[float, typer.Option(help="Over 1 discourages repetition.")], 1.0),
    "seed": (Annotated[int | None, typer.Option(help="Makes the answer reproducible.", show_default=False)], None),
    "stop": (
        Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.", show_default=False)],
        None,
    ),
}


_RENAMED = {
    "served_model_name",
    "kv_cache_memory",
    "kv_offload_memory",
    "kv_offload_disk",
    "deterministic",
    "step_log",
    "option",
    "adapter",
}
"""Options whose fields are named otherwise."""
_OF_SPECULATION = {"speculative", "speculative_model", "num_speculative_tokens"}
"""Options that make one field together."""


def engine_spec(values: Mapping[str, Any], model: str | None = None) -> EngineSpec:
    """What the engine options ask for.

    Args:
        values: Values of :data:`ENGINE_OPTIONS` by name.
        model: The model named on the command line.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, naming the option at fault.
    """
    engine = values["engine"]
    fields = {name: values[name] for name in values if name not in _RENAMED | _OF_SPECULATION}
    options = dict(_option(text) for text in values["option"] or ())
    if values["deterministic"]:
        options["deterministic"] = True
    if values["step_log"] is not None:
        options["step_log"] = values["step_log"]
    fields |= {
        "model": model or (MOCK if engine == MOCK else DEFAULT_MODEL),
        "served_names": tuple(values["served_model_name"] or ()),
        "kv_cache_memory_bytes": values["kv_cache_memory"],
        "kv_offload_memory_bytes": values["kv_offload_memory"],
        "kv_offload_disk_bytes": values["kv_offload_disk"],
        "speculative": _speculation(values),
        "adapters": dict(_adapter(text) for text in values["adapter"] or ()),
        "options": options,
    }
    return _validated(EngineSpec, fields)


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """What the sampling options ask for.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, naming the option at fault.
    """
    return _validated(SamplingParams, {**values, "stop": tuple(values["stop"] or ())})


def takes(table: Mapping[str, tuple[Any, Any]], into: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command the options of ``table``; it receives their values by name as its keyword argument ``into``."""

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != into]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in table.items()
        ]

        @functools.wraps(command)
        def wrapper(**given: Any) -> Result:
            values = {name: given.pop(name) for name in table}
            return command(**given, **{into: values})

        shown = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
        wrapper.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return wrapper

    return decorate


def _speculation(values: Mapping[str, Any]) -> Speculation | None:
    method, model, tokens = values["speculative"], values["speculative_model"], values["num_speculative_tokens"]
    if method is None and model is None:
        if tokens is not None:
            message = f"--num-speculative-tokens {tokens} has no use without --speculative ngram or --speculative-model"
            raise SageLLMError(ErrorCode.INVALID_REQUEST, message, "num_speculative_tokens")
        return None
    fields = {"method": method or "draft", "model": model} | ({} if tokens is None else {"tokens": tokens})
    return _validated(Speculation, fields)


def _adapter(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"--adapter {text!r}: write NAME=FOLDER", "adapter")
    return name, folder


def _option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"--option {text!r}: write NAME=VALUE", "option")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


Model = TypeVar("Model", EngineSpec, SamplingParams, Speculation)


def _validated(kind: type[Model], fields: Mapping[str, Any]) -> Model:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise SageLLMError.from_validation(error) from error
