"""``sagellm simulate`` on a tiny trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sagellm.cli.app import app, main

Run = Callable[..., str]
LINE = '{"timestamp": %d, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, %d]}\n'


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(LINE % (stamp * 40, stamp + 10) for stamp in range(60)))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


def test_a_trace_is_served_and_its_figures_are_told(run: Run, trace: Path) -> None:
    told = run(str(trace), "--engines", "2", "--routing", "cost,round_robin", "--policy", "fifo,priority", "--json")
    rows = [json.loads(line) for line in told.splitlines()]
    assert [(row["policy"], row["routing"]) for row in rows] == [
        ("fifo", "cost"),
        ("fifo", "round_robin"),
        ("priority", "cost"),
        ("priority", "round_robin"),
    ]
    for row in rows:
        assert row["completed"] == row["arrived"] == 60
        assert 0 < row["hit_rate"] < 1
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"]


def test_all_routings_stand_in_one_table(run: Run, trace: Path) -> None:
    table = run(str(trace), "--engines", "2", "--compare")
    for name in ("affinity", "cost", "least_load", "prefix_events", "round_robin", "weighted"):
        assert name in table
    assert "60 requests" in table


def test_capacity_is_searched_and_the_bound_is_told(run: Run) -> None:
    told = run("azure_conv", "--requests", "200", "--engines", "1", "--capacity", "--routing", "least_queued", "--json")
    reached, most = (json.loads(line) for line in told.splitlines())
    assert most["routing"] == "infinite shared cache"
    assert 0 < reached["capacity_rps"] <= most["capacity_rps"] * 1.02


def test_an_engine_is_taken_from_a_file_and_fitted_to_measured_steps(run: Run, trace: Path, tmp_path: Path) -> None:
    model, samples = tmp_path / "engine.json", tmp_path / "steps.csv"
    model.write_text(json.dumps({"token_budget": 2000, "max_num_seqs": 4}))
    lines = ["prompt_tokens,sequences,context_tokens,seconds"]
    lines += [f"{p},{s},{c},{0.5 + p * 0.001}" for p in (0, 100, 900) for s in (1, 3) for c in (0, 5000)]
    samples.write_text("\n".join(lines))
    options = ("--engine-model", str(model), "--samples", str(samples), "--json", "--requests", "1")
    [row] = [json.loads(line) for line in run(str(trace), *options).splitlines()]
    assert row["ttft_mean_s"] == pytest.approx(0.5 + 1.1, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere.csv",), "azure_conv"),
        (("azure_conv", "--routing", "made_up"), "round_robin"),
        (("azure_conv", "--policy", "made_up"), "slo_aware"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 1
    assert told in capsys.readouterr().err
