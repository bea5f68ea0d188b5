"""The default codec: 16 kHz speech as 25 frames per second of residual codes, causal, streaming both ways.

Trained from scratch on the project's synthetic corpus by `experiments/default_codec`; the network is in
`default_model.py`. The weights are one safetensors file, half precision, with the configuration as JSON in its header.
"""

import functools
import json
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import files
from audiolm_jax.codecs import checks
from audiolm_jax.codecs.default_model import FrameConfig, FrameModel
from audiolm_jax.codecs.quantizer import dequantize, quantize
from audiolm_jax.codecs.streaming import About, Carry, Codec, Tape, own_mesh
from audiolm_jax.errors import InputError

WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
SIZES = (32, 8, 1)  # frames per call of the network


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph, params, books_QKZ, waveform_BNC, n_B, pasts, first):
    tape, encoder = Tape(pasts, first), nnx.merge(graph, params).encoder
    exists_BN = jnp.arange(waveform_BNC.shape[1]) < n_B[:, None]
    waveform_BN = jnp.where(exists_BN, waveform_BNC[..., 0], 0)
    latents, state = encoder(waveform_BN, tape.take(encoder.initial_state(len(waveform_BN))))
    tape.leave(state)
    return quantize(latents, books_QKZ)[0], tape.next


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, params, books_QKZ, codes_BTQ, n_B, pasts, first):
    tape, decoder = Tape(pasts, first), nnx.merge(graph, params).decoder
    waveform, state = decoder(dequantize(codes_BTQ, books_QKZ), tape.take(decoder.initial_state(len(codes_BTQ))))
    tape.leave(state)
    return waveform[..., None], tape.next


def build(config: FrameConfig, model: FrameModel, books_QKZ, fingerprint: str, codebooks: int | None) -> Codec:
    """The codec of a model whose parameters are loaded."""
    count = checks.leading(codebooks, config.codebooks)
    about = About(
        name="default",
        fingerprint=fingerprint,
        sample_rate=config.sample_rate,
        hop=config.hop,
        codebooks=count,
        codebook_size=config.codebook_size,
        delay=config.delay,
        block=SIZES[0],
    )
    graph, params = nnx.split(model)
    with own_mesh():
        fixed = (graph, params, jnp.asarray(books_QKZ)[:count])
    encoder = Carry(functools.partial(_encode, *fixed), config.hop, 1, SIZES)
    decoder = Carry(functools.partial(_decode, *fixed), 1, config.hop, SIZES)
    return Codec(about, (encoder,), (decoder,), (config, model, books_QKZ))


def names(params: nnx.State) -> dict[str, tuple]:
    """The dotted name of every parameter and its path."""
    return {".".join(str(part) for part in path): path for path, _ in nnx.to_flat_state(params)}


def save(path: str | Path, config: FrameConfig, params: nnx.State, books_QKZ) -> None:
    """Writes weights in half precision with the configuration in the header."""
    flat = {".".join(str(part) for part in key): value[...] for key, value in nnx.to_flat_state(params)}
    tensors = {name: np.asarray(value, np.float16) for name, value in (flat | {"books_QKZ": books_QKZ}).items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(path, tensors, {"codec": "default", "config": json.dumps(asdict(config), sort_keys=True)})


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> tuple:
    """(config, model, codebooks, fingerprint) of a weights file; `modified` is a part of the cache's key alone."""
    arrays, metadata = files.read_safetensors(path, "codec.path")
    try:
        config = FrameConfig(**json.loads(metadata.get("config", "")))
    except (ValueError, TypeError) as error:
        raise InputError(f"codec.path: {path} holds no weights of the codec 'default' (no configuration)") from error
    with own_mesh():
        model, books_QKZ = _fill(path, config, arrays)
    return config, model, books_QKZ, files.digest(asdict(config), arrays)


def _fill(path: Path, config: FrameConfig, arrays: dict[str, np.ndarray]) -> tuple[FrameModel, jax.Array]:
    """(model, codebooks) of a configuration, filled with the arrays."""
    graph, params = nnx.split(nnx.eval_shape(lambda: FrameModel(config, nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(params))
    shapes = {name: flat[key].shape for name, key in names(params).items()}
    shapes["books_QKZ"] = (config.codebooks, config.codebook_size, config.latent)
    wrong = [name for name in sorted(shapes | arrays) if name not in arrays or arrays[name].shape != shapes.get(name)]
    if wrong:
        raise InputError(
            f"codec.path: {path} does not fit its configuration: {wrong[0]} is missing, unknown or misshapen"
        )
    for name, key in names(params).items():
        flat[key] = flat[key].replace(jnp.asarray(arrays[name], jnp.float32))
    return nnx.merge(graph, nnx.from_flat_state(flat)), jnp.asarray(arrays["books_QKZ"], jnp.float32)


def load(path: str | Path | None = None, codebooks: int | None = None) -> Codec:
    """The codec with weights from `path`, or with those of the package. Raises InputError if they cannot be used."""
    path = Path(path) if path else WEIGHTS
    if not path.is_file():
        raise InputError(f"codec.path: {path} does not exist; a safetensors file of the codec 'default' is needed")
    config, model, books_QKZ, fingerprint = _read(path, path.stat().st_mtime_ns)
    return build(config, model, books_QKZ, fingerprint, codebooks)
