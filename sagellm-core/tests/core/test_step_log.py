"""The log of steps: what it says adds up to what was done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core_harness import Harness
from fake_executor import FakeExecutor
from sagellm_core.core.step_log import StepLog
from sagellm_protocol.errors import SageLLMError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[StepLog]:
    log = StepLog(path)
    yield log
    log.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_a_line_and_they_add_up(path: Path, log: StepLog) -> None:
    harness = Harness(max_num_batched_tokens=16, max_num_seqs=4, step_log=log)
    prompts = [list(range(1, 24)), [5, 6, 7], list(range(40, 59))]
    for ticket, prompt in enumerate(prompts):
        harness.add(ticket, prompt, 6)
    harness.run()
    steps = lines(path)
    stats = harness.core.stats()
    assert [step["step"] for step in steps] == list(range(stats.steps))
    assert sum(step["produced"] for step in steps) == stats.generation_tokens == 18
    assert sum(step["prompt_tokens"] for step in steps) == sum(map(len, prompts)) - stats.prefix_hit_tokens
    assert sum(step["output_tokens"] for step in steps) == 18 - 3, "the last token of each is never computed"
    assert sum(step["admitted"] for step in steps) == 3
    assert [step["rows"] for step in steps] == [len(plan.slots) for plan in harness.executor.plans]
    assert (steps[-1]["running"], steps[-1]["waiting"], steps[-1]["used_blocks"]) == (0, 0, 0)
    for step in steps:
        assert step["free_blocks"] + step["cached_blocks"] + step["used_blocks"] == 64
        assert min(step["schedule_ms"], step["run_ms"], step["account_ms"]) >= 0


def test_preemptions_hits_and_what_waits_are_seen(path: Path, log: StepLog) -> None:
    harness = Harness(num_blocks=8, max_num_seqs=2, step_log=log)
    for ticket in range(3):
        harness.add(ticket, [9, 8, 7, 6, 5, 4, 3, 2, 1], 16)
    harness.run()
    steps = lines(path)
    assert max(step["waiting"] for step in steps) >= 1
    assert sum(step["preempted"] for step in steps) == harness.core.stats().preemptions > 0
    assert steps[-1]["hit_tokens"] == harness.core.stats().prefix_hit_tokens > 0


def test_a_step_that_fails_is_logged_as_such(path: Path, log: StepLog) -> None:
    harness = Harness(FakeExecutor(fail_on=3), step_log=log)
    harness.add(0, [1, 2, 3])
    harness.run()
    assert [(step["failed"], step["produced"]) for step in lines(path)] == [(True, 0)]


def test_it_goes_on_where_it_stopped_and_ends_with_its_core(path: Path) -> None:
    for count in (1, 2):
        harness = Harness(step_log=StepLog(path))
        harness.add(0, [1, 2, 3], 1)
        harness.run()
        harness.core.stop()
        assert len(lines(path)) == count


def test_a_disk_that_is_full_ends_the_log_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is always full")
    harness = Harness(step_log=StepLog(full))
    harness.add(0, [1, 2, 3], 4)
    harness.run()
    harness.core.stop()
    assert len(harness.tokens[0, 0]) == 4
    assert [record.message for record in caplog.records if "step log" in record.message]


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SageLLMError, match="step log"):
        StepLog(tmp_path / "nowhere" / "steps")
