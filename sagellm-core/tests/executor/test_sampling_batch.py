"""The numbers that decide draws."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from sagellm_core.executor.sampling import uniforms

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
