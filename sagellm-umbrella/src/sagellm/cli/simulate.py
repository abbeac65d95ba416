"""``sagellm simulate``: the control plane's own decisions on virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sagellm.components import component

from .console import error_console, output_console, print_json
from .options import JsonOption

RUN_COLUMNS = (
    ("policy", "policy"),
    ("routing", "routing"),
    ("goodput_rps", "good req/s"),
    ("good_share", "good"),
    ("ttft_mean_s", "TTFT mean"),
    ("ttft_p50_s", "p50"),
    ("ttft_p90_s", "p90"),
    ("ttft_p99_s", "p99"),
    ("tpot_p50_s", "TPOT p50"),
    ("tpot_p99_s", "p99"),
    ("hit_rate", "hits"),
    ("balance", "balance"),
    ("fairness", "fairness"),
    ("device_s_per_1k_tokens", "dev-s/1k"),
)
CAPACITY_COLUMNS = (
    ("policy", "policy"),
    ("routing", "routing"),
    ("speed", "x trace"),
    ("capacity_rps", "req/s"),
    ("hit_rate", "hits"),
    ("ttft_p50_s", "TTFT p50"),
    ("tpot_p90_s", "TPOT p90"),
    ("balance", "balance"),
)


def simulate(
    trace: Annotated[
        str, typer.Argument(help="A trace (.csv of Azure, .jsonl of Mooncake, .gz) or a workload's name.")
    ],
    policy: Annotated[str, typer.Option(help="Order of the queue; several by commas, or all.")] = "fifo",
    routing: Annotated[str, typer.Option(help="Choice of an engine; several by commas, or all.")] = "cost",
    engines: Annotated[int, typer.Option(min=1, help="How many engines.")] = 8,
    compare: Annotated[bool, typer.Option("--compare", help="All ways to choose an engine, side by side.")] = False,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Search the highest rate at which p90 TTFT stays within --ttft-slo.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Requests a second, in place of the trace's own.", show_default=False)
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="So many requests.", show_default=False)] = None,
    ttft_slo: Annotated[float, typer.Option(min=0, help="Seconds to the first token that are good.")] = 2.0,
    tpot_slo: Annotated[float, typer.Option(min=0, help="Seconds for a later token that are good.")] = 0.1,
    slack: Annotated[float, typer.Option(min=0, help="Share sent to an engine on top of what it runs.")] = 0.25,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Requests that may wait.", show_default=False)] = None,
    engine_model: Annotated[
        Path | None, typer.Option(help="JSON: figures of an engine (step_s, …).", show_default=False)
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="CSV: measured steps that step times are fitted to.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Serve a trace on virtual time with the plane's own policies and routing, and say how it went.

    Examples:

      sagellm simulate azure_conv --engines 4 --routing cost,round_robin

      sagellm simulate trace.jsonl.gz --engines 8 --capacity --compare
    """
    study, simulation = (
        component("sagellm_control_plane.simulation.study"),
        component("sagellm_control_plane.simulation"),
    )
    source = study.source_of(trace, requests=requests, rate_rps=rate, seed=seed, keep=capacity)
    model = study.engine_of(engine_model, samples)
    base = simulation.Setup(
        [model] * engines, seed=seed, slack=slack, max_queued=max_queued, ttft_slo_s=ttft_slo, tpot_slo_s=tpot_slo
    )
    routings = study.names_of("all" if compare else routing)
    setups = study.setups_of(base, study.names_of(policy, policies=True), routings)
    found: Iterator[dict[str, Any]] = (
        study.capacities(source, setups) if capacity else (r.figures() for r in study.run_all(source, setups))
    )
    if as_json:
        for row in found:
            print_json(row)
        return
    columns = CAPACITY_COLUMNS if capacity else RUN_COLUMNS
    table = Table(title=f"{source.name}: {source.requests} requests, {source.rate_rps:.2f} a second, {engines} engines")
    for _, title in columns:
        table.add_column(title, justify="left" if title in ("policy", "routing") else "right")
    with error_console().status("simulating …") as status:
        for row in found:
            status.update(f"simulating … {row['routing']} is done")
            table.add_row(*(_shown(row[name]) for name, _ in columns))
    output_console().print(table)


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
