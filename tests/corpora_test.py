"""Corpora: the synthetic one is reproducible and its splits are apart; broken recordings are named, not fatal."""

import concurrent.futures
import dataclasses
import importlib.util
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_jax import corpora
from audiolm_jax.corpora import CorpusConfig, Reject, Rejects, checks, folder, sentences, synthetic
from audiolm_jax.errors import InputError

TINY = CorpusConfig(level="digits", speakers=3, unseen_speakers=2, train=9, valid=3, test=3, unseen=3, shard_size=6)
OWN = CorpusConfig(name="folder")


def speech(seconds: float = 1.0, rate: int = 16000, hertz: float = 220.0) -> np.ndarray:
    time_N = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * hertz * time_N) * (1 + 0.3 * np.sin(20 * time_N))).astype(np.float32)


def hashes(root: Path) -> list[str]:
    return json.loads((root / "corpus.json").read_text())["shards"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return synthetic.synthesise(TINY, tmp_path_factory.mktemp("tiny") / "corpus", progress=False)


# The synthetic corpus.


def test_same_seed_gives_the_same_samples_with_any_number_of_workers(tiny, tmp_path):
    again = synthetic.synthesise(dataclasses.replace(TINY, workers=1), tmp_path / "again", progress=False)
    assert hashes(again) == hashes(tiny) and len(hashes(tiny)) == 3
    wavs = sorted(path.relative_to(tiny) for path in tiny.rglob("*.wav"))
    assert len(wavs) == 18
    assert all((tiny / wav).read_bytes() == (again / wav).read_bytes() for wav in wavs)
    assert (tiny / "manifest.jsonl").read_bytes() == (again / "manifest.jsonl").read_bytes()


def test_another_seed_gives_other_samples(tiny, tmp_path):
    other = synthetic.synthesise(dataclasses.replace(TINY, seed=1), tmp_path / "other", progress=False)
    assert not set(hashes(other)) & set(hashes(tiny))


def test_killed_and_resumed_equals_undisturbed(tiny, tmp_path):
    root = tmp_path / "resumed"
    program = (
        "from pathlib import Path; from audiolm_jax.corpora import CorpusConfig, synthetic; "
        f"synthetic.synthesise({dataclasses.replace(TINY, workers=1)!r}, Path({str(root)!r}), False)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 30
    while not (root / "shards" / "00000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "manifest.jsonl").exists()
    time.sleep(1.0)  # a worker that was speaking ends with its shard
    finished = {path.name: path.stat().st_mtime_ns for path in (root / "shards").glob("*.json")}
    assert 1 <= len(finished) < 3

    synthetic.synthesise(TINY, root, progress=False)
    assert hashes(root) == hashes(tiny)
    assert all((root / "shards" / name).stat().st_mtime_ns == stamp for name, stamp in finished.items())


def test_splits_share_no_text_and_unseen_shares_no_voice(tiny):
    listed = synthetic.utterances(TINY, tiny, progress=False)
    texts = {split: {item.text for item in listed if item.split == split} for split in corpora.SPLITS}
    voices = {split: {item.speaker for item in listed if item.split == split} for split in corpora.SPLITS}
    assert all(texts.values())
    for first in corpora.SPLITS:
        for second in corpora.SPLITS:
            assert first == second or not texts[first] & texts[second]
    assert voices["valid"] <= voices["train"] and voices["test"] <= voices["train"]
    assert not voices["unseen"] & voices["train"] and len(voices["unseen"]) == 2


@pytest.mark.parametrize("level", ["digits", "templates"])
def test_text_splits_are_apart_across_seeds_and_levels_use_known_words(level):
    drawn = {
        split: {text for seed in (0, 1) for text in sentences.texts(level, split, 300, np.random.default_rng(seed))}
        for split in corpora.SPLITS
    }
    assert sum(len(texts) for texts in drawn.values()) == len(set().union(*drawn.values()))
    words = {word for texts in drawn.values() for text in texts for word in text.split()}
    assert words <= set(sentences.words(level))
    assert len(words) == 10 if level == "digits" else len(words) > 250


def test_exhausted_texts_repeat_instead_of_hanging(monkeypatch):
    monkeypatch.setitem(sentences.LEVELS, "one", lambda rng: "two")
    split = sentences.split_of("two")
    assert sentences.texts("one", split, 3, np.random.default_rng(0)) == ["two"] * 3


def test_every_voice_loads_and_differs():
    from audiolm_jax.corpora.espeak import Engine

    engine = Engine()
    voices = synthetic.VOICES + synthetic.UNSEEN_VOICES
    assert len({synthetic.speaker_of(voice) for voice in voices}) == len(voices) == 78
    sounds = {engine.speak("two", voice, seed=1).waveform.tobytes() for voice in voices}
    assert len(sounds) == len(voices)
    # What the synthesiser speaks as one word ("on the") stays one entry; no word is lost.
    text = "it will be cold in oslo on the first of may"
    _, words = synthetic.finish(engine.speak(text, voices[0], seed=1), text, 16000)
    assert " ".join(word for word, _, _ in words) == text and len(words) >= 9
    for voice in ("en-us+no-such-variant", "no-such-accent", "no-such-accent+f3"):
        with pytest.raises(InputError, match=voice.replace("+", r"\+")):
            engine.speak("two", voice, seed=1)


def test_speech_is_levelled_trimmed_and_timed(tiny):
    for item in synthetic.utterances(TINY, tiny, progress=False):
        waveform, rate = item.load()
        assert rate == 16000 and waveform.dtype == np.float32
        seconds = len(waveform) / rate
        assert 0.6 < seconds < 3.5
        assert np.abs(waveform).max() <= synthetic.PEAK + 1e-4
        assert np.sqrt(np.mean(waveform**2)) == pytest.approx(synthetic.RMS, rel=0.02)
        assert [word for word, _, _ in item.words] == item.text.split()
        times = [time for _, start, end in item.words for time in (start, end)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds
        # Silence is gone but for a margin: the first 150 ms are not all quiet.
        assert np.abs(waveform[: rate * 15 // 100]).max() > 0.02


def test_silence_is_trimmed_and_word_times_move_with_it():
    from audiolm_jax.corpora.espeak import Speech

    silence = np.zeros(22050, np.float32)
    said = Speech(np.concatenate([silence, speech(1.0, 22050), silence]), 22050, ((0, 1.0), (4, 1.5)))
    waveform, words = synthetic.finish(said, "one two", 16000)
    assert len(waveform) / 16000 == pytest.approx(1.1, abs=0.03)  # 50 ms are left on either side
    assert [word for word, _, _ in words] == ["one", "two"]
    assert np.array(words)[:, 1:].astype(float) == pytest.approx(np.array([[0.05, 0.55], [0.55, 1.05]]), abs=0.03)


def test_another_corpus_in_the_folder_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match=r"another seed.*corpus\.path"):
        synthetic.synthesise(dataclasses.replace(TINY, seed=5), tiny, progress=False)
    (tmp_path / "wavs").mkdir()
    with pytest.raises(InputError, match="holds recordings already"):
        synthetic.synthesise(TINY, tmp_path, progress=False)
    with pytest.raises(InputError, match=r"corpus\.speakers = 100 must be from 1 to 70"):
        synthetic.synthesise(dataclasses.replace(TINY, speakers=100), tmp_path / "x", progress=False)
    with pytest.raises(InputError, match=r"corpus\.level = 'songs'.*digits, templates"):
        synthetic.synthesise(dataclasses.replace(TINY, level="songs"), tmp_path / "x", progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the synthetic corpus"):
        synthetic.synthesise(TINY, tmp_path / "file" / "below", progress=False)


# Own recordings.


def put(root: Path, name: str, waveform=None, text="hello", rate: int = 16000, **options) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(rate=rate) if waveform is None else waveform, rate, **options)
    if text is not None:
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(root: Path, config: CorpusConfig = OWN) -> dict[str, corpora.Utterance]:
    found = corpora.utterances(dataclasses.replace(config, path=str(root)), root, progress=False)
    return {item.key: item for item in found}


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
        ("hello".encode("utf-16"), "text is not UTF-8"),
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


def test_rejects_are_listed_and_too_many_stop_the_run(tmp_path):
    path = tmp_path / "run" / "rejects.jsonl"
    rejects = Rejects(path, total=10, max_fraction=0.2)
    assert not path.exists()
    for name in ("a.wav", "b.wav", "b.wav"):
        rejects.add(name, "the file is empty")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"file": "a.wav", "reason": "the file is empty"},
        {"file": "b.wav", "reason": "the file is empty"},
    ]
    with pytest.raises(InputError, match=r"3 of 10 .*max_reject_fraction = 0\.2.*rejects\.jsonl"):
        rejects.add("c.wav", "silent")
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "radio"}, "synthetic, folder, tfds"),
        ({"sample_rate": 0}, r"corpus\.sample_rate = 0"),
        ({"max_reject_fraction": 2}, "between 0 and 1"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "nothing is left"),
        ({"min_seconds": 5, "max_seconds": 4}, r"corpus\.max_seconds = 4"),
        ({"train": -1}, "must not be negative"),
    ],
)
def test_bad_configuration_is_named(change, message):
    with pytest.raises(InputError, match=message):
        CorpusConfig(**change)


def test_real_speech_of_the_synthetic_corpus_passes_every_check(tiny):
    for item in folder.utterances(OWN, tiny, progress=False):
        item.load()


# tensorflow-datasets.


PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

data_dir, dtype, scale = sys.argv[1], np.dtype(sys.argv[2]), float(sys.argv[3])
seconds = np.arange(8000) / 8000
audio = (0.39 * np.sin(2 * np.pi * 220 * seconds) * scale).astype(dtype)


class LittleSpeech(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "audio": tfds.features.Tensor(shape=(None,), dtype=dtype),
            "text": tfds.features.Text(),
            "who": {"name": tfds.features.Text()},
            "rate": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for index in range(count):
            text = "" if index == 2 else f"number {index}"
            record = {"audio": audio[:100] if index == 1 else audio, "text": text}
            yield index, record | {"who": {"name": f"s{index % 2}"}, "rate": 8000}


LittleSpeech(data_dir=data_dir, file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


def prepare_set(data_dir: Path, dtype: str, scale: float) -> None:
    # In another process: afterwards the set is known by its files alone, as one made elsewhere is.
    script = data_dir / "prepare.py"
    script.write_text(PREPARE)
    subprocess.run([sys.executable, script, data_dir, dtype, str(scale)], check=True, capture_output=True)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1.0), ("int16", 32768)])
def test_a_prepared_set_is_read_by_name(dtype, scale, tmp_path):
    prepare_set(tmp_path, dtype, scale)
    assert "tensorflow" not in sys.modules
    config = CorpusConfig(
        name="tfds", tfds_name="little_speech", tfds_data_dir=str(tmp_path), tfds_speaker="who/name", tfds_rate="rate"
    )
    items = corpora.utterances(config, tmp_path, progress=False)
    assert len(items) == 15 and len({item.key for item in items}) == 15
    assert [item.split for item in items].count("valid") == 3 and "test" in {item.split for item in items}
    assert {item.speaker for item in items} == {"s0", "s1"}
    reasons = []
    for item in items:
        try:
            waveform, rate = item.load()
        except Reject as reject:
            reasons.append(str(reject)[:13])
            continue
        assert rate == 16000 and abs(len(waveform) - 16000) <= 1 and item.text.startswith("number ")
        assert np.abs(waveform).max() == pytest.approx(0.39, abs=0.02)
    assert sorted(reasons) == ["text is empty", "text is empty", "too short: 0.", "too short: 0."]

    with pytest.raises(InputError, match=r"no feature 'speech'; its features are audio, rate, text, who"):
        corpora.utterances(dataclasses.replace(config, tfds_audio="speech"), tmp_path, progress=False)
    with pytest.raises(InputError, match="no prepared set 'nothing'"):
        corpora.utterances(dataclasses.replace(config, tfds_name="nothing"), tmp_path, progress=False)
    with pytest.raises(InputError, match="tfds_name is empty"):
        corpora.utterances(dataclasses.replace(config, tfds_name=""), tmp_path, progress=False)


def test_a_set_that_needs_tensorflow_names_the_extra(tmp_path, capsys):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("tensorflow is installed")
    prepare_set(tmp_path, "int16", 32768)
    (features,) = tmp_path.rglob("features.json")
    content = json.loads(features.read_text())
    content["featuresDict"]["features"]["audio"] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": 16000, "encoding": "none"},
    }
    features.write_text(json.dumps(content))
    config = CorpusConfig(name="tfds", tfds_name="little_speech", tfds_data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"tensorflow is not installed: install the extra tf"):
        corpora.utterances(config, tmp_path, progress=False)
    assert capsys.readouterr().out == ""
