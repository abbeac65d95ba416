"""``sagellm engine``: one engine over HTTP, for control planes on this or other hosts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sagellm.components import component
from sagellm.tracing import exporting

from .console import error_console, print_json
from .fetch import fetch
from .options import (
    ENGINE_OPTIONS,
    DrainOption,
    HostOption,
    JsonOption,
    ModelArgument,
    PortOption,
    TracesOption,
    engine_spec,
    takes,
)
from .progress import activity


@takes(ENGINE_OPTIONS, into="engine_options")
def engine(
    model: ModelArgument = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8890,
    api_key: Annotated[
        str | None, typer.Option(envvar="SAGELLM_API_KEY", help="Key that callers must send.", show_default=False)
    ] = None,
    otlp_traces_endpoint: TracesOption = None,
    drain: DrainOption = 30,
    as_json: JsonOption = False,
    *,
    engine_options: dict[str, Any],
) -> None:
    """Serve one engine to control planes; people and programs ask a gateway before it.

    Examples:

      sagellm engine smollm2-135m --port 8890

      sagellm serve --attach http://127.0.0.1:8890
    """
    server = component("sagellm_control_plane.remote.server")
    spec = engine_spec(engine_options, model)

    def announce(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": spec.names[0]})
        else:
            error_console().print(f"engine for [bold]{spec.names[0]}[/] at [bold]{url}[/]  (Ctrl-C stops)")

    with activity("starting …") as report:
        fetch(spec, report)
    run = component("sagellm_control_plane.remote.loop").run
    with exporting(otlp_traces_endpoint):
        run(server.serve_engine(spec, host, port, api_key, drain_s=drain, on_ready=announce))
