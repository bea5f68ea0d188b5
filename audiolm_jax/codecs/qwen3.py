"""The 12 Hz tokenizer of Qwen3-TTS (arXiv:2601.15621): 24 kHz mono at 12.5 frames per second, 16 codebooks, causal.

Reads the published layout (`config.json` and `model.safetensors`, as in Qwen/Qwen3-TTS-Tokenizer-12Hz and in the folder
`speech_tokenizer` of a Qwen3-TTS). The encoder is Mimi's, of whose codebooks the first are used. The decoder is another
one: the sum of the codes' rows, a convolution, a transformer with a window of 72 frames, twice a transposed convolution
and a ConvNeXt block (arXiv:2201.03545), and the decoder of DAC with causal convolutions and two numbers for each
channel of its Snake. It streams exactly, frame by frame.

Two things differ from the reference, `qwen_tts` 0.1.1. It decodes pieces of 300 frames after 25 frames of context, less
than the eight windows that a frame depends on: from the second piece on that is not what its network gives for the
whole, which is what this module gives. And it encodes with transformers 4.57, whose Mimi attends to everything before a
position instead of the last ten seconds (so `qwen-tts-hf` 0.1.1 says, which restores it): codes after ten seconds of a
recording may be others here, where the window of the configuration holds.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.codecs import checks, mimi
from audiolm_jax.codecs.layers import PaddedConv, PaddedTransposedConv, TransformerLayer, TransposedConv, in_order, run
from audiolm_jax.codecs.mimi import MimiConfig, Projections
from audiolm_jax.codecs.quantizer import dequantize
from audiolm_jax.codecs.streaming import About, Carry, Codec, Tape, own_mesh
from audiolm_jax.errors import InputError
from audiolm_jax.hub import files
from audiolm_jax.hub.layers import ACTIVATIONS, MLP, Attention, Conv, Linear, Norm, parameter
from audiolm_jax.hub.weights import fingerprint
from audiolm_jax.model import versions

KIND = "qwen3_tts_tokenizer_12hz"
CHAINS = ("rvq_first", "rvq_rest")  # the first codebook, and the others


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The fields of `decoder_config` in a published `config.json` that matter here, with the defaults of `qwen_tts`."""

    num_quantizers: int = 16
    codebook_size: int = 2048
    codebook_dim: int = 512  # of the sum of the codes; a row has half of it
    latent_dim: int = 1024
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int = 72
    attention_bias: bool = False
    upsampling_ratios: tuple[int, ...] = (2, 2)
    upsample_rates: tuple[int, ...] = (8, 5, 4, 3)
    decoder_dim: int = 1536

    def __post_init__(self) -> None:
        for name in ("upsampling_ratios", "upsample_rates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        checks.supported(self, hidden_act=tuple(ACTIVATIONS), attention_bias=(False,))

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsampling_ratios + self.upsample_rates)

    @property
    def row_width(self) -> int:
        return self.codebook_dim // 2


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Both networks, and how many codebooks of the encoder are used."""

    encoder: MimiConfig
    decoder: DecoderConfig
    codebooks: int

    def __post_init__(self) -> None:
        checks.supported(self.encoder, num_semantic_quantizers=(1,))
        for what, theirs, ours in (
            ("codebook_size", self.encoder.codebook_size, self.decoder.codebook_size),
            ("samples per frame", self.encoder.hop, self.decoder.hop),
            ("codebooks", self.codebooks, self.decoder.num_quantizers),
        ):
            if theirs != ours:
                raise InputError(
                    f"codec config: {what} {theirs} of the encoder and {ours} of the decoder must be equal"
                )
        if not 1 < self.codebooks <= self.encoder.num_quantizers:
            raise InputError(
                f"codec config: encoder_valid_num_quantizers={self.codebooks} must be from 2 to the "
                f"num_quantizers={self.encoder.num_quantizers} of the encoder"
            )


CHECKPOINTS = {
    "Qwen/Qwen3-TTS-Tokenizer-12Hz": Qwen3Config(
        MimiConfig(), DecoderConfig(hidden_size=512, intermediate_size=1024, head_dim=64), codebooks=16
    )
}


class Transformer(nnx.Module):
    def __init__(self, c: DecoderConfig):
        self.input_proj = Linear(c.latent_dim, c.hidden_size, bias=True)
        self.layers = versions.List([self.layer(c) for _ in range(c.num_hidden_layers)])
        self.norm = Norm(c.hidden_size, c.rms_norm_eps, centred=False)
        self.output_proj = Linear(c.hidden_size, c.latent_dim, bias=True)

    @staticmethod
    def layer(c: DecoderConfig) -> TransformerLayer:
        head_width = c.head_dim or c.hidden_size // c.num_attention_heads
        attention = Attention(c.hidden_size, c.num_attention_heads, head_width, c.num_key_value_heads)
        norms = [Norm(c.hidden_size, c.rms_norm_eps, centred=False) for _ in range(2)]
        mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_act, gated=True)
        return TransformerLayer(attention, mlp, norms, c.sliding_window, c.rope_theta)

    def __call__(self, x_BNC, n_B, tape: Tape):
        x_BND = in_order(self.layers, self.input_proj(x_BNC), tape)
        return self.output_proj(self.norm(x_BND)), n_B


class Taps(nnx.Module):
    """A weight and a bias, named as those of a convolution."""

    def __init__(self, weight: nnx.Param, channels: int):
        self.weight, self.bias = weight, parameter((channels,), 0)


class Spread(nnx.Module):
    """A transposed convolution whose kernel is as long as its stride: every position becomes `stride` others alone."""

    def __init__(self, width: int, stride: int):
        self.conv = Taps(parameter((width, stride, width), 0, 2, 1), width)

    def __call__(self, x_BNC, n_B, tape):
        weight, stride = self.conv.weight[...], self.conv.weight.shape[1]
        y = jnp.einsum("BNC,CSE->BNSE", x_BNC, weight) + self.conv.bias[...]
        return y.reshape(len(y), -1, y.shape[-1]), n_B * stride


class Depthwise(Taps):
    """A convolution of each channel by itself, without padding: a sum of shifted products, which XLA's CPU backend
    fuses, unlike a grouped convolution."""

    stride = 1

    def __init__(self, width: int, kernel: int):
        super().__init__(parameter((kernel, 1, width), 2, 1, 0), width)

    @property
    def reach(self) -> int:
        return len(self.weight)

    def __call__(self, x_BNC: jax.Array) -> jax.Array:
        taps, count = self.weight[:, 0], x_BNC.shape[1] - self.reach + 1
        return sum(x_BNC[:, k : k + count] * taps[k] for k in range(self.reach)) + self.bias[...]


class ConvNeXt(nnx.Module):
    def __init__(self, width: int):
        self.dwconv = PaddedConv(Depthwise(width, 7))
        self.norm = Norm(width, 1e-6)
        self.pwconv1, self.pwconv2 = Linear(width, 4 * width, bias=True), Linear(4 * width, width, bias=True)
        self.gamma = parameter((width,), 0)

    def __call__(self, x_BNC, n_B, tape: Tape):
        y = self.norm(self.dwconv(x_BNC, n_B, tape)[0])
        y = self.pwconv2(ACTIVATIONS["gelu"](self.pwconv1(y)))
        return x_BNC + self.gamma[...] * y, n_B


class SnakeBeta(nnx.Module):
    """x + sin^2(alpha x) / beta, channel by channel, of which a file has the logarithms (arXiv:2206.04658)."""

    def __init__(self, channels: int):
        self.alpha, self.beta = parameter((channels,), 0), parameter((channels,), 0)

    def __call__(self, x_BNC, n_B, tape):
        alpha, beta = jnp.exp(self.alpha[...]), jnp.exp(self.beta[...])
        return x_BNC + jnp.sin(alpha * x_BNC) ** 2 / (beta + 1e-9), n_B


class ResidualUnit(nnx.Module):
    def __init__(self, width: int, dilation: int):
        self.act1, self.conv1 = SnakeBeta(width), PaddedConv(Conv(width, width, 7, dilation=dilation))
        self.act2, self.conv2 = SnakeBeta(width), PaddedConv(Conv(width, width, 1))

    def __call__(self, x_BNC, n_B, tape: Tape):
        return x_BNC + run((self.act1, self.conv1, self.act2, self.conv2), x_BNC, n_B, tape)[0], n_B


class Block(nnx.Module):
    """From one rate to the next: `stride` positions for each, half as many channels."""

    def __init__(self, width: int, stride: int):
        up = PaddedTransposedConv(TransposedConv(width, width // 2, stride))
        units = [ResidualUnit(width // 2, dilation) for dilation in (1, 3, 9)]
        self.block = versions.List([SnakeBeta(width), up, *units])

    def __call__(self, x_BNC, n_B, tape: Tape):
        return run(self.block, x_BNC, n_B, tape)


class Chains(nnx.Module):
    """The projections of the two chains of codebooks; those of the input are in a file, and nothing reads them."""

    def __init__(self, c: DecoderConfig):
        self.rvq_first, self.rvq_rest = (Projections(c.codebook_dim, c.row_width) for _ in CHAINS)


class Decoder(nnx.Module):
    """All but the codebooks: codes' rows -> waveforms `[B, T * hop, 1]`."""

    def __init__(self, c: DecoderConfig):
        self.quantizer = Chains(c)
        self.pre_conv = PaddedConv(Conv(c.codebook_dim, c.latent_dim, 3))
        self.pre_transformer = Transformer(c)
        up = [versions.List([Spread(c.latent_dim, ratio), ConvNeXt(c.latent_dim)]) for ratio in c.upsampling_ratios]
        self.upsample = versions.List(up)
        last = c.decoder_dim >> len(c.upsample_rates)
        blocks = [Block(c.decoder_dim >> n, stride) for n, stride in enumerate(c.upsample_rates)]
        first = PaddedConv(Conv(c.latent_dim, c.decoder_dim, 7))
        self.decoder = versions.List([first, *blocks, SnakeBeta(last), PaddedConv(Conv(last, 1, 7))])

    def __call__(self, latents_BTC: jax.Array, n_B: jax.Array, tape: Tape) -> jax.Array:
        upsample = [layer for pair in self.upsample for layer in pair]
        return run([self.pre_conv, self.pre_transformer, *upsample, *self.decoder], latents_BTC, n_B, tape)[0]


def book_names(c: DecoderConfig) -> list[str]:
    """The name of every codebook of the decoder."""
    counts = zip(CHAINS, (1, c.num_quantizers - 1), strict=True)
    return [f"quantizer.{chain}.vq.layers.{n}._codebook" for chain, count in counts for n in range(count)]


def config_of(fields: dict) -> Qwen3Config:
    """The configuration of a published config.json. Raises InputError for what this package cannot use."""
    encoder, decoder = (files.part(fields, f"{part}_config", "codec.path") for part in ("encoder", "decoder"))
    parts = mimi.config_of(encoder), files.config_of(mimi.rope_beside(decoder), DecoderConfig)
    config = Qwen3Config(*parts, fields.get("encoder_valid_num_quantizers", 16))
    rates = {name: fields.get(name) for name in ("input_sample_rate", "output_sample_rate")}
    wrong = {name: rate for name, rate in rates.items() if rate not in (None, config.encoder.sampling_rate)}
    if wrong:
        raise InputError(f"codec config: {wrong} where the encoder has sampling_rate={config.encoder.sampling_rate}")
    return config


def about(config: Qwen3Config, codebooks: int | None = None, digest: str = "") -> About:
    """The attributes of a codec of that configuration, with the leading codebooks."""
    count, c = checks.leading(codebooks, config.codebooks), config.encoder
    return About("qwen3", digest, c.sampling_rate, c.hop, count, c.codebook_size)


def load(path=None, codebooks: int | None = None) -> Codec:
    """The codec of a folder, a file or a repository; see `hub.files.read`. Raises InputError."""
    published, weights = files.read(path, KIND, CHECKPOINTS)
    config = config_of(published)
    for part in (config.encoder, config.decoder):
        checks.layers(weights, part)
    attributes = about(config, codebooks, fingerprint(dataclasses.asdict(config), weights.tensors))
    with own_mesh():
        with weights.below("encoder.") as part:
            encoder = part.fill(nnx.eval_shape(lambda: mimi.MimiModel(config.encoder, decodes=False)))
            part.ignore(mimi.INITIALIZED)
            size = config.encoder.codebook_size, config.encoder.codebook_dim
            ours_QKZ = mimi.read_books(part, mimi.codebook_names(config.encoder), size)
        with weights.below("decoder.") as part:
            decoder = part.fill(nnx.eval_shape(lambda: Decoder(config.decoder)))
            size = config.decoder.codebook_size, config.decoder.row_width
            theirs_QKZ = mimi.read_books(part, book_names(config.decoder), size, "embedding_sum")
        weights.finish()
        used = slice(1, attributes.codebooks)
        encoding = Carry(mimi.encode, (encoder, (ours_QKZ[:1], ours_QKZ[used])), config.encoder.hop, 1, mimi.SIZES)
        decoding = Carry(_decode, (decoder, (theirs_QKZ[:1], theirs_QKZ[used])), 1, config.decoder.hop, mimi.SIZES)
    return Codec(attributes, (encoding,), (decoding,), (config, (encoder, ours_QKZ), (decoder, theirs_QKZ)))


def _decode(weights, codes_BTQ, n_B, tape):
    decoder, (first_1KZ, rest_QKZ) = weights
    chains = decoder.quantizer
    latents = chains.rvq_first.output_proj(dequantize(codes_BTQ[..., :1], first_1KZ))
    if len(rest_QKZ):
        latents += chains.rvq_rest.output_proj(dequantize(codes_BTQ[..., 1:], rest_QKZ))
    return decoder(latents, n_B, tape)
