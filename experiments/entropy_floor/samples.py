"""Do sampled grids follow the distribution that they should? Tests of samples against a source that can be listed.

A sample falls into one category of a statistic (its length, its first frame, ...), whose true probability is a sum
over the list of all grids. Grids that the source cannot give are a category of their own.

The sampled network is not perfect: it was measured to need at most `excess` bits per grid more than the best model of
its order (an upper confidence limit: the mean on held-out grids has an error, and may even be below zero). That is the
Kullback-Leibler divergence from that model to it, and no statistic can diverge by more (data processing inequality).
So the null hypothesis is: the samples come from a distribution whose divergence is at most `excess`. Under it

- Pearson's statistic of n samples is, to second order, a noncentral chi-square variable with noncentrality at most
  2 n excess ln 2 (Kendall and Stuart, The Advanced Theory of Statistics, volume 2, section 30.27);
- a share of at most 1 - 2^-excess of the samples lies outside what the best model gives.

Samples are independent and each counts once per statistic, so nothing is assumed about dependence inside a grid.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from experiments.entropy_floor import sources

OUTSIDE = "outside"

# Functions of one grid, codes [T, Q] of at least 2 frames.
STATISTICS: dict[str, Callable[[np.ndarray], tuple]] = {
    "length": lambda codes_TQ: (len(codes_TQ),),
    "first frame": lambda codes_TQ: tuple(codes_TQ[0]),
    "last frame": lambda codes_TQ: tuple(codes_TQ[-1]),
    "last transition of codebook 0": lambda codes_TQ: tuple(codes_TQ[-2:, 0]),
    "last transition of codebook 1": lambda codes_TQ: tuple(codes_TQ[-2:, 1]),
    "last transition of codebook 2": lambda codes_TQ: tuple(codes_TQ[-2:, 2]),
    "from finest to coarsest": lambda codes_TQ: (codes_TQ[-2, -1], codes_TQ[-1, 0]),
    "durations": lambda codes_TQ: tuple(len(list(run)) for _, run in itertools.groupby(codes_TQ[:, 0])),
}


@functools.cache
def categories(text: str, statistic: str) -> tuple:
    """The category of every grid in `sources.outcomes(text)`."""
    listed = sources.outcomes(text)
    return tuple(STATISTICS[statistic](listed.grid(number)) for number in range(len(listed.frames_N)))


@functools.cache
def _grids(text: str) -> frozenset[bytes]:
    listed = sources.outcomes(text)
    return frozenset(listed.grid(number).tobytes() for number in range(len(listed.frames_N)))


def category(text: str, statistic: str, codes_TQ: np.ndarray) -> tuple | str:
    """Of a sample made from `text`: `OUTSIDE` if the source cannot give it."""
    codes_TQ = np.ascontiguousarray(codes_TQ, np.int32)
    return STATISTICS[statistic](codes_TQ) if codes_TQ.tobytes() in _grids(text) else OUTSIDE


def expected(statistic: str, probability: dict[str, np.ndarray]) -> dict:
    """{category: probability}, summed over texts.

    probability: for each text, of every grid in `sources.outcomes(text)`, [N], under the best model of an order, times
    the probability of the text. What is missing from one is `OUTSIDE`.
    """
    found: dict = collections.defaultdict(float)
    for text, p_N in probability.items():
        for category, p in zip(categories(text, statistic), p_N.tolist(), strict=True):
            found[category] += p
    return {**found, OUTSIDE: max(0.0, 1 - sum(found.values()))}


def p_value(expected: dict, observed: Sequence[tuple | str], excess: float) -> float:
    """Probability, under the hypothesis above, of samples at least as far from `expected` as `observed`, the
    `category` of each.

    Where grids outside the source are rare, their share is tested apart and the smaller of both p-values is doubled
    (Bonferroni). Categories with fewer than 5 expected samples are counted together.
    """
    excess, seen = max(excess, 0.0), collections.Counter(c if c in expected else OUTSIDE for c in observed)
    left, count, p_outside = dict(expected), len(observed), 1.0
    if count * expected[OUTSIDE] < 5:
        most = 1 - (1 - left.pop(OUTSIDE)) * 2.0**-excess
        outside = seen.pop(OUTSIDE, 0)
        p_outside = float(stats.binom.sf(outside - 1, count, most)) if outside else 1.0
        count -= outside
    total = sum(left.values())
    mean_C = count / total * np.array(list(left.values()))
    count_C = np.array([seen[category] for category in left])
    common_C = mean_C >= 5
    mean_C, count_C = (np.append(x[common_C], x[~common_C].sum()) for x in (mean_C, count_C))
    mean_C, count_C = mean_C[mean_C > 0], count_C[mean_C > 0]
    p_inside = 1.0
    if len(mean_C) > 1:
        pearson, freedom = float(np.sum((count_C - mean_C) ** 2 / mean_C)), len(mean_C) - 1
        shift = 2 * count * excess * np.log(2)
        p_inside = float(stats.ncx2.sf(pearson, freedom, shift) if shift > 0 else stats.chi2.sf(pearson, freedom))
    return min(1.0, 2 * min(p_outside, p_inside))
