"""What a person asks of the simulator: a trace by name, engines from a file, several setups side by side."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

from sagellm_control_plane.policies import TABLE as POLICIES
from sagellm_control_plane.routing import TABLE as ROUTERS
from sagellm_protocol import ErrorCode, SageLLMError

from .capacity import bound, capacity
from .engine_model import EngineModel, StepSample, fit
from .report import Report
from .requests import SimRequest
from .simulator import Setup, simulate
from .traces import read_trace, scaled
from .workloads import WORKLOADS, generate, workload_named

BOUND = "infinite shared cache"
Figures = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Source:
    """A trace that can be served again and again."""

    name: str
    make: Callable[[], Iterator[SimRequest]]
    requests: int
    rate_rps: float
    """Mean rate at which it arrives, unscaled."""


def source_of(
    trace: str, *, requests: int | None = None, rate_rps: float | None = None, seed: int = 0, keep: bool = False
) -> Source:
    """A trace file, or a workload that is made up by published figures.

    Args:
        trace: A path, or a name of :data:`~sagellm_control_plane.simulation.workloads.WORKLOADS`.
        requests: At most so many of a file; exactly so many of a workload.
        rate_rps: Mean rate, in place of the trace's own.
        seed: Of whatever is drawn.
        keep: Hold a file's requests in memory, for whoever serves it many times.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for what is neither.
    """
    if trace in WORKLOADS:
        workload = workload_named(trace, requests=requests, rate_rps=rate_rps, seed=seed)
        return Source(trace, lambda: generate(workload), workload.requests, workload.rate_rps)
    path = Path(trace)
    if not path.exists():
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"{trace!r} is neither a file nor a workload; workloads are {', '.join(sorted(WORKLOADS))}",
            "trace",
        )

    def read() -> Iterator[SimRequest]:
        return islice(read_trace(path, seed=seed), requests)

    kept = list(read()) if keep else None
    count, last = 0, 0.0
    for request in kept if kept is not None else read():
        count, last = count + 1, request.arrived
    rate = count / last if last else 1.0
    speed = 1.0 if rate_rps is None else rate_rps / rate

    def make() -> Iterator[SimRequest]:
        return scaled((copy.copy(request) for request in kept) if kept is not None else read(), speed)

    return Source(path.name, make, count, rate * speed)


def engine_of(model: Path | None = None, samples: Path | None = None) -> EngineModel:
    """An engine's figures: from a JSON file, or fitted to measured steps, or reckoned.

    Args:
        model: A JSON object of fields of :class:`EngineModel`.
        samples: A CSV file with the columns ``prompt_tokens``, ``sequences``, ``context_tokens``, ``seconds``, a step
            a line; step times are fitted to it, the rest is of ``model``.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a file that cannot be read, or names that are unknown.
    """
    base = EngineModel()
    try:
        if model is not None:
            found = json.loads(model.read_text())
            known = [field.name for field in fields(EngineModel)]
            for name in found:
                if name not in known:
                    raise SageLLMError(
                        ErrorCode.INVALID_REQUEST, f"unknown figure {name!r} in {model}; there are {', '.join(known)}"
                    )
            base = replace(base, **found)
        if samples is not None:
            with samples.open(newline="") as file:
                base = fit([_sample(line) for line in csv.DictReader(file)], base)
    except (OSError, ValueError, TypeError, KeyError) as error:
        at = model if samples is None else samples
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{at} cannot be read: {error!r}") from error
    return base


def _sample(line: dict[str, str]) -> StepSample:
    prompt, sequences, context = (int(line[name]) for name in ("prompt_tokens", "sequences", "context_tokens"))
    return StepSample(prompt, sequences, context, float(line["seconds"]))


def names_of(given: str, *, policies: bool = False) -> list[str]:
    """Names separated by commas; ``all`` stands for those of the table."""
    if given == "all":
        return sorted(POLICIES if policies else ROUTERS)
    return [name.strip() for name in given.split(",") if name.strip()]


def setups_of(base: Setup, policies: Sequence[str], routings: Sequence[str]) -> Iterable[Setup]:
    """One setup for each pair."""
    return [replace(base, policy=policy, routing=routing) for policy in policies for routing in routings]


def run_all(source: Source, setups: Iterable[Setup]) -> Iterator[Report]:
    """Serve the trace under each setup."""
    for setup in setups:
        yield simulate(source.make(), setup)


def capacities(source: Source, setups: Sequence[Setup]) -> Iterator[Figures]:
    """The highest rate of the trace at which each setup keeps its service level, and last the bound on all of them."""
    guess = 1.0
    for setup in [*setups, None]:
        search = bound if setup is None else capacity
        speed, report = search(source.make, setup or setups[0], source.requests, guess)
        guess = speed or 1.0
        yield {
            "policy": (setup or setups[0]).policy,
            "routing": setup.routing if setup is not None else BOUND,
            "speed": speed,
            "capacity_rps": speed * source.rate_rps,
            "hit_rate": report.hit_rate if report is not None and setup is not None else None,
            "ttft_p50_s": report.ttft.quantile(0.5) if report is not None else None,
            "tpot_p90_s": report.tpot.quantile(0.9) if report is not None else None,
            "balance": report.balance if report is not None else None,
        }
