"""``sagellm run``: one prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any

import typer

from sagellm_protocol import ErrorCode, SageLLMError

from .console import error_console, print_json
from .fetch import need_engine
from .options import ENGINE_OPTIONS, SAMPLING_OPTIONS, engine_spec, sampling_params, takes
from .progress import loading
from .talk import Ending, local_source, remote_source, stream

UrlOption = Annotated[
    str | None, typer.Option("--url", help="Ask a running gateway instead of loading the model.", show_default=False)
]
KeyOption = Annotated[
    str | None, typer.Option(envvar="SAGELLM_API_KEY", help="Key of that gateway.", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Model to ask. [default: smollm2-135m]", show_default=False)
]


@takes(ENGINE_OPTIONS, into="engine_options")
@takes(SAMPLING_OPTIONS, into="sampling_options")
def run(
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; `-`, or nothing, reads standard input.", show_default=False)
    ] = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="System prompt.", show_default=False)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print token counts and speed at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    *,
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
) -> None:
    """Answer one prompt.

    Examples:

      sagellm run "Write a haiku about the sea"

      echo "Once upon a time" | sagellm run --raw --max-tokens 50 --temperature 0

      sagellm run "Hello" --url http://127.0.0.1:8889/v1 --json
    """
    text = _read(prompt)
    if raw and system:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, "--system has no place in --raw text; leave one of them out")
    asked: str | Sequence[Mapping[str, str]] = text if raw else conversation(text, system)
    sampling = sampling_params(sampling_options)
    pieces: list[str] = []
    ending = Ending()
    with open_source(model, url, api_key, engine_options) as (portal, source):
        for piece in stream(portal, source, asked, sampling):
            if isinstance(piece, Ending):
                ending = piece
                continue
            pieces.append(piece)
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        name = source.model
    if as_json:
        print_json(
            {
                "model": name,
                "text": "".join(pieces),
                "finish_reason": ending.finish_reason,
                "usage": ending.usage and ending.usage.model_dump(exclude_none=True),
                "metrics": ending.metrics.model_dump(exclude_none=True),
            }
        )
    else:
        sys.stdout.write("\n")
    if verbose:
        error_console().print(summary(ending), style="dim")


def open_source(
    model: str | None, url: str | None, api_key: str | None, engine_options: Mapping[str, Any]
) -> AbstractContextManager[Any]:
    """Where answers come from: a gateway when ``url`` is given, else an engine of this process."""
    if url is not None:
        return remote_source(url, model, api_key)
    spec = engine_spec(engine_options, model)
    need_engine(spec)
    return loading(spec.model, partial(local_source, spec))


def conversation(text: str, system: str | None) -> list[dict[str, str]]:
    """A conversation of one user turn."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]


def summary(ending: Ending) -> str:
    """One line on what an answer cost, with what was measured."""
    usage, metrics = ending.usage, ending.metrics
    parts = []
    if usage is not None:
        parts.append(f"{usage.prompt_tokens} prompt + {usage.completion_tokens} output tokens")
    if metrics.ttft_ms is not None:
        parts.append(f"first token after {metrics.ttft_ms:.0f} ms")
    if metrics.tpot_ms:
        parts.append(f"{1000 / metrics.tpot_ms:.1f} tokens/s")
    return ", ".join(parts) or "nothing measured"


def _read(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        text = prompt
    elif prompt is None and sys.stdin.isatty():
        raise SageLLMError(ErrorCode.INVALID_REQUEST, 'nothing to answer; for example: sagellm run "Hello"', "prompt")
    else:
        text = sys.stdin.read()
    if not text.strip():
        raise SageLLMError(ErrorCode.INVALID_REQUEST, "the prompt is empty", "prompt")
    return text
