"""Features and JSON files that make the token dataset an ordinary tensorflow-datasets directory."""

import os
from pathlib import Path

import numpy as np

from audiolm_jax import files
from audiolm_jax.errors import InputError, shortened

FORMAT = 1  # of metadata.json and the records; the first version that writes what this one cannot read makes it 2
FIELDS = {
    "codec": str,
    "codec_fingerprint": str,
    "sample_rate": int,
    "frame_rate": (int, float),
    "hop": int,
    "codebooks": int,
    "codebook_size": int,
    "splits": dict,
    "fingerprint": str,
    "identity": dict,
}
PER_SPLIT = {"utterances": int, "seconds": (int, float), "frames": int, "max_frames": int}


def check(metadata: dict, path: Path) -> None:
    """Raises InputError for the metadata.json of a newer version, or of no token dataset."""
    files.not_newer(metadata, path, FORMAT)

    def need(values: dict, fields: dict, where: str) -> None:
        for name, kind in fields.items():
            value = values.get(name) if isinstance(values, dict) else None
            number = isinstance(value, int | float) and name not in PER_SPLIT
            if not isinstance(value, kind) or isinstance(value, bool) or (number and not 0 < value < 2**31):
                raise InputError(
                    f"{path}: has {where}{name}={shortened(repr(value), 40)}, which is not what `audiolm prepare` "
                    "writes; it may be damaged"
                )

    need(metadata, FIELDS, "")
    for split, totals in metadata["splits"].items():
        need(totals, PER_SPLIT, f"splits.{split}.")


def features(codebooks: int):
    """The tensorflow-datasets features of one example, codes [T, codebooks]."""
    import tensorflow_datasets as tfds

    word = {"text": tfds.features.Text(), "start": np.float32, "end": np.float32}
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "speaker": tfds.features.Text(),
            "text": tfds.features.Text(),
            "words": tfds.features.Sequence(word),
            "codes": tfds.features.Tensor(shape=(None, codebooks), dtype=np.uint16),
            "duration": tfds.features.Scalar(np.float32),
        }
    )


def describe(path: Path, name: str, version: str, schema, codec, identity: dict, done: dict[str, list[dict]]) -> None:
    """Writes features.json, metadata.json and, last, dataset_info.json."""
    import tensorflow_datasets as tfds

    hashes = {split: [shard["sha256"] for shard in shards] for split, shards in done.items()}
    splits = {
        split: {
            "utterances": sum(shard["examples"] for shard in shards),
            "seconds": sum(shard["seconds"] for shard in shards),
            "frames": sum(shard["frames"] for shard in shards),
            "max_frames": max(shard["max_frames"] for shard in shards),
        }
        for split, shards in done.items()
    }
    metadata = {
        "format": FORMAT,
        "codec": codec.name,
        "codec_fingerprint": codec.fingerprint,
        "sample_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "hop": codec.hop,
        "codebooks": codec.codebooks,
        "codebook_size": codec.codebook_size,
        "splits": splits,
        "rejects": sum(len(shard["rejects"]) for shards in done.values() for shard in shards),
        "fingerprint": files.digest([identity, hashes]),
        "identity": identity,
    }
    who = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.utils.Version(version), data_dir=os.fspath(path), module_name=""
    )
    described = tfds.core.DatasetInfo(
        builder=who,
        features=schema,
        description=f"Speech as codes: codec {codec.name!r}, {codec.codebooks} codebooks, {codec.frame_rate:g} Hz",
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )
    described.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(data_dir=path, dataset_name=name, filetype_suffix="array_record")
    described.set_splits(
        tfds.core.SplitDict(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["examples"] for shard in shards],
                num_bytes=sum(shard["bytes"] for shard in shards),
                filename_template=template.replace(split=split),
            )
            for split, shards in done.items()
        )
    )
    described.write_to_directory(path)
