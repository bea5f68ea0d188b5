"""Orders, layouts and rows against naive loops; the defects of other systems that a layout can have."""

import itertools
import re

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import STRATEGIES, LevelView, SerializationConfig, bind, documents, layout, text
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.strategies import masked
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers.layout_reference import deserialize, visibility_TQTQ

K = 11
GRIDS = [
    *(bind(SerializationConfig(strategy), Q) for strategy in STRATEGIES for Q in (1, 2, 4, 5)),
    bind(SerializationConfig("delay", delays=(0, 0, 2, 2)), 4),
    bind(SerializationConfig("delay", delays=(0, 8, 9, 10, 11)), 5),  # Dia: longer than many of the segments
    bind(SerializationConfig("delay", delays=(3, 3, 5)), 3),
    bind(SerializationConfig("coarse_first", delays=(0, 2, 2, 7)), 4),
    bind(SerializationConfig("depth", delays=(0, 2, 2, 7)), 4),
    bind(SerializationConfig("masked", iterations=(5, 3, 2), schedule="linear"), 3),
]
CAUSAL = [grid for grid in GRIDS if grid.causal_levels]
LEVELS = [grid for grid in GRIDS if grid.causal_levels < grid.codebooks]
FRAMES = (1, 2, 3, 7, 20)


def name(grid):
    options = grid.config.delays or grid.config.iterations
    return f"{grid.config.strategy}-Q{grid.codebooks}" + "".join(f"-{option}" for option in options)


def vocab_of(grid):
    return Vocab(grid.codebooks, K, max_frames=32)


def random_codes(grid, T, seed=0):
    return np.random.default_rng(seed).integers(0, K, (T, grid.codebooks)).astype(np.int32)


def naive_steps(grid, T):
    """The positions of the causal pass as lists of cells, written out per strategy; (T, 0) is the end of audio."""
    Q, delays = grid.codebooks, list(grid.config.delays)
    match grid.config.strategy:
        case "flat":
            return [[(t, q)] for t in range(T) for q in range(Q)] + [[(T, 0)]]
        case "parallel":
            return [[(t, q) for q in range(Q)] for t in range(T)] + [[(T, 0)]]
        case "hierarchical":
            return [[(t, 0)] for t in range(T + 1)]
        case "delay":
            delays = delays or list(range(Q))
            delays = [delay - delays[0] for delay in delays]
            steps = max(T + max(delays), T + 1)
            cells = [[(s - d, q) for q, d in enumerate(delays) if 0 <= s - d < T] for s in range(steps)]
            cells[T].insert(0, (T, 0))
            return cells
        case "coarse_first":
            delays = (delays or [0, *range(Q - 1)])[1:]
            first = [[(t, 0)] for t in range(T + 1)]
            if not delays:
                return first
            lags = [delay - delays[0] for delay in delays]
            return first + [
                [(s - lag, q) for q, lag in enumerate(lags, start=1) if 0 <= s - lag < T] for s in range(T + max(lags))
            ]
        case _:
            cells = [(t, q) for q in range(grid.causal_levels) for t in range(T + (q == 0))]
            places = {cell: grid.position(*cell, T) for cell in cells}
            return [[cell for cell in cells if places[cell] == s] for s in range(max(places.values()) + 1)]


@pytest.mark.parametrize("T", FRAMES)
@pytest.mark.parametrize("grid", CAUSAL, ids=name)
def test_layout_equals_the_naive_loop(grid, T):
    frame_LS, book_LS = layout.causal_cells(grid, T)
    found = [
        sorted((int(t), int(q)) for t, q in zip(frames, books, strict=True) if t >= 0)
        for frames, books in zip(frame_LS, book_LS, strict=True)
    ]
    assert found == [sorted(cells) for cells in naive_steps(grid, T)]
    if grid.streams > 1:
        assert all(q == s for books in book_LS for s, q in enumerate(books) if q >= 0)


@pytest.mark.parametrize("T", FRAMES)
@pytest.mark.parametrize("grid", CAUSAL, ids=name)
def test_deserialize_inverts_serialize(grid, T):
    codes_TQ = random_codes(grid, T)
    tokens_LS = layout.serialize(codes_TQ, grid, vocab_of(grid))
    assert (tokens_LS[:, 0] == ids.END_AUDIO).sum() == 1
    np.testing.assert_array_equal(deserialize(tokens_LS, grid, vocab_of(grid)), codes_TQ[:, : grid.causal_levels])
    padding = np.full((3, grid.streams), ids.PAD)
    padded = deserialize(np.concatenate([tokens_LS, padding]), grid, vocab_of(grid))
    np.testing.assert_array_equal(padded, codes_TQ[:, : grid.causal_levels])


@pytest.mark.parametrize("T", FRAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_every_cell_is_predicted_exactly_once(grid, T):
    """Defect 1 and 9 of the references: tails that are generated but never trained, a first frame never predicted."""
    codes_TQ, vocab = random_codes(grid, T), vocab_of(grid)
    document = (("text", text.encode("ab")), ("audio", codes_TQ))
    rows = []
    if grid.causal_levels:
        rows.append(documents.causal_row(document, grid, vocab))
    for level in range(grid.causal_levels, grid.codebooks):
        rows.append(documents.level_row(document, 1, LevelView(level, np.ones(T, bool)), grid, vocab))
    predicted = np.concatenate([row["targets"][row["weights"] > 0] for row in rows])
    codes = predicted[(predicted >= vocab.code_offsets[0]) & (predicted < vocab.length_start)]
    assert sorted(codes) == sorted(vocab.code_ids(codes_TQ).ravel())
    assert (predicted == ids.END_AUDIO).sum() == (grid.causal_levels > 0)
    assert (predicted >= vocab.length_start).sum() == len(rows) * (grid.causal_levels == 0)


@pytest.mark.parametrize("T", FRAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_targets_are_legal_and_weights_follow_heads(grid, T):
    vocab, rng = vocab_of(grid), np.random.default_rng(T)
    document = (("text", text.encode("é")), ("audio", random_codes(grid, T)), ("text", text.encode("y")))
    for _ in range(8):
        row = documents.training_row(document, grid, vocab, rng, text_weight=0.5, drop_text=0.3)
        for target, head, weight in zip(
            row["targets"].ravel(), row["heads"].ravel(), row["weights"].ravel(), strict=True
        ):
            assert (head == ids.HEAD_NONE) == (target == ids.PAD) == (weight == 0)
            assert head == ids.HEAD_NONE or vocab.legal_HV[head, target]
        assert row["weights"].max() > 0
        assert {len(values) for values in row.values()} == {len(row["tokens"])}


@pytest.mark.parametrize("T", FRAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_the_order_is_a_complete_order(grid, T):
    step_TQ = layout.order_TQ(grid, T)
    assert step_TQ.shape == (T, grid.codebooks) and step_TQ.min() == 0
    assert (np.diff(step_TQ, axis=1) >= 0).all(), "a frame's codebooks come coarse to fine"
    sees = visibility_TQTQ(grid, T)
    assert not (sees & sees.transpose(2, 3, 0, 1)).any(), "no two cells see each other"


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_order_and_position_are_elementwise(grid):
    for T in (1, 2, 7):
        step_TQ = layout.order_TQ(grid, T)
        for t, q in np.ndindex(*step_TQ.shape):
            assert grid.order(t, q, T) == step_TQ[t, q]
            if q < grid.causal_levels:
                of_longer_too = grid.position(np.array([t, t]), q, np.array([T, T + 3]))
                assert np.broadcast_to(of_longer_too, 2).tolist() == [grid.position(t, q, n) for n in (T, T + 3)]


@pytest.mark.parametrize("grid", CAUSAL, ids=name)
def test_order_is_elementwise_in_traced_frames(grid):
    """Sampling evaluates the same formula inside jit, with the number of frames not known yet."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def steps(t_T, T):
        return jnp.stack(
            [jnp.broadcast_to(grid.order(t_T, q, T), t_T.shape) for q in range(grid.causal_levels)], axis=-1
        )

    for T in (3, 9):
        expected = layout.order_TQ(grid, T)[:, : grid.causal_levels]
        np.testing.assert_array_equal(steps(jnp.arange(T), T), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_docstring_prints_the_layout_of_its_strategy(strategy):
    """The letters of its streams, which are lines such as `s=0  a  d  g  </audio>`, `.` where a stream is silent."""
    doc = bind(SerializationConfig(strategy), 1).strategy.__doc__ or ""
    Q, streams = len(re.findall(r"^ *q=\d", doc, re.M)), re.findall(r"[sS]=\d +(.*)", doc)
    grid, vocab = bind(SerializationConfig(strategy), Q or 1), Vocab(Q or 1, 9, 8)
    if not streams:
        return
    letters = {ids.PAD: ".", ids.END_AUDIO: "</audio>"}
    letters |= {int(vocab.code_offsets[q]) + code: "abcdefghi"[code] for q in range(Q) for code in range(9)}
    codes_TQ = np.array([[3 * t + q for q in range(Q)] for t in range(3)])
    tokens_LS = layout.serialize(codes_TQ, grid, vocab)
    printed = [[letters[int(token)] for token in stream] for stream in tokens_LS.T]
    assert [line.split() for line in streams] == printed[: len(streams)]
    assert all(set(line) == {"."} for line in printed[len(streams) :])


def test_tail_of_short_segments_is_complete():
    """Defect 3: a delay layout is never skipped, however short the segment against the delays."""
    grid = bind(SerializationConfig("delay", delays=(0, 15)), 2)
    frame_LS, _ = layout.causal_cells(grid, 1)
    assert frame_LS[:, 0].tolist() == [0, 1, *[-1] * 14]
    assert frame_LS[:, 1].tolist() == [*[-1] * 15, 0]


def test_end_is_no_code_and_only_possible_after_the_first_frame():
    """Defects 9 and 10: an end that collides with a legal frame; pads trained as ends."""
    for grid in CAUSAL:
        vocab = vocab_of(grid)
        row = documents.causal_row((("audio", np.zeros((4, grid.codebooks), np.int32)),), grid, vocab)
        assert not vocab.legal_HV[ids.HEAD_CODE :, : ids.END_AUDIO].any()
        assert (row["targets"] == ids.END_AUDIO).sum() == 1
        first = np.flatnonzero(row["tokens"][:, 0] == ids.AUDIO)[0]
        assert row["heads"][first, 0] == ids.HEAD_CODE
        assert not row["weights"][row["targets"] == ids.PAD].any()


def test_masked_rows_never_have_an_empty_loss():
    """Defect 8: a row with nothing hidden is 0/0."""
    grid = bind(SerializationConfig("masked"), 3)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        view = masked.draw(rng, int(rng.integers(1, 9)), grid)
        assert view.masked_T.any() and not view.masked_T[: view.prompt].any()


def test_masked_rows_follow_soundstorm():
    grid, rng = bind(SerializationConfig("masked"), 4), np.random.default_rng(1)
    vocab, T = vocab_of(grid), 20
    codes_TQ = random_codes(grid, T)
    code_ids_TQ = vocab.code_ids(codes_TQ)
    shares, levels, prompts = [], [], []
    for _ in range(3000):
        view = masked.draw(rng, T, grid)
        tokens_TQ, targets_TQ, heads_TQ = documents.hide(codes_TQ, view, vocab)
        for t, q in itertools.product(range(T), range(4)):
            clean = t < view.prompt or q < view.level or (q == view.level and not view.masked_T[t])
            assert tokens_TQ[t, q] == (code_ids_TQ[t, q] if clean else ids.MASK)
            predicted = q == view.level and view.masked_T[t]
            assert targets_TQ[t, q] == (code_ids_TQ[t, q] if predicted else ids.PAD)
            assert heads_TQ[t, q] == (ids.HEAD_CODE + q if predicted else ids.HEAD_NONE)
        shares.append(view.masked_T[view.prompt :].mean())
        levels.append(view.level)
        prompts.append(view.prompt)
    # E[cos(pi u / 2)] = 2 / pi; the cell that is always hidden adds a little in short remainders.
    assert 2 / np.pi - 0.02 < np.mean(shares) < 2 / np.pi + 0.08
    np.testing.assert_allclose(np.bincount(levels) / 3000, 1 / 4, atol=0.04)
    assert set(prompts) == set(range(T))


def test_schedule_counts_are_per_level_and_end_at_zero():
    """Defects 5 and 7: counts are of one level's frames; every schedule on offer works."""
    grid = bind(SerializationConfig("masked", iterations=(16, 1)), 2)
    hidden = masked.hidden_after(100, 16, grid)
    np.testing.assert_array_equal(hidden[:-1], np.floor(100 * np.cos(np.pi / 2 * np.arange(1, 16) / 16)))
    assert hidden[-1] == 0 and (np.diff(hidden) <= 0).all()
    linear = bind(SerializationConfig("masked", schedule="linear"), 1)
    np.testing.assert_array_equal(masked.hidden_after(10, 5, linear), [8, 6, 4, 2, 0])
    step_TQ = layout.order_TQ(grid, 100)
    revealed = np.bincount(step_TQ[:, 0], minlength=16)
    np.testing.assert_array_equal(100 - np.cumsum(revealed), hidden)
    assert (step_TQ[:, 1] == 16).all()


def test_hierarchical_rows_train_both_stages():
    grid, rng = bind(SerializationConfig("hierarchical"), 3), np.random.default_rng(0)
    views = [grid.draw(rng, 10) for _ in range(2000)]
    levels = [view.level for view in views if view is not None]
    assert abs(len(levels) / 2000 - 0.5) < 0.05 and set(levels) == {1, 2}
    for view in filter(None, views):
        np.testing.assert_array_equal(view.masked_T, np.arange(10) >= view.prompt)


def test_documents_interleave_text_and_audio_in_any_order():
    vocab = Vocab(2, K, 16)
    a, b = (np.full((3, 2), code, np.int32) for code in (4, 5))
    document = (("audio", a), ("text", text.encode("no")), ("audio", b), ("text", text.encode("x")))
    for strategy in STRATEGIES:
        grid = bind(SerializationConfig(strategy), 2)
        if grid.causal_levels:
            row = documents.causal_row(document, grid, vocab, text_weight=1.0)
            inputs = row["tokens"][1:, 0]
            (
                np.testing.assert_array_equal(
                    np.where(row["targets"][:-1, 0] > 0, row["targets"][:-1, 0], inputs), inputs
                ),
                "every input of stream 0 is the prediction of the position before it",
            )
            assert row["targets"][-1, 0] == ids.EOS and (row["tokens"] == ids.END_AUDIO).sum() == 2
            assert (row["ahead"] == 0).all()
        if grid.causal_levels < 2:
            row = documents.level_row(document, 2, LevelView(1, np.ones(3, bool)), grid, vocab, 1.0)
            frames = row["ahead"].tolist()
            assert frames == [0, 0, 2, 1, 0, 0, 0, 0, 0, 2, 1, 0]
            assert (row["tokens"][2:5] == vocab.code_ids(a)).all(), "earlier audio is clean"
            assert (row["tokens"][-3:, 1] == ids.MASK).all() and (row["tokens"][-3:, 0] != ids.MASK).all()


def test_dropping_text_leaves_the_unconditional_document():
    grid, vocab = bind(SerializationConfig("delay"), 2), Vocab(2, K, 16)
    document = (("text", text.encode("abc")), ("audio", random_codes(grid, 4)))
    rng = np.random.default_rng(0)
    row = documents.training_row(document, grid, vocab, rng, drop_text=1.0)
    np.testing.assert_array_equal(row["tokens"][:2, 0], [ids.BOS, ids.AUDIO])
    only_text = (("text", text.encode("abc")),)
    row = documents.training_row(only_text, grid, vocab, rng, text_weight=1.0, drop_text=1.0)
    assert len(row["tokens"]) == 4, "a document of text alone keeps it"


def test_prompt_row_is_the_start_of_the_training_row():
    document = (("text", text.encode("abc")),)
    for grid in GRIDS:
        vocab, whole = vocab_of(grid), (*document, ("audio", random_codes(grid, 4)))
        for causal in {grid.causal_levels > 0, grid.causal_levels == grid.codebooks}:
            prompt = documents.prompt_row(document, grid, vocab, causal)["tokens"]
            view = LevelView(grid.codebooks - 1, np.ones(4, bool))
            row = (
                documents.causal_row(whole, grid, vocab) if causal else documents.level_row(whole, 1, view, grid, vocab)
            )
            np.testing.assert_array_equal(prompt, row["tokens"][: len(prompt)])


@pytest.mark.parametrize(
    ("options", "codebooks", "words"),
    [
        ({"strategy": "delays"}, 4, "serialization.strategy=delays must be one of flat, parallel"),
        ({"strategy": "delay", "delays": (0, 1)}, 3, r"\(0, 1\); it must be 3 non-decreasing"),
        ({"strategy": "delay", "delays": (0, 2, 1)}, 3, "non-decreasing"),
        ({"strategy": "coarse_first", "delays": (1, 1, 1)}, 3, "the first 0"),
        ({"strategy": "flat", "delays": (0, 1)}, 2, "'flat' has no delays"),
        ({"strategy": "delay", "iterations": (4, 4)}, 2, "'delay' has no iterations"),
        ({"strategy": "hierarchical", "schedule": "linear"}, 2, "'hierarchical' has no schedule"),
        ({"strategy": "masked", "causal_fraction": 0.1}, 2, "'masked' has no causal_fraction"),
        ({"strategy": "masked", "iterations": (4, 0)}, 2, "2 numbers from 1 up"),
        ({"strategy": "masked", "schedule": "sine"}, 2, "one of cosine, linear"),
        ({"strategy": "masked", "prompt_fraction": 1.5}, 2, "prompt_fraction=1.5 must be a number >= 0 and <= 1"),
        ({"strategy": "delay"}, 0, "at least 1"),
    ],
)
def test_unfit_options_are_refused(options, codebooks, words):
    with pytest.raises(InputError, match=words):
        bind(SerializationConfig(**options), codebooks)


def test_bad_documents_are_refused():
    grid, vocab = bind(SerializationConfig("delay"), 2), Vocab(2, K, 5)

    def refused(codes_TQ, words):
        with pytest.raises(InputError, match=words):
            documents.causal_row((("audio", codes_TQ),), grid, vocab)

    refused(np.zeros((0, 2), np.int32), "0 frames; it must have 1..5")
    refused(np.zeros((6, 2), np.int32), "6 frames; it must have 1..5")
    refused(np.zeros((3, 3), np.int32), r"they must be \[frames, 2\]")
    refused(np.full((3, 2), K, np.int32), "code 11 is out of range; codes must lie in 0..10")
    refused(np.full((3, 2), -1, np.int32), "code -1 is out of range")
    with pytest.raises(InputError, match="empty document"):
        documents.causal_row((), grid, vocab)
    with pytest.raises(InputError, match="kind 'video'"):
        documents.causal_row((("video", np.zeros((3, 2))),), grid, vocab)
