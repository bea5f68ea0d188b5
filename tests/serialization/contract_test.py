"""When and where: a strategy whose position is not its order. And modules that break the contract."""

import itertools
import types

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation.likelihood import likelihood
from audiolm_jax.serialization import STRATEGIES, SerializationConfig, bind, cost, documents, layout, picture
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers import sampling_reference as sampled
from tests.helpers.layout_reference import deserialize, visibility_TQTQ

VOCAB = Vocab(3, (7, 5, 3), max_frames=20)
NUMBERS = itertools.count()


def delays_Q(grid):
    return np.array(grid.config.delays or (0,) * grid.codebooks)


def define(monkeypatch, **members) -> str:
    """Enters a strategy for one test; its name. (Layouts are cached by name, so every one has a name of its own.)"""
    module = types.ModuleType(f"strategy_{next(NUMBERS)}")
    vars(module).update({"streams": lambda grid: grid.codebooks, **members})
    monkeypatch.setitem(STRATEGIES, module.__name__, module)
    return module.__name__


@pytest.mark.parametrize("delays", [(0, 0, 0), (0, 1, 1), (0, 2, 3)])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_layout_is_by_position_and_visibility_by_order(frames, delays):
    grid = bind(SerializationConfig("depth", delays=delays), 3)
    same_rows = bind(SerializationConfig("delay", delays=delays), 3)
    for found, expected in zip(layout.causal_cells(grid, frames), layout.causal_cells(same_rows, frames), strict=True):
        np.testing.assert_array_equal(found, expected)
    step_TQ = layout.order_TQ(grid, frames)
    assert len(np.unique(step_TQ)) == frames * 3, "one cell after the other"
    if not any(delays):
        flat = bind(SerializationConfig("flat"), 3)
        np.testing.assert_array_equal(visibility_TQTQ(grid, frames), visibility_TQTQ(flat, frames))

    codes_TQ = np.random.default_rng(frames).integers(0, VOCAB.codebook_sizes, (frames, 3)).astype(np.int32)
    np.testing.assert_array_equal(deserialize(layout.serialize(codes_TQ, grid, VOCAB), grid, VOCAB), codes_TQ)
    targets_LS = documents.causal_row((("audio", codes_TQ),), grid, VOCAB)["targets"]
    predicted = targets_LS[(targets_LS >= VOCAB.code_start) & (targets_LS < VOCAB.length_start)]
    assert sorted(predicted) == sorted(VOCAB.code_ids(codes_TQ).ravel()), "every cell is predicted exactly once"

    positions = max(frames + 1, frames + max(delays))
    last_step = max(frames * 3, int(step_TQ.max()))
    assert (cost.causal_positions(grid, frames), cost.steps(grid, frames)) == (positions, last_step + 1)
    assert f">{step_TQ.max() + 1}</text>" in picture.svg(grid, frames)


def test_cells_of_one_position_are_predicted_one_after_the_other_from_the_coarsest_on(monkeypatch):
    """Together or in turn, but not some of each, nor from the finest on."""
    assert bind(SerializationConfig("depth", delays=(0, 20)), 2).depth
    assert not bind(SerializationConfig("depth"), 1).depth, "a single codebook needs no depth network"
    for name in ("flat", "parallel", "delay", "coarse_first", "hierarchical", "masked"):
        assert not bind(SerializationConfig(name), 3).depth
    for order in (lambda t, q, T, grid: 3 * t + (2 - q), lambda t, q, T, grid: 3 * t + (q > 0)):
        name = define(monkeypatch, order=order, position=lambda t, q, T, grid: t + 0 * q)
        with pytest.raises(
            InputError, match=r"share position 0 and are predicted at steps .*: a depth network predicts"
        ):
            bind(SerializationConfig(name), 3)
    some = {"causal_levels": lambda grid: 2, "iterations": lambda grid: (1,), "draw": lambda *_: None}
    order = lambda t, q, T, grid: (2 * t + q) * (q < 2) + (q == 2) * (2 * T + 2)  # noqa: E731
    name = define(monkeypatch, order=order, position=lambda t, q, T, grid: t + 0 * q, **some)
    with pytest.raises(InputError, match=r"causal_levels\(grid\) is 2; a depth network predicts all 3 codebooks"):
        bind(SerializationConfig(name), 3)


def test_sampling_and_likelihood_go_by_position(monkeypatch):
    """Steps 1, 4, 7, ... at positions 0, 1, 2, ...: the model of `parallel`, to the last bit."""
    sparse = define(monkeypatch, order=lambda t, q, T, grid: 3 * t + 1, position=lambda t, q, T, grid: t)
    grid, parallel = (bind(SerializationConfig(name), 2) for name in (sparse, "parallel"))
    requests = [sampled.request("abc", 0, 2, seed=1), sampled.request("de", 3, 2, seed=2, frames=6)]
    sampled.assert_same(sampled.run(grid, requests), sampled.run(parallel, requests))
    one, two = (cost.cost(of, 7, 4, sampled.models(2)[0].config, sampled.vocab_of(2)) for of in (grid, parallel))
    assert (one.steps, two.steps) == (7 * 3 + 2, 8)
    assert (one.passes, one.first_passes, one.positions) == (two.passes, two.first_passes, two.positions)
    utterances = [(("audio", np.random.default_rng(0).integers(0, 5, (6, 2)).astype(np.int32)),)]
    bits = [likelihood(sampled.models(2)[0], of, sampled.vocab_of(2), utterances, 10.0) for of in (grid, parallel)]
    np.testing.assert_array_equal(bits[0].code_bits_UQ, bits[1].code_bits_UQ)


BROKEN = [
    ({"streams": lambda grid: 2}, r"streams\(grid\) is 2 for 3 codebooks; it must be 3, or 1"),
    ({"streams": lambda grid: 1}, r"cells \(0, 0\) and \(0, 1\) of 1 frames both stand at position 0"),
    ({"streams": lambda grid: 1, "causal_levels": lambda grid: 2}, "or 1 if all of them are causal"),
    ({"order": lambda t, q, T, grid: t / 2}, "must give an integer from 0 up for every cell; .* gives float64"),
    ({"order": lambda t, q, T, grid: t - q}, "-2 the smallest"),
    ({"order": lambda t, q, T, grid: 0}, r"of shape \(1, 3\) it gives int64 of shape \(\)"),
    ({"order": lambda t, q, T, grid: T - t}, r"codebook 0 of 1 frames does not run forward in time"),
    ({"order": lambda t, q, T, grid: t + q * T}, "depends on the number of frames"),
    (
        {"position": lambda t, q, T, grid: t + q},
        r"share position 1 and are predicted at steps 1 and 0: a depth network",
    ),
    (
        {"order": lambda t, q, T, grid: t // 2, "position": lambda t, q, T, grid: t},
        "stand at positions 0 and 1 but are predicted at steps 0 and 0",
    ),
    ({"causal_levels": lambda grid: 4}, r"causal_levels\(grid\) is 4; it must be 0\.\.3"),
    ({"causal_levels": lambda grid: 1}, r"iterations\(grid\) is \(\); it must be 2 numbers from 1 up"),
    ({"causal_levels": lambda grid: 1, "iterations": lambda grid: (1, 1)}, r"need a function draw\(rng, T, grid\)"),
    (
        {"causal_levels": lambda grid: 1, "iterations": lambda grid: (1, 1), "draw": lambda *_: None},
        "order is 0 in codebook 1, no later than 0 in a coarser one",
    ),
    (
        {
            "causal_levels": lambda grid: 2,
            "iterations": lambda grid: (1,),
            "draw": lambda *_: None,
            "order": lambda t, q, T, grid: t + (q == 2) * (T + 1),
        },
        r"order has more steps in codebook 2 than the 1 of iterations\(grid\)",
    ),
    ({"OPTIONS": ("delay",)}, r"OPTIONS is \('delay',\); it must be a tuple of names of strategy, delays"),
    ({"OPTIONS": ("delays")}, "OPTIONS is 'delays'; it must be a tuple"),
]


@pytest.mark.parametrize(("members", "words"), BROKEN)
def test_a_module_that_breaks_the_contract_is_refused_in_one_sentence(monkeypatch, members, words):
    name = define(monkeypatch, **{"order": lambda t, q, T, grid: t, **members})
    with pytest.raises(InputError, match=words) as refusal:
        bind(SerializationConfig(name), 3)
    assert str(refusal.value).startswith(f"serialization.strategy={name}: ") and "\n" not in str(refusal.value)


def test_what_a_strategy_does_not_say_has_a_default(monkeypatch):
    grid = bind(SerializationConfig(define(monkeypatch, order=lambda t, q, T, grid: t)), 3)
    assert (grid.causal_levels, grid.iterations, grid.draw(np.random.default_rng(0), 5)) == (3, (), None)
    assert grid.position(4, 1, 9) == grid.order(4, 1, 9) == 4
