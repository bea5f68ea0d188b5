"""DAC, the Descript audio codec (arXiv:2306.06546): 16, 24 and 44.1 kHz mono.

Reads the published layout (`config.json` and `model.safetensors`, as in descript/dac_16khz, dac_24khz and
dac_44khz). Its convolutions are centred, so it looks ahead: signals are cut into windows that overlap by the receptive
field. A signal is zero-padded to complete frames, as by the published feature extractor; odd strides decode to a few
samples less than T * hop, which are zeros here.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.layers import PaddedConv, PaddedTransposedConv, TransposedConv, reach
from audiolm_jax.codecs.streaming import About, Codec, Tape, Window, own_mesh
from audiolm_jax.hub import files
from audiolm_jax.hub.layers import Conv, parameter
from audiolm_jax.hub.weights import fingerprint, named

REPOSITORY = "descript/dac_16khz"  # suggested by the error for a missing path


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
    """Layers by name, which are run in the order of `order`."""

    order: tuple[str, ...] = ()

    def __call__(self, x_BNC, n_B, tape):
        for name in self.order:
            x_BNC, n_B = getattr(self, name)(x_BNC, n_B, tape)
        return x_BNC, n_B

    def parts(self) -> list:
        """The layers inside, at any depth, in order."""
        inside = [getattr(self, name) for name in self.order]
        return [part for layer in inside for part in (layer.parts() if isinstance(layer, Sequence) else [layer])]


class ResidualUnit(Sequence):
    order = ("snake1", "conv1", "snake2", "conv2")

    def __init__(self, width: int, dilation: int):
        self.snake1, self.conv1 = Snake(width), conv(width, width, 7, dilation=dilation)
        self.snake2, self.conv2 = Snake(width), conv(width, width, 1)

    def __call__(self, x_BNC, n_B, tape):
        return x_BNC + super().__call__(x_BNC, n_B, tape)[0], n_B


class EncoderBlock(Sequence):
    order = ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1")

    def __init__(self, width: int, stride: int):
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(width, dilation) for dilation in (1, 3, 9))
        self.snake1, self.conv1 = Snake(width), conv(width, 2 * width, 2 * stride, stride)


class DecoderBlock(Sequence):
    order = ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3")

    def __init__(self, width: int, stride: int):
        self.snake1 = Snake(width)
        self.conv_t1 = PaddedTransposedConv(TransposedConv(width, width // 2, stride), causal=False, odd_short=True)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(width // 2, d) for d in (1, 3, 9))


class Blocks(Sequence):
    """A list whose layers are named by their numbers."""

    def __init__(self, layers: list):
        self.layers = nnx.List(layers)

    def __call__(self, x_BNC, n_B, tape):
        for layer in self.layers:
            x_BNC, n_B = layer(x_BNC, n_B, tape)
        return x_BNC, n_B

    def parts(self) -> list:
        return [part for layer in self.layers for part in layer.parts()]


class Encoder(Sequence):
    order = ("conv1", "block", "snake1", "conv2")

    def __init__(self, c: DACConfig):
        width = c.encoder_hidden_size
        self.conv1 = conv(1, width, 7)
        self.block = Blocks([EncoderBlock(width << n, stride) for n, stride in enumerate(c.downsampling_ratios)])
        self.snake1, self.conv2 = Snake(c.hidden_size), conv(c.hidden_size, c.hidden_size, 3)


class Decoder(Sequence):
    order = ("conv1", "block", "snake1", "conv2")

    def __init__(self, c: DACConfig):
        width = c.decoder_hidden_size
        self.conv1 = conv(c.hidden_size, width, 7)
        self.block = Blocks([DecoderBlock(width >> n, s) for n, s in enumerate(reversed(c.downsampling_ratios))])
        last = width >> len(c.downsampling_ratios)
        self.snake1, self.conv2 = Snake(last), conv(last, 1, 7)


class DACModel(nnx.Module):
    """Encoder and decoder; the quantiser lives apart, stacked (`QUANTIZER`)."""

    def __init__(self, config: DACConfig):
        self.encoder, self.decoder = Encoder(config), Decoder(config)


# Parts of a codebook: name in the file, permutation from torch's axes to ours.
QUANTIZER = {
    "in_weight": ("in_proj.weight", (2, 1, 0)),
    "in_bias": ("in_proj.bias", (0,)),
    "book": ("codebook.weight", (0, 1)),
    "out_weight": ("out_proj.weight", (2, 1, 0)),
    "out_bias": ("out_proj.bias", (0,)),
}


def shapes(c: DACConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parts of one codebook, in torch's layout."""
    return {
        "in_weight": (c.codebook_dim, c.hidden_size, 1),
        "in_bias": (c.codebook_dim,),
        "book": (c.codebook_size, c.codebook_dim),
        "out_weight": (c.hidden_size, c.codebook_dim, 1),
        "out_bias": (c.hidden_size,),
    }


def renamed(path: str) -> str:
    """The name in a file: there, convolutions have no inner `conv` and lists no `layers`."""
    return path.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias").replace("block.layers.", "block.")


def load(path=None, codebooks: int | None = None) -> Codec:
    """The codec of a folder, a file or a repository; see `hub.files.locate`. Raises InputError."""
    published, weights = files.read(path, "dac", REPOSITORY)
    config = files.config_of(published, DACConfig)
    digest = fingerprint(dataclasses.asdict(config), weights.tensors)
    with own_mesh():
        model = weights.fill(nnx.eval_shape(lambda: DACModel(config)), renamed)
        quantizer = {}
        for part, shape in shapes(config).items():
            name, axes = QUANTIZER[part]
            names = [f"quantizer.quantizers.{q}.{name}" for q in range(config.n_codebooks)]
            quantizer[part] = weights.stack(names, shape).transpose(0, *(axis + 1 for axis in axes))
    weights.finish()
    return build(config, model, quantizer, digest, codebooks)


def save(folder, config: DACConfig, model: DACModel, quantizer: dict) -> None:
    """Writes config.json and model.safetensors, which `transformers` opens."""
    tensors = named(model, renamed)
    for part, stacked in jax.device_get(quantizer).items():
        name, axes = QUANTIZER[part]
        for q, array in enumerate(stacked):
            tensors[f"quantizer.quantizers.{q}.{name}"] = np.ascontiguousarray(array.transpose(np.argsort(axes)))
    files.write(folder, {"model_type": "dac", **dataclasses.asdict(config)}, tensors)


def build(config: DACConfig, model: DACModel, quantizer: dict, digest: str, codebooks: int | None = None) -> Codec:
    """The codec of a model whose parameters are loaded."""
    count = checks.leading(codebooks, config.n_codebooks)
    graph, params = nnx.split(model)
    with own_mesh():
        used = {part: stacked[:count] for part, stacked in quantizer.items()}
    about = About(
        name="dac",
        fingerprint=digest,
        sample_rate=config.sampling_rate,
        hop=config.hop,
        codebooks=count,
        codebook_size=config.codebook_size,
    )
    before = [math.ceil(side / config.hop) for side in reach(model.encoder.parts())]
    after = [math.ceil(side) for side in reach(model.decoder.parts())]
    encoder = Window(functools.partial(_encode, graph, params, used, config.hop), *before, unit_in=config.hop)
    decoder = Window(functools.partial(_decode, graph, params, used), *after, unit_out=config.hop)
    return Codec(about, (encoder,), (decoder,), (config, model, quantizer))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encode(graph, params, quantizer, hop, waveform_BNC, n_B):
    exists_BN = jnp.arange(waveform_BNC.shape[1]) < n_B[:, None]
    padded_B = -(-n_B // hop) * hop  # zero-padded to complete frames
    latents, _ = nnx.merge(graph, params).encoder(jnp.where(exists_BN[..., None], waveform_BNC, 0), padded_B, Tape())

    def level(residual, book):
        """The row nearest by angle, in the few dimensions of a codebook; the residual is taken in all dimensions."""
        low = residual @ book["in_weight"][0] + book["in_bias"]
        directions = book["book"] / jnp.maximum(jnp.linalg.norm(book["book"], axis=-1, keepdims=True), 1e-12)
        low = low / jnp.maximum(jnp.linalg.norm(low, axis=-1, keepdims=True), 1e-12)
        code = ((directions**2).sum(-1) - 2 * low @ directions.T).argmin(-1).astype(jnp.int32)
        return residual - (book["book"][code] @ book["out_weight"][0] + book["out_bias"]), code

    return jnp.moveaxis(jax.lax.scan(level, latents, quantizer)[1], 0, -1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, params, quantizer, codes_BTQ, n_B):
    def level(latents, code_and_book):
        code_BT, book = code_and_book
        rows = book["book"][jnp.maximum(code_BT, 0)] @ book["out_weight"][0] + book["out_bias"]
        return latents + jnp.where(code_BT[..., None] < 0, 0, rows), None

    zeros = jnp.zeros((*codes_BTQ.shape[:2], quantizer["out_bias"].shape[-1]))
    latents, _ = jax.lax.scan(level, zeros, (jnp.moveaxis(codes_BTQ, -1, 0), quantizer))
    waveform, n_B = nnx.merge(graph, params).decoder(latents, n_B, Tape())
    exists_BN = jnp.arange(waveform.shape[1]) < n_B[:, None]
    return jnp.where(exists_BN[..., None], jnp.tanh(waveform), 0)
