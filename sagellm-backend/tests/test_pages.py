"""Large memory is held only where it is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sagellm_backend.paged import PagedKV
from sagellm_backend.pages import untouched
from sagellm_protocol.backend import KVSpec

MB = 1 << 20
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")


def resident() -> int:
    """Bytes this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@needs_proc
def test_memory_is_held_page_by_page_as_it_is_touched():
    memory = untouched(256 * MB, huge=False)
    before = resident()
    memory[:: 2 * MB] = 1
    assert resident() - before < 16 * MB
    assert memory[1] == 0


@needs_proc
def test_a_pool_holds_little_more_than_the_tokens_written_to_it():
    specs = [KVSpec(num_kv_heads=4, head_dim=64, value_dim=64)] * 16
    pool = PagedKV(specs, num_blocks=4096, block_size=16, dtype=torch.bfloat16)
    before = resident()
    for plane in (*pool.keys, *pool.values):
        plane[:, 0] = 1.0
    assert pool.nbytes > 512 * MB
    assert resident() - before < 64 * MB


def test_no_memory_is_an_array_of_nothing():
    assert untouched(0, huge=False).size == 0


def test_huge_pages_are_zeros_like_any_other():
    memory = untouched(4 * MB, huge=True)
    assert not memory.any()
    memory[:] = 7
    assert memory[-1] == 7


def test_more_than_can_be_addressed_is_refused():
    with pytest.raises(MemoryError, match="cannot be reserved"):
        untouched(1 << 62, huge=False)
