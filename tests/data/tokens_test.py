"""The token dataset: what is written is read, by name, after a kill, and never mixed with another codec."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_jax import codecs
from audiolm_jax.data import tokens
from audiolm_jax.data.corpora import CorpusConfig, Reject, Utterance
from audiolm_jax.errors import InputError

CORPUS = CorpusConfig(name="folder")
CONFIG = tokens.TokensConfig(shard_utterances=4, batch_seconds=8.0)


def load(seed: int, samples: int, rate: int = 16000):
    noise = np.random.default_rng(seed).standard_normal(samples).cumsum()
    return (0.3 * noise / np.abs(noise).max()).astype(np.float32), rate


def utterances(count: int = 11) -> list[Utterance]:
    return [
        Utterance(
            key=f"u{i}é",
            split="valid" if i % 5 == 4 else "train",
            speaker=f"s{i % 3}",
            text=f"number {i}, naïve \u2713",
            words=(("number", 0.0, 0.25), (str(i), 0.25, 0.5)) if i % 2 else (),
            load=functools.partial(load, i, 4000 + 7001 * i),
        )
        for i in range(count)
    ]


def files(path: Path) -> dict[str, str]:
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in path.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def codec():
    return codecs.load("tiny")


@pytest.fixture(scope="module")
def written(tmp_path_factory, codec):
    directory = tmp_path_factory.mktemp("tokens")
    tokens.write(utterances(), codec, directory, CONFIG, CORPUS, progress=False)
    return directory


def test_round_trip(written, codec):
    found = {}
    for split in ("train", "valid"):
        source = tokens.open_split(written, split, codec.fingerprint)
        for i in range(len(source)):
            found[source[i]["key"]] = (split, source[i])
    wanted = utterances()
    assert set(found) == {item.key for item in wanted}
    for item in wanted:
        split, example = found[item.key]
        waveform_N, rate = item.load()
        assert (split, example["speaker"], example["text"]) == (item.split, item.speaker, item.text)
        assert example["words"] == item.words
        assert example["duration"] == pytest.approx(len(waveform_N) / rate)
        assert example["codes"].dtype == np.uint16
        np.testing.assert_array_equal(example["codes"], codec.encode(waveform_N))  # alone, not in a padded batch


def test_metadata(written, codec):
    info = tokens.info(written)
    assert info["codec_fingerprint"] == codec.fingerprint
    assert (info["sample_rate"], info["frame_rate"], info["hop"]) == (16000, 25.0, 640)
    assert (info["codebooks"], info["codebook_size"], info["rejects"]) == (4, 16, 0)
    assert info["splits"]["train"]["utterances"] == 9
    frames = [len(tokens.open_split(written, "train")[i]["codes"]) for i in range(9)]
    assert info["splits"]["train"]["frames"] == sum(frames)
    assert info["splits"]["train"]["max_frames"] == max(frames)
    assert not (written / "rejects.jsonl").exists()


def test_opens_by_name_in_a_fresh_process_without_tensorflow(written):
    code = """
        import sys
        import tensorflow_datasets as tfds
        source = tfds.data_source("audio_tokens", data_dir=sys.argv[1], split="train")
        folder = tfds.builder_from_directory(sys.argv[1] + "/audio_tokens/1.0.0")
        assert folder.info.metadata["frame_rate"] == 25.0
        assert len(folder.as_data_source(split="train[:50%]")) == 4
        assert "tensorflow" not in sys.modules
        print(len(source), source[0]["key"].decode(), source[0]["codes"].shape[1], source[0]["codes"].dtype)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(written)], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["9", "u0é", "4", "uint16"], run.stderr


def test_import_needs_neither_tensorflow_nor_torch():
    code = "import sys, audiolm_jax.data.tokens; assert not {'tensorflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_writing_again_keeps_the_dataset(written, codec):
    before = files(written)
    tokens.write(utterances(), codec, written, CONFIG, CORPUS, progress=False)
    assert files(written) == before


def test_bytes_do_not_depend_on_threads(written, codec, tmp_path):
    tokens.write(utterances(), codec, tmp_path, dataclasses.replace(CONFIG, workers=5), CORPUS, progress=False)
    assert files(tmp_path) == files(written)
    assert tokens.fingerprint(tmp_path) == tokens.fingerprint(written)


def interrupted_writing(directory: str) -> None:
    """What the killed process does: its recordings take time to load."""

    def slow(item: Utterance) -> Utterance:
        def wait():
            time.sleep(0.05)
            return item.load()

        return dataclasses.replace(item, load=wait)

    tokens.write(list(map(slow, utterances())), codecs.load("tiny"), directory, CONFIG, CORPUS, progress=False)


def start_writing(directory: Path, shards_done: int) -> subprocess.Popen:
    """A process that writes slowly, once it has finished so many shards."""
    code = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("tokens_test", {__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.interrupted_writing(sys.argv[1])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(directory)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    progress = directory / "audio_tokens" / "1.0.0.progress"
    while process.poll() is None and len(list(progress.glob("*0*.json"))) < shards_done:
        time.sleep(0.002)
    return process


def test_two_processes_share_the_shards(written, codec, tmp_path):
    other, encoded = start_writing(tmp_path, 1), []

    def encode(*arguments):
        encoded.append(1)
        return codec.encode(*arguments)

    final = tokens.write(utterances(), OtherCodec(codec, encode=encode), tmp_path, CONFIG, CORPUS, progress=False)
    assert other.wait(60) == 0
    assert files(tmp_path) == files(written)
    assert encoded
    assert sorted(path.name for path in final.parent.iterdir()) == ["1.0.0"]  # no notes, no locks


@pytest.mark.parametrize("shards_done", [1, 2, 3])
def test_killed_and_started_again_gives_the_same_bytes(written, codec, tmp_path, shards_done):
    process = start_writing(tmp_path, shards_done)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "audio_tokens" / "1.0.0").exists()
    with pytest.raises(InputError, match="finished token dataset was expected"):
        tokens.open_split(tmp_path, "train")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "audio_tokens" / "1.0.0.incomplete").glob("*-of-*[0-9]")}
    assert len(stamps) >= shards_done
    final = tokens.write(utterances(), codec, tmp_path, CONFIG, CORPUS, progress=False)
    assert files(tmp_path) == files(written)
    kept = [path.name for path, stamp in stamps.items() if (final / path.name).stat().st_mtime_ns == stamp]
    assert len(kept) >= shards_done  # finished shards were not made again


def test_a_damaged_shard_is_made_again(written, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens.schema, "describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tokens.write(utterances(), codec, tmp_path, CONFIG, CORPUS, progress=False)
    monkeypatch.undo()
    shard = sorted((tmp_path / "audio_tokens" / "1.0.0.incomplete").glob("*train*"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    (shard.parent / "left-over.tmp").write_bytes(b"of a killed process")
    tokens.write(utterances(), codec, tmp_path, CONFIG, CORPUS, progress=False)
    assert files(tmp_path) == files(written)


class OtherCodec:
    """The same codec with another seed would have another fingerprint."""

    def __init__(self, codec, **changes):
        self._codec, self._changes = codec, changes

    def __getattr__(self, name):
        return self._changes.get(name, getattr(self._codec, name))


def test_another_codec_is_refused(written, codec):
    other = OtherCodec(codec, fingerprint="f" * 64)
    before = files(written)
    with pytest.raises(InputError, match=f"{codec.fingerprint}.*{'f' * 64}; choose another folder"):
        tokens.write(utterances(), other, written, CONFIG, CORPUS, progress=False)
    assert files(written) == before
    with pytest.raises(InputError, match=f"{codec.fingerprint}.*{'f' * 64}; choose another folder"):
        tokens.open_split(written, "train", other.fingerprint)


def test_another_corpus_is_refused(written, codec):
    with pytest.raises(InputError, match=r"corpus\.require_text = True, this run has False"):
        corpus = dataclasses.replace(CORPUS, require_text=False)
        tokens.write(utterances(), codec, written, CONFIG, corpus, progress=False)
    with pytest.raises(InputError, match="recordings or their texts have changed"):
        tokens.write(utterances(10), codec, written, CONFIG, CORPUS, progress=False)
    with pytest.raises(InputError, match="codebooks = 4, this run has 2"):
        tokens.write(utterances(), codecs.load("tiny", codebooks=2), written, CONFIG, CORPUS, progress=False)


def broken(kind: str):
    if kind == "rejected":
        raise Reject("shorter than 0.3 s")
    if kind == "unreadable":
        raise soundfile.LibsndfileError(1, prefix="Error opening 'x.wav': ")
    if kind == "missing":
        raise FileNotFoundError(2, "No such file or directory")
    if kind == "empty":
        return np.zeros(0, np.float32), 16000
    if kind == "stereo":
        return np.zeros((2, 16000), np.float32), 16000
    if kind == "one sample":
        return np.ones(1, np.float32), 192000
    return np.full(16000, np.nan, np.float32), 16000


BROKEN = ("rejected", "unreadable", "missing", "empty", "stereo", "one sample", "nan")


def with_broken() -> list[Utterance]:
    items = [
        dataclasses.replace(item, key=kind, load=functools.partial(broken, kind), source=f"/audio/{kind}.wav")
        for kind, item in zip(BROKEN, utterances(), strict=False)
    ]
    lone = dataclasses.replace(utterances()[0], key="surrogate", text="\ud800")
    return items[:3] + utterances() + items[3:] + [lone]


def test_rejects_are_named_and_skipped(codec, tmp_path):
    corpus = dataclasses.replace(CORPUS, max_reject_fraction=0.5)
    tokens.write(with_broken(), codec, tmp_path, CONFIG, corpus, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    reasons = {line["file"]: line["reason"] for line in lines}
    assert set(reasons) == {f"/audio/{kind}.wav" for kind in BROKEN} | {"surrogate"}
    assert reasons["/audio/nan.wav"] == "NaN or infinite samples"
    assert reasons["/audio/rejected.wav"] == "shorter than 0.3 s"
    assert "Unicode" in reasons["surrogate"]
    keys = [tokens.open_split(tmp_path, s)[i]["key"] for s, n in (("train", 9), ("valid", 2)) for i in range(n)]
    assert sorted(keys) == sorted(item.key for item in utterances())
    assert tokens.info(tmp_path)["rejects"] == 8


def test_too_many_rejects_stop_and_repaired_recordings_are_read_again(written, codec, tmp_path):
    def repaired(fixed: bool):
        items = utterances()
        return [dataclasses.replace(i, load=i.load if fixed else functools.partial(broken, "nan")) for i in items]

    with pytest.raises(InputError, match=r"of 11 recordings cannot be used.*rejects\.jsonl"):
        tokens.write(repaired(False), codec, tmp_path, CONFIG, CORPUS, progress=False)
    assert (tmp_path / "rejects.jsonl").exists()
    tokens.write(repaired(True), codec, tmp_path, CONFIG, CORPUS, progress=False)
    assert files(tmp_path) == files(written)


def test_a_shard_without_any_usable_recording(codec, tmp_path):
    items = utterances()
    bad = [dataclasses.replace(i, load=functools.partial(broken, "nan")) for i in items[:4]]
    corpus = dataclasses.replace(CORPUS, max_reject_fraction=0.5)
    tokens.write(bad + items[4:], codec, tmp_path, CONFIG, corpus, progress=False)
    source = tokens.open_split(tmp_path, "train")
    assert [source[i]["key"] for i in range(len(source))] == ["u5é", "u6é", "u7é", "u8é", "u10é"]


def test_recordings_at_another_rate_are_resampled(codec, tmp_path):
    item = dataclasses.replace(utterances()[0], load=functools.partial(load, 0, 44100, 44100))
    tokens.write([item], codec, tmp_path, CONFIG, CORPUS, progress=False)
    example = tokens.open_split(tmp_path, "train")[0]
    assert (example["duration"], len(example["codes"])) == (1.0, 25)


@contextlib.contextmanager
def largest_file(size: int):
    """The kernel refuses to make any file larger: the nearest thing to a full disk without a disk of one's own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_and_unwritable_folder_are_one_sentence(written, codec, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"file/below: cannot be written \(Not a directory\)"):
        tokens.write(utterances(), codec, tmp_path / "file" / "below", CONFIG, CORPUS, progress=False)
    with largest_file(30_000), pytest.raises(InputError, match=r"cannot be written \(.*File too large"):
        tokens.write(utterances(), codec, tmp_path / "full", CONFIG, CORPUS, progress=False)
    assert not list((tmp_path / "full").rglob("*array_record*"))
    tokens.write(utterances(), codec, tmp_path / "full", CONFIG, CORPUS, progress=False)
    assert files(tmp_path / "full") == files(written)


def test_bad_input(written, codec, tmp_path):
    with pytest.raises(InputError, match="no recordings"):
        tokens.write([], codec, tmp_path, CONFIG, CORPUS, progress=False)
    with pytest.raises(InputError, match="have the key 'u0é'"):
        tokens.write(utterances() + utterances()[:1], codec, tmp_path, CONFIG, CORPUS, progress=False)
    with pytest.raises(InputError, match="no split 'tset'; there are train, valid"):
        tokens.open_split(written, "tset")
    with pytest.raises(InputError, match="found none"):
        tokens.info(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"tokens\.name"):
        tokens.TokensConfig(name="My Tokens")


def test_a_missing_or_cut_shard_is_named(codec, tmp_path):
    path = tokens.write(utterances(), codec, tmp_path, CONFIG, CORPUS, progress=False)
    shard = sorted(path.glob("*train*"))[1]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="split 'train'"):
        tokens.open_split(tmp_path, "train")
    shard.unlink()
    with pytest.raises(InputError, match="split 'train'"):
        tokens.open_split(tmp_path, "train")


@pytest.fixture
def copied(written, tmp_path):
    """(the folder of a data set, to be damaged; its metadata)."""
    path = shutil.copytree(tokens.locate(written), tmp_path / "1.0.0")
    return path, json.loads((path / "metadata.json").read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "is of format 2, which a newer version of audiolm_jax wrote"),
        ({"codec_fingerprint": None}, "has codec_fingerprint=None"),
        ({"codebooks": "4"}, "has codebooks='4'"),
        ({"codebooks": 10**12}, "has codebooks=1000000000000"),
        ({"frame_rate": float("nan")}, "has frame_rate=nan"),
        ({"splits": []}, r"has splits=\[\]"),
        ({"splits": {"train": {"utterances": "x"}}}, "has splits.train.utterances='x'"),
        ({"fingerprint": 1}, "has fingerprint=1"),
    ],
)
def test_metadata_that_no_version_wrote_or_a_newer_one_did(copied, change, words):
    path, metadata = copied
    assert metadata["format"] == 1
    (path / "metadata.json").write_text(json.dumps(metadata | change))
    with pytest.raises(InputError, match=f"^{path}/metadata.json: {words}"):
        tokens.info(path)
    old = {name: value for name, value in metadata.items() if name != "format"}
    (path / "metadata.json").write_text(json.dumps(old | {"of_the_future": 1}))
    assert tokens.info(path)["fingerprint"] == metadata["fingerprint"]


def test_metadata_is_compared_with_the_records(copied):
    path, metadata = copied
    (path / "metadata.json").write_text(json.dumps(metadata | {"codebooks": 10**6}))
    with pytest.raises(InputError, match=rf"^{path}: example 0 of split 'train' cannot be .* for 1000000 codebooks"):
        tokens.open_split(path, "train")


@pytest.mark.parametrize("file", ["metadata.json", "features.json", "dataset_info.json", "array_record"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe{", b"[" * 10**5, None])
def test_damaged_files_of_a_data_set_are_one_sentence(copied, file, content):
    path = next(found for found in sorted(copied[0].iterdir()) if file in found.name and "valid" not in found.name)
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=str(copied[0])) as caught:
        tokens.open_split(copied[0], "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "{}"])
def test_damaged_notes_of_an_unfinished_data_set_are_made_again(written, codec, tmp_path, monkeypatch, content):
    with monkeypatch.context() as patched:
        patched.setattr(tokens.schema, "describe", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokens.write(utterances(), codec, tmp_path, CONFIG, CORPUS, progress=False)
    notes = sorted(tmp_path.rglob("*.progress/*.json"))
    assert len(notes) > 2
    for note in notes:
        note.write_text(content)
    tokens.write(utterances(), codec, tmp_path, CONFIG, CORPUS, progress=False)
    assert files(tmp_path) == files(written)
