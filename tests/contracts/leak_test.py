"""No leak: the gradient of a prediction's logit with respect to every input it may not see is exactly zero.

Real rows go through the real model. Every cell of a test grid holds a code of its own, so that the gradient with
respect to one row of the embedding table is the gradient with respect to one cell of the input.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.sharding import Rules
from audiolm_jax.model.transformer import language_model
from audiolm_jax.serialization import STRATEGIES, LevelView, SerializationConfig, bind, documents, layout
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers.layout_reference import visibility_TQTQ

MODEL = ModelConfig(layers=2, width=16, heads=2, kv_heads=1, head_width=8, ffn=16, dtype="float32")
# It reads the table of the transformer, so that every cell has its place in one gradient.
DEPTH = DepthConfig(layers=2, width=12, heads=2, kv_heads=1, head_width=6, ffn=16, embeddings="backbone")
FIRST, SECOND = 5, 4  # frames of two documents packed into one row
BEGIN, POSITIONS = 3, 72
LONG, FILL = 200, 111  # so long that attention works in blocks of 128, whose border lies inside a document
VOCAB = {Q: Vocab(Q, FIRST + SECOND, max_frames=8) for Q in (1, 3)}

CASES = [
    *((3, {"strategy": strategy}) for strategy in STRATEGIES),
    (3, {"strategy": "delay", "delays": (0, 0, 4)}),
    (3, {"strategy": "coarse_first", "delays": (0, 2, 2)}),
    (3, {"strategy": "depth", "delays": (0, 2, 3)}),
    (3, {"strategy": "masked", "iterations": (3, 2, 1)}),
    (3, {"strategy": "masked", "iterations": (1, 1, 4), "schedule": "linear"}),
    (1, {"strategy": "flat"}),
    (1, {"strategy": "masked", "iterations": (3,)}),
]


def levels_without_a_causal_pass(codebooks, options):
    return codebooks - bind(SerializationConfig(**options), codebooks).causal_levels


CAUSAL = [case for case in CASES if levels_without_a_causal_pass(*case) < case[0]]
LEVELS = [case for case in CASES if levels_without_a_causal_pass(*case)]


def name(value):
    return "-".join(str(part) for part in value.values()) if isinstance(value, dict) else f"Q{value}"


def document(first_code, frames, codebooks, first_text):
    """Text and audio in which no token appears twice."""
    text = np.arange(first_text, first_text + BEGIN, dtype=np.int32) + ids.TEXT_START
    codes_TQ = np.broadcast_to(first_code + np.arange(frames, dtype=np.int32)[:, None], (frames, codebooks))
    return (("text", text), ("audio", codes_TQ))


@functools.cache
def compiled(depth):
    """A random model and the compiled gradients of its target logits by the rows of its embedding table."""
    config = dataclasses.replace(MODEL, depth=DEPTH if depth else None)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: language_model(config, VOCAB[3], nnx.Rngs(0), Rules())))
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    table = next(n for n, leaf in enumerate(leaves) if leaf.shape == shapes["embedding_VD"].shape)

    @jax.jit
    def compute(weights, batch, at_N, stream_N, count):
        def logit(table_VD, at, stream):
            model = nnx.merge(graph, structure.unflatten([*weights[:table], table_VD, *weights[table + 1 :]]))
            hidden_BLD = model(batch["tokens"], batch["positions"], batch["segments"], batch["ahead"])
            target = batch["targets"][0, at, stream]
            first = hidden_BLD[0, at] @ model.output_DV()[:, target]
            if not depth:
                return first
            states_1Cd = model.depth(hidden_BLD[:, at], batch["targets"][:, at, :-1], table_VD)
            finer = model.depth.logits(states_1Cd)[
                0, stream - 1, (target - VOCAB[3].code_start) % VOCAB[3].codebook_size
            ]
            return jnp.where(stream > 0, finer, first)

        # One after the other: with jax.vmap here, XLA of jax 0.10.2 for CPUs mixes up rows beyond the 2048th.
        def one(n, gradients_NV):
            gradient_VD = jax.grad(logit)(weights[table], at_N[n], stream_N[n])
            return gradients_NV.at[n].set(jnp.abs(gradient_VD).max(axis=-1))

        return jax.lax.fori_loop(0, count, one, jnp.zeros((len(at_N), len(weights[table]))))

    return functools.partial(compute, weights)


def logit_gradients(row, most=96, depth=False):
    """A row -> its predictions as (position, stream, [V] gradient by embedding row, the largest over its width).

    Rows and predictions are padded to one shape, so that few programs are compiled; padding is not computed.
    """
    positions = POSITIONS if len(row["positions"]) <= POSITIONS else LONG
    batch = {key: np.zeros((1, positions, *row[key].shape[1:]), np.int32) for key in row if key != "weights"}
    for key, values in batch.items():
        values[0, : len(row[key])] = row[key]
    at_N, stream_N = np.nonzero(row["heads"])
    padding = (0, most - len(at_N))
    places = np.pad(at_N, padding), np.pad(stream_N, padding)
    gradients_NV = np.asarray(compiled(depth)(batch, *places, len(at_N)))
    return zip(at_N, stream_N, gradients_NV)


def pack(*rows):
    """Rows one after the other, as segments 1, 2, ... of one row."""
    packed = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    lengths = [len(row["positions"]) for row in rows]
    packed["segments"] = np.repeat(np.arange(1, len(rows) + 1), lengths).astype(np.int32)
    return packed, np.cumsum([0, *lengths])


def filler(grid, vocab):
    """A document of text, none of which the others have, to push them along the row; nothing is predicted in it."""
    row = documents.causal_row((("text", np.arange(100, 100 + FILL, dtype=np.int32)),), grid, vocab)
    row["heads"][:] = ids.HEAD_NONE
    return row


def code_gradients(gradients_V, vocab, first_code, frames):
    """[V] -> [T, Q], of the cells of a document."""
    return gradients_V[vocab.code_ids(document(first_code, frames, vocab.codebooks, 0)[1][1])]


def text_gradients(gradients_V, first_text):
    return gradients_V[ids.TEXT_START + first_text :][:BEGIN]


@pytest.mark.parametrize("filled", [False, True], ids=["short", "long"])
@pytest.mark.parametrize(("codebooks", "options"), CAUSAL, ids=name)
def test_causal_predictions_see_earlier_steps_and_nothing_else(codebooks, options, filled):
    grid, vocab = bind(SerializationConfig(**options), codebooks), VOCAB[codebooks]
    frames, first_codes, texts = (FIRST, SECOND), (0, FIRST), (0, BEGIN)
    rows = [
        documents.causal_row(document(c, T, codebooks, w), grid, vocab) for c, T, w in zip(first_codes, frames, texts)
    ]
    packed, starts = pack(*([filler(grid, vocab)] if filled else []), *rows)
    starts = starts[filled:]
    checked = 0
    for at, stream, gradients_V in logit_gradients(packed, depth=grid.depth):
        own = packed["segments"][at] - 1 - filled
        other = 1 - own
        assert not gradients_V[100 : 100 + FILL].any()
        assert not code_gradients(gradients_V, vocab, first_codes[other], frames[other]).any()
        assert not text_gradients(gradients_V, texts[other]).any()
        step = at - starts[own] - BEGIN - 1  # the position after BOS, text and <audio> predicts step 1
        steps = layout.causal_cells(grid, frames[own])[0]
        if not 0 <= step < len(steps):
            continue
        frame_LS, book_LS = layout.causal_cells(grid, frames[own])
        frame, book = frame_LS[step, stream], book_LS[step, stream]
        if frame < frames[own]:
            may_see_TQ = visibility_TQTQ(grid, frames[own])[frame, book]
        else:
            assert packed["targets"][at, stream] == ids.END_AUDIO
            may_see_TQ = layout.order_TQ(grid, frames[own]) < grid.order(frames[own], 0, frames[own])
        may_see_TQ = may_see_TQ & (np.arange(codebooks) < grid.causal_levels)
        found_TQ = code_gradients(gradients_V, vocab, first_codes[own], frames[own]) != 0
        np.testing.assert_array_equal(found_TQ, may_see_TQ, f"frame {frame} codebook {book}")
        assert (text_gradients(gradients_V, texts[own]) != 0).all()
        checked += 1
    assert checked == sum(T * grid.causal_levels + 1 for T in frames)


@pytest.mark.parametrize("filled", [False, True], ids=["short", "long"])
@pytest.mark.parametrize(("codebooks", "options"), LEVELS, ids=name)
def test_passes_over_a_level_see_earlier_steps_and_nothing_else(codebooks, options, filled):
    grid, vocab = bind(SerializationConfig(**options), codebooks), VOCAB[codebooks]
    step_TQ = layout.order_TQ(grid, FIRST)
    visible_TQTQ = visibility_TQTQ(grid, FIRST)
    checked = np.zeros((FIRST, codebooks), int)
    for level in range(grid.causal_levels, codebooks):
        for step in np.unique(step_TQ[:, level]):
            view = LevelView(level, step_TQ[:, level] >= step)
            own = documents.level_row(document(0, FIRST, codebooks, 0), 1, view, grid, vocab)
            other = documents.level_row(document(FIRST, SECOND, codebooks, BEGIN), 1, _all(level, SECOND), grid, vocab)
            packed, starts = pack(other, *([filler(grid, vocab)] if filled else []), own)
            starts = starts[filled:]
            first_frame = starts[1] + BEGIN + 2
            for at, stream, gradients_V in logit_gradients(packed):
                foreign_TQ = code_gradients(gradients_V, vocab, FIRST, SECOND)
                if at < starts[1]:
                    assert not code_gradients(gradients_V, vocab, 0, FIRST).any()
                    continue
                assert not foreign_TQ.any()
                assert not text_gradients(gradients_V, BEGIN).any()
                found_TQ = code_gradients(gradients_V, vocab, 0, FIRST) != 0
                if at < first_frame:  # text and the length
                    assert not found_TQ.any()
                    continue
                frame = at - first_frame
                assert stream == level
                if step_TQ[frame, level] == step:
                    np.testing.assert_array_equal(found_TQ, visible_TQTQ[frame, level])
                    assert (text_gradients(gradients_V, 0) != 0).all()
                    checked[frame, level] += 1
    assert (checked[:, grid.causal_levels :] == 1).all()


def _all(level, frames):
    return LevelView(level, np.ones(frames, bool))


@pytest.mark.parametrize(("codebooks", "options"), LEVELS, ids=name)
def test_drawn_rows_see_what_is_not_hidden_and_nothing_else(codebooks, options):
    """Training rows with their random prompt, level and mask."""
    grid, vocab = bind(SerializationConfig(**options), codebooks), VOCAB[codebooks]
    rng = np.random.default_rng(0)
    views = [view for view in (grid.draw(rng, FIRST) for _ in range(40)) if view is not None][:12]
    assert len({view.level for view in views}) > 1 or codebooks == 1
    assert any(view.prompt for view in views)
    for view in views:
        row = documents.level_row(document(0, FIRST, codebooks, 0), 1, view, grid, vocab)
        packed, _ = pack(row)
        may_see_TQ = np.zeros((FIRST, codebooks), bool)
        may_see_TQ[:, : view.level] = True
        may_see_TQ[:, view.level] = ~view.masked_T
        may_see_TQ[: view.prompt] |= np.arange(codebooks) > view.level
        seen = 0
        for at, stream, gradients_V in logit_gradients(packed):
            if stream == view.level and at >= BEGIN + 2:
                np.testing.assert_array_equal(code_gradients(gradients_V, vocab, 0, FIRST) != 0, may_see_TQ)
                seen += 1
        assert seen == view.masked_T.sum()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_text_and_structure_see_no_later_audio_in_any_row(strategy):
    grid, vocab = bind(SerializationConfig(strategy), 3), VOCAB[3]
    two = (*document(0, 2, 3, 0), *document(3, 2, 3, BEGIN))
    rows = {}
    if grid.causal_levels:
        rows["causal"] = documents.causal_row(two, grid, vocab, 1.0)
    if grid.causal_levels < 3:
        rows["level"] = documents.level_row(two, 3, _all(2, 2), grid, vocab, 1.0)
        rows["clean"] = documents.clean_row(two, grid, vocab, 1.0)
    for row in rows.values():
        packed, _ = pack(row)
        for at, _stream, gradients_V in logit_gradients(packed):
            earlier = set(packed["tokens"][: at + 1].ravel())
            frames_seen = set(packed["tokens"][at : at + packed["ahead"][at] + 1].ravel())
            unseen = set(packed["tokens"].ravel()) - earlier - frames_seen
            assert not gradients_V[sorted(unseen)].any()
