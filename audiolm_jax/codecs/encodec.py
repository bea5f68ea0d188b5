"""EnCodec (arXiv:2210.13438): 24 kHz mono, 32 kHz mono (the codec of MusicGen), 48 kHz stereo.

Reads the published layout (`config.json` and `model.safetensors`, as in facebook/encodec_24khz, encodec_32khz and
encodec_48khz). The 24 kHz codec is causal and streams exactly; its padding reflects the beginning of every layer's
input, so the first frame is known after seven. The 32 kHz codec looks ahead: its convolutions run in overlapping
windows, its LSTM carries its state exactly. The 48 kHz codec works on chunks of a second: `encodec_chunks.py`.
"""

import dataclasses
import functools
import math

import jax
from flax import nnx

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.encodec_chunks import ChunkedCodec
from audiolm_jax.codecs.layers import LSTM, reach
from audiolm_jax.codecs.quantizer import dequantize, quantize
from audiolm_jax.codecs.seanet import Decoder, Encoder, SEANetConfig, parts, run
from audiolm_jax.codecs.streaming import About, Carry, Codec, Tape, Window, own_mesh
from audiolm_jax.errors import InputError
from audiolm_jax.hub import files
from audiolm_jax.hub.weights import Weights, fingerprint, named, unfold

REPOSITORY = "facebook/encodec_24khz"  # suggested by the error for a missing path


@dataclasses.dataclass(frozen=True)
class EnCodecConfig(SEANetConfig):
    """The fields of a published `config.json` that matter here, with the defaults of `transformers` (24 kHz)."""

    num_lstm_layers: int = 2
    target_bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s
    normalize: bool = False
    chunk_length_s: float | None = None
    overlap: float | None = None
    codebook_size: int = 1024
    codebook_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook_dim not in (None, self.hidden_size):
            raise InputError(
                f"codec config: codebook_dim={self.codebook_dim} is not hidden_size={self.hidden_size}; EnCodec "
                "quantises its latents as they are"
            )
        object.__setattr__(self, "codebook_dim", self.hidden_size)
        if (self.chunk_length_s is None) != (self.overlap is None) or (self.normalize and self.overlap is None):
            raise InputError("codec config: chunk_length_s, overlap and normalize belong together (48 kHz)")

    @property
    def codebooks(self) -> int:
        """Codebooks that fit the largest bandwidth, with frame rate and bits per code rounded up."""
        rate, bits = math.ceil(self.sampling_rate / self.stride), math.ceil(math.log2(self.codebook_size))
        return int(1000 * self.target_bandwidths[-1] // (rate * bits))


class EnCodecModel(nnx.Module):
    """Encoder and decoder; the codebooks are a separate stacked array."""

    def __init__(self, config: EnCodecConfig):
        self.encoder, self.decoder = Encoder(config), Decoder(config)


def load(path=None, codebooks: int | None = None) -> Codec | ChunkedCodec:
    """The codec of a folder, a file or a repository; see `hub.files.locate`. Raises InputError."""
    published, weights = files.read(path, "encodec", REPOSITORY)
    codec = take(published, weights, codebooks)
    weights.finish()
    return codec


def take(published: dict, weights: Weights, codebooks: int | None = None) -> Codec | ChunkedCodec:
    """The codec of a config.json and its tensors; `weights` collects their defects. Raises InputError."""
    config = files.config_of(published, EnCodecConfig, what=weights.what)
    weights.ignore(r"\.codebook\.(inited|cluster_size|embed_avg)$")
    digest = fingerprint(dataclasses.asdict(config), weights.tensors)
    with own_mesh():
        model = weights.fill(nnx.eval_shape(lambda: EnCodecModel(config)))
        shape = (config.codebook_size, config.hidden_size)
        names = [f"quantizer.layers.{q}.codebook.embed" for q in range(config.codebooks)]
        books_QKZ = weights.stack(names, shape)
    return build(config, model, books_QKZ, digest, codebooks)


def save(folder, config: EnCodecConfig, model: EnCodecModel, books_QKZ) -> None:
    """Writes config.json and model.safetensors, which `transformers` opens."""
    files.write(folder, *described(config, model, books_QKZ))


def described(config: EnCodecConfig, model: EnCodecModel, books_QKZ) -> tuple[dict, dict]:
    """(config, tensors) under their published names; the three are `config` of a codec."""
    tensors = named(model)
    tensors = unfold(tensors) if config.norm_type == "weight_norm" else tensors
    for q, book_KZ in enumerate(jax.device_get(books_QKZ)):
        name = f"quantizer.layers.{q}.codebook"
        tensors |= {f"{name}.embed": book_KZ, f"{name}.embed_avg": book_KZ.copy()}
        tensors |= {f"{name}.inited": book_KZ[0, :1] * 0 + 1, f"{name}.cluster_size": book_KZ[:, 0] * 0 + 1}
    return {"model_type": "encodec", **dataclasses.asdict(config)}, tensors


def build(config: EnCodecConfig, model: EnCodecModel, books_QKZ, digest: str, codebooks: int | None = None):
    """The codec of a model whose parameters are loaded."""
    count = checks.leading(codebooks, config.codebooks)
    about = About(
        name="encodec",
        fingerprint=digest,
        sample_rate=config.sampling_rate,
        hop=config.stride,
        codebooks=count,
        codebook_size=config.codebook_size,
        channels=config.audio_channels,
    )
    with own_mesh():
        fixed = (*nnx.split(model), books_QKZ[:count])
    if config.chunk_length_s is not None:
        encode, decode = (functools.partial(_part, *fixed, way, 0, None) for way in ("encode", "decode"))
        chunk = int(config.chunk_length_s * config.sampling_rate)
        stride = max(1, int((1.0 - config.overlap) * chunk))
        return ChunkedCodec(about, encode, decode, chunk, stride, config.normalize, (config, model, books_QKZ))
    if config.use_causal_conv:
        sizes = (32, config.start, 1)
        encoder = (Carry(functools.partial(_encode, *fixed), config.stride, 1, sizes, config.start),)
        decoder = (Carry(functools.partial(_decode, *fixed), 1, config.stride, sizes, config.start),)
    else:
        encoder, decoder = windows(config, model, *fixed)
    return Codec(about, encoder, decoder, (config, model, books_QKZ))


def windows(config: EnCodecConfig, model: EnCodecModel, graph, params, books_QKZ) -> tuple[tuple, tuple]:
    """The stages of a codec that looks ahead: windows before the LSTM and after it."""

    def split(layers) -> tuple[int, list[int]]:
        at = next((n for n, layer in enumerate(layers) if isinstance(layer, LSTM)), len(layers))
        sides = [reach(parts(side)) for side in (layers[:at], layers[at:])]
        return at, [[math.ceil(side) for side in pair] for pair in sides]

    at, (before, after) = split(list(model.encoder.layers))
    before = [-(-side // config.stride) for side in before]
    part = functools.partial(_part, graph, params, books_QKZ, "encode")
    encoder = (
        Window(functools.partial(part, 0, at), *before, unit_in=config.stride),
        Carry(functools.partial(_lstm, graph, params, "encoder", at), sizes=(64, 8, 1)),
        Window(functools.partial(part, at + 1, None), *after),
    )
    at, (before, after) = split(list(model.decoder.layers))
    part = functools.partial(_part, graph, params, books_QKZ, "decode")
    decoder = (
        Window(functools.partial(part, 0, at), *before),
        Carry(functools.partial(_lstm, graph, params, "decoder", at), sizes=(64, 8, 1)),
        Window(functools.partial(part, at + 1, None), *after, unit_out=config.stride),
    )
    return encoder, decoder


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph, params, books_QKZ, waveform_BNC, n_B, pasts, first):
    tape = Tape(pasts, first)
    latents, _ = nnx.merge(graph, params).encoder(waveform_BNC, n_B, tape)
    return quantize(latents, books_QKZ)[0], tape.next


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, params, books_QKZ, codes_BTQ, n_B, pasts, first):
    tape = Tape(pasts, first)
    waveform, _ = nnx.merge(graph, params).decoder(dequantize(codes_BTQ, books_QKZ), n_B, tape)
    return waveform, tape.next


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _part(graph, params, books_QKZ, direction, first, stop, x, n_B):
    """Some layers of a network that looks ahead, or all; the quantiser is at its end if they reach it."""
    model = nnx.merge(graph, params)
    network = model.encoder if direction == "encode" else model.decoder
    x = dequantize(x, books_QKZ) if direction == "decode" and first == 0 else x
    x, _ = run(list(network.layers)[first:stop], x, n_B, Tape())
    return quantize(x, books_QKZ)[0] if direction == "encode" and stop is None else x


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _lstm(graph, params, network, at, x_BTC, n_B, pasts, first):
    tape = Tape(pasts, first)
    y, _ = getattr(nnx.merge(graph, params), network).layers[at](x_BTC, n_B, tape)
    return y, tape.next
