"""Where audio and text come from: one module per kind of corpus, chosen from `CORPORA`, or from outside by
its import path (`--config.corpus.name=my_package.my_module`).

Each module has `utterances(config, directory, progress) -> list[Utterance]`. A defect of one recording
shows when it is loaded: `Utterance.load()` raises `Reject` with the reason, the caller counts it in `Rejects` and
continues. A corpus that cannot be used at all raises `InputError` at once.

    folder.py     own recordings: which are there, and the text of each
    tree.py       names below a folder: hidden ones, links, capitals, other Unicode forms, other suffixes
    manifest.py   manifest.jsonl, and metadata.jsonl      layouts.py   metadata.csv, .tsv and .txt
    columns.py    what keys and columns are called, and what they say of a part of a recording
    cut.py        parts of recordings: segments of a list, and those of a recording over corpus.max_seconds
    sound.py      sound files: whole, damaged, without a length; samples as a codec takes them
    checks.py     what is rejected, and the split by a hash
    tfds.py       a prepared tensorflow-datasets set
    synthetic.py, sentences.py, espeak.py      speech made here
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiolm_jax import files
from audiolm_jax.config import key, plugin, validate
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import text as texts

# Modules by name, imported when used: each may need packages that the others do not.
CORPORA = {
    "synthetic": "audiolm_jax.data.corpora.synthetic",
    "folder": "audiolm_jax.data.corpora.folder",
    "tfds": "audiolm_jax.data.corpora.tfds",
}

LONG = ("pauses", "windows", "reject")  # what is done with recordings over corpus.max_seconds
SAMPLE_RATE = 16000  # Hz, where neither the configuration nor a codec says one

SPLITS = ("train", "valid", "test", "unseen")


@dataclass(frozen=True)
class CorpusConfig:
    """Where audio and text come from."""

    name: str = key(
        "synthetic",
        "synthetic (spoken here by espeak-ng), folder (own recordings) or tfds (a prepared data set).",
        among=CORPORA,
    )
    path: str = key(
        "", "folder: the folder with the recordings. synthetic: where to keep them; empty: below the data folder."
    )
    sample_rate: int | None = key(
        None,
        "Sample rate of the corpus in Hz; recordings at another rate are resampled. None: the codec's.",
        at_least=1,
    )
    channels: int | None = key(
        None, "Channels of the corpus: 1 mixes stereo down, 2 doubles mono. None: the codec's.", at_least=1, at_most=2
    )
    min_seconds: float = key(0.3, "Recordings shorter than this are rejected.", at_least=0)
    max_seconds: float = key(30.0, "The longest recording; see corpus.long.")
    long: str = key(
        "pauses",
        "folder, tfds: what is done with longer recordings. pauses: cut between words whose times are known; without a "
        "text, at pauses, or into windows where there are none; a text without times of its words is rejected. "
        "windows: cut into equal parts, each with the whole text, as captions of music are. reject: left out.",
        among=LONG,
    )
    max_reject_fraction: float = key(
        0.2, "The run stops when a larger fraction of the recordings is rejected.", at_least=0, at_most=1
    )
    level: str = key(
        "digits", "synthetic: digits (strings of 3-6 digit words) or templates (sentences of about 330 words)."
    )
    speakers: int = key(8, "synthetic: voices of train, valid and test.")
    unseen_speakers: int = key(4, "synthetic: further voices, heard only in the split unseen.")
    train: int = key(1800, "synthetic: utterances in the split train. No text is in two splits.", at_least=0)
    valid: int = key(100, "synthetic: utterances in the split valid.", at_least=0)
    test: int = key(100, "synthetic: utterances in the split test.", at_least=0)
    unseen: int = key(40, "synthetic: utterances in the split unseen.", at_least=0)
    seed: int = key(
        0, "synthetic: seed of texts, voices and synthesis; the same seed gives the same samples.", at_least=0
    )
    workers: int = key(2, "synthetic: processes that synthesise speech in parallel.", at_least=1)
    shard_size: int = key(256, "synthetic: utterances in one resumable shard.", at_least=1)
    valid_fraction: float = key(
        0.05,
        "folder, tfds: fraction put in valid (by a hash of the name) where no split is given.",
        at_least=0,
        at_most=1,
    )
    test_fraction: float = key(0.05, "folder, tfds: fraction put in test, likewise.", at_least=0, at_most=1)
    require_text: bool = key(
        True, "folder, tfds: reject recordings without text; False: take them as speech without a transcript."
    )
    tfds_name: str = key("", "tfds: name of the prepared set, such as my_set/config:1.0.0.")
    tfds_data_dir: str = key("", "tfds: folder of the prepared set; empty: the default of the library.")
    tfds_audio: str = key("audio", "tfds: feature that holds the audio; a/b: feature b inside a.")
    tfds_text: str = key("text", "tfds: feature that holds the text; empty: none.")
    tfds_speaker: str = key("", "tfds: feature that holds the speaker; empty: none.")
    tfds_rate: str = key("", "tfds: feature that holds the sample rate in Hz; empty: none.")
    tfds_sample_rate: int = key(16000, "tfds: sample rate in Hz where no feature holds it.", at_least=1)

    def __post_init__(self) -> None:
        validate(self, "corpus")
        held_out = self.valid_fraction + self.test_fraction
        if held_out >= 1:
            raise InputError(
                f"corpus.valid_fraction + corpus.test_fraction = {held_out} must be below 1, or nothing is left to "
                "train on"
            )
        if self.max_seconds <= self.min_seconds:
            raise InputError(
                f"corpus.max_seconds={self.max_seconds} must be above corpus.min_seconds={self.min_seconds}"
            )


class Reject(Exception):
    """One recording that cannot be used; the message is the reason, a phrase without the file's name."""


@dataclass(frozen=True)
class Utterance:
    """One recording, or a part of one. `words` holds (word, start, end) in seconds, empty where they are not known.

    `load()` gives (waveform float32 [samples] or [2, samples] in [-1, 1], sample rate in Hz) and raises `Reject` for a
    recording that cannot be used. It can be pickled. `source` names it in rejects.jsonl: its path or record. `part`:
    what decides which part of a recording it is, plain values; () for a whole one.
    """

    key: str
    split: str
    speaker: str
    text: str
    words: tuple[tuple[str, float, float], ...]
    load: Callable[[], tuple[np.ndarray, int]]
    source: str = ""
    part: tuple = ()


def utterances(config: CorpusConfig, directory: Path, progress: bool = True) -> list[Utterance]:
    """All recordings of the configured corpus; a synthetic one is first synthesised below `directory`.

    Raises:
      InputError: the corpus cannot be used (no such folder, nothing in it, a package is missing).
    """
    module = plugin("corpus.name", config.name, CORPORA, ["utterances"])
    found = module.utterances(config, Path(directory), progress)
    return [dataclasses.replace(item, text=texts.clean(item.text), speaker=texts.clean(item.speaker)) for item in found]


def for_codec(config: CorpusConfig, codec) -> CorpusConfig:
    """The corpus as this codec hears it: its sample rate and channels where the configuration names none."""
    rate, channels = config.sample_rate or codec.sample_rate, config.channels or codec.channels
    return dataclasses.replace(config, sample_rate=rate, channels=channels)


def converted(config: CorpusConfig, codec) -> str:
    """One sentence if `config` asks for another sample rate or other channels than the codec's, "" if not."""
    config, said = for_codec(config, codec), []
    if config.sample_rate != codec.sample_rate:
        said.append(f"at {config.sample_rate} Hz (corpus.sample_rate), the codec's rate is {codec.sample_rate} Hz")
    if config.channels != codec.channels:
        said.append(f"with {config.channels} channel(s) (corpus.channels), the codec has {codec.channels}")
    return f"the codec {codec.name} hears this corpus {' and '.join(said)}" if said else ""


SPLIT_NAMES = "use letters, digits and _ only, and another name than all"


def usable_split(name: str) -> bool:
    """Whether tensorflow-datasets takes a split of this name, and a file name can hold it."""
    return bool(re.fullmatch(r"\w{1,64}", name)) and any(c.isalnum() for c in name) and name != "all"


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
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.reasons else "w", encoding="utf-8") as stream:
                stream.write(json.dumps({"file": source, "reason": reason}) + "\n")
        self.reasons[source] = reason
        if len(self.reasons) > self.max_fraction * self.total:
            raise InputError(
                f"{len(self.reasons)} of {self.total} recordings cannot be used, more than corpus.max_reject_fraction "
                f"= {self.max_fraction} allows: see {self.path} for each file and its reason"
            )


SINCE = {"channels": 1, "long": "pauses"}  # cutting changes the keys of recordings, which count by themselves


def identity(config: CorpusConfig) -> dict:
    """The keys that decide the content of a corpus (`for_codec`): all but those of speed and tolerance.

    Those of `SINCE` are left out at the values that they had before there were such keys.
    """
    ignored = ("path", "workers", "max_reject_fraction")
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored}
    return {key: value for key, value in values.items() if key not in SINCE or value != SINCE[key]}
