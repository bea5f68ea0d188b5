"""DAC, the Descript audio codec (arXiv:2306.06546): 16, 24 and 44.1 kHz mono.

Reads the published layout (`config.json` and `model.safetensors`, as in descript/dac_16khz, dac_24khz and
dac_44khz). Its convolutions are centred, so it looks ahead: signals are cut into windows that overlap by the receptive
field. A signal is zero-padded to complete frames, as by the published feature extractor; odd strides decode to a few
samples less than T * hop, which are zeros here.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.layers import PaddedConv, PaddedTransposedConv, TransposedConv, flat, reach, run
from audiolm_jax.codecs.streaming import About, Codec, Window, own_mesh
from audiolm_jax.hub import files
from audiolm_jax.hub.layers import Conv, Embedding, parameter
from audiolm_jax.hub.weights import fingerprint
from audiolm_jax.model import versions


@dataclasses.dataclass(frozen=True)
class DACConfig:
    """The fields of a published `config.json` that matter here."""

    encoder_hidden_size: int = 64
    downsampling_ratios: tuple[int, ...] = (2, 4, 8, 8)
    decoder_hidden_size: int = 1536
    n_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    sampling_rate: int = 16000

    def __post_init__(self) -> None:
        object.__setattr__(self, "downsampling_ratios", tuple(self.downsampling_ratios))

    @property
    def hidden_size(self) -> int:
        return self.encoder_hidden_size * 2 ** len(self.downsampling_ratios)

    @property
    def hop(self) -> int:
        return math.prod(self.downsampling_ratios)


CHECKPOINTS = {
    "descript/dac_44khz": DACConfig(sampling_rate=44100),
    "descript/dac_24khz": DACConfig(sampling_rate=24000, downsampling_ratios=(2, 4, 5, 8), n_codebooks=32),
    "descript/dac_16khz": DACConfig(downsampling_ratios=(2, 4, 5, 8), n_codebooks=12),
}


class Snake(nnx.Module):
    """x + sin^2(alpha x) / alpha, channel by channel (arXiv:2006.08195)."""

    def __init__(self, channels: int):
        self.alpha = parameter((1, 1, channels), 0, 2, 1)

    def __call__(self, x_BNC, n_B, tape):
        alpha = self.alpha[...]
        return x_BNC + jnp.sin(alpha * x_BNC) ** 2 / (alpha + 1e-9), n_B


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> PaddedConv:
    return PaddedConv(Conv(inputs, outputs, kernel, stride, dilation), causal=False)


class Sequence(nnx.Module):
    """Layers that run one after another, under their names in a file. residual: the input is added to the output."""

    def __init__(self, residual: bool = False, **layers: nnx.Module):
        self.residual, self.names = residual, tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    @property
    def chain(self) -> list[nnx.Module]:
        return [getattr(self, name) for name in self.names]

    def __call__(self, x_BNC, n_B, tape):
        y_BNC, n_B = run(self.chain, x_BNC, n_B, tape)
        return (x_BNC + y_BNC if self.residual else y_BNC), n_B


def residual_units(width: int) -> dict[str, Sequence]:
    return {
        f"res_unit{n}": Sequence(
            residual=True,
            snake1=Snake(width),
            conv1=conv(width, width, 7, dilation=dilation),
            snake2=Snake(width),
            conv2=conv(width, width, 1),
        )
        for n, dilation in enumerate((1, 3, 9), 1)
    }


def encoder_block(width: int, stride: int) -> Sequence:
    return Sequence(**residual_units(width), snake1=Snake(width), conv1=conv(width, 2 * width, 2 * stride, stride))


def decoder_block(width: int, stride: int) -> Sequence:
    up = PaddedTransposedConv(TransposedConv(width, width // 2, stride), causal=False, odd_short=True)
    return Sequence(snake1=Snake(width), conv_t1=up, **residual_units(width // 2))


class Codebook(nnx.Module):
    """Rows in few dimensions, and the projections between the latents and these dimensions."""

    def __init__(self, c: DACConfig):
        self.in_proj = Conv(c.hidden_size, c.codebook_dim, 1)
        self.codebook = Embedding(c.codebook_size, c.codebook_dim)
        self.out_proj = Conv(c.codebook_dim, c.hidden_size, 1)

    def nearest(self, latents_BTD: jax.Array) -> jax.Array:
        """Codes `[B, T]` of the rows that are nearest by angle."""
        low = latents_BTD @ self.in_proj.weight[0] + self.in_proj.bias[...]
        rows_KZ = self.codebook.weight[...]
        rows_KZ = rows_KZ / jnp.maximum(jnp.linalg.norm(rows_KZ, axis=-1, keepdims=True), 1e-12)
        low = low / jnp.maximum(jnp.linalg.norm(low, axis=-1, keepdims=True), 1e-12)
        return ((rows_KZ**2).sum(-1) - 2 * low @ rows_KZ.T).argmin(-1).astype(jnp.int32)

    def latents(self, codes_BT: jax.Array) -> jax.Array:
        """The rows of codes as latents `[B, T, D]`."""
        return self.codebook(codes_BT) @ self.out_proj.weight[0] + self.out_proj.bias[...]


def network(first: PaddedConv, blocks: list[Sequence], last: PaddedConv) -> Sequence:
    numbered = Sequence(**{str(n): block for n, block in enumerate(blocks)})
    return Sequence(conv1=first, block=numbered, snake1=Snake(last.conv.weight.shape[1]), conv2=last)


class Quantizer(nnx.Module):
    def __init__(self, c: DACConfig):
        self.quantizers = versions.List([Codebook(c) for _ in range(c.n_codebooks)])


class DACModel(nnx.Module):
    def __init__(self, c: DACConfig):
        narrow, wide, ratios = c.encoder_hidden_size, c.decoder_hidden_size, c.downsampling_ratios
        down = [encoder_block(narrow << n, stride) for n, stride in enumerate(ratios)]
        up = [decoder_block(wide >> n, stride) for n, stride in enumerate(reversed(ratios))]
        self.encoder = network(conv(1, narrow, 7), down, conv(c.hidden_size, c.hidden_size, 3))
        self.quantizer = Quantizer(c)
        self.decoder = network(conv(c.hidden_size, wide, 7), up, conv(wide >> len(ratios), 1, 7))


def renamed(path: str) -> str:
    """The name in a file, where convolutions have no inner `conv`."""
    return path.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias")


def about(config: DACConfig, codebooks: int | None = None, digest: str = "") -> About:
    """The attributes of a codec of that configuration, with the leading codebooks."""
    count = checks.leading(codebooks, config.n_codebooks)
    return About("dac", digest, config.sampling_rate, config.hop, count, config.codebook_size)


def load(path=None, codebooks: int | None = None) -> Codec:
    """The codec of a folder, a file or a repository; see `hub.files.read`. Raises InputError."""
    published, weights = files.read(path, "dac", CHECKPOINTS)
    config = files.config_of(published, DACConfig)
    checks.layers(weights, config)
    attributes = about(config, codebooks, fingerprint(dataclasses.asdict(config), weights.tensors))
    with own_mesh():
        model = weights.fill(nnx.eval_shape(lambda: DACModel(config)), renamed)
        weights.finish()
        books = jax.tree.map(lambda *x: jnp.stack(x), *model.quantizer.quantizers[: attributes.codebooks])
    before = [math.ceil(side / config.hop) for side in reach(model.encoder.chain)]
    after = [math.ceil(side) for side in reach(model.decoder.chain)]
    encoder = Window(_encode, (model.encoder, books), config.hop, 1, *before)
    decoder = Window(_decode, (model.decoder, books), 1, config.hop, *after)
    return Codec(attributes, (encoder,), (decoder,), (config, model))


def _encode(weights, waveform_BNC, n_B, tape):
    encoder, books_Q = weights
    exists_BN = jnp.arange(waveform_BNC.shape[1]) < n_B[:, None]
    hop = math.prod(layer.conv.stride for layer in flat(encoder.chain) if isinstance(layer, PaddedConv))
    padded_B = -(-n_B // hop) * hop  # zero-padded to complete frames
    latents, _ = encoder(jnp.where(exists_BN[..., None], waveform_BNC, 0), padded_B, tape)

    def level(residual, book):
        code = book.nearest(residual)
        return residual - book.latents(code), code

    return jnp.moveaxis(jax.lax.scan(level, latents, books_Q)[1], 0, -1)


def _decode(weights, codes_BTQ, n_B, tape):
    decoder, books_Q = weights

    def level(latents, code_and_book):
        code_BT, book = code_and_book
        return latents + jnp.where(code_BT[..., None] < 0, 0, book.latents(jnp.maximum(code_BT, 0))), None

    zeros = jnp.zeros((*codes_BTQ.shape[:2], books_Q.out_proj.bias.shape[-1]))
    latents, _ = jax.lax.scan(level, zeros, (jnp.moveaxis(codes_BTQ, -1, 0), books_Q))
    waveform, n_B = decoder(latents, n_B, tape)
    exists_BN = jnp.arange(waveform.shape[1]) < n_B[:, None]
    return jnp.where(exists_BN[..., None], jnp.tanh(waveform), 0)
