"""Corpora: the synthetic one is reproducible and its splits are apart; broken recordings are named, not fatal."""

import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audiolm_jax.data import corpora
from audiolm_jax.data.corpora import CorpusConfig, Reject, Rejects, folder, sentences, synthetic
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
        "from pathlib import Path; from audiolm_jax.data.corpora import CorpusConfig, synthetic; "
        f"synthetic.synthesise({dataclasses.replace(TINY, workers=1)!r}, Path({str(root)!r}), False)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
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
    from audiolm_jax.data.corpora.espeak import Engine

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
    from audiolm_jax.data.corpora.espeak import Speech

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
    with pytest.raises(InputError, match="cannot be written"):
        synthetic.synthesise(TINY, tmp_path / "file" / "below", progress=False)


# Rejects and configuration.


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
        ({"sample_rate": 0}, r"corpus\.sample_rate=0 must be an integer >= 1"),
        ({"max_reject_fraction": 2}, "must be a number >= 0 and <= 1"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "nothing is left"),
        ({"min_seconds": 5, "max_seconds": 4}, r"corpus\.max_seconds=4 must be above"),
        ({"train": -1}, "corpus.train=-1 must be an integer >= 0"),
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
