"""Recordings for tests of corpora: synthetic ones, and what a folder of them is read as."""

import dataclasses
from pathlib import Path

import numpy as np
import soundfile

from audiolm_jax.data import corpora
from audiolm_jax.data.corpora import CorpusConfig, Reject

OWN = CorpusConfig(name="folder")


def speech(seconds: float = 1.0, rate: int = 16000, hertz: float = 220.0) -> np.ndarray:
    time_N = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * hertz * time_N) * (1 + 0.3 * np.sin(20 * time_N))).astype(np.float32)


def put(root: Path, name: str, waveform=None, text=None, rate: int = 16000, **options) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(rate=rate) if waveform is None else waveform, rate, **options)
    if text is not None:
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(root: Path, config: CorpusConfig = OWN) -> dict[str, corpora.Utterance]:
    found = corpora.utterances(dataclasses.replace(config, path=str(root)), root, progress=False)
    assert len({item.key for item in found}) == len(found)
    return {item.key: item for item in found}


def reason(item: corpora.Utterance) -> str:
    """Why a recording is rejected, "" if it is not."""
    try:
        item.load()
    except Reject as reject:
        return str(reject)
    return ""


def texts(root: Path, config: CorpusConfig = OWN) -> dict[str, str]:
    """The text of every usable recording by key."""
    return {key: item.text for key, item in listed(root, config).items() if not reason(item)}
