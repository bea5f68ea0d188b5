"""Own recordings: what is broken is named with its reason, everything else arrives mono at one sample rate."""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_jax.data.corpora import Reject, checks
from audiolm_jax.errors import InputError
from tests.helpers import recordings
from tests.helpers.recordings import OWN, listed, speech

put = functools.partial(recordings.put, text="hello")


def header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:44])


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).integers(0, 256, 20000, dtype=np.uint8).tobytes())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_audio(path: Path) -> None:
    path.write_bytes(b"<html>404</html>" * 50)


def byte_swapped(path: Path) -> None:
    samples = np.frombuffer(path.read_bytes()[44:], "<i2")
    path.write_bytes(path.read_bytes()[:44] + samples.astype(">i2").tobytes())


def floats_as_int16(path: Path) -> None:
    noisy = speech() + np.random.default_rng(0).normal(0, 0.01, 16000).astype(np.float32)
    soundfile.write(path, noisy.view("<i2"), 16000)


BROKEN_FILES = {
    "empty file": (lambda path: path.write_bytes(b""), "the file is empty"),
    "no samples": (header_only, r"cut off|holds no samples"),
    "cut off": (cut, "cut off"),
    "not audio": (not_audio, "not readable as audio"),
    "random bytes": (random_bytes, "not readable as audio: Format not recognised"),
    "NaN": (lambda p: soundfile.write(p, np.full(9000, np.nan), 16000, subtype="FLOAT"), "NaN or Inf"),
    "Inf": (lambda p: soundfile.write(p, np.full(9000, np.inf), 16000, subtype="FLOAT"), "NaN or Inf"),
    "too short": (lambda path: soundfile.write(path, speech(0.1), 16000), r"too short: 0\.100 s"),
    "too long": (lambda path: soundfile.write(path, speech(31), 16000), r"too long: 31\.0 s"),
    "silent": (lambda path: soundfile.write(path, np.zeros(9000), 16000), "silent"),
    "constant": (lambda path: soundfile.write(path, np.full(9000, 0.5), 16000), "constant"),
    "clipped": (lambda path: soundfile.write(path, np.clip(speech() * 50, -1, 1), 16000), "full scale"),
    "integers as floats": (
        lambda path: soundfile.write(path, speech() * 32768, 16000, subtype="FLOAT"),
        "samples reach .* wrong encoding",
    ),
    "byte order": (byte_swapped, "white noise|full scale"),
    "floats as integers": (floats_as_int16, "white noise|full scale"),
    "removed": (lambda path: (path.unlink(), path.symlink_to("/nowhere.wav")), "does not exist"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_recording_is_rejected_with_its_reason(name, tmp_path):
    breaker, reason = BROKEN_FILES[name]
    put(tmp_path, "good.wav")
    breaker(put(tmp_path, "bad.wav"))
    items = listed(tmp_path)
    assert items["good"].load()[0].shape == (16000,)
    with pytest.raises(Reject, match=reason):
        items["bad"].load()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "text is missing"),
        (b"", "text is empty"),
        (b" \n\t ", "text is empty"),
        ("Grüße".encode("latin-1"), "text is not UTF-8"),
        ("hello".encode("utf-16")[:-1], "text is not UTF-16"),
        ("hello".encode("utf-16-le"), "control characters"),
    ],
)
def test_broken_text_is_rejected_with_its_reason(text, reason, tmp_path):
    put(tmp_path, "bad.wav", text=text)
    with pytest.raises(Reject, match=reason):
        listed(tmp_path)["bad"].load()


def test_text_may_be_missing_where_it_is_not_required(tmp_path):
    put(tmp_path, "a.wav", text=None)
    item = listed(tmp_path, dataclasses.replace(OWN, require_text=False))["a"]
    assert item.text == "" and len(item.load()[0]) == 16000


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_channels_and_rates_arrive_alike(suffix, tmp_path):
    """A stereo recording at 44.1 kHz comes out mono at 16 kHz, as long as it was and sounding the same."""
    stereo = np.stack([speech(1.5, 44100), np.zeros(66150, np.float32)], axis=1)
    put(tmp_path, f"a.{suffix}", stereo, rate=44100)
    waveform, rate = listed(tmp_path)["a"].load()
    assert rate == 16000 and waveform.dtype == np.float32 and waveform.ndim == 1
    assert abs(len(waveform) - 24000) <= (1200 if suffix == "mp3" else 1)
    expected = speech(1.5) / 2
    middle = slice(8000, 16000)
    # Lossy coders shift the signal a little: compare at the best delay.
    windows = np.lib.stride_tricks.sliding_window_view(waveform[6800:17200], 8000)
    likeness = windows @ expected[middle] / np.linalg.norm(windows, axis=1) / np.linalg.norm(expected[middle])
    assert likeness.max() > 0.99
    assert np.abs(waveform).max() == pytest.approx(np.abs(expected).max(), rel=0.1)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_cut_compressed_recordings_are_rejected(suffix, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 64000)
    cut(put(tmp_path, f"a.{suffix}", noise))
    with pytest.raises(Reject, match=r"cut off|lost sync"):
        listed(tmp_path)["a"].load()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 48000])
def test_resampling_keeps_length_and_pitch(rate, tmp_path):
    put(tmp_path, "a.wav", speech(2.0, rate, 440.0), rate=rate)
    waveform, _ = listed(tmp_path)["a"].load()
    assert abs(len(waveform) - 32000) <= 2
    spectrum = np.abs(np.fft.rfft(waveform[:32000] * np.hanning(len(waveform[:32000]))))
    assert np.argmax(spectrum) * 16000 / len(waveform[:32000]) == pytest.approx(440, abs=1)


def test_metadata_and_text_files_may_stand_side_by_side(tmp_path):
    put(tmp_path, "wavs/LJ1.wav", text=None)
    put(tmp_path, "wavs/LJ2.wav", text=None)
    put(tmp_path, "wavs/LJ3.wav", text="from the text file")
    put(tmp_path, "wavs/LJ4.wav", text=None)
    put(tmp_path, "anna/one.wav", text="Grüße", rate=22050)
    lines = ["LJ1|1 dog|one dog", "LJ2|two cats", "LJ9|nothing there", "LJ4||"]
    (tmp_path / "metadata.csv").write_bytes("\n".join(lines).encode() + b"\nLJ5|caf\xe9")
    items = listed(tmp_path)
    assert items["wavs/LJ1"].text == "one dog" and items["wavs/LJ2"].text == "two cats"
    assert items["wavs/LJ3"].text == "from the text file"
    assert items["anna/one"].text == "Grüße"
    assert items["anna/one"].speaker == "anna" and items["wavs/LJ1"].speaker == ""
    for key, reason in {"LJ4": "text is empty", "LJ9": "does not exist", "LJ5": "not UTF-8"}.items():
        with pytest.raises(Reject, match=reason):
            items[f"wavs/{key}"].load()


def test_manifest_says_what_is_in_it(tmp_path):
    put(tmp_path, "x/a.wav", text=None)
    put(tmp_path, "x/ignored.wav")
    records = [
        {"path": "x/a.wav", "text": "one two", "speaker": "s", "split": "test", "words": [["one", 0, 0.5]]},
        {"path": "x/gone.wav", "text": "gone"},
        {"path": "x/a.wav", "text": "once more"},
        {"audio_filepath": str(tmp_path / "x" / "a.wav"), "key": "b", "text": "line\u2028separator"},
        {"path": "x/ignored.wav", "key": "c"},
    ]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (tmp_path / "list.jsonl").write_text(text + "\n")
    items = listed(tmp_path / "list.jsonl")
    assert len(items) == 5
    first = items["x/a"]
    assert (first.text, first.speaker, first.split, first.words) == ("one two", "s", "test", (("one", 0.0, 0.5),))
    assert len(items["b"].load()[0]) == 16000
    for key, reason in {"x/gone": "does not exist", "x/a.wav (line 3)": "more than once", "c": "missing"}.items():
        with pytest.raises(Reject, match=reason):
            items[key].load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2 is not JSON"),
        ("[1, 2]", "line 2 is not a JSON object"),
        ('{"text": "no path"}', "line 2 has no path"),
        ('{"path": "a.wav", "text": 3}', "line 2 has text = 3"),
        ('{"path": "a.wav", "split": "../up"}', "line 2 has split"),
        ('{"path": "a.wav", "words": [["one", "two"]]}', "line 2 has words"),
    ],
)
def test_bad_manifest_line_is_named(line, message, tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav", "text": "x"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        listed(tmp_path)


def test_missing_and_empty_folders_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        listed(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no recordings in .*\.wav"):
        listed(tmp_path)
    (tmp_path / "song.xyz").write_text("")
    with pytest.raises(InputError, match="is a file"):
        listed(tmp_path / "song.xyz")
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        listed(tmp_path)


def test_split_by_hash_is_stable_and_of_the_right_size():
    keys = [f"clip_{index}" for index in range(2000)]
    names = checks.splits(keys, 0.1, 0.05)
    assert names.count("valid") == pytest.approx(200, abs=45) and names.count("test") == pytest.approx(100, abs=35)
    assert checks.splits(keys[500:], 0.1, 0.05) == names[500:]
    assert sorted(checks.splits(["a", "b", "c"], 0.01, 0.01)) == ["test", "train", "valid"]
    assert checks.splits(["a", "b", "c"], 0, 0) == ["train"] * 3


def test_same_name_with_two_suffixes_stays_two_recordings(tmp_path):
    put(tmp_path, "a.wav")
    put(tmp_path, "a.flac")
    assert sorted(listed(tmp_path)) == ["a.flac", "a.wav"]


def test_utterances_can_be_sent_to_another_process(tmp_path):
    put(tmp_path, "a.wav")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        waveform, _ = pool.submit(listed(tmp_path)["a"].load).result()
    assert len(waveform) == 16000
