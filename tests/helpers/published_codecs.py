"""Published codecs of odd small sizes with random weights, written as a folder in the Hugging Face layout."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.codecs import dac, encodec, mimi
from audiolm_jax.codecs.layers import Tape

SEANET = {
    "num_filters": 4,
    "hidden_size": 12,
    "upsampling_ratios": (3, 2),
    "kernel_size": 5,
    "last_kernel_size": 3,
    "num_residual_layers": 1,
    "codebook_size": 32,
}
# Three, five and seven-fold strides, kernels of other sizes, several LSTMs or none, a window shorter than the signal.
CONFIGS = {
    "encodec": encodec.EnCodecConfig(**SEANET, sampling_rate=600, target_bandwidths=(0.5, 2.0), num_lstm_layers=1),
    "encodec-centred": encodec.EnCodecConfig(
        **SEANET,
        sampling_rate=600,
        target_bandwidths=(0.5, 2.0),
        use_causal_conv=False,
        use_conv_shortcut=False,
        residual_kernel_size=5,
    ),
    "encodec-chunks": encodec.EnCodecConfig(
        **SEANET,
        sampling_rate=600,
        audio_channels=2,
        target_bandwidths=(0.5, 2.0),
        use_causal_conv=False,
        norm_type="time_group_norm",
        normalize=True,
        chunk_length_s=0.2,
        overlap=0.1,
    ),
    "dac": dac.DACConfig(
        encoder_hidden_size=4,
        downsampling_ratios=(3, 2),
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=32,
        codebook_dim=3,
        sampling_rate=600,
    ),
    "mimi": mimi.MimiConfig(
        **SEANET,
        sampling_rate=1200,
        num_quantizers=4,
        num_semantic_quantizers=2,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        upsample_groups=12,
        num_hidden_layers=2,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=5,
    ),
}
MODULES = {"encodec": encodec, "dac": dac, "mimi": mimi}


def sound(seed: int, *shape: int) -> np.ndarray:
    """Something that reaches many codes: fast and slow noise, loud and soft by turns."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape)
    slow = np.cumsum(noise, axis=-1)
    slow = slow - np.linspace(0, 1, shape[-1]) * slow[..., -1:]
    knots = -(-shape[-1] // 16) + 1
    mix, loud = (np.interp(np.arange(shape[-1]), np.arange(knots) * 16, rng.uniform(0, 1, knots)) for _ in range(2))
    audio = mix * slow / np.abs(slow).max() + (1 - mix) * noise / 3
    return (0.7 * loud * audio).clip(-1, 1).astype(np.float32)


def filled(model: nnx.Module, seed: int) -> nnx.Module:
    """Random weights that keep the scale of what goes through."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        name, shape = path[-1], variable.shape
        if name in ("alpha", "scale"):
            value = rng.uniform(0.3, 0.9, shape)
        elif len(shape) == 1:
            value = rng.normal(0, 0.05, shape) + (name == "weight")  # a norm's gain is one
        else:
            residual = any("res_unit" in str(part) for part in path)  # twenty of them add up
            value = rng.normal(0, 0.3 if residual else 1, shape) / np.sqrt(np.prod(shape[:-1]))
        flat[path] = variable.replace(jnp.asarray(value, jnp.float32))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def books(latents_BTZ: np.ndarray, count: int, size: int, seed: int) -> jax.Array:
    """Codebooks that fit latents: the first holds latents, the others differences of two, smaller and smaller."""
    rng = np.random.default_rng(seed)
    known_TZ = latents_BTZ.reshape(-1, latents_BTZ.shape[-1])
    a, b = (known_TZ[rng.integers(0, len(known_TZ), (count, size))] for _ in range(2))
    books_QKZ = (a - b) * 0.7 ** np.arange(count)[:, None, None]
    books_QKZ[0] = a[0]
    return jnp.asarray(books_QKZ + rng.normal(0, 0.02 * known_TZ.std(), books_QKZ.shape), jnp.float32)


def write(folder: Path, name: str, config=None, seed: int = 0) -> str:
    """A codec of CONFIGS (or of `config`) as a folder; returns the name of its module in CODECS."""
    config, kind = config or CONFIGS[name], name.partition("-")[0]
    if kind == "dac":
        model = filled(nnx.eval_shape(lambda: dac.DACModel(config)), seed)
        rng = np.random.default_rng(seed)
        quantizer = {}
        for part, shape in dac.shapes(config).items():
            axes = dac.QUANTIZER[part][1]
            ours = tuple(shape[axis] for axis in axes)
            fan = 1 if part == "book" else np.sqrt(ours[1]) if len(ours) == 3 else 20
            value = rng.standard_normal((config.n_codebooks, *ours)) / fan
            quantizer[part] = jnp.asarray(value * 0.5 ** (part == "out_weight"), jnp.float32)
        dac.save(folder, config, model, quantizer)
        return kind
    audio = jnp.asarray(sound(seed, 1, 400 * config.stride, config.audio_channels))
    n_B = jnp.asarray([audio.shape[1]])
    if kind == "encodec":
        model = filled(nnx.eval_shape(lambda: encodec.EnCodecModel(config)), seed)
        latents = np.asarray(jax.jit(lambda m, x: m.encoder(x, n_B, Tape())[0])(model, audio))
        encodec.save(folder, config, model, books(latents, config.codebooks, config.codebook_size, seed))
        return kind

    def latents_of(model, audio):
        x, n, tape = audio, n_B, Tape()
        for part in (model.encoder, model.encoder_transformer, model.downsample):
            x, n = part(x, n, tape)
        chains = (
            model.quantizer.semantic_residual_vector_quantizer,
            model.quantizer.acoustic_residual_vector_quantizer,
        )
        return [chain.input_proj(x) for chain in chains]

    model = filled(nnx.eval_shape(lambda: mimi.MimiModel(config)), seed)
    semantic, acoustic = map(np.asarray, jax.jit(latents_of)(model, audio))
    counts = config.num_semantic_quantizers, config.num_quantizers - config.num_semantic_quantizers
    stacked = [books(x, k, config.codebook_size, seed) for x, k in zip((semantic, acoustic), counts, strict=True)]
    mimi.save(folder, config, model, jnp.concatenate(stacked))
    return kind
