"""Damaged lists and sound files: one sentence, or one rejected recording, and never anything else."""

import io
import json
import random

import numpy as np
import pytest
import soundfile

from audiolm_jax.data import corpora
from audiolm_jax.data.corpora import LONG, CorpusConfig, Reject, cut, folder
from audiolm_jax.errors import InputError
from tests.helpers.recordings import put, reason, speech

MANY = pytest.param(3000, marks=pytest.mark.slow)

TABLES = (
    "c0|hello\nc1|you there\n",
    'file_name,text\nc0.wav,hello\nc1.wav,"a, b"\n',
    "c0\thello\nc1\tyou\n",
    "c0|Dr. 5|doctor five\nc1|x|y\n",
    "file_name;start;end;text;speaker\nc0.wav;0;0.5;hello;a\n",
)
LINES = (
    '{"path": "c0.wav", "text": "x", "offset": 0.1, "duration": 0.5, "words": [["x", 0.1, 0.4]], "key": "k"}\n',
    '{"file_name": "wavs/d.flac", "transcription": "y", "split": "train", "speaker": "s"}\n',
)
BITS = r'| , ; .. / \ ~ -1 1e999 nan null true [ { } é id text start end channel .wav c0 "'.split()
BITS += ["\t", "\n", "\r", "\0", "\ufeff", "\ud800", "\x85", "\u2028", "a" * 300]
VALUES = (
    None,
    True,
    -1,
    0,
    1e308,
    10**50,
    "",
    "x",
    [],
    {},
    [1],
    "nan",
    "1e400",
    float("nan"),
    "\ud800",
    "..",
    "/",
    "~",
)
KEYS = "start end offset words key split num_frames start_ms segment channel text sentence path speaker".split()


def damaged(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(BITS) + text[place + rng.randint(0, 3) :]
    return text


@pytest.mark.parametrize("count", [300, MANY])
def test_damaged_lists(count, tmp_path):
    rng = random.Random(0)
    for name in ("c0.wav", "c1.wav", "wavs/d.flac"):
        put(tmp_path, name, speech(0.7))
    for _ in range(count):
        name = rng.choice(["metadata.csv", "metadata.tsv", "metadata.jsonl", "manifest.jsonl"])
        if name.endswith(".jsonl") and rng.random() < 0.5:
            line = json.loads(rng.choice(LINES))
            line |= {rng.choice(KEYS): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
            content = json.dumps(line) + "\n" + rng.choice(LINES)
        else:
            content = damaged("".join(LINES) if name.endswith(".jsonl") else rng.choice(TABLES), rng)
        encoding = "utf-8" if name.endswith(".jsonl") else rng.choice(["utf-8", "utf-16", "utf-16-le", "latin-1"])
        errors = "replace" if encoding == "latin-1" else "surrogatepass"
        (tmp_path / name).write_bytes(content.encode(encoding, errors)[: rng.choice([None, None, 30])])
        lengths = {"max_seconds": rng.choice([0.5, 30.0]), "long": rng.choice(LONG), "require_text": rng.random() < 0.5}
        try:
            items = corpora.utterances(CorpusConfig("folder", str(tmp_path), **lengths), tmp_path, False)
        except InputError as error:
            assert len(str(error)) < 500 + len(str(tmp_path))
        else:
            assert len({item.key for item in items}) == len(items)
            for item in items:
                assert (item.key + item.source + item.speaker).encode() and reason(item) is not None
        (tmp_path / name).unlink()


@pytest.mark.parametrize("count", [300, MANY])
def test_damaged_sound_files(count, tmp_path):
    rng, sources = random.Random(0), []
    kinds = ("WAV", "GSM610"), ("WAV", "ULAW"), ("WAVEX", None), ("AIFF", None), ("W64", None), ("CAF", "ALAC_16")
    kinds += ("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("NIST", None)
    for kind, subtype in kinds:
        file = io.BytesIO()
        soundfile.write(file, speech(1.5), 16000, format=kind, subtype=subtype)
        sources.append(file.getvalue())
    used = 0
    for _ in range(count):
        content = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(min(len(content), rng.choice([64, 64, 400, 10**6])))
            size = rng.randint(1, 100)
            one = bytes([rng.randrange(256)])
            new = rng.choice([one, b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"", rng.randbytes(size)])
            content[place : place + (len(new) if len(new) < 5 and new else rng.choice([0, size]))] = new
        (tmp_path / "a.wav").write_bytes(bytes(content))
        rate, channels = rng.choice([16000, 24000]), rng.choice([1, 2])
        config = CorpusConfig("folder", min_seconds=0.0, sample_rate=rate, channels=channels)
        part = rng.choice([None, None, cut.Part(0.2, 0.7), cut.Part(0.2, 0.7, before=0.1, after=0.1)])
        try:
            waveform, _ = folder.load(str(tmp_path / "a.wav"), config, "", part)
        except Reject:
            continue
        assert np.isfinite(waveform).all() and np.abs(waveform).max() <= 1 and waveform.ndim == config.channels
        used += 1
    assert 0.05 * count < used < 0.9 * count
