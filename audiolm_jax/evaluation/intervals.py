"""Intervals of numbers that are ratios of sums, over utterances and over training runs, and of their differences.

Bits per second and character error rates are such ratios: sum of numerators (bits, errors) by sum of denominators
(seconds, characters), the denominators being those of the held-out set, the same for every model. What is estimated is
the mean over training runs (seeds) of the ratio on all speech of this kind; an interval says what other utterances and
other seeds might give.

    utterances  percentile bootstrap: the utterances are drawn with replacement, the same for all seeds and for both
                sides of a difference (Efron 1979; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 13.3;
                for corpus-level speech measures Bisani and Ney, ICASSP 2004)
    seeds       crossed with the utterances: every seed is evaluated on all of them, so the two are drawn apart, as in
                Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007. Few seeds cannot be resampled
                like many utterances: drawn values never leave the range of the two or three there are, and where
                seeds are all that varies a 95 % interval covers 57 % (two seeds) or 73 % (three). What is drawn instead
                is what the resampled mean tends to for many seeds, Student's t with S - 1 degrees of freedom times
                sd / sqrt(S) (Student 1908)
    pairs       a difference is an interval of the differences, utterance by utterance and seed by seed: what an
                utterance or a seed does to both sides alike cancels

What the intervals cover, and what not:

    1 seed      utterances only. Nothing is said about another training run, so a difference whose interval excludes 0
                is one of these two runs
    2 seeds     both, but t with one degree of freedom is so wide that only differences far beyond the spread show
    3 seeds     both. Exact in its seed part if the numbers of many seeds were normally distributed, which three seeds
                cannot show; twice as wide as with many seeds of the same spread
    never       other corpora, codecs, voices, budgets or hyperparameters; the choice among many differences (each
                interval stands alone: of twenty differences that are nothing, one excludes 0)
"""

import dataclasses

import numpy as np

from audiolm_jax.errors import InputError

LEVEL, RESAMPLES = 0.95, 2000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float


def ratio(numerators: np.ndarray, denominators_U: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean over seeds of sum(numerators) / sum(denominators), with its interval.

    Args:
      numerators: [S, U] of S seeds on U utterances, or [U] of one.
      denominators_U: [U], not negative, the same for every seed.
      seed: of the resampling; equal arguments give equal intervals.

    A single utterance has no interval over utterances: its ends are the value, or what the seeds add.

    Raises InputError for shapes that do not fit, values that are not finite, or nothing to divide by.
    """
    interval = _interval(numerators, denominators_U, resamples, seed)
    if np.min(numerators) >= 0:  # few seeds: t reaches below what bits and errors can be
        return dataclasses.replace(interval, low=max(interval.low, 0.0))
    return interval


def _interval(numerators: np.ndarray, denominators_U: np.ndarray, resamples: int, seed: int) -> Interval:
    """`ratio` whose ends may be negative."""
    numerators_SU, denominators_U = _checked(numerators, denominators_U)
    S, U = numerators_SU.shape
    rng = np.random.default_rng(seed)
    # How often each utterance is in each resample: numbered apart, then counted.
    drawn_RU = rng.integers(0, U, (resamples, U)) + U * np.arange(resamples)[:, None]
    times_RU = np.bincount(drawn_RU.ravel(), minlength=resamples * U).reshape(resamples, U)
    times_RU = times_RU[times_RU @ denominators_U > 0]
    means_R = (times_RU @ numerators_SU.mean(axis=0)) / (times_RU @ denominators_U)
    rates_S = rates(numerators_SU, denominators_U)
    if S > 1:
        means_R = means_R + rng.standard_t(S - 1, len(means_R)) * rates_S.std(ddof=1) / np.sqrt(S)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(rates_S.mean()), float(low), float(high))


def difference(
    numerators_a: np.ndarray,
    numerators_b: np.ndarray,
    denominators_U: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`ratio` of a minus that of b, paired over utterances and seeds: row s of both is of the same seed.

    Raises InputError if they are not of the same shape, and see `ratio`.
    """
    a, b = np.asarray(numerators_a, float), np.asarray(numerators_b, float)
    if a.shape != b.shape:
        raise InputError(f"numbers of shapes {a.shape} and {b.shape} cannot be paired; seeds and utterances must match")
    return _interval(a - b, denominators_U, resamples, seed)


def rates(numerators: np.ndarray, denominators_U: np.ndarray) -> np.ndarray:
    """[S]: the ratio of sums of every seed."""
    numerators_SU, denominators_U = _checked(numerators, denominators_U)
    return numerators_SU.sum(axis=1) / denominators_U.sum()


def standard_error(numerators_U: np.ndarray, denominators_U: np.ndarray) -> float:
    """Standard error of a ratio of sums over utterances; nan for one utterance.

    The linearised variance of a ratio of sums (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    [numerators_U], denominators_U = _checked(numerators_U, denominators_U)
    count, total = len(denominators_U), denominators_U.sum()
    if count < 2:
        return float("nan")
    residual_U = numerators_U - numerators_U.sum() / total * denominators_U
    return float(np.sqrt(count / (count - 1) * np.square(residual_U).sum()) / total)


def spread(values_S: np.ndarray) -> dict[str, float | None]:
    """{"sd", "min", "max"} over seeds; sd (of the sample: divided by S - 1) is None for one seed."""
    values_S = np.asarray(values_S, float)
    sd = float(values_S.std(ddof=1)) if len(values_S) > 1 else None
    return {"sd": sd, "min": float(values_S.min()), "max": float(values_S.max())}


def _checked(numerators: np.ndarray, denominators_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numerators_SU, denominators_U = np.atleast_2d(np.asarray(numerators, float)), np.asarray(denominators_U, float)
    if numerators_SU.ndim != 2 or numerators_SU.shape[1:] != denominators_U.shape:
        raise InputError(
            f"numerators of shape {np.shape(numerators)} do not fit denominators of shape {denominators_U.shape}; "
            "they must be [seeds, utterances] and [utterances]"
        )
    if not (np.isfinite(numerators_SU).all() and np.isfinite(denominators_U).all()):
        raise InputError("an interval was asked for numbers that are not all finite")
    if (denominators_U < 0).any() or denominators_U.sum() <= 0:
        raise InputError("the denominators of a ratio (seconds, characters) must not be negative nor all 0")
    return numerators_SU, denominators_U
