"""Intervals cover the truth as often as they say, pairing narrows them, and few seeds make them wide."""

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import intervals

SIMULATIONS = 400


def simulate(rng, seeds, utterances, across_seeds, across_utterances, noise=0.1):
    """Bits [S, U] and seconds [U] of a model whose bits per second are 10 in the mean over all seeds and speech."""
    seconds_U = rng.uniform(0.5, 2, utterances)
    rates_SU = (
        10
        + across_seeds * rng.normal(size=(seeds, 1))
        + across_utterances * rng.standard_t(8, size=utterances)
        + noise * rng.normal(size=(seeds, utterances))
    )
    return rates_SU * seconds_U, seconds_U


@pytest.mark.parametrize(
    ("seeds", "across_seeds", "across_utterances"),
    [(1, 0.0, 1.0), (2, 0.2, 1.0), (3, 0.3, 0.0), (3, 0.3, 1.0), (20, 0.3, 0.5)],
)
def test_an_interval_covers_the_truth_as_often_as_it_says(seeds, across_seeds, across_utterances):
    rng = np.random.default_rng(0)
    results = [
        intervals.ratio(*simulate(rng, seeds, 40, across_seeds, across_utterances), resamples=400, seed=n)
        for n in range(SIMULATIONS)
    ]
    covered = np.mean([interval.low <= 10 <= interval.high for interval in results])
    assert 0.90 <= covered <= 0.99


def test_one_seed_says_nothing_about_others():
    """The docstring's warning: with one seed, an interval over utterances misses what seeds do."""
    rng = np.random.default_rng(0)
    results = [intervals.ratio(*simulate(rng, 1, 40, 0.5, 1.0), resamples=400) for _ in range(SIMULATIONS)]
    assert np.mean([interval.low <= 10 <= interval.high for interval in results]) < 0.6


def test_a_difference_covers_its_truth_and_pairing_narrows_it():
    """Two models on the same utterances from the same seeds; b needs 0.3 bits more, the rest is mostly shared."""
    rng = np.random.default_rng(1)
    covered, widths = [], []
    for number in range(SIMULATIONS):
        a_SU, seconds_U = simulate(rng, 3, 40, 0.3, 1.0)
        b_SU = a_SU + (0.3 + 0.1 * rng.normal(size=(3, 1)) + 0.2 * rng.normal(size=(3, 40))) * seconds_U
        interval = intervals.difference(a_SU, b_SU, seconds_U, resamples=400, seed=number)
        covered.append(interval.low <= -0.3 <= interval.high)
        apart = [intervals.ratio(single, seconds_U, resamples=400, seed=number) for single in (a_SU, b_SU)]
        widths.append((interval.high - interval.low, np.hypot(*(single.high - single.low for single in apart))))
    assert 0.90 <= np.mean(covered) <= 0.99
    paired, unpaired = np.median(widths, axis=0)
    assert paired < 0.5 * unpaired


def test_values_are_ratios_of_sums_and_equal_arguments_give_equal_intervals():
    rng = np.random.default_rng(2)
    errors_SU, characters_U = rng.integers(0, 9, (3, 24)), rng.integers(5, 40, 24)
    interval = intervals.ratio(errors_SU, characters_U)
    assert interval.value == pytest.approx(np.mean([row.sum() / characters_U.sum() for row in errors_SU]))
    assert interval.low < interval.value < interval.high
    assert interval == intervals.ratio(errors_SU, characters_U)
    assert interval != intervals.ratio(errors_SU, characters_U, seed=1)
    np.testing.assert_allclose(intervals.rates(errors_SU, characters_U).mean(), interval.value)
    single = intervals.ratio(errors_SU[0], characters_U)
    assert single == intervals.ratio(errors_SU[:1], characters_U)
    same = intervals.difference(errors_SU, errors_SU, characters_U)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert intervals.difference(errors_SU + 5, errors_SU, characters_U).low > 0


def test_the_ends_of_few_seeds_stay_possible():
    """t with one degree of freedom reaches below 0, which bits and errors cannot; differences can."""
    bits_SU, seconds_U = np.array([[1.0] * 9, [3.0] * 9]), np.ones(9)
    interval = intervals.ratio(bits_SU, seconds_U)
    assert interval.low == 0 and interval.high > 10
    assert intervals.difference(bits_SU, np.ones((2, 9)), seconds_U).low < -5


def test_one_utterance_has_no_interval_and_characters_may_be_missing():
    interval = intervals.ratio([3.0], [2.0])
    assert (interval.value, interval.low, interval.high) == (1.5, 1.5, 1.5)
    interval = intervals.ratio([1, 0, 2], [4, 0, 0])  # two of three draws may hold nothing to divide by
    assert np.isfinite([interval.low, interval.high]).all()
    assert np.isnan(intervals.standard_error([3.0], [2.0]))


def test_standard_error_is_what_the_bootstrap_finds():
    bits_SU, seconds_U = simulate(np.random.default_rng(3), 1, 200, 0.0, 1.0)
    interval = intervals.ratio(bits_SU, seconds_U, resamples=4000)
    assert (interval.high - interval.low) / 3.92 == pytest.approx(
        intervals.standard_error(bits_SU, seconds_U), rel=0.06
    )


def test_spread_over_seeds():
    assert intervals.spread([1.0, 2.0, 3.0]) == {"sd": 1.0, "min": 1.0, "max": 3.0}
    assert intervals.spread([2.0]) == {"sd": None, "min": 2.0, "max": 2.0}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([1.0, 2.0], [1.0]), "do not fit"),
        (([np.nan, 1.0], [1.0, 1.0]), "not all finite"),
        (([1.0, 1.0], [0.0, 0.0]), "not be negative nor all 0"),
    ],
)
def test_numbers_without_a_ratio_are_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        intervals.ratio(*arguments)
    with pytest.raises(InputError, match="cannot be paired"):
        intervals.difference(np.ones((2, 3)), np.ones((3, 3)), np.ones(3))
