"""The numbers that decide draws."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from sagellm_core.core.plan import NewSequence, TokenSampling
from sagellm_core.executor.base import CacheLayout
from sagellm_core.executor.sampling import SamplingBatches, uniforms
from sagellm_core.executor.slots import Slots

SEEDS = st.integers(0, 2**64 - 1)


@given(seeds=st.lists(SEEDS, min_size=1, max_size=20), position=st.integers(0, 10**6))
def test_a_number_does_not_depend_on_its_neighbours(seeds: list[int], position: int) -> None:
    together = uniforms(seeds, np.full(len(seeds), position))
    alone = [uniforms([seed], np.array([position]))[0] for seed in seeds]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


def test_numbers_of_one_seed_and_of_neighbouring_seeds_are_spread_evenly_and_unrelated() -> None:
    count = 4096
    positions = np.arange(count)
    by_position = uniforms([1234] * count, positions)
    by_seed = uniforms(range(count), np.zeros(count, dtype=np.int64))
    for numbers in (by_position, by_seed):
        counts, _ = np.histogram(numbers, bins=16, range=(0, 1))
        # 5 standard deviations of a binomial count.
        assert np.abs(counts - count / 16).max() < 5 * np.sqrt(count / 16)
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / np.sqrt(count)


def test_streams_of_seeds_are_not_shifts_of_each_other() -> None:
    positions = np.arange(64)
    golden = 0x9E3779B97F4A7C15
    one, other = uniforms([5] * 64, positions), uniforms([(5 + golden) % 2**64] * 64, positions)
    assert not set(one) & set(other)


def test_a_seeded_number_never_changes_between_versions() -> None:
    numbers = uniforms([0, 0, 1, 2**64 - 1], np.array([0, 1, 0, 7]))
    assert [round(float(number), 12) for number in numbers] == [
        0.883310808214,
        0.431527997049,
        0.749748241358,
        0.77414454954,
    ]


def test_draws_follow_seed_and_position_while_neighbours_come_and_go() -> None:
    slots = Slots(CacheLayout(num_blocks=8, block_size=16, max_num_seqs=3, max_model_len=128), groups=1)
    seeds, produced = {0: 7, 1: 2**64 - 1, 2: 11}, dict.fromkeys(range(3), 0)
    batches = SamplingBatches(slots)
    slots.add(NewSequence(0, [1, 2, 3], TokenSampling(seed=seeds[0])))
    slots.add(NewSequence(1, [4], TokenSampling(seed=seeds[1])))
    for step in range(90):
        if step == 40:
            slots.add(NewSequence(2, [5, 6], TokenSampling(seed=seeds[2]), output=[8] * 5))
            produced[2] = 5
        rows = [0] if step == 50 else [1, 0] if step < 40 else [2, 0] if step > 60 else [0, 1, 2]
        if step == 61:
            slots.drop(1)
        want = uniforms([seeds[slot] for slot in rows], np.array([produced[slot] for slot in rows]))
        assert list(batches.batch(rows).uniform) == want.tolist()
        slots.append(rows, [9] * len(rows))
        for slot in rows:
            produced[slot] += 1


def test_penalties_and_bans_see_what_was_produced_last() -> None:
    slots = Slots(CacheLayout(num_blocks=8, block_size=16, max_num_seqs=2, max_model_len=128), groups=1)
    batches = SamplingBatches(slots)
    asked = TokenSampling(temperature=0, presence_penalty=1.0, bad_words=((5, 6),), min_tokens=2, end_ids=(3,))
    slots.add(NewSequence(0, [1, 2], asked))
    slots.add(NewSequence(1, [4], TokenSampling(temperature=0)))
    seen = []
    for token in (5, 7, 5):
        batch = batches.batch([0, 1])
        seen.append((list(batch.output_tokens[0]), list(batch.banned[0]), list(batch.banned[1])))
        slots.append([0, 1], [token, token])
    assert seen == [([], [3], []), ([5], [3, 6], []), ([5, 7], [], [])]
