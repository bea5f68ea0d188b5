"""Published codecs of odd small sizes with random weights, written as a folder in the Hugging Face layout."""

import dataclasses
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.codecs import dac, encodec, mimi, qwen3
from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.hub import files
from audiolm_jax.hub.weights import named
from experiments.colab.random_musicgen import CENTRED, SEANET, books, filled, sound, write_encodec

MIMI = {
    **SEANET,
    "sampling_rate": 1200,
    "num_quantizers": 4,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "upsample_groups": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "sliding_window": 5,
}
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
    "mimi": mimi.MimiConfig(**MIMI, num_semantic_quantizers=2),
    "qwen3": qwen3.Qwen3Config(
        mimi.MimiConfig(**MIMI),
        qwen3.DecoderConfig(
            num_quantizers=3,
            codebook_size=32,
            codebook_dim=14,
            latent_dim=10,
            hidden_size=12,
            intermediate_size=18,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=4,
            sliding_window=6,
            upsampling_ratios=(2,),
            upsample_rates=(3, 2),
            decoder_dim=20,
        ),
        codebooks=3,
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
    if kind == "qwen3":
        encoder = filled(nnx.eval_shape(lambda: mimi.MimiModel(config.encoder, decodes=False)), seed)
        decoder, c = filled(nnx.eval_shape(lambda: qwen3.Decoder(config.decoder)), seed + 1), config.decoder
        for block in decoder.decoder[1:-2]:
            for unit in block.block[2:]:  # six of them add up
                unit.conv2.conv.weight[...] *= 0.2
        decoder.decoder[-1].conv.weight[...] *= 0.15
        for _, convnext in decoder.upsample:
            convnext.gamma[...] *= 5
        rows = np.random.default_rng(seed).standard_normal((c.num_quantizers, c.codebook_size, c.row_width))
        save(folder, config, (encoder, fitting_books(config.encoder, encoder, seed)), (decoder, np.float32(rows)))
        return kind
    model = filled(nnx.eval_shape(lambda: mimi.MimiModel(config)), seed)
    save(folder, config, model, fitting_books(config, model, seed))
    return kind


def fitting_books(config: mimi.MimiConfig, model: mimi.MimiModel, seed: int) -> jax.Array:
    """Codebooks that fit the latents of a Mimi."""
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

    semantic, acoustic = map(np.asarray, jax.jit(latents_of)(model, audio))
    counts = config.num_semantic_quantizers, config.num_quantizers - config.num_semantic_quantizers
    stacked = [books(x, k, config.codebook_size, seed) for x, k in zip((semantic, acoustic), counts, strict=True)]
    return jnp.concatenate(stacked)


def save(folder: Path, config, model, books_QKZ=None) -> None:
    """Writes config.json and model.safetensors, which `transformers` opens; the rest is `config` of a codec."""
    if isinstance(config, encodec.EnCodecConfig):
        encodec.save(folder, config, model, books_QKZ)
    elif isinstance(config, dac.DACConfig):
        files.write(folder, {"model_type": "dac", **dataclasses.asdict(config)}, named(model, dac.renamed))
    elif isinstance(config, mimi.MimiConfig):
        files.write(
            folder, {"model_type": "mimi", **dataclasses.asdict(config)}, mimi_tensors(config, model, books_QKZ)
        )
    else:
        (encoder, encoder_books), (decoder, decoder_books) = model, books_QKZ
        tensors = {f"encoder.{n}": x for n, x in mimi_tensors(config.encoder, encoder, encoder_books).items()}
        tensors |= {f"decoder.{name}": tensor for name, tensor in named(decoder).items()}
        usage = np.float32(2) ** (np.arange(config.decoder.codebook_size) % 4 - 1)  # so that rows come back bit for bit
        for name, book_KZ in zip(qwen3.book_names(config.decoder), jax.device_get(decoder_books), strict=True):
            kept = {"embedding_sum": book_KZ * usage[:, None], "cluster_usage": usage}
            tensors |= {f"decoder.{name}.{part}": tensor for part, tensor in kept.items()}
        fields = {"model_type": qwen3.KIND, "encoder_valid_num_quantizers": config.codebooks}
        fields |= {f"{part}_config": dataclasses.asdict(getattr(config, part)) for part in ("encoder", "decoder")}
        files.write(folder, fields, tensors)


def mimi_tensors(config: mimi.MimiConfig, model: mimi.MimiModel, books_QKZ) -> dict[str, np.ndarray]:
    """A Mimi, with or without its decoder, under its published names."""
    tensors, ones = named(model), np.ones(config.codebook_size, np.float32)
    for name, book_KZ in zip(mimi.codebook_names(config), jax.device_get(books_QKZ), strict=True):
        tensors |= {f"{name}.embed_sum": book_KZ, f"{name}.cluster_usage": ones, f"{name}.initialized": ones[:1]}
    return tensors
