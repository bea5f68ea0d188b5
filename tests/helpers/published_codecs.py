"""Published codecs of odd small sizes with random weights, written as a folder in the Hugging Face layout."""

import dataclasses
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.codecs import dac, encodec, mimi
from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.hub import files
from audiolm_jax.hub.weights import named
from experiments.colab.random_musicgen import CENTRED, SEANET, books, filled, sound, write_encodec

# Three, five and seven-fold strides, kernels of other sizes, several LSTMs or none, a window shorter than the signal.
CONFIGS = {
    "encodec": encodec.EnCodecConfig(**SEANET, sampling_rate=600, target_bandwidths=(0.5, 2.0), num_lstm_layers=1),
    "encodec-centred": CENTRED,
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


def write(folder: Path, name: str, config=None, seed: int = 0) -> str:
    """A codec of CONFIGS (or of `config`) as a folder; returns the name of its module in CODECS."""
    config, kind = config or CONFIGS[name], name.partition("-")[0]
    if kind == "dac":
        model = filled(nnx.eval_shape(lambda: dac.DACModel(config)), seed)
        rng, books_Q = np.random.default_rng(seed), model.quantizer.quantizers
        low, high = np.sqrt(config.codebook_dim), np.sqrt(config.hidden_size)
        scales = {"in_proj.weight": 1 / high, "in_proj.bias": 1 / 20, "codebook.weight": 1}
        scales |= {"out_proj.weight": 0.5 / low, "out_proj.bias": 1 / 20}
        for name, scale in scales.items():
            parameters = [operator.attrgetter(name)(book) for book in books_Q]
            values = scale * rng.standard_normal((len(parameters), *parameters[0].shape))
            for parameter, value in zip(parameters, values, strict=True):
                parameter[...] = jnp.asarray(value, jnp.float32)
        save(folder, config, model)
        return kind
    if kind == "encodec":
        write_encodec(folder, config, seed)
        return kind
    audio = jnp.asarray(sound(seed, 1, 400 * config.stride, config.audio_channels))
    n_B = jnp.asarray([audio.shape[1]])

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
    save(folder, config, model, jnp.concatenate(stacked))
    return kind


def save(folder: Path, config, model: nnx.Module, books_QKZ: jax.Array | None = None) -> None:
    """Writes config.json and model.safetensors, which `transformers` opens; the rest is `config` of a codec."""
    if isinstance(config, encodec.EnCodecConfig):
        encodec.save(folder, config, model, books_QKZ)
    elif isinstance(config, dac.DACConfig):
        files.write(folder, {"model_type": "dac", **dataclasses.asdict(config)}, named(model, dac.renamed))
    else:
        tensors, ones = named(model), np.ones(config.codebook_size, np.float32)
        for name, book_KZ in zip(mimi.codebook_names(config), jax.device_get(books_QKZ), strict=True):
            tensors |= {f"{name}.embed_sum": book_KZ, f"{name}.cluster_usage": ones, f"{name}.initialized": ones[:1]}
        files.write(folder, {"model_type": "mimi", **dataclasses.asdict(config)}, tensors)
