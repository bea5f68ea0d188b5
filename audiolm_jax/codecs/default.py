"""The default codec: 16 kHz speech as 25 frames per second of residual codes, causal, streaming both ways.

Trained from scratch on the project's synthetic corpus by `experiments/default_codec`; the network is in
`default_model.py`. The weights are one safetensors file, half precision, with the configuration as JSON in its header.
"""

import functools
import json
from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import files
from audiolm_jax.codecs import checks
from audiolm_jax.codecs.default_model import FrameConfig, FrameModel, Unfilled
from audiolm_jax.codecs.quantizer import dequantize, quantize
from audiolm_jax.codecs.streaming import About, Carry, Codec, own_mesh, placed
from audiolm_jax.config import keys_of
from audiolm_jax.errors import InputError, shortened

WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
SIZES = (32, 8, 1)  # frames per call of the network


def _encode(weights, waveform_BNC, n_B, tape):
    encoder, books_QKZ = weights
    exists_BN = jnp.arange(waveform_BNC.shape[1]) < n_B[:, None]
    latents = encoder(jnp.where(exists_BN, waveform_BNC[..., 0], 0), tape)
    return quantize(latents, books_QKZ)[0]


def _decode(weights, codes_BTQ, n_B, tape):
    decoder, books_QKZ = weights
    return decoder(dequantize(codes_BTQ, books_QKZ), tape)[..., None]


def save(path: str | Path, config: FrameConfig, params: nnx.State, books_QKZ) -> None:
    """Writes weights in half precision with the configuration in the header."""
    tensors = {name: variable[...] for name, (_, variable) in by_name(params).items()} | {"books_QKZ": books_QKZ}
    tensors = {name: np.asarray(value, np.float16) for name, value in tensors.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(path, tensors, {"codec": "default", "config": json.dumps(asdict(config), sort_keys=True)})


def load(path: str | Path | None = None, codebooks: int | None = None) -> Codec:
    """The codec with weights from `path`, or with those of the package. Raises InputError if they cannot be used."""
    path = Path(path) if path else WEIGHTS
    if not path.is_file():
        raise InputError(f"codec.path: {path} does not exist; a safetensors file of the codec 'default' is needed")
    config, model, books_QKZ, fingerprint = _read(path, path.stat().st_mtime_ns)
    shape = config.sample_rate, config.hop, checks.leading(codebooks, config.codebooks), config.codebook_size
    about = About("default", fingerprint, *shape, delay=config.delay, block=SIZES[0])
    with own_mesh():
        used_QKZ = placed(books_QKZ[: about.codebooks])
    encoder = Carry(_encode, (model.encoder, used_QKZ), config.hop, 1, SIZES)
    decoder = Carry(_decode, (model.decoder, used_QKZ), 1, config.hop, SIZES)
    return Codec(about, (encoder,), (decoder,), (config, model, books_QKZ))


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> tuple:
    """(config, model, codebooks, fingerprint) of a weights file; `modified` is a part of the cache's key alone."""
    arrays, metadata = files.read_safetensors(path, "codec.path")
    with files.reading(path, "weights of the codec 'default'", "codec.path", "it has no usable configuration"):
        values = files.parse_json(metadata.get("config", ""), path)
        known, most = keys_of(FrameConfig, ""), max(2**20, *(array.size for array in arrays.values()))
        config = FrameConfig(**{name: known[name].check(value) for name, value in values.items()})
        sizes = {name: value for name, value in vars(config).items() if type(value) is int}
        bounds = {name: len(arrays) if name.endswith("blocks") else most for name in sizes}
        wrong = [f"{name}={value}" for name, value in sizes.items() if not 0 <= value <= bounds[name]]
        if wrong:
            raise ValueError(f"{shortened(wrong[0], 60)} is more than there are weights")
        graph, params = nnx.split(nnx.eval_shape(lambda: FrameModel(config, Unfilled())))
    known = by_name(params)
    shapes = {name: variable.shape for name, (_, variable) in known.items()}
    shapes["books_QKZ"] = (config.codebooks, config.codebook_size, config.latent)
    wrong = [name for name in sorted(shapes | arrays) if name not in arrays or arrays[name].shape != shapes.get(name)]
    wrong += [name for name in sorted(arrays) if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all()]
    if wrong:
        raise InputError(
            f"codec.path: {path} does not fit its configuration: {wrong[0]} is missing, unknown, misshapen or not of "
            "finite floats"
        )
    # numpy converts: jax would compile a program for each shape.
    books_QKZ, *values = (arrays[name].astype(np.float32) for name in ("books_QKZ", *known))
    with own_mesh():
        values = [placed(value) for value in values]
    filled = [(place, variable.replace(value)) for (place, variable), value in zip(known.values(), values, strict=True)]
    model = nnx.merge(graph, nnx.from_flat_state(filled))
    return config, model, books_QKZ, files.digest(asdict(config), arrays)


def by_name(params: nnx.State) -> dict[str, tuple]:
    """Dotted name -> (path, parameter)."""
    return {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(params)}
