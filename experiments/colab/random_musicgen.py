"""A MusicGen of odd small sizes with random weights, written by this package alone, as a folder in the Hugging Face
layout: what the notebooks are executed with, and what tests open."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import codecs
from audiolm_jax.codecs import encodec
from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.encoders import t5
from audiolm_jax.families import musicgen
from audiolm_jax.model import sharding
from audiolm_jax.model.transformer import Transformer

SEANET = {
    "num_filters": 4,
    "hidden_size": 12,
    "upsampling_ratios": (3, 2),
    "kernel_size": 5,
    "last_kernel_size": 3,
    "num_residual_layers": 1,
    "codebook_size": 32,
}
CENTRED = encodec.EnCodecConfig(
    **SEANET,
    sampling_rate=600,
    target_bandwidths=(0.5, 2.0),
    use_causal_conv=False,
    use_conv_shortcut=False,
    residual_kernel_size=5,
)
TEXT = {"vocab_size": 16, "d_model": 12, "d_kv": 5, "d_ff": 18, "num_layers": 2, "num_heads": 3}
WORDS = "rock slow jazz with a loud piano and drums fast quiet".split()


def tokenizer(path: Path) -> None:
    """A tokenizer.json of one token per known word, then the end (id 1), like T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(path))


def small_decoder(**changes) -> dict:
    """An odd small decoder: heads of odd width, one layer more than two."""
    sizes = {"hidden_size": 20, "num_attention_heads": 4, "num_hidden_layers": 3, "ffn_dim": 28, "num_codebooks": 4}
    return {"vocab_size": 32, "max_position_embeddings": 64, "pad_token_id": 32, "bos_token_id": 32, **sizes, **changes}


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


def write_encodec(folder: Path, config: encodec.EnCodecConfig, seed: int = 0) -> None:
    """An EnCodec with random weights and codebooks that fit its latents."""
    audio = jnp.asarray(sound(seed, 1, 400 * config.stride, config.audio_channels))
    n_B = jnp.asarray([audio.shape[1]])
    model = filled(nnx.eval_shape(lambda: encodec.EnCodecModel(config)), seed)
    latents = np.asarray(jax.jit(lambda m, x: m.encoder(x, n_B, Tape())[0])(model, audio))
    encodec.save(folder, config, model, books(latents, config.codebooks, config.codebook_size, seed))


def write(folder: Path, codec_config: encodec.EnCodecConfig = CENTRED, **changes) -> None:
    """A checkpoint of three layers. changes: of its decoder."""
    decoder, text = small_decoder(**changes), TEXT
    write_encodec(folder / "codec", codec_config)
    codec = codecs.load("encodec", folder / "codec")
    config = t5.T5Config(**text)
    encoder = filled(nnx.eval_shape(lambda: t5.Encoder(config)), 0)
    given = {
        "model_type": "musicgen",
        "decoder": decoder,
        "text_encoder": {"model_type": "t5", **text},
        "audio_encoder": {"model_type": "encodec", **dataclasses.asdict(codec.config[0])},
    }
    spec, _ = musicgen.described(given, codec, config)
    with jax.set_mesh(sharding.single_device_mesh()):
        model = jax.jit(lambda key: Transformer(spec.model, spec.vocab.size, nnx.Rngs(params=key)))(jax.random.key(0))
    tokenizer(folder / "words.json")
    musicgen.write(folder, musicgen.Published(given, spec, model, codec, encoder, folder / "words.json"))
