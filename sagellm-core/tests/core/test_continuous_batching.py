"""The core over a fake executor whose next token depends on every token before it, read through the block tables."""

from __future__ import annotations

import pytest

from core_harness import Harness, assert_all_free
from fake_executor import FULL, FakeExecutor, alone
from sagellm_core.core.loop import CoreBroken
from sagellm_core.core.sequence import Finish
from sagellm_protocol import KVSpec

WINDOWED = KVSpec(1, 2, 2, window=6)


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 31 + i * 7) % 96 + 1 for i in range(length)]


def test_ragged_requests_batched_together_produce_what_each_produces_alone() -> None:
    harness = Harness()
    prompts = {ticket: prompt(ticket, 1 + 5 * ticket) for ticket in range(8)}
    for ticket, tokens in prompts.items():
        harness.add(ticket, tokens, 5 + ticket)
    harness.run()
    for ticket, tokens in prompts.items():
        assert harness.tokens[ticket, 0] == alone(tokens, 5 + ticket)
        assert harness.endings[ticket, 0].finish is Finish.LENGTH
    assert_all_free(harness.core)


@pytest.mark.parametrize("budget", [1, 3, 16])
def test_a_chunked_prompt_produces_what_it_produces_whole(budget: int) -> None:
    harness = Harness(max_num_seqs=1, max_num_batched_tokens=budget)
    harness.add(0, prompt(1, 50))
    harness.run()
    assert harness.tokens[0, 0] == alone(prompt(1, 50), 8)
    assert max(sum(plan.num_scheduled) for plan in harness.executor.plans) == budget


def test_a_step_mixes_decode_and_prefill_and_decode_comes_first() -> None:
    harness = Harness(max_num_batched_tokens=10)
    harness.add(0, prompt(0, 4), 20)
    harness.step()
    harness.add(1, prompt(1, 30), 4)
    harness.step()
    assert harness.last_plan.num_scheduled == [1, 9]
    assert harness.last_plan.samples == [True, False]


def test_a_long_prefill_never_keeps_others_from_decoding() -> None:
    harness = Harness(max_num_batched_tokens=8, max_num_seqs=4)
    harness.add(0, prompt(0, 4), 30)
    harness.step()
    harness.add(1, prompt(1, 100), 2)
    for _ in range(10):
        harness.step()
        assert harness.last_plan.num_scheduled[0] == 1
        assert harness.last_plan.samples[0]


def test_a_finished_sequence_makes_room_in_the_very_next_step() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(0, prompt(0, 4), 1)
    harness.add(1, prompt(1, 4), 1)
    harness.step()
    harness.step()
    assert harness.tokens[1, 0] == alone(prompt(1, 4), 1)


def test_lower_priority_numbers_are_served_first() -> None:
    harness = Harness(max_num_seqs=1)
    for ticket, priority in enumerate([5, 0, -3]):
        harness.add(ticket, prompt(ticket, 4), 2, priority=priority)
    harness.run()
    assert [ticket for ticket, _ in harness.endings] == [2, 1, 0]


def test_when_blocks_run_out_the_newest_is_preempted_and_still_produces_the_same() -> None:
    harness = Harness(num_blocks=10, max_model_len=40)
    for ticket in range(3):
        harness.add(ticket, prompt(ticket, 9), 24)
    harness.run()
    for ticket in range(3):
        assert harness.tokens[ticket, 0] == alone(prompt(ticket, 9), 24)
    assert harness.endings[0, 0].preemptions == 0
    assert harness.endings[2, 0].preemptions > 0
    assert harness.endings[2, 0].evicted_s > 0
    assert harness.core.stats().preemptions > 0


def test_the_lowest_priority_is_preempted_before_the_newest() -> None:
    harness = Harness(num_blocks=10, max_model_len=40)
    harness.add(0, prompt(0, 9), 20, priority=1)
    harness.add(1, prompt(1, 9), 20)
    harness.add(2, prompt(2, 9), 20)
    harness.run()
    assert harness.endings[0, 0].preemptions > 0
    assert harness.endings[1, 0].preemptions == 0


def test_a_more_urgent_arrival_takes_the_slot_of_the_least_urgent() -> None:
    harness = Harness(max_num_seqs=2)
    harness.add(0, prompt(0, 4), 12, priority=1)
    harness.add(1, prompt(1, 4), 12, priority=2)
    harness.step()
    harness.add(2, prompt(2, 4), 3)
    harness.step()
    assert harness.tokens[2, 0], "it waited for a slot"
    harness.run()
    assert [ticket for ticket, _ in harness.endings] == [2, 0, 1]
    assert [harness.endings[ticket, 0].preemptions for ticket in range(3)] == [0, 1, 0]
    for ticket, count in ((0, 12), (1, 12), (2, 3)):
        assert harness.tokens[ticket, 0] == alone(prompt(ticket, 4), count)


def test_a_more_urgent_arrival_takes_the_blocks_it_lacks_and_no_more() -> None:
    harness = Harness(num_blocks=10, max_model_len=40, max_num_batched_tokens=64)
    for ticket in range(3):
        harness.add(ticket, prompt(ticket, 9), 3, priority=1)  # three blocks each
    harness.step()
    harness.add(3, prompt(3, 20), 1)  # five blocks, of which one is free
    harness.step()
    assert harness.tokens[3, 0]
    harness.run()
    assert [harness.endings[ticket, 0].preemptions for ticket in range(4)] == [0, 1, 1, 0]


def test_nobody_is_preempted_for_an_arrival_that_would_not_fit_all_the_same() -> None:
    harness = Harness(num_blocks=9, max_model_len=36)
    harness.add(0, prompt(0, 16), 4)
    harness.add(1, prompt(1, 8), 4, priority=2)
    harness.step()
    harness.add(2, prompt(2, 24), 1, priority=1)
    harness.run()
    assert [harness.endings[ticket, 0].preemptions for ticket in range(3)] == [0, 0, 0]


def test_an_arrival_that_is_as_urgent_preempts_nobody() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(0, prompt(0, 4), 6)
    harness.step()
    harness.add(1, prompt(1, 4), 1)
    harness.run()
    assert [ticket for ticket, _ in harness.endings] == [0, 1]
    assert harness.core.stats().preemptions == 0


def test_a_long_prefill_sits_out_the_step_of_a_more_urgent_arrival() -> None:
    harness = Harness(max_num_batched_tokens=8)
    harness.add(0, prompt(0, 40), 2, priority=1)
    harness.step()
    harness.add(1, prompt(1, 6), 1)
    harness.step()
    assert harness.tokens[1, 0] == alone(prompt(1, 6), 1)
    harness.run()
    assert harness.tokens[0, 0] == alone(prompt(0, 40), 2)
    assert harness.core.stats().preemptions == 0


def test_the_urgent_always_get_on_and_the_rest_ends_too() -> None:
    harness = Harness(num_blocks=8, max_num_seqs=2, max_model_len=32)
    for ticket in range(12):
        harness.add(ticket, prompt(ticket, 6), 12, priority=-ticket)
        harness.step()
    harness.run()
    for ticket in range(12):
        assert harness.tokens[ticket, 0] == alone(prompt(ticket, 6), 12)


def test_a_shared_prefix_is_found_and_the_last_token_is_computed_all_the_same() -> None:
    harness = Harness()
    tokens = prompt(1, 16)
    harness.add(0, tokens)
    harness.run()
    harness.add(1, tokens)
    harness.run()
    assert harness.tokens[1, 0] == harness.tokens[0, 0] == alone(tokens, 8)
    assert harness.beginnings[0, 0].cached_tokens == 0
    assert harness.beginnings[1, 0].cached_tokens == 12


def test_what_a_sequence_produced_is_found_by_the_next_turn() -> None:
    harness = Harness()
    first = prompt(1, 10)
    harness.add(0, first, 9)
    harness.run()
    second = [*first, *harness.tokens[0, 0], *prompt(2, 3)]
    harness.add(1, second)
    harness.run()
    assert harness.beginnings[1, 0].cached_tokens == 16
    assert harness.tokens[1, 0] == alone(second, 8)


def test_another_salt_shares_nothing() -> None:
    harness = Harness()
    for ticket, salt in enumerate(["mine", "yours", "mine"]):
        harness.add(ticket, prompt(1, 16), cache_salt=salt)
        harness.run()
    assert [harness.beginnings[ticket, 0].cached_tokens for ticket in range(3)] == [0, 0, 12]


def test_without_a_prefix_cache_nothing_outlives_its_sequence_but_siblings_share() -> None:
    harness = Harness(prefix_caching=False)
    harness.add(0, prompt(1, 18), n=3)
    harness.add(1, prompt(1, 18))
    harness.run()
    assert harness.core.stats().cached_blocks == 0
    assert harness.beginnings[0, 2].cached_tokens == 16
    assert harness.beginnings[1, 0].cached_tokens == 0


def test_choices_of_one_request_compute_their_prompt_once() -> None:
    harness = Harness(max_num_batched_tokens=16)
    harness.add(0, prompt(1, 40), 6, n=4)
    harness.run()
    assert [harness.tokens[0, index] for index in range(4)] == [alone(prompt(1, 40), 6)] * 4
    computed = sum(sum(plan.num_scheduled) for plan in harness.executor.plans)
    assert computed == 40 + 3 * 4 + 4 * 5  # the prompt; three tails of it; outputs but the last
    assert harness.endings[0, 3].kv_tokens <= 40 + 4 * 8
    assert harness.endings[0, 3].kv_tokens > 40 + 5


def test_an_end_token_stops_a_sequence_and_is_counted() -> None:
    tokens = prompt(3, 5)
    expected = alone(tokens, 8)
    harness = Harness()
    harness.add(0, tokens, 8, end_ids=(expected[3],))
    harness.run()
    first = expected.index(expected[3])
    assert harness.tokens[0, 0] == expected[: first + 1]
    assert harness.endings[0, 0].finish is Finish.STOP
    assert harness.endings[0, 0].stop_token == expected[3]


def test_tokens_after_the_end_in_a_burst_are_dropped() -> None:
    tokens = prompt(3, 5)
    expected = alone(tokens, 12)
    harness = Harness(FakeExecutor(pace=(4,)))
    harness.add(0, tokens, 12, end_ids=(expected[5],))
    harness.add(1, tokens, 6)
    harness.run()
    assert harness.tokens[0, 0] == expected[: expected.index(expected[5]) + 1]
    assert harness.tokens[1, 0] == expected[:6]


def test_a_step_that_yields_nothing_is_done_over() -> None:
    harness = Harness(FakeExecutor(pace=(0, 1, 0, 3)))
    for ticket in range(3):
        harness.add(ticket, prompt(ticket, 5), 12)
    harness.run()
    assert [harness.tokens[ticket, 0] for ticket in range(3)] == [alone(prompt(ticket, 5), 12) for ticket in range(3)]


def test_a_sequence_ends_at_the_context() -> None:
    harness = Harness(max_model_len=12)
    harness.add(0, prompt(1, 9), 100)
    harness.run()
    assert harness.tokens[0, 0] == alone(prompt(1, 9), 3)
    assert harness.endings[0, 0].finish is Finish.LENGTH


def test_what_leaves_no_room_is_refused_and_changes_nothing() -> None:
    harness = Harness(max_model_len=12)
    for length in (0, 12, 13):
        with pytest.raises(ValueError, match="context of 12"):
            harness.add(0, prompt(1, length))
    assert not harness.core.in_flight


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_abort_frees_blocks_before_it_returns_whatever_the_state(steps: int) -> None:
    harness = Harness(max_num_batched_tokens=8)  # waiting, prefilling, decoding
    harness.add(0, prompt(0, 16))
    for _ in range(steps):
        harness.step()
    harness.abort(0)
    assert harness.endings[0, 0].finish is Finish.CANCELLED
    assert_all_free(harness.core)
    assert not harness.core.has_work
    harness.abort(0)  # of nothing, it does nothing


def test_an_abort_of_a_preempted_sequence_takes_it_out_of_the_queue() -> None:
    harness = Harness(num_blocks=6, max_model_len=24)
    harness.add(0, prompt(0, 7), 16)
    harness.add(1, prompt(1, 7), 16)
    while not harness.core.stats().preemptions:
        harness.step()
    harness.abort(1)
    harness.run()
    assert harness.endings[1, 0].finish is Finish.CANCELLED
    assert harness.tokens[0, 0] == alone(prompt(0, 7), 16)
    assert_all_free(harness.core)


def test_one_choice_is_aborted_and_its_siblings_go_on() -> None:
    harness = Harness()
    harness.add(0, prompt(0, 9), 6, n=3)
    harness.step()
    harness.abort(0, 0)  # the one whose prompt the others wait for
    harness.run()
    assert harness.endings[0, 0].finish is Finish.CANCELLED
    assert harness.tokens[0, 1] == harness.tokens[0, 2] == alone(prompt(0, 9), 6)


@pytest.mark.parametrize("specs", [(WINDOWED,), (FULL, WINDOWED), (WINDOWED, FULL, WINDOWED)])
def test_sliding_windows_see_what_they_should_and_give_back_what_they_cannot(specs: tuple[KVSpec, ...]) -> None:
    windows = tuple(spec.window for spec in dict.fromkeys(specs))
    harness = Harness(FakeExecutor(*specs), max_num_batched_tokens=8)
    tokens = prompt(1, 21)
    harness.add(0, tokens, 30)
    while len(harness.tokens[0, 0]) < 20:
        harness.step()
    held = harness.core.stats().used_blocks
    full = 11 * windows.count(None)
    assert full < held <= full + 3 * (len(windows) - windows.count(None))
    harness.run()
    assert harness.tokens[0, 0] == alone(tokens, 30, windows=windows)
    longer = [*tokens, *harness.tokens[0, 0][:20], 5]
    harness.add(1, longer, 10)
    harness.run()
    assert harness.tokens[1, 0] == alone(longer, 10, windows=windows)
    assert harness.beginnings[1, 0].cached_tokens == 40
    assert_all_free(harness.core)


def test_a_failed_step_fails_those_in_it_and_nobody_else() -> None:
    harness = Harness(FakeExecutor(fail_on=96), max_num_seqs=1)
    bad = [*prompt(1, 5), 96]
    harness.add(0, bad)
    harness.add(1, prompt(2, 6))
    harness.run()
    assert harness.endings[0, 0].finish is Finish.FAILED
    assert "cannot compute token 96" in (harness.endings[0, 0].message or "")
    assert harness.tokens[1, 0] == alone(prompt(2, 6), 8)
    assert_all_free(harness.core)


def test_an_executor_that_always_fails_ends_the_core() -> None:
    harness = Harness(FakeExecutor(fail_on=96))
    for ticket in range(3):
        harness.add(ticket, [96, 96])
        if ticket < 2:
            harness.step()
    with pytest.raises(CoreBroken, match="cannot compute token 96"):
        harness.core.step()


def follow(held: dict[bytes, bytes | None], harness: Harness) -> int:
    """Bring ``held`` up to date; the number of blocks that were removed."""
    removed = 0
    for change in harness.core.kv_log.take():
        parent = change.parent
        for block in change.blocks:
            if change.stored:
                assert block not in held
                assert parent is None or parent in held
                held[block] = parent
                parent = block
            else:
                held.pop(block, None)  # one from before the log was watched is not known here
                removed += 1
    return removed


def test_the_log_tells_what_the_prefix_cache_holds_once_it_is_watched() -> None:
    harness = Harness(num_blocks=8, max_model_len=32)
    harness.add(9, prompt(9, 4), 1)
    harness.run()
    assert not harness.core.kv_log.take()
    harness.core.kv_log.watched = True
    held: dict[bytes, bytes | None] = {}
    harness.add(0, prompt(0, 16), 4)
    harness.run()
    follow(held, harness)
    assert len(held) == 4
    harness.add(1, prompt(1, 25), 3)
    harness.run()
    assert follow(held, harness) > 0
    assert harness.core.stats().evicted_blocks > 0
    assert len(held) == harness.core.stats().cached_blocks


def test_what_a_request_held_is_measured() -> None:
    harness = Harness()
    harness.add(0, prompt(0, 10), 6)
    harness.run()
    assert harness.endings[0, 0].kv_tokens == 15  # the last token is never computed
    assert harness.endings[0, 0].kv_bytes == 4 * 4 * 16
