"""Equal shares: what is called equal is, within a size, by the cost model and by packing."""

import itertools

import numpy as np
import pytest

from audiolm_jax import config
from audiolm_jax.compare import budget, cells
from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import STRATEGIES, bind
from audiolm_jax.serialization.vocab import Vocab

VOCAB = Vocab(3, 16, 128)
ALL = f"compare.strategies={','.join(STRATEGIES)}"
rng = np.random.default_rng(0)
DOCUMENTS = np.stack([rng.integers(10, 30, 300), rng.integers(18, 64, 300)], axis=1)  # text bytes, frames


def split(*changes: str, sizes: dict | None = None) -> dict:
    tiny = config.load("tiny", changes)
    tiny.unlock().compare.sizes = sizes or {}
    return budget.equal_shares(tiny, cells.variants(tiny, 3), VOCAB, 25.0, DOCUMENTS)


def by_strategy(shares: dict, key: str, size: str = "") -> dict:
    return {strategy: share[key] for (name, strategy), share in shares.items() if name == size}


def test_equal_flops():
    shares = split(ALL)
    assert list(by_strategy(shares, "parameters")) == list(STRATEGIES)
    for key in ("parameters", "training_flops", "training_steps", "rows_per_step"):
        values = by_strategy(shares, key)
        own = values.pop("depth")  # it has a network of its own, and as many steps as take the same FLOPs
        assert len(set(values.values())) == 1, key
        assert own == pytest.approx(values["flat"], rel=0.05), key
    assert shares["", "flat"]["positions_per_second"] == pytest.approx(75, rel=0.01)
    assert shares["", "parallel"]["positions_per_second"] == pytest.approx(25, rel=0.01)
    assert shares["", "parallel"]["training_frames_predicted"] > 2 * shares["", "flat"]["training_frames_predicted"]
    flops = shares["", "flat"]["training_flops"] * 5
    steps = by_strategy(split(ALL, f"compare.flops={flops}"), "training_steps")
    assert steps.pop("depth") == pytest.approx(60, rel=0.05)
    assert set(steps.values()) == {60}


def test_equal_tokens():
    shares = split(ALL, "compare.equal=tokens", "data.batch_size=16", "training.steps=50")
    frames, rows, flops = (
        by_strategy(shares, key) for key in ("training_frames_predicted", "rows_per_step", "training_flops")
    )
    assert max(frames.values()) < 1.02 * min(frames.values())
    assert (rows["flat"], shares["", "flat"]["training_steps"]) == (16, 50), "the first strategy keeps its batch"
    assert flops["flat"] > 1.5 * flops["delay"]
    # Eight devices share the rows of a batch; without text, rows would stand to each other like positions.
    assert all(count % 8 == 0 for count in rows.values())
    assert rows["parallel"] < rows["flat"]
    per_step = {name: frames[name] / shares["", name]["training_steps"] for name in frames}
    assert per_step["parallel"] == pytest.approx(per_step["flat"], rel=0.4)  # to whole rows (eight of them)


def test_rows_follow_the_positions_of_a_document():
    """Without text and packing losses a strategy with a third of the positions gets a third of the rows."""
    section = DataConfig(sequence_length=4000, batch_size=30)
    documents = np.stack([np.zeros(50, int), np.full(50, 40)], axis=1)
    parts, streams = cells.variants(config.load("tiny", [ALL]), 3), {}
    for name in ("flat", "parallel"):
        grid = bind(config.section(parts["", name], "serialization"), 3)
        streams[name] = list(itertools.islice(budget.training_views(grid, section, documents), 9000))
    target = budget.frames_per_step(streams["flat"], section, 30)
    positions = {name: np.mean([length for length, _ in stream]) for name, stream in streams.items()}
    expected = 30 * positions["parallel"] / positions["flat"]
    assert budget.rows_for(target, streams["parallel"], section, unit=1) == pytest.approx(expected, abs=1)


def test_first_fit_by_hand():
    """Two rows of 10. Of 6, 5, 4, 6, 6, 5, ... a batch holds 6 + 4 and 5; then 6 and 6; then 5 + 4 and 6; and again."""
    section, stream = DataConfig(sequence_length=10), [(6, 60), (5, 50), (4, 40), (6, 60)]
    assert budget.frames_per_step(stream, section, 2) == pytest.approx((150 + 120 + 150) / 3, rel=0.02)
    assert budget.frames_per_step([(6, 60)], section, 2) == 120
    assert budget.frames_per_step([(5, 50)], section, 2) == 200
    assert budget.frames_per_step([(5, 50)], DataConfig(sequence_length=10, packing=False), 2) == 100


def test_sizes_are_equal_within_themselves():
    shares = split("compare.strategies=flat,delay", sizes={"small": {"layers": 1}, "base": {}})
    small, base = by_strategy(shares, "training_flops", "small"), by_strategy(shares, "training_flops", "base")
    assert len(set(small.values())) == len(set(base.values())) == 1
    assert set(small.values()) != set(base.values())


def test_shares_that_cannot_be_equal_are_refused():
    with pytest.raises(InputError, match=r"b has 120 frames and a has 100; they may differ by compare.tolerance=0.05"):
        budget.require_equal({"a": 100, "b": 120}, "frames", 0.05)
    budget.require_equal({"a": 100, "b": 105}, "frames", 0.05)
    with pytest.raises(InputError, match="training_frames_predicted"):
        split("compare.strategies=flat,delay", "compare.equal=tokens", "training.steps=1", "compare.tolerance=0.01")
