"""Groups of ranks: one alone, and two real processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sagellm_backend import cpu
from sagellm_protocol.errors import ErrorCode, SageLLMError

RANK = """
import json, sys
from sagellm_backend import cpu
from sagellm_protocol.devices import DType
rank, meet = int(sys.argv[1]), sys.argv[2]
ops = cpu.create(threads=1)
first, second = (ops.make_group(rank, 2, meet + name) for name in ("a", "b"))
x = ops.from_host([1.0 + rank, 10.0], DType.FLOAT32).reshape(2, 1)
gathered = ops.all_gather(x, first, 1)
summed = ops.all_reduce(x, second)
print(json.dumps([ops.to_host(gathered), ops.to_host(summed), first.rank, first.size]))
"""


def test_two_processes_gather_and_reduce_in_two_groups_at_once(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), f"file://{tmp_path}/"], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        answers = [json.loads(rank.communicate(timeout=90)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for number, answer in enumerate(answers):
        assert answer == [[[1.0, 2.0], [10.0, 10.0]], [[3.0], [20.0]], number, 2]


def test_a_group_of_one_needs_no_meeting():
    ops = cpu.create(threads=1)
    group = ops.make_group(0, 1, "nowhere://")
    x = torch.ones(2)
    assert ops.all_reduce(x, group) is x
    assert ops.all_gather(x, group, 0) is x


def test_a_rank_outside_its_group_is_refused():
    with pytest.raises(SageLLMError, match="rank 2 is not in a group of 2") as caught:
        cpu.create(threads=1).make_group(2, 2, "file:///nowhere")
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_ranks_that_cannot_meet_say_where():
    with pytest.raises(SageLLMError, match="could not join the others at bogus://x"):
        cpu.create(threads=1).make_group(0, 2, "bogus://x")
