"""How many tokens are drafted: as many as pay by what steps cost, and never at anybody's expense."""

from __future__ import annotations

from itertools import pairwise

import pytest

from core_harness import Harness, assert_all_free
from fake_executor import FakeExecutor, alone
from sagellm_core.core.plan import StepPlan
from sagellm_core.core.speculation import FIRST_REST, PLAIN_EVERY, PRICE_LASTS, SAMPLES, Drafting, DraftPolicy

PROMPT = [5, 6, 7, 8]


def drafting(executor: FakeExecutor, *, tokens: int = 4, adaptive: bool = True, **sizes: int) -> Harness:
    sizes = {"num_blocks": 400, "max_num_batched_tokens": 64, **sizes}
    return Harness(executor, drafting=DraftPolicy(tokens, adaptive=adaptive, clock=executor.clock), **sizes)


def drafts(plans: list[StepPlan]) -> list[int]:
    """Drafts of each plan."""
    return [sum(plan.drafts) for plan in plans]


def test_accepted_drafts_are_tokens_that_need_no_step_of_their_own() -> None:
    harness = drafting(FakeExecutor(luck=(4,)), adaptive=False)
    harness.add(0, PROMPT, max_tokens=41)
    harness.run()
    assert harness.tokens[0, 0] == alone(PROMPT, 41)
    assert len(harness.executor.plans) == 1 + 40 // 5
    ending = harness.endings[0, 0]
    assert (ending.drafted, ending.accepted) == (32, 32)
    stats = harness.core.stats()
    assert (stats.drafted_tokens, stats.accepted_tokens, stats.generation_tokens) == (32, 32, 41)


def test_rejected_drafts_change_nothing() -> None:
    harness = drafting(FakeExecutor(luck=(0, 2, 1)), adaptive=False)
    harness.add(0, PROMPT, max_tokens=30)
    harness.run()
    assert harness.tokens[0, 0] == alone(PROMPT, 30)
    ending = harness.endings[0, 0]
    assert ending.accepted is not None
    assert ending.drafted is not None
    assert 0 < ending.accepted < ending.drafted


def test_no_draft_goes_beyond_a_limit() -> None:
    harness = drafting(FakeExecutor(luck=(4,)), adaptive=False)
    harness.add(0, PROMPT, max_tokens=3)
    harness.run()
    assert drafts(harness.executor.plans) == [0, 1]
    assert len(harness.tokens[0, 0]) == 3


def test_nothing_behind_an_end_token_counts() -> None:
    end = alone(PROMPT, 4)[-1]
    harness = drafting(FakeExecutor(luck=(4,)), adaptive=False)
    harness.add(0, PROMPT, max_tokens=40, end_ids=(end,))
    harness.run()
    assert harness.tokens[0, 0] == alone(PROMPT, 40, eos=end)
    assert harness.endings[0, 0].stop_token == end


def test_drafts_take_the_budget_that_others_leave() -> None:
    harness = drafting(FakeExecutor(luck=(4,)), adaptive=False, max_num_seqs=4, max_num_batched_tokens=8)
    harness.add(0, PROMPT, max_tokens=40)
    harness.step()
    assert sum(harness.last_plan.num_scheduled) == 4
    harness.add(1, list(range(1, 60)), max_tokens=5)
    while harness.core.stats().queued_prompt_tokens:
        harness.step()
        assert sum(harness.last_plan.num_scheduled) + sum(harness.last_plan.drafts) <= 8
        assert not harness.last_plan.drafts or all(harness.last_plan.samples), "drafts came before a prompt"
    harness.run()
    assert harness.tokens[0, 0] == alone(PROMPT, 40)


def test_a_draft_preempts_nobody() -> None:
    # Ten blocks of four for two sequences of twenty tokens each: room for what they say, and for no draft more.
    harness = drafting(FakeExecutor(luck=(0,)), adaptive=False, num_blocks=10, max_num_seqs=2)
    for ticket in range(2):
        harness.add(ticket, PROMPT[ticket:], max_tokens=16)
    harness.run()
    assert harness.core.stats().preemptions == 0
    for ticket in range(2):
        assert harness.tokens[ticket, 0] == alone(PROMPT[ticket:], 16)
    assert_all_free(harness.core)


def test_drafts_that_cost_little_and_are_right_are_had_at_length() -> None:
    # A step is mostly reading weights: a token more is a fiftieth of it.
    harness = drafting(FakeExecutor(luck=(4,), row_s=0.05, token_s=0.001))
    harness.add(0, PROMPT, max_tokens=300)
    harness.run()
    made = drafts(harness.executor.plans)
    assert made[: 1 + SAMPLES] == [0] * (1 + SAMPLES)
    assert made.count(4) > 0.9 * len(made) - 2 * SAMPLES
    assert len(made) < 300 / 3


def test_right_drafts_that_cost_as_much_as_tokens_are_not_had() -> None:
    # Products are all of a step: a draft costs what a token does, and takes work to be no worse.
    harness = drafting(FakeExecutor(luck=(2,), row_s=0.0, token_s=0.001))
    harness.add(0, PROMPT, max_tokens=400)
    harness.run()
    made = drafts(harness.executor.plans)
    assert sum(made[20:]) < 0.05 * len(made)


def test_a_price_between_is_paid_as_far_as_chances_go() -> None:
    # Half a token's cost a draft: worth it where three of four come true, for some of them.
    harness = drafting(FakeExecutor(luck=(3, 3, 3, 0), row_s=0.001, token_s=0.001))
    harness.add(0, PROMPT, max_tokens=600)
    harness.run()
    made = drafts(harness.executor.plans)[30:]
    assert len(made) / 2 < sum(made) < 3.5 * len(made)


def test_many_sequences_may_not_pay_where_one_does() -> None:
    # Reading weights is shared: with thirty sequences a draft costs nearly what a token does.
    executor = FakeExecutor(luck=(1, 2), row_s=0.01, token_s=0.002)
    harness = drafting(executor, max_num_seqs=32, max_num_batched_tokens=256)
    harness.add(0, PROMPT, max_tokens=100)
    harness.run()
    one = drafts(executor.plans)[20:]
    begun = len(executor.plans)
    for ticket in range(1, 31):
        harness.add(ticket, [ticket, *PROMPT], max_tokens=100)
    harness.run()
    thirty = drafts(executor.plans[begun:])[20:]
    assert sum(one) > len(one)
    assert sum(thirty) / 30 < 0.3 * len(thirty)


def test_a_sequence_that_never_accepts_stops_drafting_and_tries_again_after_ever_longer_rests() -> None:
    harness = drafting(FakeExecutor(luck=(0,), row_s=0.02, token_s=0.002))
    harness.add(0, PROMPT, max_tokens=500)
    harness.run()
    tried = [step for step, count in enumerate(drafts(harness.executor.plans)) if count]
    late = tried[-4:]
    rests = [after - before for before, after in pairwise(late)]
    assert len(tried) < 60
    assert rests == sorted(rests)
    assert rests[-1] > 4 * FIRST_REST


def test_a_sequence_that_accepts_again_drafts_again() -> None:
    executor = FakeExecutor(luck=(0,), row_s=0.02, token_s=0.001)
    harness = drafting(executor)
    harness.add(0, PROMPT, max_tokens=1000)
    for _ in range(100):
        harness.step()
    assert sum(drafts(executor.plans)[-FIRST_REST:]) <= 1
    executor.luck = (4,)
    for _ in range(150):
        harness.step()
    assert sum(drafts(executor.plans)[-20:]) >= 60


def test_what_a_step_costs_without_drafts_stays_known() -> None:
    harness = drafting(FakeExecutor(luck=(4,), row_s=0.05, token_s=0.001))
    harness.add(0, PROMPT, max_tokens=1500)
    harness.run()
    made = drafts(harness.executor.plans)[10:]
    plain = [step for step, count in enumerate(made[:-1]) if not count]
    assert len(plain) == pytest.approx(len(made) / PLAIN_EVERY, abs=1.5)


def test_a_price_that_was_too_high_is_looked_at_again() -> None:
    policy = DraftPolicy(4)
    for _ in range(SAMPLES):
        policy.begin(1)
        policy.note(1, 0.01, [], pure=True)
    for _ in range(SAMPLES + 1):
        assert policy.begin(1).most
        policy.note(1, 0.05, [(Drafting(), 9, 4, 4)], pure=True)
    price = policy.begin(1).price
    assert price == pytest.approx(1)
    for _ in range(PRICE_LASTS):
        policy.note(1, 0.01, [], pure=True)
    assert policy.begin(1).price is None


def test_one_slow_step_does_not_make_drafts_dear() -> None:
    policy = DraftPolicy(4)
    for _ in range(SAMPLES + 1):
        policy.begin(1)
        policy.note(1, 0.010, [], pure=True)
    for seconds in (0.011, 0.5, 0.011, 0.011):
        policy.note(1, seconds, [(Drafting(), 9, 4, 4)], pure=True)
    price = policy.begin(1).price
    assert price == pytest.approx(0.025)


def test_steps_that_do_more_than_decode_say_nothing_of_costs() -> None:
    policy = DraftPolicy(4)
    for _ in range(10):
        policy.begin(1)
        policy.note(1, 1.0, [], pure=False)
    assert not policy.begin(1).most
