"""Samples of a trained strategy against the distribution that they should have (evaluation/samples.py).

Four ways to sample, each with rows of unequal texts, lengths and sources in one batch:

    plain       from the text alone
    prompted    after 0 to 2 frames of a grid of the source
    guided      as plain, in batches where other rows use guidance: those without it must not notice
    streamed    in chunks of two steps; must equal `plain` code by code
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from audiolm_jax import serialization
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.spec import Spec
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.sampling.requests import Request
from audiolm_jax.serialization import SerializationConfig, text
from experiments.entropy_floor import floor, samples, sources

COUNT = 2400  # samples of each way, over all sources
BATCH = 120
LEVEL = 0.001  # probability of any false alarm in one run, over all tests

# Sources on which the completion of a prompt has the source's own distribution. On (e) only `flat` has seen the whole
# prompt when it predicts the first new cell; on (f) `masked` predicts the length without looking at the prompt; and
# an order that loses something by itself has no such distribution.
PROMPTED = {"flat": "abcdef", "parallel": "ac", "delay": "abcdf", "coarse_first": "abcdf", "hierarchical": "abf"}
PROMPTED |= {"masked": "abcd", "depth": "abcdf"}


class NoCodec:
    """The grids are not made from audio; `Generator.progress` gives codes."""

    codebooks, codebook_size = sources.CODEBOOKS, sources.CODEBOOK_SIZE


def test(order: SerializationConfig, run: Path, vocab, config, bits: dict[str, dict]) -> list[dict]:
    """Every statistic of every source and way: [{"source", "way", "statistic", "p", "samples"}, ...]."""
    grid = serialization.bind(order, sources.CODEBOOKS)
    with jax.set_mesh(sharding.single_device_mesh()):
        model, _ = checkpoints.restore_params(run)
    generator = Generator(model, Spec(model.config, vocab, order, data=config), NoCodec)
    option = SamplingConfig(temperature=(1.0,), one_pass_temperature=1.0, length_temperature=1.0, confidence_noise=1e6)
    found, rng = [], np.random.default_rng(2)

    asked = [(said, 0, None) for said, _ in sources.draw(rng, COUNT)]
    plain = draw(generator, asked, option, [option.guidance])
    found += judge("plain", grid, asked, plain, bits)
    streamed = draw(generator, asked[:BATCH], dataclasses.replace(option, chunk=2), [option.guidance])
    same = all(np.array_equal(a, b) for a, b in zip(plain, streamed, strict=False))
    found.append({"source": "all", "way": "streamed", "statistic": "equals plain", "p": float(same), "samples": BATCH})

    guided = draw(generator, asked, option, [1.0, 2.0])
    found += judge("guided", grid, asked[::2], guided[::2], bits)

    # No grid is shorter than 2 frames, so a prompt of that many does not say that there are more; one that the length
    # is predicted for must leave room for a frame.
    asked, longest = [], 2 if grid.causal_levels else 1
    # Without delays depth sees, like `flat`, the whole prompt.
    letters = PROMPTED["flat" if grid.depth and not any(order.delays) else order.strategy]
    for said, number in sources.draw(rng, COUNT, letters):
        codes_TQ = sources.outcomes(said).grid(number)
        asked.append((said, int(rng.integers(0, longest + 1)), codes_TQ))
    found += judge("prompted", grid, asked, draw(generator, asked, option, [option.guidance]), bits)
    return found


def draw(generator, asked: list, option: SamplingConfig, guidance: list[float]) -> list[np.ndarray]:
    """Codes [T, Q] of one sample per (text, frames of prompt, grid of the prompt); guidance in turn over the rows."""
    grids = []
    for start in range(0, len(asked), BATCH):
        requests = []
        for row, (said, count, codes_TQ) in enumerate(asked[start : start + BATCH]):
            prompt_TQ = np.zeros((0, sources.CODEBOOKS), np.int32) if codes_TQ is None else codes_TQ[:count]
            rules = dataclasses.replace(option, guidance=guidance[row % len(guidance)])
            requests.append(Request((("text", text.encode(said)),), prompt_TQ, None, start + row, rules))
        *_, last = generator.progress(requests)
        grids += [codes[:frames] for codes, frames in zip(last.codes_BFQ, last.frames_B, strict=True)]
    return grids


def judge(way: str, grid, asked: list, grids: list[np.ndarray], bits: dict[str, dict]) -> list[dict]:
    found = []
    for letter in sources.SOURCES:
        rows = [(said, codes) for (said, _, _), codes in zip(asked, grids, strict=True) if said[0] == letter]
        if not rows:
            continue
        measured = bits[letter]
        for statistic in samples.STATISTICS:
            right = expected(letter, statistic, grid, measured["tag"] == "bound")
            observed = [samples.category(said, statistic, codes_TQ) for said, codes_TQ in rows]
            p = samples.p_value(right, observed, measured["excess_bits_per_grid_at_most"])
            found.append({"source": letter, "way": way, "statistic": statistic, "p": p, "samples": len(rows)})
    return found


@functools.cache
def expected(letter: str, statistic: str, grid, bound: bool) -> dict:
    """{category: probability} under the best model of the order; the same for every way of sampling."""
    return samples.expected(statistic, probabilities(letter, grid, bound))


@functools.cache
def probabilities(letter: str, grid, bound: bool) -> dict[str, np.ndarray]:
    """Of every grid of every text."""
    return {
        said: chance * 2.0 ** -floor.ideal(sources.outcomes(said), grid, bound).bits_N
        for said, chance in sources.texts(letter).items()
    }


def level(tests: dict[str, list[dict]]) -> float:
    """What a p-value must reach: `LEVEL` over the number of tests (Bonferroni)."""
    return LEVEL / sum(len(rows) for rows in tests.values())


def table(tests: dict[str, list[dict]]) -> str:
    """The smallest p-value of every strategy, way and source."""
    ways = list(dict.fromkeys((row["way"], row["source"]) for rows in tests.values() for row in rows))
    lines = [
        f"Samples against the source: smallest p-value of {len(samples.STATISTICS)} statistics each.",
        f"One below {level(tests):.1e} fails (level {LEVEL} over all tests).",
        f"{'way':10s} {'source':7s} " + " ".join(f"{name:>13s}" for name in tests),
    ]
    for way, source in ways:
        cells = []
        for rows in tests.values():
            some = [row["p"] for row in rows if (row["way"], row["source"]) == (way, source)]
            cells.append("-" if not some else f"{min(some):.1e}" + (" FAILS" if min(some) < level(tests) else ""))
        lines.append(f"{way:10s} {source:7s} " + " ".join(f"{cell:>13s}" for cell in cells))
    return "\n".join(lines)
