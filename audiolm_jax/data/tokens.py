"""The token dataset: recordings as codes, written once, read by every run.

It is an ordinary tensorflow-datasets directory of array_record shards,

    <directory>/<name>/1.0.0/<name>-<split>.array_record-00000-of-00003 ...
                             features.json  metadata.json  dataset_info.json

that anybody can open by name, `tfds.data_source("audio_tokens", data_dir=directory, split="train")`; neither writing
nor reading needs tensorflow. One example is

    key, speaker, text   str                          words      text, start, end (seconds), where times are known
    codes                uint16 [T, Q]                duration   seconds of audio, T = ceil(samples / hop)

`metadata.json` names the codec (fingerprint, rates, codebooks), the corpus and the totals of every split.

Writing can be killed at any time and resumed. Shards are written one by one below `1.0.0.incomplete`, each under a
temporary name; `1.0.0.progress` has a note with the sha256 of every finished one; the folder is renamed at the end.
Any number of processes, also on several machines with a shared folder, may write at the same time: each locks a free
shard (locks.py, in `1.0.0.locks`) and encodes it on its own devices. A shard depends on its utterances and the codec
alone, so the bytes are those of an uninterrupted run of one process on the same machine.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from audiolm_jax import files, locks
from audiolm_jax.data import corpora, schema
from audiolm_jax.data import encode as encoding
from audiolm_jax.data import shards as token_shards
from audiolm_jax.data.config import TokensConfig
from audiolm_jax.data.corpora import CorpusConfig, Rejects, Utterance
from audiolm_jax.errors import InputError
from audiolm_jax.serialization.text import UTF8, Texts

VERSION = "1.0.0"
_REMEDY = "choose another folder, or delete this one"


def write(
    utterances: Sequence[Utterance],
    codec,
    directory: str | Path,
    config: TokensConfig,
    corpus: CorpusConfig,
    progress: bool = True,
) -> Path:
    """Encodes recordings into the token dataset below `directory`; resumes an unfinished one, keeps a finished one.

    Recordings that cannot be used are skipped and listed, with the reason, in `directory/rejects.jsonl`. `corpus`: the
    origin of the utterances, part of the identity of the dataset, and the fraction that may be rejected.

    Returns:
      The folder of the dataset (`directory/<name>/1.0.0`).

    Raises:
      InputError: there are no recordings, or none is usable; two have one key; more than corpus.max_reject_fraction
        are rejected; the folder holds tokens of another codec or corpus; it cannot be written, or the disk is full.
    """
    identity = _identity(utterances, codec, config, corpus)
    root = Path(directory)
    final = root / config.name / VERSION
    notes = final.with_name(VERSION + ".progress")
    rejects = Rejects(root / "rejects.jsonl", len(utterances), corpus.max_reject_fraction)
    if _done(final):
        _refuse_another(final, info(final)["identity"], identity)
        shutil.rmtree(notes, ignore_errors=True)
        return final
    unfinished = final.with_name(VERSION + ".incomplete")
    lock_files = final.with_name(VERSION + ".locks")

    def begin(_: str) -> None:
        if not _done(final):
            with files.writing(root):
                rejects.path.unlink(missing_ok=True)
                _start(unfinished, notes, identity)

    features = schema.features(codec.codebooks)
    shards = {}
    for split, number, count, members in token_shards.deal(utterances, config.shard_utterances):
        shards[f"{config.name}-{split}.array_record-{number:05d}-of-{count:05d}"] = split, members

    def encode(name: str) -> None:
        path, note, members = unfinished / name, notes / f"{name}.json", shards[name][1]
        finished = token_shards.finished(path, note)
        if finished is None and not _done(final):
            if _begun(notes) != identity:
                raise InputError(f"{root}: another process writes other recordings here; {_REMEDY}")
            finished = token_shards.write(path, members, codec, features, config.batch_seconds, pool, bar)
            with files.writing(note):
                files.write_text(note, json.dumps(finished))
        else:
            bar.update(len(members))
        bad.update(source for source, _ in (finished or {"rejects": ()})["rejects"])
        if len(bad) > rejects.max_fraction * rejects.total:
            _collect(rejects, notes, shards)

    def finish(_: str) -> None:
        if _done(final):
            return
        done = _collect(rejects, notes, shards)
        if not any(shard["examples"] for shards in done.values() for shard in shards):
            raise InputError(f"{root}: none of the {len(utterances)} recordings can be used: see {rejects.path}")
        with files.writing(unfinished):
            for left_over in unfinished.glob("*.tmp"):
                left_over.unlink()
            schema.describe(unfinished, config.name, VERSION, features, codec, identity, done)
            os.replace(unfinished, final)
            shutil.rmtree(notes, ignore_errors=True)

    bad: set[str] = set()
    with files.writing(root):
        locks.share({"start": lock_files / "start"}, begin)
        with ThreadPoolExecutor(config.workers) as pool, encoding.Progress(len(utterances), progress) as bar:
            locks.share({name: lock_files / name.replace(".array_record", "") for name in shards}, encode)
        locks.share({"finish": lock_files / "finish"}, finish)
    for left in (lock_files, notes, unfinished):  # the latter two if another process started while this one finished
        shutil.rmtree(left, ignore_errors=True)
    return final


def _done(final: Path) -> bool:
    return (final / "dataset_info.json").exists()


def _collect(rejects: Rejects, notes: Path, shards: dict[str, tuple[str, list]]) -> dict[str, list[dict]]:
    """Notes of the finished shards by split, in order; writes their rejects to rejects.jsonl, in that order.

    Raises InputError if there are too many rejects; their shards are then encoded again by the next run, since the
    recordings may be repaired.
    """
    done: dict[str, list[dict]] = {}
    with files.writing(rejects.path):
        for name, (split, _) in shards.items():
            note = notes / f"{name}.json"
            if note.exists():
                done.setdefault(split, []).append(files.read_json(note))
        try:
            for source, reason in (
                reject for notes_of_split in done.values() for shard in notes_of_split for reject in shard["rejects"]
            ):
                rejects.add(source, reason)
        except InputError:
            _forget_rejects(notes)
            raise
    return done


def info(directory: str | Path) -> dict:
    """The metadata of a token dataset: codec, codec_fingerprint, sample_rate, frame_rate, hop, codebooks,
    codebook_size, rejects, fingerprint, identity, and per split `splits[name]` = utterances, seconds, frames,
    max_frames.

    `identity` decides the content: codec, recordings, and every key of the corpus under identity["corpus"].

    Raises:
      InputError: there is no token dataset at, or one or two folders below, `directory`.
    """
    path = locate(directory) / "metadata.json"
    metadata = files.read_json(path)
    schema.check(metadata, path)
    return metadata


def fingerprint(directory: str | Path) -> str:
    """Sha256 that names the content of a token dataset: its codec, its corpus and the bytes of its shards."""
    return info(directory)["fingerprint"]


def locate(directory: str | Path) -> Path:
    """The folder that holds the dataset: `directory` itself, or the only `<name>/<version>` below it."""
    directory = Path(directory)
    if (directory / "dataset_info.json").exists():
        return directory
    datasets = sorted(path.parent for path in directory.glob("*/*/dataset_info.json"))
    if len(datasets) != 1:
        names = ", ".join(map(str, datasets)) or "none (`audiolm prepare` makes one)"
        raise InputError(f"{directory}: one finished token dataset was expected here, found {names}")
    return datasets[0]


def open_split(directory: str | Path, split: str, fingerprint: str | None = None, text: Texts = UTF8) -> "TokenSplit":
    """Random access to the examples of one split.

    Args:
      fingerprint: of the codec that the caller uses; None takes tokens of any codec.
      text: the vocabulary that their texts become ids by.

    Raises:
      InputError: no dataset, tokens of another codec, no such split, or shards that are missing or cut off.
    """
    metadata, path = info(directory), locate(directory)
    if fingerprint is not None and metadata["codec_fingerprint"] != fingerprint:
        raise _of_another_codec(path, metadata, "a codec", fingerprint)
    if split not in metadata["splits"]:
        raise InputError(f"{path}: there is no split {split!r}; there are {', '.join(metadata['splits'])}")
    return TokenSplit(path, split, text)


class TokenSplit:
    """`len(split)` examples; `split[i]` is a dict of str, float, words as (text, start, end) and codes_TQ uint16. Their
    texts become ids by the vocabulary `text`.

    Opens its files on first use and after being sent to another process, so that loader processes can have a copy.
    """

    def __init__(self, path: Path, split: str, text: Texts = UTF8):
        self.path, self.split, self.text = path, split, text
        self.metadata = info(path)
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source
        from tensorflow_datasets.proto import tf_example_pb2

        self._example = tf_example_pb2.Example
        with files.reading(self.path, f"split {self.split!r} of a token dataset"):
            described = tfds.builder_from_directory(self.path).info
            paths = [os.fspath(file) for file in described.splits[self.split].filepaths]
            expected = described.splits[self.split].num_examples
            self._records = array_record_data_source.ArrayRecordDataSource(paths)
            examples = len(self._records)
            if examples != expected:
                raise InputError(f"{self.path}: split {self.split!r} holds {examples} examples instead of {expected}")
            if examples:
                self.head(0)

    def __getstate__(self) -> dict:
        return {"path": self.path, "split": self.split, "metadata": self.metadata, "text": self.text}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        feature = self._feature(index)
        words = zip(
            (word.decode() for word in feature["words/text"].bytes_list.value),
            feature["words/start"].float_list.value,
            feature["words/end"].float_list.value,
            strict=True,
        )
        codes = np.array(feature["codes"].int64_list.value, np.uint16)
        return {
            **{key: feature[key].bytes_list.value[0].decode() for key in ("key", "speaker", "text")},
            "words": tuple(words),
            "codes": codes.reshape(-1, self.metadata["codebooks"]),
            "duration": feature["duration"].float_list.value[0],
        }

    def head(self, index: int) -> dict:
        """key, speaker, text and `frames` alone, fast enough to scan a split."""
        feature = self._feature(index)
        head = {key: feature[key].bytes_list.value[0].decode() for key in ("key", "speaker", "text")}
        return {**head, "frames": len(feature["codes"].int64_list.value) // self.metadata["codebooks"]}

    def _feature(self, index: int):
        """The features of a record as stored, eight times as fast to read as through tensorflow-datasets.

        Raises InputError for a damaged record, and for one with another number of codebooks than the dataset.
        """
        with files.reading(f"{self.path}: example {index} of split {self.split!r}", "a record"):
            feature = self._example.FromString(self._records[int(index)]).features.feature
            codes, books = len(feature["codes"].int64_list.value), self.metadata["codebooks"]
            if not codes or codes % books:
                raise ValueError(f"it holds {codes} codes for {books} codebooks")
        return feature

    def __repr__(self) -> str:  # part of what a data loader compares when it resumes
        pieces = "" if self.text is UTF8 else f", {self.text!r}"
        return f"TokenSplit({self.split!r}, {self.metadata['fingerprint'][:16]}{pieces})"


def _identity(utterances, codec, config: TokensConfig, corpus: CorpusConfig) -> dict:
    """The identity of a dataset: everything that its content depends on, as JSON values."""
    if not utterances:
        raise InputError("the corpus has no recordings; at least one is needed")
    if codec.codebook_size > 2**16:
        raise InputError(f"the codec has codebooks of {codec.codebook_size} codes; at most {2**16} can be stored")
    digest, keys = hashlib.sha256(), set()
    for item in utterances:
        if not corpora.usable_split(item.split):
            raise InputError(
                f"{item.key!r}: split {item.split[:80]!r} must be letters, digits and underscores, and not all"
            )
        if (item.split, item.key) in keys:
            raise InputError(f"two recordings of split {item.split!r} have the key {item.key!r}; keys must differ")
        keys.add((item.split, item.key))
        fields = (item.key, item.split, item.speaker, item.text, item.words, *([item.part] if item.part else []))
        digest.update(json.dumps(fields).encode() + b"\n")
    identity = {
        "codec": codec.name,
        "codec_fingerprint": codec.fingerprint,
        "codebooks": codec.codebooks,
        "corpus": corpora.identity(corpora.for_codec(corpus, codec)),
        "utterances": digest.hexdigest(),
        "shard_utterances": config.shard_utterances,
    }
    return json.loads(json.dumps(identity))


def _start(unfinished: Path, notes: Path, identity: dict) -> None:
    """Keeps the finished shards of an interrupted run of this identity; refuses those of another codec."""
    begun = _begun(notes)
    if begun and begun.get("codec_fingerprint") != identity["codec_fingerprint"]:
        _refuse_another(unfinished, begun, identity)
    if begun != identity:  # the recordings changed before any run finished: start again
        shutil.rmtree(notes, ignore_errors=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, exist_ok=True)
    files.write_text(notes / "identity.json", json.dumps(identity, indent=1))


def _begun(notes: Path) -> dict | None:
    """The identity of the dataset that is being written, None if there is none or a damaged one."""
    try:
        return files.read_json(notes / "identity.json")
    except InputError:
        return None


def _refuse_another(path: Path, existing: dict, wanted: dict) -> None:
    if existing["codec_fingerprint"] != wanted["codec_fingerprint"]:
        raise _of_another_codec(path, existing, repr(wanted["codec"]), wanted["codec_fingerprint"])
    before, now = ({**corpora.SINCE, **one["corpus"]} for one in (existing, wanted))
    for key, value in now.items():
        if before.get(key) != value:
            raise InputError(
                f"{path}: these tokens were made with corpus.{key} = {before.get(key)!r}, this run has {value!r}; "
                f"{_REMEDY}"
            )
    if existing["utterances"] != wanted["utterances"]:
        raise InputError(f"{path}: the recordings or their texts have changed since these tokens were made; {_REMEDY}")
    for key in ("codebooks", "shard_utterances"):
        if existing[key] != wanted[key]:
            raise InputError(
                f"{path}: these tokens were made with {key} = {existing[key]}, this run has {wanted[key]}; {_REMEDY}"
            )


def _of_another_codec(path: Path, existing: dict, codec: str, fingerprint: str) -> InputError:
    return InputError(
        f"{path}: these tokens were made by the codec {existing['codec']!r} with fingerprint "
        f"{existing['codec_fingerprint']}, this run uses {codec} with fingerprint {fingerprint}; {_REMEDY}"
    )


def _forget_rejects(notes: Path) -> None:
    for note in notes.glob("*.json"):
        if files.read_json(note).get("rejects", True):
            note.unlink()
