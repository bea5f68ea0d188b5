"""Options of `generate` as plain keywords, and prompts as recordings are read."""

import numpy as np
import pytest

from audiolm_jax.audio import resample
from audiolm_jax.errors import InputError
from audiolm_jax.sampling import SamplingConfig, rows

DEFAULT = SamplingConfig(top_p=(0.9,), seed=5)


def sampling(texts, **options):
    return [row.sampling for row in rows.rows(texts, options, DEFAULT)]


def test_every_field_of_the_sampling_is_a_keyword_for_all_rows_or_for_each():
    one, two = sampling(["a", "b"], temperature=0.5, top_k=(50, 20), guidance=[1.0, np.float32(2)])
    assert one == SamplingConfig((0.5,), (50, 20), (0.9,), 1.0, seed=5)
    assert two == SamplingConfig((0.5,), (50, 20), (0.9,), 2.0, seed=5)
    one, two = sampling(["a", "b"], suppressed=((3, 4),), min_frames=[0, 2], repetition_penalty=[(1.05, 1), 1.3])
    assert one.suppressed == two.suppressed == ((3, 4),) and (one.min_frames, two.min_frames) == (0, 2)
    assert (one.repetition_penalty, two.repetition_penalty) == ((1.05, 1), (1.3,))
    one, two = sampling(["a", "b"], sampling=SamplingConfig(anneal=0.5), temperature=[(1.0, 0.5), 0.25])
    assert (one, two) == (SamplingConfig((1.0, 0.5), anneal=0.5), SamplingConfig((0.25,), anneal=0.5))
    assert rows.row("a", {"temperature": 0.5, "seed": 3}, DEFAULT).sampling.temperature == (0.5,)


def test_a_seed_counts_from_the_first_row_and_seeds_are_those_of_the_rows():
    assert [row.seed for row in rows.rows(["a", "b"], {}, DEFAULT)] == [5, 6]
    assert [row.seed for row in rows.rows(["a", "b"], {"seed": 8}, DEFAULT)] == [8, 9]
    assert [row.seed for row in rows.rows(["a", "b"], {"seeds": np.array([8, 3])}, DEFAULT)] == [8, 3]
    with pytest.raises(InputError, match="both seed and seeds"):
        rows.rows(["a"], {"seed": 8, "seeds": [1]}, DEFAULT)


def test_numbers_of_numpy_are_numbers():
    [row] = rows.rows("a", {"seconds": np.float32(1), "frames": None}, DEFAULT)
    assert type(row.seconds) is float and row.seconds == 1
    for frames in (25, 25.0, np.int64(25), np.array(25), [np.int16(25)]):
        [row] = rows.rows("a", {"frames": frames}, DEFAULT)
        assert type(row.frames) is int and row.frames == 25


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (None, {}, "texts are None"),
        (5, {}, "texts are 5 .int.; give a string, or a list"),
        (b"hello", {}, "bytes"),
        (["a", 5], {}, "text is 5 .int.; it must be a string"),
        ("a", {"frames": "5"}, "frames is '5' .str.; it must be an integer"),
        ("a", {"frames": 2.5}, "frames is 2.5"),
        ("a", {"frames": True}, "frames is True"),
        ("a", {"seconds": "1"}, "seconds is '1'"),
        ("a", {"seeds": 1.5}, "seed is 1.5"),
        ("a", {"speakers": 3}, "speaker is 3"),
        ("a", {"sampling": {"temperature": 1}}, "sampling is "),
        ("a", {"sampling": 1, "temperature": 1}, "sampling is 1"),
        ("a", {"tempreture": 1}, "there is no option tempreture; did you mean temperature"),
        ("a", {"speaker": "x"}, "there is no option speaker; did you mean speakers"),
        ("a", {"temperature": "hot"}, "sampling.temperature"),
        ("a", {"top_p": 0}, "sampling.top_p"),
        ("a", {"suppressed": (("x",),)}, r"sampling.suppressed=.* must be a tuple of .*, each a tuple of integers"),
        ("a", {"guidance": float("nan")}, "sampling.guidance"),
        (["a", "b", "c"], {"top_k": [1, 2]}, "2 top_k were given for 3 texts.*a tuple is one value"),
    ],
)
def test_another_type_is_one_sentence(texts, options, message):
    with pytest.raises(InputError, match=message):
        rows.rows(texts, options, DEFAULT)


def tone(rate, seconds=0.5):
    return (0.4 * np.sin(2 * np.pi * 220 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_a_recording_with_its_rate_is_resampled_and_mixed():
    x = tone(48000)
    expected = resample(x, 48000, 16000)
    for samples in (x, np.stack([x, x], axis=1), np.stack([x, x]), x[:, None], x.astype(np.float64), x.tolist()):
        np.testing.assert_allclose(rows.waveform((samples, 48000), 16000, 1), expected, atol=1e-6)
    np.testing.assert_allclose(rows.waveform([x, np.int64(48000)], 16000, 1), expected, atol=1e-6)
    np.testing.assert_allclose(rows.waveform((np.stack([x, -x], 1), 48000), 16000, 1), 0, atol=1e-6)
    left, right = rows.waveform((np.stack([x, -x], 1), 48000), 16000, 2)
    np.testing.assert_allclose((left, right), (expected, -expected), atol=1e-6)
    np.testing.assert_array_equal(*rows.waveform((x, 48000), 16000, 2))


@pytest.mark.parametrize(("kind", "scale", "middle"), [("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 128, 128)])
def test_integers_with_a_rate_are_pcm(kind, scale, middle):
    pcm = np.round(tone(16000).astype(np.float64) * (scale - 1) + middle).astype(kind)
    heard = rows.waveform((pcm, 16000), 16000, 1)
    assert heard.dtype == np.float32
    np.testing.assert_allclose(heard, tone(16000), atol=1.1 / 128 if kind == "uint8" else 1e-4)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((100, 2), np.float32), "a waveform is .samples. of floats at 16000 Hz, or .samples, Hz."),
        (np.zeros(100, np.int16), "int16 of shape .100,.; a waveform is"),
        (9000 * tone(16000), "divide 16-bit samples by 32768"),
        (np.full(9, np.nan, np.float32), "NaN"),
        ("voice.wav", "a prompt is 'voice.wav' .str."),
        ((tone(16000), 0), "a number of Hz above 0"),
        ((tone(16000), "16000"), "a number of Hz above 0"),
        ((np.zeros((0,), np.float32), 16000), "has shape .0,."),
        ((np.zeros((9, 9), np.float32), 16000), "one or two channels"),
        ((np.zeros(9, np.int64), 16000), "int64; integers of 8, 16 or 32 bits are PCM"),
        ((np.zeros(9, bool), 16000), "it must be a waveform"),
        ({"array": 1}, "it must be a waveform"),
    ],
)
def test_what_is_no_recording_is_one_sentence(audio, message):
    with pytest.raises(InputError, match=message):
        rows.waveform(audio, 16000, 1)


def test_codes_are_grids_of_integers():
    assert rows.is_codes(np.zeros((3, 4), np.int64)) and rows.is_codes([[1, 2], [3, 4]])
    assert not rows.is_codes((np.zeros((3, 2), np.int16), 8000)) and not rows.is_codes(np.zeros((3, 2), np.float32))
