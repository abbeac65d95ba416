"""Steps use no more adapters than there are places; whoever waits gets one, and the least recently used gives way."""

from __future__ import annotations

import pytest

from core_harness import Harness, assert_all_free
from fake_executor import alone
from sagellm_core.core.sequence import Finish

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13]


def read(harness: Harness, count: int | None = None) -> None:
    harness.adapters.finish(count)
    harness.settle()


def test_nobody_waits_for_an_adapter_that_somebody_else_has_to_wait_for() -> None:
    harness = Harness(max_adapters=2)
    harness.add(0, PROMPT, adapter="a")
    harness.add(1, PROMPT)
    harness.step()
    assert harness.tokens[1, 0]
    assert not harness.tokens[0, 0]
    read(harness)
    harness.step()
    assert harness.tokens[0, 0] == alone(PROMPT, 1, adapter="a")


def test_nothing_is_done_while_everyone_waits_for_an_adapter() -> None:
    harness = Harness(max_adapters=1)
    harness.add(0, PROMPT, adapter="a")
    harness.step()
    assert not harness.core.has_work
    read(harness)
    assert harness.core.has_work


def test_an_adapter_beyond_the_places_waits_until_one_is_idle_and_is_not_overtaken() -> None:
    harness = Harness(max_adapters=1, max_num_seqs=4)
    harness.add(0, PROMPT, 4, adapter="a")
    harness.step()
    read(harness)
    harness.step()
    harness.add(1, PROMPT, 4, adapter="b")
    harness.add(2, PROMPT, 4, adapter="a")  # its adapter is there, and would be for ever if it went first
    harness.add(3, PROMPT, 4)
    harness.step()
    assert harness.tokens[3, 0]
    assert not harness.tokens[2, 0]
    harness.run()
    assert harness.adapters.reads == ["a", "b", "a"]
    assert harness.adapters.most == 1
    for ticket, key in enumerate(["a", "b", "a", None]):
        assert harness.tokens[ticket, 0] == alone(PROMPT, 4, adapter=key)
    assert_all_free(harness.core)


def test_the_least_recently_used_adapter_gives_way() -> None:
    harness = Harness(max_adapters=2)
    for ticket, key in enumerate(["a", "b", "a", "c"]):
        harness.add(ticket, PROMPT, 2, adapter=key)
        harness.run()
    assert harness.adapters.reads == ["a", "b", "c"]
    assert harness.adapters.in_memory == {"a", "c"}


def test_an_adapter_that_cannot_be_read_fails_only_those_who_use_it() -> None:
    harness = Harness(max_adapters=2)
    harness.adapters.missing = {"gone"}
    harness.add(0, PROMPT, 3, n=2, adapter="gone")
    harness.add(1, PROMPT, 3, adapter="a")
    harness.run()
    for index in (0, 1):
        ending = harness.endings[0, index]
        assert ending.finish is Finish.UNREADABLE
        assert "/adapters/gone: no such folder" in (ending.message or "")
    assert harness.tokens[1, 0] == alone(PROMPT, 3, adapter="a")
    assert_all_free(harness.core)


def test_an_unloaded_adapter_serves_those_who_use_it_and_gives_its_memory_back() -> None:
    harness = Harness(max_adapters=2)
    harness.add(0, PROMPT, 6, adapter="a")
    harness.step()
    read(harness)
    harness.step()
    assert harness.core.adapters is not None
    harness.core.adapters.forget("a")
    assert harness.adapters.in_memory == {"a"}
    harness.run()
    assert harness.tokens[0, 0] == alone(PROMPT, 6, adapter="a")
    assert harness.adapters.in_memory == set()


def test_a_preempted_sequence_has_its_adapter_read_again() -> None:
    harness = Harness(max_adapters=1, num_blocks=7, max_num_seqs=2, block_size=2)
    harness.add(0, PROMPT[:4], 6, adapter="a", priority=1)
    harness.step()
    read(harness)
    harness.step()
    harness.add(1, PROMPT, 4, adapter=None, priority=0)
    harness.add(2, PROMPT, 2, adapter="b", priority=0)
    harness.run()
    assert harness.endings[0, 0].preemptions > 0
    assert harness.adapters.reads == ["a", "b", "a"]
    assert harness.tokens[0, 0] == alone(PROMPT[:4], 6, adapter="a")


def test_prefixes_are_shared_within_an_adapter_alone() -> None:
    harness = Harness(max_adapters=2)
    for ticket, key in enumerate(["a", "b", None, "a"]):
        harness.add(ticket, PROMPT, 2, adapter=key)
        harness.run()
    assert [harness.beginnings[ticket, 0].cached_tokens for ticket in range(4)] == [0, 0, 0, 8]


def test_a_core_without_adapters_refuses_requests_that_name_one() -> None:
    with pytest.raises(ValueError, match="takes no adapters"):
        Harness().add(0, PROMPT, adapter="a")
