"""Where audio and text come from: one module per kind of corpus, chosen from `CORPORA`.

Each module has `utterances(config, directory, progress) -> list[Utterance]`. What is wrong with a single recording
shows when it is loaded: `Utterance.load()` raises `Reject` with the reason, the caller counts it in `Rejects` and
goes on. What is wrong with the whole corpus raises `InputError` at once.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiolm_jax.errors import InputError

# Modules by name, imported when asked for: each may need packages the others do not.
CORPORA = {
    "synthetic": "audiolm_jax.data.corpora.synthetic",
    "folder": "audiolm_jax.data.corpora.folder",
    "tfds": "audiolm_jax.data.corpora.tfds",
}

SPLITS = ("train", "valid", "test", "unseen")


@dataclass(frozen=True)
class CorpusConfig:
    """Section `corpus` of the configuration."""

    # Which corpus: "synthetic" (made here by espeak-ng), "folder" (own recordings) or "tfds" (a prepared set).
    name: str = "synthetic"
    # folder: the folder with the recordings. synthetic: where to keep the corpus; empty = below the data directory.
    path: str = ""
    # Sample rate in Hz of what a corpus delivers; recordings at another rate are resampled.
    sample_rate: int = 16000
    # Seconds of the shortest and longest recording taken; others are rejected.
    min_seconds: float = 0.3
    max_seconds: float = 30.0
    # The run stops when more than this share of the recordings is rejected.
    max_reject_fraction: float = 0.2

    # synthetic: "digits" (strings of 3-6 digit words) or "templates" (filled sentences, about 330 words).
    level: str = "digits"
    # synthetic: number of voices in train, valid and test, and of other voices in the split "unseen".
    speakers: int = 8
    unseen_speakers: int = 4
    # synthetic: utterances per split. No text is in two splits.
    train: int = 1800
    valid: int = 100
    test: int = 100
    unseen: int = 40
    # synthetic: seed of texts, voices and synthesis; the same seed gives the same samples.
    seed: int = 0
    # synthetic: processes that speak in parallel, and utterances in one resumable shard.
    workers: int = 2
    shard_size: int = 256

    # folder, tfds: shares of the recordings put in valid and test (by a hash of the name) where none are given.
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    # folder, tfds: reject recordings without text; False takes them as speech without a transcript.
    require_text: bool = True

    # tfds: name of the prepared set ("my_set", "my_set/config:1.0.0"); its data_dir, empty = the library's default.
    tfds_name: str = ""
    tfds_data_dir: str = ""
    # tfds: features holding audio, text and speaker ("" = none; "a/b" = feature b inside a).
    tfds_audio: str = "audio"
    tfds_text: str = "text"
    tfds_speaker: str = ""
    # tfds: feature holding the sample rate in Hz ("" = none), and the rate used where there is no such feature.
    tfds_rate: str = ""
    tfds_sample_rate: int = 16000

    def __post_init__(self):
        if self.name not in CORPORA:
            raise InputError(f"corpus.name = {self.name!r} is not a corpus; known are {', '.join(CORPORA)}")
        for key in ("sample_rate", "workers", "shard_size", "tfds_sample_rate"):
            if getattr(self, key) < 1:
                raise InputError(f"corpus.{key} = {getattr(self, key)} must be 1 or more")
        for key in ("train", "valid", "test", "unseen", "seed", "min_seconds"):
            if getattr(self, key) < 0:
                raise InputError(f"corpus.{key} = {getattr(self, key)} must not be negative")
        for key in ("valid_fraction", "test_fraction", "max_reject_fraction"):
            if not 0 <= getattr(self, key) <= 1:
                raise InputError(f"corpus.{key} = {getattr(self, key)} must be between 0 and 1")
        if self.valid_fraction + self.test_fraction >= 1:
            raise InputError(
                f"corpus.valid_fraction + corpus.test_fraction = {self.valid_fraction + self.test_fraction} must be "
                "below 1, or nothing is left to train on"
            )
        if self.max_seconds <= self.min_seconds:
            raise InputError(
                f"corpus.max_seconds = {self.max_seconds} must be above corpus.min_seconds = {self.min_seconds}"
            )


class Reject(Exception):
    """One recording that cannot be used; the message is the reason, a phrase without the file's name."""


@dataclass(frozen=True)
class Utterance:
    """One recording. `words` holds (word, start, end) in seconds, empty where the times are not known.

    `load()` gives (waveform float32 [samples] in [-1, 1], sample rate in Hz) and raises `Reject` for a recording
    that cannot be used. It can be pickled. `source` is what a rejects file calls the recording: its path or record.
    """

    key: str
    split: str
    speaker: str
    text: str
    words: tuple[tuple[str, float, float], ...]
    load: Callable[[], tuple[np.ndarray, int]]
    source: str = ""


def utterances(config: CorpusConfig, directory: Path, progress: bool = True) -> list[Utterance]:
    """All recordings of the configured corpus; a synthetic one is first made below `directory`.

    Raises:
      InputError: the corpus as a whole cannot be used (no such folder, nothing in it, a package is missing).
    """
    return importlib.import_module(CORPORA[config.name]).utterances(config, Path(directory), progress)


class Rejects:
    """Counts the rejected recordings of a run and keeps them in a JSONL file of {"file", "reason"}.

    The file exists once something was rejected and is complete after every `add`.
    """

    def __init__(self, path: Path, total: int, max_fraction: float) -> None:
        self.path, self.total, self.max_fraction = Path(path), total, max_fraction
        self.reasons: dict[str, str] = {}

    def add(self, source: str, reason: str) -> None:
        """Records one rejected recording.

        Raises:
          InputError: more than `max_fraction` of the `total` recordings are rejected.
        """
        if source in self.reasons:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.reasons else "w", encoding="utf-8") as stream:
                stream.write(json.dumps({"file": source, "reason": reason}) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        self.reasons[source] = reason
        if len(self.reasons) > self.max_fraction * self.total:
            raise InputError(
                f"{len(self.reasons)} of {self.total} recordings cannot be used, more than corpus.max_reject_fraction "
                f"= {self.max_fraction} allows: see {self.path} for each file and its reason"
            )


def identity(config: CorpusConfig) -> dict:
    """What decides the content of a corpus: every key but those of speed and tolerance."""
    ignored = ("path", "workers", "max_reject_fraction")
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored}
