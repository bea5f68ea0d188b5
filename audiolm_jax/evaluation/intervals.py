"""Intervals of numbers that are ratios of sums, over utterances and over training runs, and of their differences.

Bits per second and character error rates are such ratios: sum of numerators (bits, errors) by sum of denominators
(seconds, characters), the denominators being those of the held-out set, the same for every model. What is estimated is
the mean over training runs (seeds) of the ratio on all speech of this kind; an interval says what other utterances and
other seeds might give. With one seed the estimate is the ratio of that run.

    utterances  Student's t with U - 1 degrees of freedom times the linearised standard error of a ratio of sums
                (Cochran, Sampling Techniques, 1977, section 6.4). Numbers of utterances are skewed (many sentences
                without an error, a few with many), which t does not know: an end moves outward by the first-order
                correction of N. J. Johnson (J. Am. Stat. Assoc. 73, 1978), never inward. The cubic transformation of
                P. Hall (J. R. Statist. Soc. B 54, 1992) covers too often where errors are rare
    seeds       crossed with the utterances: every seed is evaluated on all of them. The variance of the mean over
                seeds, sd^2 / S, is added to that over utterances. Its quantile is WELCH times that of Welch
                (Biometrika 34, 1947), which covers a little too seldom with three seeds, and the rest that of Cochran
                and Cox (Experimental Designs, 1950), which covers too often
    pairs       a difference is an interval of the differences, utterance by utterance and seed by seed: what an
                utterance or a seed does to both sides alike cancels

Below UTTERANCES utterances, with two seeds, and where no utterance has an error there is no interval (`lacking`).
`experiments/interval_coverage` measures how often the intervals cover the truth: 93 to 97 of 100 times, and 89 to 98
where only a few of 20 or 30 utterances have an error.

What they cover, and what not:

    1 seed      utterances only. Nothing is said about another training run, so a difference whose interval excludes 0
                is one of these two runs, not of their strategies: a verdict takes SEEDS seeds
    3 seeds     both. Right in its seed part if the numbers of many seeds were normally distributed, which three seeds
                cannot show; twice as wide as with many seeds of the same spread
    never       other corpora, codecs, voices, budgets or hyperparameters; the choice among many differences (each
                interval stands alone: of twenty differences that are nothing, one excludes 0)
"""

import dataclasses

import numpy as np

from audiolm_jax.errors import InputError

LEVEL = 0.95
UTTERANCES, SEEDS = 20, 3  # fewer have no interval, and no verdict
SKEWNESS = 1.1  # times the first-order correction: that of a few numbers is mostly less than what they are drawn from
WELCH = 0.7  # weight of the quantile with which three seeds cover too seldom; the other one has the rest


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and the ends of its interval, None where there is none."""

    value: float
    low: float | None
    high: float | None


def lacking(utterances: int, seeds: int = 1) -> str:
    """The reason why there is no interval, such as "1 utterance"; "" where there is one."""
    if utterances < UTTERANCES:
        return f"{utterances} utterance{'s' * (utterances != 1)}"
    return f"{seeds} seeds" if 1 < seeds < SEEDS else ""


def text(interval: Interval, form: str = "{:.1f}", utterances: int = UTTERANCES, seeds: int = 1) -> str:
    """ "(1.0 .. 2.0)", or "(no interval: 1 utterance)" of so many utterances and seeds."""
    if interval.low is None or interval.high is None:
        return f"(no interval: {lacking(utterances, seeds) or 'no errors'})"
    return f"({form.format(interval.low)} .. {form.format(interval.high)})"


def ratio(numerators: np.ndarray, denominators_U: np.ndarray) -> Interval:
    """The mean over seeds of sum(numerators) / sum(denominators), with its interval.

    Args:
      numerators: [S, U] of S seeds on U utterances, or [U] of one.
      denominators_U: [U], not negative, the same for every seed.

    Raises InputError for shapes that do not fit, values that are not finite, or nothing to divide by.
    """
    interval = _interval(numerators, denominators_U)
    if not np.any(numerators):  # the width would be 0, which is not what is known of errors
        return Interval(interval.value, None, None)
    if interval.low is not None and np.min(numerators) >= 0:  # few seeds: t reaches below what bits and errors can be
        return dataclasses.replace(interval, low=max(interval.low, 0.0))
    return interval


def _interval(numerators: np.ndarray, denominators_U: np.ndarray) -> Interval:
    """`ratio` whose ends may be negative."""
    from scipy import special  # not needed to speak, and slow to import

    numerators_SU, denominators_U = _checked(numerators, denominators_U)
    S, U = numerators_SU.shape
    rates_S, mean_U = rates(numerators_SU, denominators_U), numerators_SU.mean(axis=0)
    value, level = float(rates_S.mean()), (1 + LEVEL) / 2
    if lacking(U, S):
        return Interval(value, None, None)
    residual_U, quantile = mean_U - value * denominators_U, special.stdtrit(U - 1, level)
    error = standard_error(mean_U, denominators_U)
    variance_S = float(rates_S.var(ddof=1)) / S if S > 1 else 0.0
    reach = []
    for stretched in _skewed(residual_U, quantile) / quantile:
        variance_U = (stretched * error) ** 2
        total = variance_U + variance_S
        if variance_S:
            freedom = total**2 / (variance_U**2 / (U - 1) + variance_S**2 / (S - 1))
            welch, few = special.stdtrit(freedom, level), special.stdtrit(S - 1, level)
            cochran = (variance_U * quantile + variance_S * few) / total
            reach.append((WELCH * welch + (1 - WELCH) * cochran) * np.sqrt(total))
        else:
            reach.append(quantile * np.sqrt(total))
    return Interval(value, float(value - reach[0]), float(value + reach[1]))


def _skewed(residual_U: np.ndarray, quantile: float) -> np.ndarray:
    """How many standard errors the mean of these may lie below and above its estimate: `quantile` or more."""
    U, largest = len(residual_U), np.abs(residual_U).max()
    square, cube = (np.mean((residual_U / (largest or 1)) ** power) for power in (2, 3))
    skewness = cube / (square or 1) ** 1.5 * np.sqrt(U - 1) / (U - 2)  # divided by the root of U
    outward = SKEWNESS * skewness * (2 * quantile**2 + 1) / 6
    return quantile + np.maximum([-outward, outward], 0)


def difference(numerators_a: np.ndarray, numerators_b: np.ndarray, denominators_U: np.ndarray) -> Interval:
    """`ratio` of a minus that of b, paired over utterances and seeds: row s of both is of the same seed.

    Raises InputError if they are not of the same shape, and see `ratio`.
    """
    a, b = np.asarray(numerators_a, float), np.asarray(numerators_b, float)
    if a.shape != b.shape:
        raise InputError(f"numbers of shapes {a.shape} and {b.shape} cannot be paired; seeds and utterances must match")
    return _interval(a - b, denominators_U)


def rates(numerators: np.ndarray, denominators_U: np.ndarray) -> np.ndarray:
    """[S]: the ratio of sums of every seed."""
    numerators_SU, denominators_U = _checked(numerators, denominators_U)
    return numerators_SU.sum(axis=1) / denominators_U.sum()


def standard_error(numerators_U: np.ndarray, denominators_U: np.ndarray) -> float:
    """Standard error of a ratio of sums over utterances, linearised; nan for one utterance."""
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
