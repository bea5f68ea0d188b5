"""Any prepared tensorflow-datasets set, by name, read at random access from its array_record files.

Audio is a `Tensor` of float in [-1, 1] or of integers at full scale, [samples] or [samples, channels], or the bytes
of a sound file. Records over corpus.max_seconds are cut as recordings of a folder are (cut.py). No tensorflow is needed
for that. Sets with a `tfds.features.Audio` feature cannot be opened without it: that is the extra `tf`.
"""

import contextlib
import dataclasses
import functools
import io

import numpy as np

from audiolm_jax.data.corpora import CorpusConfig, Reject, Utterance, checks, cut, sound
from audiolm_jax.errors import InputError

_SPLIT_NAMES = {"validation": "valid", "dev": "valid"}


def utterances(config: CorpusConfig, directory=None, progress: bool = True) -> list[Utterance]:
    """Lists the records of `config.tfds_name`; see `corpora.utterances`. `directory` is not used.

    Splits keep their names ("validation" is called "valid"). From a set without valid or test, shares of its train
    split are taken by a hash of the record's key.

    Raises:
      InputError: there is no such prepared set, it needs tensorflow, or it lacks a feature that was named.
    """
    import tqdm

    names = sorted(_open(config))
    renamed = {name: _SPLIT_NAMES.get(name, name) for name in names}
    records = []
    total = sum(len(_open(config)[name]) for name in names)
    with tqdm.tqdm(total=total, unit="rec", desc=f"reading {config.tfds_name}", disable=not progress) as bar:
        for name in names:
            keys = [f"{name}_{index:07d}" for index in range(len(_open(config)[name]))]
            splits = [renamed[name]] * len(keys)
            if name == "train":
                splits = checks.splits(
                    keys,
                    0 if "valid" in renamed.values() else config.valid_fraction,
                    0 if "test" in renamed.values() else config.test_fraction,
                )
            for index, (key, split) in enumerate(zip(keys, splits, strict=True)):
                records += _utterances(config, name, index, key, split)
                bar.update()
    if not records:
        raise InputError(f"the set {config.tfds_name!r} holds no records")
    return records


def load(
    config: CorpusConfig, split: str, index: int, reason: str = "", part: cut.Part | None = None
) -> tuple[np.ndarray, int]:
    """Reads record `index` of a split of the set, or a part of it; see `folder.load`.

    Raises:
      Reject: with the reason.
    """
    if reason:
        raise Reject(reason)
    record = _record(config, split, index)
    audio, rate = _feature(config, record, config.tfds_audio), _rate(config, record)
    if isinstance(audio, bytes):
        if part is not None:
            return checks.prepare(*sound.some(audio, part), config)
        with sound.opened(audio) as file:
            return checks.prepare(sound.whole(file), file.samplerate, config)
    audio = np.asarray(audio)
    if audio.dtype.kind == "i":
        # Audio read by tensorflow-datasets keeps the values of int16 in wider types.
        audio = audio.astype(np.float32) / 32768
    elif audio.dtype.kind != "f":
        raise Reject(f"audio is of type {audio.dtype}, expected floats, signed integers or a sound file's bytes")
    if part is not None:
        audio = audio[:, None] if audio.ndim == 1 else audio
        first, last = part.inside(rate, len(audio))
        audio = cut.borders(part, rate, first, last, lambda start, stop: audio[start:stop])
    return checks.prepare(audio, rate, config)


def _rate(config: CorpusConfig, record: dict) -> int:
    rate = int(_feature(config, record, config.tfds_rate)) if config.tfds_rate else config.tfds_sample_rate
    if rate < 1:
        raise Reject(f"the sample rate is {rate}")
    return rate


def _seconds(config: CorpusConfig, record: dict) -> float:
    """How long the audio of a record is, 0 if that cannot be told."""
    audio = _feature(config, record, config.tfds_audio)
    if isinstance(audio, bytes):
        with sound.opened(audio) as file:
            return (sound.length(file) or 0) / file.samplerate
    return len(audio) / _rate(config, record) if np.ndim(audio) else 0.0


def _utterances(config: CorpusConfig, name: str, index: int, key: str, split: str) -> list[Utterance]:
    """A record, or its parts if it is too long."""
    text, speaker, reason, pieces = "", "", "", []
    try:
        record = _record(config, name, index)
        _feature(config, record, config.tfds_audio)
        if config.tfds_rate:
            _feature(config, record, config.tfds_rate)
        if config.tfds_speaker:
            speaker = _feature(config, record, config.tfds_speaker)
            speaker = speaker.decode("utf-8", errors="replace") if isinstance(speaker, bytes) else str(speaker)
        text = _feature(config, record, config.tfds_text) if config.tfds_text else None
        text = checks.clean_text(text, config.require_text)
        seconds = 0.0 if config.long == "reject" else _seconds(config, record)
        if seconds > config.max_seconds:
            pieces = cut.pieces(seconds, text, (), config)
    except Reject as reject:
        text, reason = text if isinstance(text, str) else "", str(reject)
    fields = {
        "split": split,
        "speaker": speaker,
        "text": text,
        "words": (),
        "source": f"{config.tfds_name} {name}[{index}]",
    }
    if not pieces:
        return [Utterance(key=key, load=functools.partial(load, config, name, index, reason), **fields)]
    return [
        Utterance(
            key=f"{key}@{number:04d}",
            load=functools.partial(load, config, name, index, "", piece.part),
            part=dataclasses.astuple(piece.part),
            **fields,
        )
        for number, piece in enumerate(pieces)
    ]


def _record(config: CorpusConfig, split: str, index: int) -> dict:
    try:
        return _open(config)[split][index]
    except Exception as error:  # whatever a reader of foreign records raises, the others can still be read
        raise Reject(f"the record cannot be read: {type(error).__name__}: {error}") from error


def _feature(config: CorpusConfig, record: dict, name: str):
    value = record
    for part in name.split("/"):
        if not isinstance(value, dict) or part not in value:
            raise InputError(
                f"the set {config.tfds_name!r} has no feature {name!r}; its features are {', '.join(sorted(record))} "
                "(see corpus.tfds_audio, tfds_text, tfds_speaker, tfds_rate)"
            )
        value = value[part]
    return value


@functools.lru_cache(maxsize=4)
def _open(config: CorpusConfig) -> dict:
    """The data sources of all splits by name; cached, as every record is looked up through it."""
    import tensorflow_datasets as tfds

    if not config.tfds_name:
        raise InputError("corpus.tfds_name is empty; give the name of a prepared set, such as my_set or my_set:1.0.0")
    where = config.tfds_data_dir or "the default data_dir of tensorflow-datasets"
    arguments = {"data_dir": config.tfds_data_dir} if config.tfds_data_dir else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints a banner where tensorflow is missing
            return tfds.builder(config.tfds_name, try_gcs=False, **arguments).as_data_source()
    except ImportError as error:
        if "tensorflow" not in str(error):
            raise
        raise InputError(
            f"the set {config.tfds_name!r} has features that only tensorflow can read (such as features.Audio), and "
            "tensorflow is not installed: install the extra tf (pip install 'audiolm-jax[tf]')"
        ) from error
    except tfds.core.registered.DatasetNotFoundError as error:
        raise InputError(
            f"no prepared set {config.tfds_name!r} in {where}; corpus.tfds_name is dataset[/config][:version] and "
            "corpus.tfds_data_dir the folder that holds dataset/"
        ) from error
    except NotImplementedError as error:
        raise InputError(
            f"the set {config.tfds_name!r} in {where} is not there in array_record files; prepare it with "
            "file_format='array_record'"
        ) from error
    except (ValueError, OSError, AssertionError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the set {config.tfds_name!r} in {where} cannot be opened: {reason}") from error
