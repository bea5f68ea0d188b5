"""The shards of a token dataset: their utterances, whether one is finished, and how one is written."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audiolm_jax import files
from audiolm_jax.data import encode
from audiolm_jax.data.corpora import Reject, Utterance
from audiolm_jax.errors import InputError


def deal(utterances, size: int) -> Iterator[tuple[str, int, int, list[Utterance]]]:
    """(split, shard number, shards of the split, its utterances), splits in order of appearance."""
    splits: dict[str, list[Utterance]] = {}
    for item in utterances:
        splits.setdefault(item.split, []).append(item)
    for split, members in splits.items():
        shards = -(-len(members) // size)
        for number in range(shards):
            yield split, number, shards, members[number * size : (number + 1) * size]


def finished(path: Path, note: Path) -> dict | None:
    """The note of a finished shard; None if there is none or a damaged one, or the file has another sha256."""
    try:
        content = files.read_json(note)
        return content if content["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() else None
    except (InputError, KeyError, FileNotFoundError):
        return None


def write(path: Path, members, codec, features, batch_seconds: float, pool, bar: encode.Progress) -> dict:
    """Encodes the utterances in batches of fixed shapes; returns the note of the shard: counts, rejects, sha256."""
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    results = encode.encode(members, codec, batch_seconds, pool, bar)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    note = {"examples": 0, "bytes": 0, "seconds": 0.0, "frames": 0, "max_frames": 0, "rejects": []}
    with files.writing(path, RuntimeError), files.replacing(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        for item, result in zip(members, results, strict=True):
            if isinstance(result, Reject):
                note["rejects"].append((item.source or item.key, str(result)))
                continue
            codes_TQ, seconds = result
            example = {
                "key": item.key,
                "speaker": item.speaker,
                "text": item.text,
                "words": [{"text": word, "start": start, "end": end} for word, start, end in item.words],
                "codes": codes_TQ.astype(np.uint16),
                "duration": np.float32(seconds),
            }
            # deterministic: the order of a protobuf map differs from process to process otherwise
            record = serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)
            writer.write(record)
            note["examples"] += 1
            note["bytes"] += len(record)
            note["seconds"] += seconds
            note["frames"] += len(codes_TQ)
            note["max_frames"] = max(note["max_frames"], len(codes_TQ))
        writer.close()
        note["sha256"] = hashlib.sha256(temporary.read_bytes()).hexdigest()
    return note
