"""The budget of every strategy of a comparison: equal parameters, and equal training FLOPs or equal frames of audio.

    flops   batches of the same shape, and as many steps as take the FLOPs of the first strategy: the same number, but
            for one with a depth network. A strategy with more positions per second of audio sees fewer seconds of it
    tokens  the same frames of audio per step and in all. The rows of a batch are scaled until a step shows as many
            frames as one of the first strategy, rounded to rows, and the number of steps makes up for the rounding.
            Strategies with more positions take more FLOPs

Frames per step are counted by packing the documents as `data.training_batches` does, in another order.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from audiolm_jax import serialization
from audiolm_jax.compare.config import CompareConfig
from audiolm_jax.config import section
from audiolm_jax.data import examples
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.tokens import TokenSplit
from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.spec import model_of
from audiolm_jax.serialization import Grid, cost
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import processes

DOCUMENTS = 4000  # documents of the training split, at most, whose lengths are packed
PARTS = ("data", "sharding", "training", "serialization")
BATCHES = 40  # packed to count the frames of a step


def documents(source: TokenSplit, config: DataConfig, vocab: Vocab) -> np.ndarray:
    """[N, 2] int: text ids and frames of documents spread evenly over the split, those that fit the vocabulary."""
    lengths = []
    for number in range(min(DOCUMENTS, len(source))):
        head = source.head(number * len(source) // min(DOCUMENTS, len(source)))
        words = examples.prompt_text(config, head["text"], head["speaker"], head["key"])
        lengths.append((len(source.text.encode(words)), head["frames"]))
    return np.array([(words, frames) for words, frames in lengths if frames <= vocab.max_frames])


def check(config: ConfigDict, parts: Mapping[tuple[str, str], ConfigDict], vocab: Vocab) -> None:
    """The part of `equal_shares` that needs no data, and whether the devices can share the rows; raises InputError."""
    compare, parameters, flops = section(config, "compare"), {}, {}
    for (size, strategy), part in parts.items():
        data, shards, training, order = (section(part, name) for name in PARTS)
        model = model_of(part, order, vocab)
        mesh = sharding.make_mesh(shards)
        if compare.equal == "flops":
            processes.columns(mesh, shards.rules, data.batch_size, part.training.accumulate, data.lanes)
        step = cost.training_flops_per_step(
            model, vocab, data.batch_size, data.sequence_length, training.depth_fraction
        )
        parameters.setdefault(size, {})[strategy] = checkpoints.count_parameters(model, vocab)
        flops.setdefault(size, {})[strategy] = step * _steps(compare, step, flops.get(size, {}), training.steps)
    for size in parameters:
        require_equal(parameters[size], "parameters", compare.tolerance)
        if compare.equal == "flops":
            require_equal(flops[size], "training_flops", compare.tolerance)


def _steps(compare: CompareConfig, flops: float, before: Mapping[str, float], steps: int) -> int:
    """Steps of so many FLOPs that compare.flops pays for or, without that, those of the first strategy of `before`,
    strategy -> its FLOPs; `steps` for the first."""
    target = compare.flops or next(iter(before.values()), 0)
    return max(1, round(target / flops)) if target else steps


def equal_shares(
    config: ConfigDict,
    parts: Mapping[tuple[str, str], ConfigDict],
    vocab: Vocab,
    frame_rate: float,
    documents_N2: np.ndarray,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Per (size, strategy) of `parts`: parameters, rows per step, steps, FLOPs and frames of audio of its training.

    What compare.equal names is equal within compare.tolerance among the strategies of a size.

    Raises InputError if it is not, or parameters are not.
    """
    compare, shares, targets, paid = section(config, "compare"), {}, {}, {}
    for (size, strategy), part in parts.items():
        data, shards, training, order = (section(part, name) for name in PARTS)
        model, steps, grid = model_of(part, order, vocab), training.steps, serialization.bind(order, vocab.codebooks)
        stream = list(itertools.islice(training_views(grid, data, documents_N2), 2 * DOCUMENTS))
        rows = data.batch_size
        if compare.equal == "tokens":
            unit = part.training.accumulate * sharding.make_mesh(shards).shape["data"]
            target = targets.setdefault(size, frames_per_step(stream, data, rows))
            rows = rows_for(target, stream, data, unit)
            steps = max(1, round(steps * target / frames_per_step(stream, data, rows)))
        flops = cost.training_flops_per_step(model, vocab, rows, data.sequence_length, training.depth_fraction)
        if compare.equal == "flops":
            steps = _steps(compare, flops, paid.get(size, {}), steps)
            paid.setdefault(size, {})[strategy] = flops * steps
        shares[size, strategy] = {
            "parameters": checkpoints.count_parameters(model, vocab),
            "rows_per_step": rows,
            "training_steps": steps,
            "training_flops": float(steps * flops),
            "training_frames_predicted": float(steps * frames_per_step(stream, data, rows)),
            "positions_per_second": positions_per_second(grid, frame_rate),
        }
    same = {"flops": "training_flops", "tokens": "training_frames_predicted"}[compare.equal]
    for size in dict.fromkeys(size for size, _ in parts):
        for key in ("parameters", same):
            values = {strategy: share[key] for (share_size, strategy), share in shares.items() if share_size == size}
            require_equal(values, key, compare.tolerance)
    return shares


def require_equal(values: Mapping[str, float], key: str, tolerance: float) -> None:
    """Raises InputError if the largest is more than `tolerance` of the smallest above it."""
    low, high = min(values, key=values.get), max(values, key=values.get)
    if values[high] > (1 + tolerance) * values[low]:
        raise InputError(
            f"compare: {high} has {values[high]:.4g} {key} and {low} has {values[low]:.4g}; they may differ by "
            f"compare.tolerance={tolerance:g} of the smaller number"
        )


def training_views(grid: Grid, config: DataConfig, documents_N2: np.ndarray) -> Iterator[tuple[int, int]]:
    """(positions, frames) of an endless stream of training views in shuffled epochs, as the strategy draws them."""
    rng, rows_of = np.random.default_rng(0), functools.cache(functools.partial(cost.training_rows, grid, prompt=0))
    while True:
        for words, frames in rng.permutation(documents_N2).tolist():
            prompt = 2 + (0 if rng.random() < config.drop_text else words)  # with BOS and <audio>
            kind = "causal" if grid.draw(rng, frames) is None else "level"
            yield prompt + rows_of(frames)[kind].positions, frames


def frames_per_step(stream: Sequence[tuple[int, int]], config: DataConfig, rows: int) -> float:
    """Frames of audio in a batch of `rows` rows, in the mean over the batches that the stream fills.

    First fit, as `data.training_batches` packs: a view goes to the first row that has room for it, and where none has,
    the batch is full and the next one begins.
    """
    filled, batches, inside, free = 0, 0, 0, []
    for positions, frames in itertools.cycle(stream):
        row = next((r for r, left in enumerate(free) if left >= positions), len(free))
        if row == rows:
            filled, batches, inside, free, row = filled + inside, batches + 1, 0, [], 0
            if batches == BATCHES:
                return filled / batches
        if row == len(free):
            free.append(config.sequence_length)
        free[row] = free[row] - positions if config.packing else -1
        inside += frames
    raise AssertionError("the stream is never empty")


def rows_for(target: float, stream: Sequence[tuple[int, int]], config: DataConfig, unit: int) -> int:
    """The multiple of `unit` rows whose batch shows as nearly as possible `target` frames."""
    below, above = 1, 2
    while frames_per_step(stream, config, above * unit) < target:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if frames_per_step(stream, config, middle * unit) < target:
            below = middle
        else:
            above = middle
    return unit * min((below, above), key=lambda rows: abs(frames_per_step(stream, config, rows * unit) - target))


def positions_per_second(grid: Grid, frame_rate: float, seconds: float = 10.0) -> float:
    """Positions of the longest training row that one second of audio takes, in a segment of `seconds`."""
    frames = round(seconds * frame_rate)
    rows = cost.training_rows(grid, frames, prompt=1).values()
    return max(work.positions - 1 for work in rows) * frame_rate / frames
