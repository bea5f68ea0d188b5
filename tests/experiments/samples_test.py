"""The test of samples: it raises no false alarm at its level, and it finds what is wrong."""

import numpy as np
import pytest

from experiments.entropy_floor import samples, sources

TEXT = "d"


def truth():
    return {TEXT: sources.outcomes(TEXT).probability_N}


def draw(probability_N, count, seed):
    rng = np.random.default_rng(seed)
    return rng.choice(len(probability_N), count, p=probability_N / probability_N.sum())


def tilted(strength):
    """The source with a preference for grids that begin with code 1, and its divergence from the source in bits."""
    listed = sources.outcomes(TEXT)
    p_N = listed.probability_N * np.where(listed.codes_NTQ[:, 0, 0] == 1, 1 + strength, 1.0)
    p_N /= p_N.sum()
    return p_N, float(listed.probability_N @ np.log2(listed.probability_N / p_N))


def p_of(statistic, probability_N, count, seed, excess):
    every = samples.categories(TEXT, statistic)
    observed = [every[number] for number in draw(probability_N, count, seed)]
    return samples.p_value(samples.expected(statistic, truth()), observed, excess)


@pytest.mark.parametrize("statistic", ["first frame", "last transition of codebook 1"])
def test_false_alarms_are_as_rare_as_the_level_says(statistic):
    p_R = np.array([p_of(statistic, truth()[TEXT], 300, seed, 0.0) for seed in range(100)])
    # The doubling for two parts halves the level: 2.5 are expected, five standard errors more are 10.
    assert (p_R < 0.05).sum() <= 10
    assert (p_R < 0.5).sum() >= 10


def test_an_imperfect_network_is_no_alarm_if_its_excess_is_known():
    p_N, excess = tilted(0.3)
    known = [p_of("first frame", p_N, 3000, seed, excess) for seed in range(20)]
    unknown = [p_of("first frame", p_N, 3000, seed, 0.0) for seed in range(20)]
    assert min(known) > 1e-3
    assert max(unknown) < 1e-3


def test_twice_the_excess_that_was_measured_is_found():
    p_N, _ = tilted(0.8)
    _, measured = tilted(0.3)
    assert max(p_of("first frame", p_N, 3000, seed, measured) for seed in range(5)) < 1e-4


def test_grids_that_the_source_cannot_give():
    expected = samples.expected("length", truth())
    inside = [(3,)] * 20 + [(2,)] * 10 + [(4,)] * 30 + [(5,)] * 40
    assert samples.p_value(expected, inside, 0.0) > 0.5
    assert samples.p_value(expected, [*inside, (9,)], 0.0) == 0
    assert samples.p_value(expected, [*inside, (9,)], 0.02) > 0.1
    assert samples.p_value(expected, inside + [(9,)] * 10, 0.02) < 1e-3


def test_what_an_order_cannot_help_is_expected_outside():
    """Half of the mass outside the source is no alarm where half is expected there."""
    expected = samples.expected("length", {TEXT: 0.5 * truth()[TEXT]})
    lengths = samples.categories(TEXT, "length")
    observed = [lengths[number] for number in draw(truth()[TEXT], 500, 0)]
    assert samples.p_value(expected, observed + [(99,)] * 500, 0.0) > 1e-3
    assert samples.p_value(expected, observed + [(99,)] * 700, 0.0) < 1e-4


def test_a_grid_of_likely_frames_in_an_impossible_order_is_outside():
    codes_TQ = sources.outcomes(TEXT).grid(0).copy()
    assert samples.category(TEXT, "length", codes_TQ) == (len(codes_TQ),)
    codes_TQ[0, 0] = 2  # the first frame follows zeros: 0 or 1
    assert samples.category(TEXT, "length", codes_TQ) == samples.OUTSIDE
    assert samples.category(TEXT, "last frame", codes_TQ[:1]) == samples.OUTSIDE
