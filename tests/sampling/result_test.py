"""Results show, play and save themselves."""

import base64
import io
import re
import resource

import numpy as np
import pytest
import soundfile

from audiolm_jax import audio
from audiolm_jax.errors import InputError
from audiolm_jax.sampling.result import Result

WAVEFORM = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)


def result(waveform=WAVEFORM, rate=16000):
    return Result(np.zeros((13, 4), np.int32), 3, waveform, rate, True, 17, 0.1)


def test_a_notebook_shows_a_player_with_the_audio():
    html = result()._repr_html_()
    [sound] = re.findall(r'<audio controls[^>]* src="data:audio/wav;base64,([^"]+)"', html)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)), dtype="float32")
    assert rate == 16000
    np.testing.assert_allclose(samples, WAVEFORM, atol=2**-15)
    line = "0.50 s at 16000 Hz, 13 frames of 4 codes (3 of the prompt), ended by the model"
    assert line in html and repr(result()) == f"Result({line})"


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("waveform", [WAVEFORM, np.stack([WAVEFORM, -WAVEFORM])])
def test_save_writes_the_format_of_the_suffix(tmp_path, suffix, waveform):
    path = result(waveform).save(str(tmp_path / f"one{suffix}"))
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000 and soundfile.info(path).format == suffix[1:].upper()
    np.testing.assert_allclose(samples.T, waveform, atol=2**-15)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["one.m4a", "one", "one.raw", "none/one.wav"])
def test_save_refuses_in_one_sentence(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be written|audio is written as \.wav, \.flac"):
        result().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_files():
    """A disk on which no file grows over 4096 bytes: the write fails as on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, small_files):
    (tmp_path / "one.wav").write_text("before")
    with pytest.raises(InputError, match=r"one\.wav: cannot be written .File too large"):
        result().save(tmp_path / "one.wav")
    with (
        pytest.raises(InputError, match=r"one\.wav: cannot be written"),
        audio.writing_wav(tmp_path / "one.wav", 16000, 1) as file,
    ):
        file.write(WAVEFORM)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
