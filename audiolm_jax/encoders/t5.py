"""The encoder of T5 (arXiv 1910.10683) and of T5 1.1: text -> states for cross-attention. Inference only.

Reads the Hugging Face layout (t5-base, and the `text_encoder` of MusicGen); names of parameters are those of the file.
Pre-norm blocks with RMS norm and no biases; the only positions are a bias on the scores, one table of buckets of
distances that all layers share; scores are not scaled. The tokenizer is that of `tokenizer.json`.

Axes: B texts, E tokens (M as keys), D width, H heads, K head width.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.codecs.streaming import own_mesh
from audiolm_jax.errors import InputError, shortened
from audiolm_jax.files import reading
from audiolm_jax.hub import files
from audiolm_jax.hub.layers import MASKED, MLP, Attention, Embedding, Norm
from audiolm_jax.hub.weights import Weights, named
from audiolm_jax.model import versions

TOKENIZER = "tokenizer.json"
TOKENS = 16  # texts are padded to a multiple of this, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The fields of a published `config.json` that matter here, with the defaults of `transformers` (t5-small)."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"  # relu | gated-gelu (T5 1.1)

    def __post_init__(self) -> None:
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise InputError(
                f"text encoder: feed_forward_proj={self.feed_forward_proj!r} is not known; known are relu, gated-gelu"
            )


class Block(nnx.Module):
    def __init__(self, c: T5Config):
        gated = c.feed_forward_proj == "gated-gelu"
        self.attention_norm, self.ffn_norm = (Norm(c.d_model, c.layer_norm_epsilon, centred=False) for _ in range(2))
        self.attention = Attention(c.d_model, c.num_heads, c.d_kv, scale=1.0)
        self.ffn = MLP(c.d_model, c.d_ff, "gelu_new" if gated else "relu", gated)

    def __call__(self, x: jax.Array, bias_BHEM: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), bias_BHEM)
        return x + self.ffn(self.ffn_norm(x))


class Encoder(nnx.Module):
    """ids_BE and valid_BE -> states_BED float32; the states of invalid tokens are undefined."""

    def __init__(self, config: T5Config):
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.relative_attention_bias = Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.blocks = versions.List([Block(config) for _ in range(config.num_layers)])
        self.norm = Norm(config.d_model, config.layer_norm_epsilon, centred=False)

    def __call__(self, ids_BE: jax.Array, valid_BE: jax.Array) -> jax.Array:
        c = self.config
        index_E = np.arange(ids_BE.shape[1])
        bucket_EM = buckets(
            index_E[None, :] - index_E[:, None], c.relative_attention_num_buckets, c.relative_attention_max_distance
        )
        bias_HEM = jnp.moveaxis(self.relative_attention_bias(bucket_EM), -1, 0)
        bias_BHEM = jnp.where(valid_BE[:, None, None, :], bias_HEM, MASKED)
        x_BED = self.embedding(ids_BE)
        for block in self.blocks:
            x_BED = block(x_BED, bias_BHEM)
        return self.norm(x_BED)


def buckets(distance: np.ndarray, count: int, furthest: int) -> np.ndarray:
    """The bucket of a distance, key position minus query position (arXiv 1910.10683, section 2.1).

    Half of the `count` buckets are for keys after the query. In each half, the first half holds single distances, the
    rest ranges that grow up to `furthest`.
    """
    half = count // 2
    exact = half // 2
    far = np.abs(distance)
    # In float32, as in the reference, so that distances at the edge of a bucket fall on the same side.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(furthest / exact))
    grown = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    return half * (distance > 0) + np.where(far < exact, far, np.minimum(grown, half - 1))


NAMES = {  # part of a path in Encoder -> part of the name in the file, below "encoder."
    "attention_norm.": "layer.0.layer_norm.",
    "attention.": "layer.0.SelfAttention.",
    "ffn_norm.": "layer.1.layer_norm.",
    "ffn.": "layer.1.DenseReluDense.",
    "blocks.": "block.",
    **{f".{letter}_proj.": f".{letter}." for letter in "qkvo"},
    ".fc1.": ".wi.",
    ".fc2.": ".wo.",
    ".gate_proj.": ".wi_0.",
    ".up_proj.": ".wi_1.",
    ".down_proj.": ".wo.",
}
PREFIXES = {  # parameters outside of the blocks: beginning of the path -> beginning of the name
    "embedding.": "shared.",
    "norm.": "encoder.final_layer_norm.",
    "relative_attention_bias.": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.",
}


def renamed(path: str) -> str:
    """The name in a file of the parameter at `path` of an Encoder."""
    for ours, theirs in PREFIXES.items():
        if path.startswith(ours):
            return theirs + path.removeprefix(ours)
    for ours, theirs in NAMES.items():
        path = path.replace(ours, theirs)
    return f"encoder.{path}"


def take(config: T5Config, weights: Weights) -> Encoder:
    """The encoder of a file; `weights` collects the defects of its tensors."""
    weights.check_layers(num_layers=config.num_layers)
    # The embedding table has either name, or both: they are one tensor in torch.
    table = weights.tensors.pop("encoder.embed_tokens.weight", None)
    if table is not None:
        weights.tensors.setdefault("shared.weight", table)
    with own_mesh():
        return weights.fill(nnx.eval_shape(lambda: Encoder(config)), renamed)


def load(folder: Path) -> Encoder:
    """The encoder of a folder with config.json ("model_type": "t5") and weights. Raises InputError."""
    what = "text encoder"
    fields, weights = files.read_folder(folder, ("t5",), what)
    encoder = take(files.config_of(fields, T5Config, what=what), weights)
    weights.finish()
    return encoder


def save(folder: Path, encoder: Encoder) -> None:
    """Writes a folder that `load` and `transformers.T5EncoderModel` open."""
    fields = {"model_type": "t5", "is_encoder_decoder": False, **dataclasses.asdict(encoder.config)}
    files.write(folder, fields, tensors_of(encoder))


def tensors_of(encoder: Encoder) -> dict[str, np.ndarray]:
    """The parameters under their names in a file."""
    return named(encoder, renamed)


class TextEncoder:
    """Texts -> states: a tokenizer (of the library `tokenizers`) and an Encoder."""

    def __init__(self, encoder: Encoder, tokenizer: Any):
        self.encoder, self.tokenizer = encoder, tokenizer
        self._run = jax.jit(Encoder.__call__)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """float32 [tokens, D] for every text; [0, D] for an empty one. Raises InputError for ids out of range."""
        rows = [token_ids(self.tokenizer, self.encoder.config.vocab_size, text) for text in texts]
        longest = max(map(len, rows))
        if not longest:
            return [np.zeros((0, self.encoder.config.d_model), np.float32) for _ in texts]
        ids_BE = np.zeros((len(rows), -(-longest // TOKENS) * TOKENS), np.int32)
        length_B = np.array([len(row) for row in rows])
        for row, ids in zip(rows, ids_BE, strict=True):
            ids[: len(row)] = row
        with own_mesh():
            states = np.asarray(self._run(self.encoder, ids_BE, np.arange(ids_BE.shape[1]) < length_B[:, None]))
        return [states[b, :n] for b, n in enumerate(length_B)]


def token_ids(tokenizer: Any, vocabulary: int, text: str) -> list[int]:
    """The ids of a text, none for an empty one. Raises InputError for an id outside `vocabulary`, the number of ids."""
    with reading(f"text {shortened(text, 100)!r}", f"tokens of {TOKENIZER}", remedy="that file may be damaged"):
        ids = tokenizer.encode(text).ids if text.strip() else []
    if ids and max(ids) >= vocabulary:
        raise InputError(
            f"text {text!r}: its tokenizer gives id {max(ids)}, the text encoder has {vocabulary}; the {TOKENIZER} "
            "belongs to another model"
        )
    return ids


def read_tokenizer(path: Path) -> Any:
    """A tokenizer.json. Raises InputError if it is missing or cannot be read."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path} does not exist; the tokenizer of the text encoder is needed in that format")
    with reading(path, "a tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode("a")  # tokens that are named and not there show here
    # What a training script saved of its batches is no property of a text.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
