"""How often intervals cover a known truth: prints two Markdown tables (README.md)."""

import concurrent.futures
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import special

from audiolm_jax.evaluation import intervals

REPETITIONS, RESAMPLES = 10_000, 400
BOOTSTRAPS = 2000  # of the repetitions: every one costs more than all the rest
COUNTS, SEEDS, SHARES = (2, 4, 10, 20, 24, 30, 50, 100, 200), (3, 5, 10), (0.0, 0.5, 1.0, 2.0, 5.0)
ABLATION = Path(__file__).resolve().parents[1] / "serialization_ablation" / "results.json"


def populations(rng: np.random.Generator, size: int = 200_000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> numerators and denominators of many utterances."""
    seconds = rng.uniform(0.5, 3, size)
    rates = {
        "normal": 10 + rng.normal(size=size),
        "heavy tails (t, 5)": 10 + rng.standard_t(5, size),
        "skewed (log-normal, 0.5)": np.exp(0.5 * rng.normal(size=size)),
        "skewed (exponential)": rng.exponential(size=size),
    }
    found = {name: (rate * seconds, seconds) for name, rate in rates.items()}
    ablation = json.loads(ABLATION.read_text())
    held = {key: np.array(values, float) for key, values in ablation["held_out"].items()}
    runs = {entry["name"]: entry["seeds"] for entry in ablation["strategies"]}

    def pooled(name: str, key: str) -> np.ndarray:
        return np.concatenate([np.array(run[key], float) for run in runs[name]])

    def pair(name: str, minus: str, key: str, denominators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = pooled(name, key) - (pooled(minus, key) if minus else 0)
        return values, np.tile(denominators, len(values) // len(denominators))

    for name, minus in (("flat", ""), ("masked", ""), ("delay", "flat"), ("masked", "parallel")):
        title = f"{name} - {minus}" if minus else name
        found[f"bits, {title}"] = pair(name, minus, "utterance_bits", held["utterance_seconds"])
    for name, minus in (("masked", ""), ("hierarchical", ""), ("flat", ""), ("hierarchical", "flat")):
        values = pair(name, minus, "sentence_errors", held["sentence_characters"])
        title = f"{name} - {minus}" if minus else f"{name} ({np.mean(values[0] > 0):.0%} of sentences)"
        found[f"errors, {title}"] = values
    return found


def interval(numerators: np.ndarray, denominators: np.ndarray) -> intervals.Interval:
    """`ratio` of numbers that are not negative, else `difference`."""
    if np.min(numerators) >= 0:
        return intervals.ratio(numerators, denominators)
    return intervals.difference(numerators, np.zeros_like(numerators), denominators)


def utterances(name: str) -> str:
    """A row of the first table, drawn from the population `name`."""
    found = populations(np.random.default_rng(0))
    numerators, denominators = found[name]
    rng, truth, cells = np.random.default_rng([1, list(found).index(name)]), numerators.sum() / denominators.sum(), []
    for count in COUNTS:
        covered, drawn = np.zeros(3), rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
        quantile = special.stdtrit(count - 1, 0.975)
        for repetition in range(REPETITIONS):
            chosen = rng.integers(0, len(numerators), count)
            top, bottom = numerators[chosen], denominators[chosen]
            if repetition < BOOTSTRAPS:
                low, high = np.quantile(drawn @ top / (drawn @ bottom), [0.025, 0.975])
                covered[0] += low <= truth <= high
            error = abs(top.sum() / bottom.sum() - truth)
            covered[1] += error <= quantile * intervals.standard_error(top, bottom)
            if not intervals.lacking(count):
                ours = interval(top, bottom)
                covered[2] += ours.low is not None and ours.low <= truth <= ours.high
        last = "none" if intervals.lacking(count) else f"{covered[2] / REPETITIONS:.1%}"
        cells.append(f"{covered[0] / BOOTSTRAPS:.0%} / {covered[1] / REPETITIONS:.0%} / {last}")
    return f"| {name} | {' | '.join(cells)} |"


def seeds(number: int, count: int = 60) -> str:
    """A row of the second: skewed utterances and normal seeds, whose standard errors have the ratio of each column."""
    rng, cells = np.random.default_rng([2, number]), []
    for share in SHARES:
        covered = 0
        for _ in range(REPETITIONS):
            seconds = rng.uniform(0.5, 3, count)
            common = rng.exponential(size=count)
            own = share / np.sqrt(count) * np.sqrt(number) * rng.normal(size=(number, 1))
            noise = 0.3 * rng.normal(size=(number, count))
            found = intervals.ratio((20 + common + own + noise) * seconds, seconds)
            covered += found.low <= 21 <= found.high
        cells.append(f"{covered / REPETITIONS:.1%}")
    return f"| {number} seeds | {' | '.join(cells)} |"


def head(first: str, columns: Iterable) -> str:
    columns = list(map(str, columns))
    return f"| {first} | {' | '.join(columns)} |\n|---|" + "--:|" * len(columns)


def main(workers: int | None = None) -> None:
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        found = pool.map(utterances, populations(np.random.default_rng(0))), pool.map(seeds, SEEDS)
        print(head("utterances: bootstrap / t / intervals", COUNTS), *found[0], sep="\n", flush=True)
        title = "60 utterances and seeds, whose standard error is"
        print("", head(title, (f"{share:g} times" for share in SHARES)), *found[1], sep="\n")


if __name__ == "__main__":
    main()
