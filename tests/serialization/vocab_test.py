import dataclasses
import json

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import text
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab


def test_ranges_are_disjoint_and_complete():
    vocab = Vocab(codebooks=3, codebook_size=5, max_frames=7)
    text_ids = range(ids.TEXT_START, ids.TEXT_START + ids.BYTES)
    codes = vocab.code_ids(np.stack([np.arange(5)] * 3, axis=-1)).ravel()
    lengths = [vocab.length_id(T) for T in range(1, 8)]
    every = [ids.PAD, ids.BOS, ids.EOS, ids.AUDIO, ids.END_AUDIO, ids.MASK, 6, 7, *text_ids, *codes, *lengths]
    assert sorted(every) == list(range(vocab.size))


def test_each_codebook_and_the_text_may_have_a_size_of_their_own():
    vocab = Vocab(3, (7, 5, 3), 4, text_size=20)
    assert (vocab.code_start, vocab.length_start, vocab.size) == (28, 28 + 15, 28 + 15 + 4)
    assert vocab.code_offsets.tolist() == [28, 35, 40]
    np.testing.assert_array_equal(vocab.code_ids([[6, 4, 2]]), [[34, 39, 42]])
    assert vocab.legal_HV.sum(1).tolist() == [0, 22, 4, 7, 5, 3, 8]
    assert vocab.legal_HV[:, :28].sum(1).tolist() == [0, 22, 0, 0, 0, 0, 1]
    with pytest.raises(InputError, match=r"code 5 is out of range; codes must lie in 0\.\.4"):
        vocab.code_ids([[6, 5, 2]])
    with pytest.raises(InputError, match=r"codebook_size is \(7, 5\); it must be one number, or 3 of them"):
        Vocab(3, (7, 5), 4)
    with pytest.raises(InputError, match="text_size is 0"):
        Vocab(3, 4, 4, text_size=0)


def test_a_vocabulary_survives_json_and_equal_sizes_are_one_number():
    for vocab in (Vocab(3, (7, 5, 3), 4), Vocab(3, 5, 4)):
        again = Vocab(**json.loads(json.dumps(dataclasses.asdict(vocab))))
        assert again == vocab and hash(again) == hash(vocab)
    assert Vocab(3, (5, 5, 5), 4) == Vocab(3, 5, 4)


def test_legal_sets_hold_nothing_structural_but_the_end():
    vocab = Vocab(2, 4, 3)
    assert vocab.legal_HV.shape == (vocab.heads, vocab.size)
    assert not vocab.legal_HV[ids.HEAD_NONE].any()
    assert vocab.legal_HV[:, [ids.PAD, ids.BOS, ids.MASK]].sum() == 0
    assert vocab.legal_HV.sum(1).tolist() == [0, 258, 3, 4, 4, 5]
    assert vocab.legal_HV[vocab.head_code_or_end, ids.END_AUDIO]


def test_bad_values_are_refused():
    with pytest.raises(InputError, match="vocab codebooks is 0"):
        Vocab(0, 4, 3)
    with pytest.raises(InputError, match="3 codebooks were given; this vocabulary has 2"):
        Vocab(2, 4, 3).code_ids(np.zeros((1, 3), int))
    with pytest.raises(InputError, match=r"4 frames is not possible; it must have 1\.\.3"):
        Vocab(2, 4, 3).length_id(4)


@pytest.mark.parametrize("words", ["", "two words", "Größe, 声, 🎵", "\x00\n"])
def test_any_text_survives_the_round_trip(words):
    encoded = text.encode(words)
    assert encoded.dtype == np.int32 and len(encoded) == len(words.encode())
    assert text.decode(encoded) == words


def test_bad_text_is_refused_and_bad_bytes_are_shown():
    with pytest.raises(InputError, match="not valid Unicode at character 1"):
        text.encode("a\ud800")
    with pytest.raises(InputError, match="not text"):
        text.decode(np.array([ids.AUDIO]))
    assert text.decode(text.encode("é")[:1]) == "\ufffd"
