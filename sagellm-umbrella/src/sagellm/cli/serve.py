"""``sagellm serve``: a model behind an OpenAI-compatible address."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import typer

from sagellm.components import component
from sagellm.tracing import exporting
from sagellm_protocol import ControlPlane, EngineSpec, plugins

from .console import error_console, print_json
from .fetch import Report, fetched
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
def serve(
    model: ModelArgument = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8889,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="SAGELLM_API_KEY", help="Key that callers must send; may be repeated.", show_default=False),
    ] = None,
    attach: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Serve a running engine server too, or an OpenAI-compatible one; may be repeated.",
            show_default=False,
        ),
    ] = None,
    attach_key: Annotated[
        str | None, typer.Option(envvar="SAGELLM_ENGINE_KEY", help="Key of those servers.", show_default=False)
    ] = None,
    otlp_traces_endpoint: TracesOption = None,
    policy: Annotated[str, typer.Option(help="Order of the queue.")] = "fifo",
    routing: Annotated[str, typer.Option(help="How an engine is chosen.")] = "cost",
    max_queued: Annotated[int, typer.Option(min=0, help="Most requests that may wait.")] = 1024,
    queue_timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Longest that a request may wait for an engine.")
    ] = 300,
    hedge: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENTILE",
            help="Ask a second engine when the first is slower to begin than this share of requests (0.95).",
            show_default=False,
        ),
    ] = None,
    allow_management: Annotated[
        bool,
        typer.Option("--allow-management", help="Let callers put engines to sleep, wake them and reload weights."),
    ] = False,
    launcher: Annotated[
        str, typer.Option(help="Where the engine of MODEL runs: local, or subprocess for a process of its own.")
    ] = "local",
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keep engines and aliases there; whatever ends this program, the next has them again.",
            show_default=False,
        ),
    ] = None,
    keep_engines: Annotated[
        bool, typer.Option("--keep-engines", help="Let engine processes go on when this is stopped, for the next.")
    ] = False,
    discover: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Serve the engines that it lists; it is watched.", show_default=False),
    ] = None,
    drain: DrainOption = 30,
    as_json: JsonOption = False,
    *,
    engine_options: dict[str, Any],
) -> None:
    """Serve a model over OpenAI's API.

    With --attach or --discover and no MODEL nothing is loaded here: the address stands before the engines it is given.

    Examples:

      sagellm serve

      sagellm serve ./my-model --served-model-name my-model --port 9000

      sagellm serve --attach http://127.0.0.1:8890 --attach http://127.0.0.1:8891

      sagellm serve --registry plane.db --launcher subprocess
    """
    server = component("sagellm_gateway.server")
    keys: dict[str, Any] = {"api_keys": tuple(api_key)} if api_key else {}
    if allow_management:
        keys["allow_management"] = True
    settings = component("sagellm_gateway.settings").load_settings(host=host, port=port, drain_s=drain, **keys)
    plane: Plane = plugins.make(
        plugins.CONTROL_PLANES,
        "default",
        ControlPlane,
        policy=policy,
        routing=routing,
        max_queued=max_queued,
        registry=registry,
        engines_outlive=keep_engines,
        discover=discover,
        queue_timeout_s=queue_timeout,
        hedge_percentile=hedge,
    )
    spec = engine_spec(engine_options, model) if model is not None or not (attach or discover) else None
    wanted = Wanted(spec, launcher, tuple(attach or ()), attach_key, kept=registry is not None)
    run = component("sagellm_gateway.loop").run
    with exporting(otlp_traces_endpoint):
        run(_serve(server, plane, settings, wanted, as_json))


class Plane(ControlPlane, Protocol):
    """The control plane that a registry needs beside what every one offers."""

    async def want_engine(self, engine_id: str, spec: EngineSpec, launcher: str = "local") -> object:
        """See that an engine of that id runs as ``spec`` asks."""
        ...

    async def want_attached(self, engine_id: str, url: str, api_key: str | None = None) -> object:
        """See that an engine of that id is the one at ``url``."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Engines that the command line asks for."""

    spec: EngineSpec | None
    launcher: str
    urls: tuple[str, ...]
    key: str | None
    kept: bool
    """Whether a registry may have them already, from the run before."""


async def _serve(gateway: Any, plane: Plane, settings: Any, wanted: Wanted, as_json: bool) -> None:
    """Serve from the start, ready once every engine is; an engine that does not start ends it with the reason."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    await plane.start()
    serving = asyncio.create_task(gateway.serve(plane, settings, listening.set_result), name="gateway")
    tasks = [serving]
    try:
        with activity("starting …") as report:
            starting = asyncio.create_task(_start_engines(plane, wanted, report), name="engines")
            tasks.append(starting)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await _announce(plane, listening.result(), as_json)
        await serving
    finally:
        for task in tasks:
            task.cancel()
        # Whatever went wrong is raised already; these are only to have ended before the plane does.
        await asyncio.gather(*tasks, return_exceptions=True)
        await plane.stop()


async def _start_engines(plane: Plane, wanted: Wanted, report: Report) -> None:
    starts: list[Awaitable[object]] = [
        plane.want_attached(url, url, wanted.key) if wanted.kept else plane.attach_engine(url, api_key=wanted.key)
        for url in wanted.urls
    ]
    if wanted.spec is not None:
        starts.append(_start_engine(plane, wanted.spec, wanted, report))
    await asyncio.gather(*starts)


async def _start_engine(plane: Plane, spec: EngineSpec, wanted: Wanted, report: Report) -> None:
    await fetched(spec, report)
    if wanted.kept:
        # Under an id that is the same the next time.
        await plane.want_engine("serve", spec, wanted.launcher)
    else:
        await plane.start_engine(spec, wanted.launcher)


async def _announce(plane: ControlPlane, address: str, as_json: bool) -> None:
    # Models before their adapters.
    names = [model.name for model in sorted(await plane.models(), key=lambda model: model.parent is not None)]
    url = f"{address}/v1"
    if as_json:
        print_json({"url": url, "model": next(iter(names), None), "models": names})
        return
    console = error_console()
    console.print(f"serving [bold]{', '.join(names) or 'no model yet'}[/] at [bold]{url}[/]  (Ctrl-C stops)")
    if any(model.mock for model in await plane.models()):
        console.print("[yellow]this is the mock engine: its answers are made up[/]")
