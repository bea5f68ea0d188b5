"""Sound files: headers of pipes, formats without a length, damage; and one recording, the same codes everywhere."""

import dataclasses
import io
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_jax import codecs
from audiolm_jax import config as configs
from audiolm_jax.cli import arguments, main
from audiolm_jax.cli import codec as codec_files
from audiolm_jax.codecs import encodec
from audiolm_jax.data import corpora, encode, prepare, tokens
from audiolm_jax.data.corpora import CorpusConfig, Reject, checks, sound, tfds
from tests.helpers import published_codecs
from tests.helpers.recordings import OWN, listed, put, reason, speech

RATE = 16000


def wav(path: Path, riff: int, data: int, samples=None, before: bytes = b"", after: bytes = b"") -> Path:
    """A 16-bit mono wav file with these two sizes in its header."""
    pcm = np.round(32767 * (speech() if samples is None else samples)).astype("<i2").tobytes()
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVE" + form + before + b"data" + struct.pack("<I", data)
    path.write_bytes(head + pcm + after)
    path.with_suffix(".txt").write_text("hello")
    return path


WHOLE = {  # sizes (of the file, of its data) that programs write who do not know them
    "ffmpeg": (2**32 - 1, 2**32 - 1),
    "sox": (0x7FFFF024, 0x7FFFF000),
    "most": (2**31 - 1, 2**31 - 1 - 36),
    "all of them": (2**31 - 1, 2**31 - 1),
    "rounded": (2**31, 2**31),
    "less the header": (2**32 - 1, 2**32 - 1 - 36),
    "sox aiff": (0x7F000024, 0x7F000000),
    "nothing": (0, 0),
    "an empty file": (36, 0),
    "a pipe and nothing": (2**32 - 1, 0),
    "never closed": (8, 0),
    "16 bytes too many": (36 + 32016, 32016),
    "right": (36 + 32000, 32000),
}


@pytest.mark.parametrize("before", [b"", b"LIST" + struct.pack("<I", 4) + b"INFO"])
@pytest.mark.parametrize("name", WHOLE)
def test_wav_files_of_a_pipe_are_whole(name, before, tmp_path):
    wav(tmp_path / "a.wav", *WHOLE[name], before=before)
    waveform, _ = listed(tmp_path)["a"].load()
    np.testing.assert_allclose(waveform, speech(), atol=1e-4)
    [piece] = codec_files.read(tmp_path / "a.wav", RATE, 1)
    np.testing.assert_array_equal(piece[0], waveform)


def test_wav_files_that_are_cut_or_empty_are_not(tmp_path):
    wav(tmp_path / "cut.wav", 36 + 64000, 64000)
    wav(tmp_path / "none.wav", 36, 0, np.zeros(0))
    wav(tmp_path / "note.wav", 48, 0, np.zeros(0), after=b"LIST" + struct.pack("<I", 4) + b"INFO")
    reasons = {key: reason(item) for key, item in listed(tmp_path).items()}
    assert reasons["cut"].startswith("cut off: its header promises 64000 bytes")
    assert reasons["none"] == reasons["note"] == "holds no samples"


FORMATS = "WAV WAVEX AIFF AU W64 CAF RF64 FLAC SVX NIST OGG".split()
LONG = speech(4.0) + 0.01 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_half_a_file_is_rejected(kind, part):
    file = io.BytesIO()
    soundfile.write(file, LONG, RATE, format=kind)
    content = file.getvalue()
    with sound.opened(content) as whole:
        assert len(sound.whole(whole)) == len(LONG)
    with (
        pytest.raises(Reject, match=r"cut off|not readable as audio"),
        sound.opened(content[: int(part * len(content))]) as cut,
    ):
        sound.whole(cut)


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.5, 25.0])
def test_telephone_recordings_are_used(rate, seconds, tmp_path):
    """GSM 6.10 has no exact length, and libsndfile cannot seek in it."""
    put(tmp_path, "a.wav", speech(seconds, rate), text="hello", rate=rate, subtype="GSM610")
    waveform, _ = listed(tmp_path)["a"].load()
    assert abs(len(waveform) / RATE - seconds) < 0.1
    cut = listed(tmp_path, dataclasses.replace(OWN, max_seconds=4.0, long="windows"))
    if seconds > 4:
        parts = [item.load()[0] for item in cut.values()]
        assert len(parts) == 7 and abs(sum(map(len, parts)) - len(waveform)) <= len(parts)
        np.testing.assert_allclose(parts[0][:RATE], waveform[:RATE], atol=1e-3)


@pytest.mark.parametrize("rate", [44100, 48000, 22050, 8000, 16000])
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 10, 100, 1000])
def test_very_short_recordings_are_used_or_named(rate, samples, tmp_path):
    wave = 0.1 * np.sin(np.arange(samples) + 1)
    soundfile.write(tmp_path / "a.wav", wave, rate)
    config = dataclasses.replace(OWN, min_seconds=0.0, require_text=False)
    said = reason(listed(tmp_path, config)["a"])
    assert not said or said.startswith(("holds no samples", "too short", "constant"))
    try:
        found = np.concatenate(list(codec_files.read(tmp_path / "a.wav", RATE, 1)), axis=1)
    except ValueError as error:
        assert "holds no samples" in str(error) or "too short" in str(error)
    else:
        assert found.shape == (1, round(samples * RATE / rate)) or abs(found.shape[1] - samples * RATE / rate) < 1


def test_pieces_are_delivered_as_the_whole():
    noise = 0.3 * np.random.default_rng(0).standard_normal((44100, 2)).astype(np.float32)
    for channels in (1, 2):
        whole = sound.Delivery(44100, 24000, channels)(noise, last=True)
        deliver = sound.Delivery(44100, 24000, channels)
        pieces = [deliver(noise[n : n + 999], last=n + 999 >= len(noise)) for n in range(0, len(noise), 999)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert whole.shape == (24000, channels)


# One recording, the same codes everywhere.


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A codec of 24 kHz, for one channel and, as encodec_stereo, for two."""
    path = tmp_path_factory.mktemp("codec")
    sizes = published_codecs.SEANET | {"upsampling_ratios": (8, 5, 4, 2)}
    config = encodec.EnCodecConfig(**sizes, sampling_rate=24000, target_bandwidths=(1.5,), num_lstm_layers=1)
    published_codecs.write(path, "encodec", config)
    return path


def two_channels(rate: int, seconds: float = 2.0) -> np.ndarray:
    left, right = speech(seconds, rate, 300.0), 0.6 * speech(seconds, rate, 1900.0)[::-1]
    return np.stack([left, right], axis=1)


def prepared(folder: Path, directory: Path, **codec) -> dict[str, dict]:
    config = configs.load("tiny", ["corpus.name=folder", f"corpus.path={folder}", "corpus.require_text=False"])
    config.codec.update({"codebooks": None, **codec})
    info = prepare.prepare(config, directory, progress=False)
    found = {}
    for split in info["splits"]:
        source = tokens.open_split(directory / "tokens", split)
        found |= {source[index]["key"]: source[index] for index in range(len(source))}
    return found


@pytest.mark.parametrize("name", ["encodec", "encodec_stereo", "tiny"])
@pytest.mark.parametrize("rate", [24000, 44100, 16000])
def test_every_way_gives_the_same_codes(name, rate, weights, tmp_path, monkeypatch):
    """`prepare`, `codec encode`, `--prompt` and tensorflow-datasets hear stereo and mono files alike."""
    folder, path = tmp_path / "recordings", None if name == "tiny" else weights
    for key, samples in (("two", two_channels(rate)), ("one", two_channels(rate)[:, 0])):
        put(folder, f"{key}.wav", 1.04 * samples, rate=rate, subtype="FLOAT")
    codec = codecs.load(name, path)
    found = prepared(folder, tmp_path / "data", name=name, path=path and str(path))
    corpus = tokens.info(tmp_path / "data" / "tokens")["identity"]["corpus"]
    assert corpus["sample_rate"] == codec.sample_rate and corpus.get("channels", 1) == codec.channels

    files = [folder / "one.wav", folder / "two.wav"]
    options = ["--codec", name, "--out", tmp_path / "codes", *(["--path", path] if path else [])]
    assert main.main([str(word) for word in ("codec", "encode", *options, *files)]) == 0
    for file in files:
        coded = codec_files.load_codes(tmp_path / "codes" / f"{file.stem}.npz")["codes"]
        np.testing.assert_array_equal(found[file.stem]["codes"], coded)
        prompt = arguments.recording(file, codec.sample_rate, codec.channels, "--prompt")
        np.testing.assert_array_equal(codec.encode(prompt), coded)

        samples, _ = soundfile.read(file, dtype="float32")
        config = CorpusConfig(
            name="tfds",
            tfds_audio="audio",
            tfds_sample_rate=rate,
            sample_rate=codec.sample_rate,
            channels=codec.channels,
        )
        for audio in (samples, file.read_bytes()):
            monkeypatch.setattr(tfds, "_record", lambda *_, audio=audio: {"audio": audio})
            waveform, _ = tfds.load(config, "train", 0)
            np.testing.assert_array_equal(waveform, prompt)
    if codec.channels == 2:
        left, right = (found["two"]["codes"][:, q::2] for q in (0, 1))
        assert (left != right).mean() > 0.5
        np.testing.assert_array_equal(found["one"]["codes"][:, 0::2], found["one"]["codes"][:, 1::2])


def test_a_rate_and_channels_that_are_set_are_kept_and_said(weights, tmp_path, caplog):
    folder = tmp_path / "recordings"
    put(folder, "a.wav", two_channels(24000), rate=24000)
    config = configs.load("tiny", ["corpus.name=folder", f"corpus.path={folder}", "corpus.require_text=False"])
    config.codec.update({"name": "encodec_stereo", "path": str(weights), "codebooks": None})
    [item] = prepare.utterances(config, tmp_path)
    assert item.load()[0].shape == (2, 48000) and not caplog.messages
    config.corpus.update({"sample_rate": 16000, "channels": 1})
    with caplog.at_level("WARNING"):
        info = prepare.prepare(config, tmp_path / "data", progress=False)
    [item] = prepare.utterances(config, tmp_path)
    assert item.load()[0].shape == (32000,) and item.load()[1] == 16000
    assert info["identity"]["corpus"]["sample_rate"] == 16000
    said = "hears this corpus at 16000 Hz (corpus.sample_rate), the codec's rate is 24000 Hz and with 1 channel(s)"
    assert any(said in message for message in caplog.messages)


def test_what_a_codec_cannot_take_is_rejected_by_name(tmp_path):
    put(tmp_path, "six.wav", np.stack([speech()] * 6, axis=1), text="hello", format="WAVEX")
    assert listed(tmp_path)["six"].load()[0].shape == (16000,)
    stereo = listed(tmp_path, dataclasses.replace(OWN, channels=2))["six"]
    assert reason(stereo) == "has 6 channels where 1 or 2 are needed; mix it down"
    with pytest.raises(Reject, match=r"shape \(2, 16000\)"):
        checks.prepare(np.zeros((2, 16000)), 16000, OWN)


class Two:
    channels, sample_rate, name = 2, 16000, "two"


@pytest.mark.parametrize("shape", [(8000,), (2, 8000)])
def test_a_corpus_from_outside_may_give_one_channel_or_two(shape):
    given = 0.1 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    item = corpora.Utterance("a", "train", "", "", (), lambda: (given, 8000))
    heard = encode.heard(item, Two)
    assert heard.shape == (2, 16000) and heard.dtype == np.float32
    assert np.array_equal(heard[0], heard[1]) == (len(shape) == 1)


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), MemoryError(), AssertionError("odd\nfile")])
def test_whatever_a_corpus_from_outside_raises_rejects_one_recording(error):
    def load():
        raise error

    with pytest.raises(Reject, match=f"cannot be read: {type(error).__name__}"):
        encode.heard(corpora.Utterance("a", "train", "", "", (), load), Two)


def test_too_many_open_files_is_no_fault_of_a_recording(tmp_path):
    put(tmp_path, "a.wav", text="one")
    [item], codec = listed(tmp_path).values(), codecs.load("tiny")
    encode.heard(item, codec)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # what is open stays open
    try:
        with pytest.raises(OSError, match="Too many open files"):
            encode.heard(item, codec)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
