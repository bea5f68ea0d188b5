"""Mimi, the codec of Moshi (arXiv:2410.00037, section 3.3): 24 kHz mono at 12.5 frames per second, causal.

Reads the published layout (`config.json` and `model.safetensors`, as in kyutai/mimi). SEANet at 25 positions per
second, a transformer with a window of ten seconds on both sides of the quantiser, and down to 12.5 Hz. The quantiser
is split: `num_semantic_quantizers` codebooks and all the others are two separate residual chains over the same
latents, whose sums are added. It streams exactly, frame by frame.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.layers import PaddedConv, PaddedTransposedConv, TransformerLayer, TransposedConv, in_order
from audiolm_jax.codecs.quantizer import dequantize, quantize
from audiolm_jax.codecs.seanet import Decoder, Encoder, SEANetConfig
from audiolm_jax.codecs.streaming import About, Carry, Codec, Tape, own_mesh
from audiolm_jax.errors import InputError
from audiolm_jax.hub import files
from audiolm_jax.hub.layers import ACTIVATIONS, MLP, Attention, Conv, Norm
from audiolm_jax.hub.weights import Weights, fingerprint
from audiolm_jax.model import versions

SIZES = (32, 16, 8, 1)  # frames per call
INITIALIZED = r"\.codebook\.initialized$"  # of training


@dataclasses.dataclass(frozen=True)
class MimiConfig(SEANetConfig):
    """The fields of a published `config.json` that matter here, with the defaults of `transformers`."""

    hidden_size: int = 512
    num_filters: int = 64
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    last_kernel_size: int = 3
    pad_mode: str = "constant"
    use_conv_shortcut: bool = False
    frame_rate: float | None = None
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    codebook_size: int = 2048
    codebook_dim: int = 256
    vector_quantization_hidden_dimension: int = 256
    upsample_groups: int = 512
    num_hidden_layers: int = 8
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "gelu"
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int = 250
    attention_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.supported(
            self,
            use_causal_conv=(True,),
            pad_mode=("constant",),
            hidden_act=tuple(ACTIVATIONS),
            attention_bias=(False,),
            upsample_groups=(self.hidden_size,),
            frame_rate=(None, self.sampling_rate / self.hop),
            vector_quantization_hidden_dimension=(self.codebook_dim,),
        )

    @property
    def hop(self) -> int:
        """Samples per frame: every second position of SEANet."""
        return 2 * self.stride

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


CHECKPOINTS = {"kyutai/mimi": MimiConfig()}


def transformer_layer(c: MimiConfig) -> TransformerLayer:
    attention = Attention(c.hidden_size, c.num_attention_heads, c.head_width, c.num_key_value_heads)
    norms = [Norm(c.hidden_size, c.norm_eps) for _ in range(2)]
    mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_act)
    return TransformerLayer(attention, mlp, norms, c.sliding_window, c.rope_theta)


class Transformer(nnx.Module):
    def __init__(self, c: MimiConfig):
        self.layers = versions.List([transformer_layer(c) for _ in range(c.num_hidden_layers)])

    def __call__(self, x_BND, n_B, tape: Tape):
        return in_order(self.layers, x_BND, tape), n_B


class Projections(nnx.Module):
    """Input and output projections of one residual chain of the quantiser."""

    def __init__(self, width: int, codebook_dim: int):
        self.input_proj = Conv(width, codebook_dim, 1, bias=False)
        self.output_proj = Conv(codebook_dim, width, 1, bias=False)


class SplitQuantizer(nnx.Module):
    """The projections of the two chains; their codebooks are separate stacked arrays."""

    def __init__(self, c: MimiConfig):
        self.semantic_residual_vector_quantizer = Projections(c.hidden_size, c.codebook_dim)
        self.acoustic_residual_vector_quantizer = Projections(c.hidden_size, c.codebook_dim)

    def chains(self, books: tuple[jax.Array, jax.Array]) -> list[tuple[Projections, jax.Array]]:
        chains = [self.semantic_residual_vector_quantizer, self.acoustic_residual_vector_quantizer]
        return [(chain, books_QKZ) for chain, books_QKZ in zip(chains, books, strict=True) if len(books_QKZ)]


class MimiModel(nnx.Module):
    """All but the codebooks."""

    def __init__(self, c: MimiConfig, decodes: bool = True):
        """decodes: with the layers after the quantiser, which a codec with another decoder lacks."""
        self.encoder, self.encoder_transformer = Encoder(c), Transformer(c)
        self.downsample = PaddedConv(Conv(c.hidden_size, c.hidden_size, 4, 2, bias=False), mode="replicate")
        self.quantizer = SplitQuantizer(c)
        if decodes:
            self.upsample = PaddedTransposedConv(TransposedConv(c.hidden_size, c.hidden_size, 2, depthwise=True))
            self.decoder_transformer, self.decoder = Transformer(c), Decoder(c)


def codebook_names(c: MimiConfig) -> list[str]:
    """The name of every codebook, the semantic ones first."""
    counts = {"semantic": c.num_semantic_quantizers, "acoustic": c.num_quantizers - c.num_semantic_quantizers}
    return [
        f"quantizer.{kind}_residual_vector_quantizer.layers.{n}.codebook"
        for kind, k in counts.items()
        for n in range(k)
    ]


def about(config: MimiConfig, codebooks: int | None = None, digest: str = "") -> About:
    """The attributes of a codec of that configuration. Raises InputError for a wrong number of codebooks."""
    count = checks.leading(codebooks, config.num_quantizers)
    if count < config.num_semantic_quantizers:
        raise InputError(f"codec.codebooks: {count}; Mimi needs its {config.num_semantic_quantizers} semantic ones")
    return About("mimi", digest, config.sampling_rate, config.hop, count, config.codebook_size)


def config_of(fields: dict) -> MimiConfig:
    """The configuration of a published config.json. Raises InputError for what this package cannot use."""
    return files.config_of(rope_beside(fields), MimiConfig)


def rope_beside(fields: dict) -> dict:
    """The fields of a config.json with `rope_theta` among them, where newer files have it in `rope_parameters`."""
    rope = files.part(fields, "rope_parameters", "codec.path")
    return {**fields, **{key: rope[key] for key in ("rope_theta",) if key in rope}}


def read_books(weights: Weights, names: list[str], shape: tuple[int, int], sums: str = "embed_sum") -> jax.Array:
    """The codebooks `[Q, K, Z]` of these names, each of `shape`: `sums` of what was assigned to a row, over how much
    that was."""
    sums_QKZ = weights.stack([f"{name}.{sums}" for name in names], shape)
    usage_QK = weights.stack([f"{name}.cluster_usage" for name in names], shape[:1])
    return sums_QKZ / jnp.maximum(usage_QK, 1e-5)[..., None]


def load(path=None, codebooks: int | None = None) -> Codec:
    """The codec of a folder, a file or a repository; see `hub.files.read`. Raises InputError."""
    published, weights = files.read(path, "mimi", CHECKPOINTS)
    codec = take(published, weights, codebooks)
    weights.finish()
    return codec


def take(published: dict, weights: Weights, codebooks: int | None = None) -> Codec:
    """The codec of a config.json and its tensors; `weights` collects their defects. Raises InputError."""
    config = config_of(published)
    checks.layers(weights, config)
    weights.ignore(INITIALIZED)
    attributes = about(config, codebooks, fingerprint(dataclasses.asdict(config), weights.tensors))
    with own_mesh():
        model = weights.fill(nnx.eval_shape(lambda: MimiModel(config)))
        books_QKZ = read_books(weights, codebook_names(config), (config.codebook_size, config.codebook_dim))
        semantic = config.num_semantic_quantizers
        # Sliced here: slicing an argument inside the program would copy 65 MB in every call.
        fixed = model, (books_QKZ[:semantic], books_QKZ[semantic : attributes.codebooks])
    encoder, decoder = Carry(encode, fixed, config.hop, 1, SIZES), Carry(_decode, fixed, 1, config.hop, SIZES)
    return Codec(attributes, (encoder,), (decoder,), (config, model, books_QKZ))


def encode(weights, waveform_BNC, n_B, tape):
    """The run of a `Carry`. weights: a MimiModel and the codebooks of its two chains."""
    model, books = weights
    x, n_B = model.encoder(waveform_BNC, n_B, tape)
    x, n_B = model.encoder_transformer(x, n_B, tape)
    latents, _ = model.downsample(x, n_B, tape)
    codes = [quantize(chain.input_proj(latents), books_QKZ)[0] for chain, books_QKZ in model.quantizer.chains(books)]
    return jnp.concatenate(codes, axis=-1)


def _decode(weights, codes_BTQ, n_B, tape):
    model, books = weights
    latents, start = 0, 0
    for chain, books_QKZ in model.quantizer.chains(books):
        latents += chain.output_proj(dequantize(codes_BTQ[..., start : start + len(books_QKZ)], books_QKZ))
        start += len(books_QKZ)
    x, n_B = model.upsample(latents, n_B, tape)
    x, n_B = model.decoder_transformer(x, n_B, tape)
    return model.decoder(x, n_B, tape)[0]
