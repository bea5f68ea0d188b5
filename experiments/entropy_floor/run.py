"""Every strategy on every source: the floor, what the order can reach, what training reached, and what comes out.

    make floor                                                        everything, a table
    python -m experiments.entropy_floor.run --break leak              the same with a mistake built in; it is found
    python -m experiments.entropy_floor.run --strategies delay,flat   some strategies

One small network per strategy learns all sources at once: the first letter of the text names the source.
The workdir is resumable like any run. Exit code 1 if a number is not where theory says it must be.
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np

from audiolm_jax import files, serialization
from audiolm_jax.cli import allocator
from audiolm_jax.compare import stages
from audiolm_jax.data import examples
from audiolm_jax.data.batches import training_batches
from audiolm_jax.errors import InputError, exit_code
from audiolm_jax.evaluation import likelihood
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.spec import Spec
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.training import loop
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from experiments.entropy_floor import broken, floor, sampled, sources

DATA = examples.DataConfig(sequence_length=128, max_frames=sources.MAX_FRAMES, drop_text=0.02)
GRIDS, SEED = 200_000, 0  # grids drawn for training


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a strategy is trained: what its network needs to come within 2 %."""

    layers: int = 2
    width: int = 64
    learning_rate: float = 1e-2
    rows: int = 16
    steps: int = 1500
    letters: str = "".join(sources.SOURCES)  # sources to learn; one named twice is drawn twice as often
    depth: DepthConfig | None = None

    @property
    def model(self) -> ModelConfig:
        heads = self.width // 16
        # A row has thirty positions at most: rotations of thousands of them would tell none of these apart.
        sizes = {"heads": heads, "kv_heads": heads, "head_width": 16, "ffn": 3 * self.width, "rope_base": 30.0}
        return ModelConfig(layers=self.layers, width=self.width, depth=self.depth, **sizes)

    @property
    def data(self) -> examples.DataConfig:
        return dataclasses.replace(DATA, batch_size=self.rows)

    @property
    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(learning_rate=self.learning_rate, warmup=50, weight_decay=0.0)


# A row of these trains one level, and its network must find neighbours by attention, which causal input is shifted for.
BIDIRECTIONAL = Setup(layers=3, learning_rate=4e-3)
IN_DEPTH = Setup(depth=DepthConfig(layers=1, width=32, heads=2, kv_heads=2, head_width=16, ffn=96))
SETUPS = {
    "hierarchical": BIDIRECTIONAL,
    "depth": IN_DEPTH,
    "depth_011": IN_DEPTH,
    "depth_023": IN_DEPTH,
    # What there is to know of (c), (d) and (f), which is eighteen sources, differs with the cells that are hidden.
    "masked": dataclasses.replace(
        BIDIRECTIONAL, layers=4, width=96, rows=32, steps=7000, letters="abe" + 2 * "cd" + 6 * "f"
    ),
}

HELD = 1500  # held-out grids per source
DRAWS = 4  # of the any-order bound
MOST = 0.02  # excess over what is reachable, as a fraction of it
ERRORS = 4  # standard errors by which a measured number may be wrong: once in 30,000

# The masked strategy makes one cell per pass: every order of the cells is then a chain of true conditionals.
ITERATIONS = (sources.MAX_FRAMES,) * sources.CODEBOOKS
OPTIONS = {
    "hierarchical": {"prompt_fraction": 0.5},
    "masked": {"prompt_fraction": 0.3, "iterations": ITERATIONS, "schedule": "linear"},
}
ORDERS = {name: SerializationConfig(name, **OPTIONS.get(name, {})) for name in serialization.STRATEGIES}
# Any delays leave a chain of all cells, which reaches the entropy, also where `delay` with the same ones does not.
ORDERS |= {f"depth_{a}{b}{c}": SerializationConfig("depth", delays=(a, b, c)) for a, b, c in ((0, 1, 1), (0, 2, 3))}
# The same network, asked for the likelihood of three passes for codebook 0 and one for each of the others.
FEW_PASSES = dataclasses.replace(ORDERS["masked"], iterations=(3, 1, 1), schedule="cosine")


def vocabulary():
    return examples.make_vocab(sources.Split([], "none").metadata, DATA)


def train(order: SerializationConfig, workdir: Path, setup: Setup) -> None:
    split = sources.Split(sources.draw(np.random.default_rng([SEED, 0]), GRIDS, setup.letters), "train")
    grid = serialization.bind(order, sources.CODEBOOKS)
    batches = training_batches(split, setup.data, grid, vocabulary(), SEED)
    config = TrainingConfig(steps=setup.steps, log_every=100, checkpoint_every=250, peak_tflops=1.0)
    with contextlib.closing(batches):
        loop.train(
            workdir,
            batches,
            Spec(setup.model, vocabulary(), order, data=setup.data, tokens=f"{GRIDS} grids"),
            loop.Run(config, setup.optimizer, seed=SEED),
        )


def measure(order: SerializationConfig, workdir: Path, method: str = "auto") -> dict[str, dict]:
    """{letter: bits per frame} on held-out grids: the floor, what is reachable, and what was reached."""
    grid, vocab = serialization.bind(order, sources.CODEBOOKS), vocabulary()
    with jax.set_mesh(sharding.single_device_mesh()):
        model, _ = checkpoints.restore_params(workdir)
        rows = {}
        for letter in sources.SOURCES:
            held = sources.draw(np.random.default_rng([SEED, 1]), HELD, letter)
            split = sources.Split(held, "test")
            documents = [examples.document(split[n], DATA, vocab) for n in range(len(split))]
            found = likelihood.likelihood(model, grid, vocab, documents, 1.0, likelihood.Scoring(method, DRAWS))
            rows[letter] = compare(held, found, letter, grid)
    return rows


def compare(held: list[tuple[str, int]], found: likelihood.Likelihood, letter: str, grid) -> dict:
    chances = sources.texts(letter)
    bound = found.tag == "bound"
    best = {text: floor.ideal(sources.outcomes(text), grid, bound) for text in chances}

    def mean(values) -> float:
        """Of values(text) [N] over the source, exactly."""
        return sum(p * float(sources.outcomes(text).probability_N @ values(text)) for text, p in chances.items())

    frames = mean(lambda text: sources.outcomes(text).frames_N)
    excess_U = found.code_bits_UQ.sum(axis=1) + found.end_bits_U + found.length_bits_U
    excess_U = excess_U - np.array([best[text].bits_N[number] for text, number in held])
    codes_U = found.code_bits_UQ.sum(axis=1) - np.array([best[t].code_bits_NQ[n].sum() for t, n in held])
    entropy = sum(p * floor.entropy(sources.outcomes(text)) for text, p in chances.items())
    reachable = mean(lambda text: best[text].bits_N)
    codes = mean(lambda text: best[text].code_bits_NQ.sum(axis=1))
    # Paired with the best model on the same grids: what these grids happen to be cancels.
    error = float(excess_U.std(ddof=1) / np.sqrt(len(held)))
    return {
        "tag": found.tag,
        "floor": entropy / frames,
        "reachable": reachable / frames,
        "reached": (reachable + float(excess_U.mean())) / frames,
        "standard_error": error / frames,
        "codes_reachable": codes / frames,
        "codes_reached": (codes + float(codes_U.mean())) / frames,
        "excess_bits_per_grid_at_most": float(excess_U.mean()) + ERRORS * error,
        "verdict": verdict(float(excess_U.mean()), reachable, float(codes_U.mean()), codes, error),
    }


def verdict(excess: float, reachable: float, codes_excess: float, codes: float, error: float) -> str:
    if excess < -ERRORS * error:
        return "LEAK"
    if excess > MOST * reachable or codes_excess > MOST * codes:
        return "NOT REACHED"
    return "ok"


def table(rows: dict[str, dict[str, dict]]) -> str:
    lines = [
        "Bits per frame, the end of audio included. Excess: of reached over reachable.",
        f"{'source':14s} {'strategy':22s} {'floor':>8s} {'reachable':>10s} {'reached':>17s} {'excess':>8s}",
    ]
    for letter, source in sources.SOURCES.items():
        for name, by_letter in rows.items():
            row = by_letter[letter]
            excess = row["reached"] / row["reachable"] - 1
            label = name + (" (bound)" if row["tag"] == "bound" else "")
            verdict = "" if row["verdict"] == "ok" else f"  {row['verdict']}"
            lines.append(
                f"{letter} {source.__name__.rpartition('.')[2]:12s} {label:22s} {row['floor']:8.4f} "
                f"{row['reachable']:10.4f} {row['reached']:9.4f} ±{row['standard_error']:.4f} {excess:8.2%}{verdict}"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="default: runs/floor, or runs/floor-MISTAKE")
    parser.add_argument("--strategies", default=",".join(ORDERS), help="some of them, separated by commas")
    parser.add_argument("--steps", type=int, help="of training, instead of what each strategy needs")
    parser.add_argument("--break", dest="mistake", choices=broken.MISTAKES, help="build a mistake in")
    flags = parser.parse_args()
    allocator.keep_memory()
    names = flags.strategies.split(",")
    for name in names:
        if name not in ORDERS:
            raise InputError(f"--strategies={flags.strategies}: there is no {name!r}; known are {', '.join(ORDERS)}")
    workdir = flags.workdir or Path("runs") / ("floor" + (f"-{flags.mistake}" if flags.mistake else ""))
    cache = stages.Stages(workdir / "stages")
    mistake = broken.MISTAKES[flags.mistake] if flags.mistake else contextlib.nullcontext
    with mistake():
        rows, tests = {}, {}
        for name in names:
            run = workdir / name
            setup = SETUPS.get(name, Setup())
            if flags.steps is not None:
                setup = dataclasses.replace(setup, steps=flags.steps)
            settings = repr((setup, DATA, ORDERS[name], GRIDS, SEED))
            cache.run(f"train-{name}", functools.partial(train, ORDERS[name], run, setup), settings)
            measured = functools.partial(measure, ORDERS[name], run)
            rows[name] = cache.run(f"bits-{name}", measured, HELD, DRAWS, after=[f"train-{name}"])
            if name == "masked":
                few = functools.partial(measure, FEW_PASSES, run, "exact")
                rows["masked, 3 1 1 passes"] = cache.run("bits-few", few, HELD, after=[f"train-{name}"])
            drawn = functools.partial(sampled.test, ORDERS[name], run, vocabulary(), DATA, rows[name])
            tests[name] = cache.run(f"samples-{name}", drawn, sampled.COUNT, after=[f"bits-{name}"])
    verdicts = [row["verdict"] for by_letter in rows.values() for row in by_letter.values()]
    print(f"\n{table(rows)}\n\n{sampled.table(tests)}\n")
    files.write_json(workdir / "results.json", {"bits": rows, "samples": tests})
    wrong = sum(v != "ok" for v in verdicts), sum(t["p"] < sampled.level(tests) for ts in tests.values() for t in ts)
    print(f"{wrong[0]} of {len(verdicts)} likelihoods are not where they must be; {wrong[1]} tests of samples fail")
    return 1 if any(wrong) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
