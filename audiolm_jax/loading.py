"""A trained run, a safetensors file exported from one, or a published checkpoint -> a Generator."""

from pathlib import Path
from typing import Any

from audiolm_jax import codecs, files
from audiolm_jax.errors import InputError
from audiolm_jax.families import published
from audiolm_jax.hub import files as hub
from audiolm_jax.model import checkpoints
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import pieces


def load(
    source: str | Path,
    sampling: SamplingConfig | None = None,
    step: int | None = None,
    codec: Any = None,
    dtype: str | None = None,
) -> Generator:
    """The generator of a run (its folder, or a safetensors file exported from it) or of a published checkpoint (a
    folder in the Hugging Face layout, or a repository owner/name or owner/name@revision; see families/published.py).

    sampling: None is the default, of a published checkpoint what it was published with. step: which checkpoint of a run
    (None: the latest). codec: an open codec instead of the one the run names. dtype: `model.dtype` instead of what the
    run was trained with.
    Raises InputError if there is no checkpoint, or the codec is not the one the model was trained on.
    """
    path, changes = files.place(source), {} if dtype is None else {"dtype": dtype}
    if published.is_published(path) or hub.is_repository(source):
        return published.read(source, dtype or "auto").generator(sampling)
    if path.is_file():
        model, spec = checkpoints.load_safetensors(path, **changes)
    else:
        model, spec = checkpoints.restore_params(path, step, **changes)
    if spec.source.family:
        return published.of_run(path, model, spec).generator(sampling)
    codec = codec or codecs.load(spec.codec.name, spec.codec.path, spec.codec.codebooks)
    if codec.fingerprint != spec.codec.fingerprint:
        raise InputError(
            f"{path}: the model was trained on codes of codec {spec.codec.name!r} with fingerprint "
            f"{spec.codec.fingerprint[:12]}, this one has {codec.fingerprint[:12]}; give the weights it was trained on "
            "(codec.path)"
        )
    generator = Generator(model, spec, codec, sampling, spec.data.sequence_length)
    generator.speakers, generator.text = spec.speakers, pieces.of_model(spec.text, path)
    return generator
