"""Framings: the row of one small document written out, and what does not fit."""

import numpy as np
import pytest

from audiolm_jax.data.batches import longest_row
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import SerializationConfig, bind, documents, layout
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import HEAD_CODE, Vocab

CODES_TQ = np.array([[0, 1], [2, 3], [1, 0]])
DELAY = SerializationConfig("delay")


def test_markers_predict_both_ends():
    vocab = Vocab(2, 4, 8)
    row = documents.causal_row((("audio", CODES_TQ),), bind(DELAY, 2), vocab)
    a, b = vocab.code_offsets
    expected = [[ids.BOS, 0], [ids.AUDIO, 0], [a, 0], [a + 2, b + 1], [a + 1, b + 3], [ids.END_AUDIO, b]]
    np.testing.assert_array_equal(row["tokens"], expected)
    np.testing.assert_array_equal(row["targets"], [*expected[1:], [ids.EOS, 0]])
    assert row["heads"][-2:].tolist() == [[vocab.head_code_or_end, HEAD_CODE + 1], [ids.HEAD_TEXT, 0]]


def test_delimited_predicts_what_stands_around_text_too():
    """The last two text ids, and the length of a row counts them."""
    grid, vocab = bind(SerializationConfig("flat"), 2, "delimited"), Vocab(2, 4, 8, text_size=5)
    a, b = vocab.code_offsets
    said = ids.TEXT_START + np.array([2, 0])
    row = documents.causal_row((("text", said), ("audio", CODES_TQ)), grid, vocab, 0.5)
    around = [vocab.code_start - 2, *said, vocab.code_start - 1]
    codes = [a, b + 1, a + 2, b + 3, a + 1, b]
    expected = [ids.BOS, *around, ids.AUDIO, *codes, ids.END_AUDIO]
    assert row["tokens"][:, 0].tolist() == expected
    assert row["targets"][:, 0].tolist() == [*expected[1:], ids.EOS]
    assert row["heads"][:5, 0].tolist() == [ids.HEAD_TEXT] * 5 and row["weights"][:6, 0].tolist() == [0.5] * 5 + [1]
    prompt = documents.prompt_row((("text", said),), grid, vocab, True)["tokens"]
    assert prompt[:, 0].tolist() == expected[:6]
    assert longest_row(2, 3, grid) == len(expected) == longest_row(2, 3, bind(SerializationConfig("flat"), 2)) + 2


def test_bare_has_fillers_and_predicts_codes_alone():
    grid, vocab = bind(DELAY, 2, "bare"), Vocab(2, 4, 8, extra_ids=2)
    row = documents.causal_row((("audio", CODES_TQ),), grid, vocab)
    (a, b), x = vocab.code_offsets, vocab.extra_start
    assert vocab.size == x + 2 == Vocab(2, 4, 8).size + 2
    np.testing.assert_array_equal(row["tokens"], [[x, x + 1], [a, x + 1], [a + 2, b + 1], [a + 1, b + 3], [x, b]])
    np.testing.assert_array_equal(row["targets"], [[a, 0], [a + 2, b + 1], [a + 1, b + 3], [0, b], [0, 0]])
    book_0, book_1 = HEAD_CODE, HEAD_CODE + 1
    np.testing.assert_array_equal(row["heads"], [[book_0, 0], [book_0, book_1], [book_0, book_1], [0, book_1], [0, 0]])
    np.testing.assert_array_equal(row["weights"], row["heads"] > 0)
    np.testing.assert_array_equal(documents.prompt_row((), grid, vocab, True)["tokens"], [[x, x + 1]])
    assert grid.framing.extra_frames(grid) == 1 and bind(DELAY, 2).framing.extra_frames(bind(DELAY, 2)) == 0
    assert not layout.causal_heads(grid, 3, vocab)[-1, 0]


def test_zeros_end_with_a_frame_that_is_predicted_code_by_code():
    grid, vocab = bind(SerializationConfig("depth"), 2, "zeros"), Vocab(2, 4, 8, text_size=3, text_given=True)
    words, (a, b) = np.array([ids.TEXT_START, ids.TEXT_START + 2]), vocab.code_offsets
    turns = (("text", words), ("audio", CODES_TQ))
    row = documents.causal_row((*turns, *turns), grid, vocab)
    turn = [[words[0], 0], [words[1], 0], [a, b + 1], [a + 2, b + 3], [a + 1, b], [a, b]]
    np.testing.assert_array_equal(row["tokens"], [*turn, *turn])
    np.testing.assert_array_equal(row["targets"], [[0, 0], *turn[2:], [0, 0]] * 2)
    book_0, book_1, end = HEAD_CODE, HEAD_CODE + 1, vocab.head_of_end
    heads = [[0, 0], [book_0, vocab.head_not_end], *[[book_0, book_1]] * 2, [end, end + 1], [0, 0]]
    np.testing.assert_array_equal(row["heads"], heads * 2)
    np.testing.assert_array_equal(row["weights"], row["heads"] > 0)
    assert len({vocab.head_code_or_end, vocab.head_not_end, end, end + 1}) == 4
    np.testing.assert_array_equal(documents.prompt_row(turns[:1], grid, vocab, True)["tokens"], turn[:2])
    with pytest.raises(InputError, match="frame 1 of an audio segment is code 0 in every codebook"):
        documents.causal_row((turns[0], ("audio", np.array([[0, 1], [0, 0]]))), grid, vocab)
    with pytest.raises(InputError, match="of the framing 'zeros' text stands before every audio segment"):
        documents.causal_row((*turns, turns[1]), grid, vocab)
    for order, books in ((DELAY, 2), (SerializationConfig("depth", (0, 1)), 2), (SerializationConfig("depth"), 1)):
        with pytest.raises(InputError, match="needs the strategy 'depth' without delays, and at least 2 codebooks"):
            bind(order, books, "zeros")


def test_a_given_text_has_no_output():
    vocab = Vocab(3, 5, 8, extra_ids=2, text_size=1000, text_given=True)
    assert vocab.first.code_start == ids.TEXT_START + 1 and vocab.first.size == ids.TEXT_START + 1 + 5 + 1


@pytest.mark.parametrize("kinds", [("text", "audio"), ("audio", "audio"), ("audio", "text"), ("text",)])
def test_bare_has_one_audio_segment(kinds):
    values = {"text": np.array([ids.TEXT_START]), "audio": CODES_TQ}
    document = tuple((kind, values[kind]) for kind in kinds)
    with pytest.raises(InputError, match="'bare' it is one audio segment"):
        documents.causal_row(document, bind(DELAY, 2, "bare"), Vocab(2, 4, 8, 2))
    documents.causal_row(document, bind(DELAY, 2), Vocab(2, 4, 8))


def test_what_cannot_be_framed():
    with pytest.raises(InputError, match="'bare' has a filler id for each of 2 codebooks; the strategy 'flat'"):
        bind(SerializationConfig("flat"), 2, "bare")
    with pytest.raises(InputError, match="'masked' has no causal stream for each"):
        bind(SerializationConfig("masked"), 2, "bare")
    with pytest.raises(InputError, match="framing is 'open'; it must be one of markers, delimited, bare, zeros"):
        bind(DELAY, 2, "open")
    with pytest.raises(InputError, match="extra_ids is -1"):
        Vocab(2, 4, 8, -1)


@pytest.mark.parametrize("framing", ["markers", "bare"])
def test_states_stand_at_positions_without_tokens(framing):
    grid, vocab = bind(DELAY, 2, framing), Vocab(2, 4, 8, 2)
    before = int(framing == "markers")  # BOS
    states = np.arange(1.0, 7.0).reshape(2, 3)
    document = (("states", states[:1]), ("states", states[1:]))
    alone = documents.causal_row((("audio", CODES_TQ),), grid, vocab)
    row = documents.causal_row((*document, ("audio", CODES_TQ)), grid, vocab)
    expected = np.zeros((len(alone["tokens"]) + 2, 3))
    expected[before : before + 2] = states
    np.testing.assert_array_equal(row["states"], expected)
    for name in ("tokens", "targets", "heads", "weights"):
        shifted = np.insert(alone[name], [before] * 2, 0, axis=0)
        if before:  # <audio> is predicted by the last position before it
            shifted[[0, 2]] = shifted[[2, 0]] if name != "tokens" else shifted[[0, 2]]
        np.testing.assert_array_equal(row[name], shifted)
    prompt = documents.prompt_row(document, grid, vocab, True)
    np.testing.assert_array_equal(prompt["states"], expected[: before + 3])
    with pytest.raises(InputError, match=r"states of shape \(3,\)"):
        documents.causal_row((("states", states[0]), *document, ("audio", CODES_TQ)), grid, vocab)


BESIDE = bind(SerializationConfig("depth"), 2, "beside")
GIVEN = np.array([[0, 90], [ids.TEXT_START, 91]])


def test_text_stands_beside_every_position():
    vocab = Vocab(2, 4, 8, text_size=3)
    document = (("given", GIVEN), ("beside", np.array([92, 93])), ("audio", CODES_TQ))
    row, (a, b) = documents.causal_row(document, BESIDE, vocab), vocab.code_offsets
    frames = [[a, b + 1], [a + 2, b + 3], [a + 1, b]]
    texts = [90, 91, 92, 93, 93, 93]  # the last one goes on
    streams = [[0, 0], [ids.TEXT_START, 0], *frames, [ids.END_AUDIO, 0]]
    np.testing.assert_array_equal(row["tokens"], [[*pair, text] for pair, text in zip(streams, texts, strict=True)])
    np.testing.assert_array_equal(row["targets"], [[0, 0], *frames, [ids.END_AUDIO, 0], [0, 0]])
    either, book_1 = vocab.head_code_or_end, HEAD_CODE + 1
    np.testing.assert_array_equal(
        row["heads"], [[0, 0], [HEAD_CODE, book_1], [either, book_1], [either, book_1], [either, 0], [0, 0]]
    )
    opened = documents.prompt_row(document[:2], BESIDE, vocab, causal=True)
    np.testing.assert_array_equal(opened["tokens"], row["tokens"][:2])
    assert BESIDE.inputs == 3 and bind(DELAY, 2).inputs == 2


@pytest.mark.parametrize(
    ("framing", "document", "words"),
    [
        ("beside", (("given", GIVEN), ("audio", CODES_TQ)), "of the framing 'beside' it is positions that are given"),
        ("beside", (("beside", GIVEN[0]), ("audio", CODES_TQ)), "a document of beside and audio was given"),
        (
            "beside",
            (("given", GIVEN[:, 0]), ("beside", GIVEN[0])),
            r"'given' has shape \(2,\); it must be \[positions, 2",
        ),
        ("beside", (("given", GIVEN), ("beside", GIVEN[0][:0])), r"'beside' has shape \(0,\); it must be \[steps\]"),
        (
            "markers",
            (("given", GIVEN), ("audio", CODES_TQ)),
            "'given' was given; the framing 'markers' has no such text",
        ),
    ],
)
def test_text_beside_that_does_not_fit_is_refused(framing, document, words):
    grid = bind(SerializationConfig("depth"), 2, framing)
    with pytest.raises(InputError, match=words):
        documents.causal_row(document, grid, Vocab(2, 4, 8))
