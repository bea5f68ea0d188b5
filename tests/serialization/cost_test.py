"""Costs that follow from the order against naive counts, and the FLOP formula against the compiler's own count."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from audiolm_jax.errors import InputError
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.sharding import Rules
from audiolm_jax.model.transformer import Transformer, language_model, unstack
from audiolm_jax.serialization import STRATEGIES, LevelView, SerializationConfig, bind, cost, documents, layout
from audiolm_jax.serialization.vocab import TEXT_START, Vocab
from experiments.cost_model import count

VOCAB = Vocab(4, 64, 120)  # 640 ids
MODEL = ModelConfig(layers=3, width=64, heads=4, kv_heads=2, head_width=16, ffn=96)
ORDERS = [
    (4, {"strategy": "flat"}),
    (4, {"strategy": "parallel"}),
    (4, {"strategy": "delay"}),
    (3, {"strategy": "delay", "delays": (0, 0, 5)}),
    (4, {"strategy": "coarse_first"}),
    (3, {"strategy": "coarse_first", "delays": (0, 1, 4)}),
    (4, {"strategy": "hierarchical"}),
    (4, {"strategy": "masked"}),
    (3, {"strategy": "masked", "iterations": (4, 2, 1)}),
    (1, {"strategy": "parallel"}),
    (4, {"strategy": "depth"}),
    (3, {"strategy": "depth", "delays": (0, 1, 4)}),
]


def name(value):
    return "-".join(str(part) for part in value.values()) if isinstance(value, dict) else str(value)


def grid_of(codebooks, options):
    return bind(SerializationConfig(**options), codebooks)


# T frames, Q codebooks -> steps, passes, frames of look-ahead (MusicGen, arXiv 2306.05284, section 2.1 for flat,
# parallel and delay; audiocraft for coarse first; VALL-E section 4.2; SoundStorm, arXiv 2305.09636, section 3.3)
@pytest.mark.parametrize(
    ("options", "steps", "passes", "look_ahead"),
    [
        ({"strategy": "flat"}, 20 * 4 + 1, 20 * 4 + 1, 0),
        ({"strategy": "parallel"}, 21, 21, 0),
        ({"strategy": "delay"}, 23, 23, 3),
        ({"strategy": "delay", "delays": (0, 1, 1, 1)}, 21, 21, 1),
        ({"strategy": "coarse_first"}, 20 + 1 + 20 + 2, 20 + 1 + 20 + 2, 19),
        ({"strategy": "coarse_first", "delays": (0, 0, 0, 0)}, 41, 41, 19),
        ({"strategy": "hierarchical"}, 21 + 3, 21 + 3, 19),
        ({"strategy": "depth"}, 20 * 4 + 1, 21, 0),
        ({"strategy": "depth", "delays": (0, 1, 1, 1)}, 21 * 4, 21, 1),
        ({"strategy": "masked"}, 16 + 3, 1 + 16 + 3, 19),
        ({"strategy": "masked", "iterations": (8, 4, 2, 1)}, 15, 1 + 15, 19),
    ],
)
def test_published_counts(options, steps, passes, look_ahead):
    grid = grid_of(4, options)
    found = cost.cost(grid, 20, 10, count.with_depth(MODEL, grid), VOCAB)
    assert (found.steps, found.passes, found.look_ahead) == (steps, passes, look_ahead)


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize(("codebooks", "options"), ORDERS, ids=name)
def test_look_ahead_and_first_frame_by_replaying_the_order(codebooks, options, frames):
    grid = grid_of(codebooks, options)
    step_of = grid.position if grid.depth else grid.order  # all cells of a position take one pass of the transformer
    cells = {(t, q): int(step_of(t, q, frames)) for t in range(frames) for q in range(codebooks)}
    known, passes = set(), 0 if grid.causal_levels else 1
    for step in itertools.count():
        known |= {cell for cell, when in cells.items() if when == step}
        passes += 1
        if {(0, q) for q in range(codebooks)} <= known:
            break
    found = cost.cost(grid, frames, 5, count.with_depth(MODEL, grid), VOCAB)
    assert found.first_passes == passes
    assert found.look_ahead == max(t for t, _ in known)
    assert found.steps >= max(cells.values()) + 1
    assert found.passes >= found.first_passes


def pairs_of(row, window):
    """Keys that each position of a row sees, by looking at every pair."""
    length = len(row["positions"])
    seen = [[m <= query + row["ahead"][query] for m in range(length)] for query in range(length)]
    return np.sum([[x and not 0 < window <= q - m for m, x in enumerate(xs)] for q, xs in enumerate(seen)], axis=1)


@pytest.mark.parametrize(("frames", "window"), [(1, 0), (6, 0), (6, 4), (6, 8)])
@pytest.mark.parametrize(("codebooks", "options"), ORDERS, ids=name)
def test_positions_and_pairs_are_those_of_real_rows(codebooks, options, frames, window):
    grid, vocab = grid_of(codebooks, options), Vocab(codebooks, 4, max_frames=9)
    document = (("text", np.full(3, TEXT_START)), ("audio", np.zeros((frames, codebooks), np.int32)))
    prompt = len(documents.prompt_row(document[:1], grid, vocab, causal=True)["positions"])
    rows = cost.training_rows(grid, frames, prompt, window)
    passes = cost.generation(grid, frames, prompt, window)
    steps = len(layout.causal_cells(grid, frames)[0]) if grid.causal_levels else 1
    sequential, parallel = passes[:steps], passes[steps:]
    assert rows.keys() == {
        *(["causal"] if grid.causal_levels else []),
        *(["level"] if grid.causal_levels < codebooks else []),
    }
    if "causal" in rows:
        pairs_L = pairs_of(documents.causal_row(document, grid, vocab), window)
        assert (rows["causal"].positions, rows["causal"].pairs) == (len(pairs_L), pairs_L.sum())
        assert [work.pairs for work in sequential[1:]] == pairs_L[prompt:-1].tolist()
        assert sequential[0].pairs == pairs_L[:prompt].sum()
    if "level" in rows:
        view = LevelView(codebooks - 1, np.ones(frames, bool))
        pairs_L = pairs_of(documents.level_row(document, 1, view, grid, vocab), window)
        assert (rows["level"].positions, rows["level"].pairs) == (len(pairs_L), pairs_L.sum())
        assert {(work.positions, work.pairs) for work in parallel} == {(frames, pairs_L[prompt:].sum())}

    # Generation computes the same positions: the causal row but for its last step, then the frames of each pass.
    assert sum(work.positions for work in sequential) == prompt + steps - 1
    assert len(parallel) == sum(grid.iterations)


def test_totals_add_up():
    grid = grid_of(4, {"strategy": "hierarchical"})
    found = cost.cost(grid, 20, 10, MODEL, VOCAB, bytes_per_value=2)
    assert found.positions == 10 + 20 + 3 * 20
    assert found.flops == sum(cost.forward_flops(MODEL, VOCAB, work) for work in cost.generation(grid, 20, 10))
    assert found.cache_bytes == (10 + 21) * 2 * 3 * 2 * 16 * 2  # positions, k and v, layers, heads, width, bytes
    near = dataclasses.replace(MODEL, window=8)
    found = cost.cost(grid, 20, 10, near, VOCAB, bytes_per_value=2)
    assert found.cache_bytes == (10 + 7) * 2 * 3 * 2 * 16 * 2  # what a step sees besides itself
    assert found.flops == sum(cost.forward_flops(near, VOCAB, work) for work in cost.generation(grid, 20, 10, 8))


@functools.cache
def decoder(config, vocab):
    return unstack(jax.jit(lambda: language_model(config, vocab, nnx.Rngs(0)))())


COUNTED = ModelConfig(layers=1, width=256, heads=4, kv_heads=2, head_width=64, ffn=704)
SIZES = [
    (20, 2, COUNTED),
    pytest.param(48, 4, dataclasses.replace(COUNTED, layers=2, width=320, mlp="plain"), marks=pytest.mark.slow),
    pytest.param(33, 3, dataclasses.replace(COUNTED, layers=2, kv_heads=4, window=9), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("frames", "codebooks", "config"), SIZES)
@pytest.mark.parametrize(
    "strategy",  # quick: one with a causal loop, one with passes over all frames
    [
        name if name in ("delay", "masked", "depth") else pytest.param(name, marks=pytest.mark.slow)
        for name in STRATEGIES
    ],
)
def test_generation_costs_what_is_counted_while_it_runs(strategy, frames, codebooks, config):
    """Passes, look-ahead and bytes exactly, the compiler's FLOPs of every program within 5 %."""
    grid, vocab = grid_of(codebooks, {"strategy": strategy}), Vocab(codebooks, 128, 64)
    config, prompt = count.with_depth(config, grid), count.TEXT + 2
    found = count.generation(decoder(config, vocab), grid, vocab, frames, repeats=1)
    said = cost.cost(grid, frames, prompt, config, vocab)
    assert (said.passes, said.first_passes, said.look_ahead) == (found.passes, found.first_passes, found.look_ahead)
    assert said.depth_passes == found.depth_passes == grid.depth * frames * (codebooks - 1)
    assert said.cache_bytes == found.cache_bytes
    for program, work in found.dense.items():
        assert cost.forward_flops(config, vocab, work) == pytest.approx(found.flops[program], rel=0.05), program
    passes = cost.generation(grid, frames, prompt)
    assert sum(work.of_level > 0 for work in passes) == found.runs.get("level", 0)
    # The loop computes one position after its last step, which nobody reads.
    assert sum(found.runs.values()) - len(passes) == (grid.causal_levels > 0)


@pytest.mark.parametrize(
    ("strategy", "kind", "dense"),
    [
        pytest.param(strategy, kind, dense, marks=() if quick else pytest.mark.slow)
        for strategy in STRATEGIES
        for kind in cost.training_rows(bind(SerializationConfig(strategy=strategy), 3), 4, 4)
        for dense in (True, False)
        for quick in [(strategy, dense) in (("masked", True), ("depth", True))]
    ],
)
def test_training_steps_cost_what_the_compiler_counts(strategy, kind, dense):
    """Forward, backward and update within 5 %, with all logits and with legal ones alone."""
    grid, vocab = grid_of(3, {"strategy": strategy}), Vocab(3, 256, 64)
    counted, said = count.training_step(COUNTED, grid, vocab, 60, kind, dense)
    assert said == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp": "plain", "kv_heads": 4},
        {"layers": 1, "width": 128, "heads": 4, "kv_heads": 1, "head_width": 128, "ffn": 128},  # much attention
    ],
    ids=name,
)
def test_forward_flops_are_what_the_compiler_counts(changes):
    """Within 5 %. Layers are unrolled, for a loop's body is counted once; rows are short enough for dense attention."""
    sizes = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "head_width": 64, "ffn": 704} | changes
    config, vocab, batch, length = ModelConfig(**sizes), Vocab(1, 100, 20), 2, 128
    graph, state = nnx.split(nnx.eval_shape(lambda: unstack(Transformer(config, vocab.size, nnx.Rngs(0), Rules()))))

    def forward(state, tokens_BLS, positions_BL, segments_BL):
        model = nnx.merge(graph, state)
        return model.logits(model(tokens_BLS, positions_BL, segments_BL))

    row = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    tokens = jax.ShapeDtypeStruct((batch, length, 1), jnp.int32)
    counted = jax.jit(forward).lower(state, tokens, row, row).compile().cost_analysis()["flops"]
    dense = cost.Pass(length, length * length, length)
    assert batch * cost.forward_flops(config, vocab, dense) == pytest.approx(counted, rel=0.05)


def test_block_weights_are_the_matrices_of_the_model():
    cross = {"cross_width": 64, "cross_heads": 6, "cross_kv_heads": 3, "cross_head_width": 10}
    for changes in ({}, {"mlp": "plain"}, {"kv_heads": 4}, {"cross_width": 64}, cross):
        config = ModelConfig(**{"layers": 3, "width": 64, "heads": 4, "head_width": 16, "ffn": 96} | changes)
        model = nnx.eval_shape(lambda config=config: Transformer(config, 640, nnx.Rngs(0)))
        leaves = flatten_dict(nnx.to_pure_dict(nnx.state(model.layers)))
        sizes = {path[-1]: 0 for path in leaves}
        for path, leaf in leaves.items():
            sizes[path[-1]] += leaf.size * (leaf.ndim > 2)
        assert cost.block_weights(config) == sum(sizes.values()) - sizes.get("kv_DHCK", 0)


def test_training_is_three_times_forward_and_linear_in_the_batch():
    one = cost.training_flops_per_step(MODEL, VOCAB, 1, 50)
    assert one == 3 * cost.forward_flops(MODEL, VOCAB, cost.Pass(50, 50 * 51 // 2, 50))
    assert cost.training_flops_per_step(MODEL, VOCAB, 8, 50) == 8 * one


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory():
    passes = cost.generation(grid_of(4, {"strategy": "masked"}), 50, 20)
    flops = np.array([cost.forward_flops(MODEL, VOCAB, work) for work in passes])
    np.testing.assert_allclose(cost.seconds_of_passes(passes, MODEL, VOCAB, 1e9, 1e30), flops / 1e9)
    memory = cost.seconds_of_passes(passes, MODEL, VOCAB, 1e30, 1e9)
    weights = 4 * (cost.block_weights(MODEL) + MODEL.width * 64)  # the head of one codebook
    keys = 4 * 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_width * 70
    assert memory[-1] == pytest.approx((weights + keys) / 1e9)
    both = cost.seconds_of_passes(passes, MODEL, VOCAB, 1e9, 1e9)
    np.testing.assert_allclose(both, np.maximum(flops / 1e9, memory))


def test_no_frames_have_no_cost():
    with pytest.raises(InputError, match="0 frames"):
        cost.cost(grid_of(4, {"strategy": "delay"}), 0, 10, MODEL, VOCAB)
