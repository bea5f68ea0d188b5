"""What the workdir of an imported checkpoint has in every family, beside what a family keeps of its own.

WORKDIR/checkpoints/0     the weights          WORKDIR/published.json    its config.json
WORKDIR/codec             the codec
"""

import dataclasses
from pathlib import Path
from typing import Any

from audiolm_jax import codecs, files
from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints
from audiolm_jax.model.spec import CodecSpec, Spec

CODEC, PUBLISHED_CONFIG = "codec", "published.json"


def save(workdir: Path, published: Any, *frozen: Any, codebooks: int | None = None, **parts: Any) -> None:
    """Writes the config.json of a published model, its weights and its Spec. The codec must be in WORKDIR/codec.

    frozen: trees of other weights that the model is used with, part of the digest. codebooks: how many the codec is
    opened with (None: all). parts: fields of the Spec that a workdir decides.
    """
    files.write_json(workdir / PUBLISHED_CONFIG, published.config)
    params = checkpoints.params_of(published.model)
    codec, source = published.codec, published.spec.source
    spec = dataclasses.replace(
        published.spec,
        codec=CodecSpec(codec.name, CODEC, codebooks, codec.fingerprint),
        source=dataclasses.replace(source, weights=checkpoints.digest(params, *frozen)),
        **parts,
    )
    checkpoints.save_weights(workdir, params, spec)


def codec_of(workdir: Path, spec: Spec) -> Any:
    """The codec of such a workdir. Raises InputError for another one than that of the training."""
    folder = workdir / spec.codec.path
    codec = codecs.load(spec.codec.name, folder, spec.codec.codebooks)
    if codec.fingerprint != spec.codec.fingerprint:
        raise InputError(f"{folder}: is not the codec that the model was trained with")
    return codec
