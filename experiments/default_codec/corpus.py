"""What the default codec hears: the synthetic corpus of this package, cut into random pieces."""

from pathlib import Path

import numpy as np

from audiolm_jax.data import corpora


def corpus_configs() -> dict[str, corpora.CorpusConfig]:
    """Filled sentences, and some digit strings, by the same 70 voices; 8 more are never heard."""
    common = {"speakers": 70, "unseen_speakers": 8, "unseen": 48, "test": 40}
    return {
        "templates": corpora.CorpusConfig(level="templates", train=3600, valid=80, **common),
        "digits": corpora.CorpusConfig(level="digits", train=1150, valid=40, **common),
    }


def load_split(root: Path, split: str, names=("templates", "digits")) -> list[np.ndarray]:
    """All utterances of a split as int16; a corpus that is not below `root` is synthesised first."""
    audio = []
    for name in names:
        folder = root / name
        if not (folder / "manifest.jsonl").exists():
            corpora.utterances(corpus_configs()[name], folder)
        for utterance in corpora.utterances(corpora.CorpusConfig(name="folder", path=str(folder)), folder):
            if utterance.split == split:
                audio.append(np.round(utterance.load()[0] * 32767).astype(np.int16))
    return audio


def crops(audio: list[np.ndarray], offsets: np.ndarray, seed: tuple, batch: int, samples: int) -> np.ndarray:
    """A random batch `[batch, samples]`, every moment of the corpus equally likely, with gains of -6 to +3 dB."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((batch, samples), np.float32)
    for row, place in zip(rows, rng.integers(0, offsets[-1], batch), strict=True):
        utterance = audio[np.searchsorted(offsets, place, side="right")]
        start = rng.integers(0, max(1, len(utterance) - samples + 1))
        piece = utterance[start : start + samples] / 32767
        gain = min(10 ** (rng.uniform(-6, 3) / 20), 0.98 / max(np.abs(piece).max(), 1e-3))
        row[: len(piece)] = piece * gain
    return rows
