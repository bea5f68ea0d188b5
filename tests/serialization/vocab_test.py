import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import text
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab


def test_ranges_are_disjoint_and_complete():
    vocab = Vocab(codebooks=3, codebook_size=5, max_frames=7)
    text_ids = range(ids.TEXT_START, ids.TEXT_START + ids.TEXT_SIZE)
    codes = vocab.code_ids(np.stack([np.arange(5)] * 3, axis=-1)).ravel()
    lengths = [vocab.length_id(T) for T in range(1, 8)]
    every = [ids.PAD, ids.BOS, ids.EOS, ids.AUDIO, ids.END_AUDIO, ids.MASK, 6, 7, *text_ids, *codes, *lengths]
    assert sorted(every) == list(range(vocab.size))


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
