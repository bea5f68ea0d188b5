"""EnCodec (arXiv:2210.13438): 24 kHz mono, 32 kHz mono (the codec of MusicGen), 48 kHz stereo.

Reads the published layout (`config.json` and `model.safetensors`, as in facebook/encodec_24khz, encodec_32khz and
encodec_48khz). The 24 kHz codec is causal and streams exactly; its padding reflects the beginning of every layer's
input, so the first frame is known after seven. The 32 kHz codec looks ahead: its convolutions run in overlapping
windows, its LSTM carries its state exactly. The 48 kHz codec works on chunks of a second: `encodec_chunks.py`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
from flax import nnx

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.encodec_chunks import ChunkedCodec
from audiolm_jax.codecs.layers import LSTM, reach, run
from audiolm_jax.codecs.quantizer import dequantize, quantize
from audiolm_jax.codecs.seanet import Decoder, Encoder, SEANetConfig
from audiolm_jax.codecs.streaming import About, Carry, Codec, Stage, Window, own_mesh
from audiolm_jax.errors import InputError
from audiolm_jax.hub import files
from audiolm_jax.hub.weights import Weights, fingerprint, named, unfold

LONGEST_CHUNK = 60  # seconds


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
        bandwidths = self.target_bandwidths
        if self.codebook_size < 2 or not bandwidths or min(bandwidths) <= 0 or not self.codebooks:
            raise InputError(
                f"codec config: codebook_size={self.codebook_size} and target_bandwidths={bandwidths} (kbit/s) make no "
                "codebook"
            )
        if (self.chunk_length_s is None) != (self.overlap is None) or (self.normalize and self.overlap is None):
            raise InputError("codec config: chunk_length_s, overlap and normalize belong together (48 kHz)")
        if self.chunk_length_s is None:
            if self.time_norm:
                raise InputError(
                    "codec config: norm_type='time_group_norm' without chunk_length_s normalises over a whole signal, "
                    "which this package cuts into windows; only chunks are supported (48 kHz)"
                )
        elif not 0 <= self.overlap < 1 or self.chunk_length_s > LONGEST_CHUNK or self.chunk not in self.whole_frames:
            # `transformers` adds up whole frames of every chunk, which are then longer than the chunk.
            raise InputError(
                f"codec config: chunk_length_s={self.chunk_length_s} with overlap={self.overlap} is not supported; a "
                f"chunk must be of {self.stride} samples (upsampling_ratios) or a multiple, at most {LONGEST_CHUNK} "
                "seconds, and overlap from 0 to 1"
            )

    @property
    def whole_frames(self) -> range:
        """Lengths in samples that are one or more frames."""
        return range(self.stride, 2**31, self.stride)

    @property
    def chunk(self) -> int:
        """Samples of a chunk; 0: signals are not cut."""
        return int((self.chunk_length_s or 0) * self.sampling_rate)

    @property
    def codebooks(self) -> int:
        """Codebooks that fit the largest bandwidth, with frame rate and bits per code rounded up."""
        rate, bits = math.ceil(self.sampling_rate / self.stride), math.ceil(math.log2(self.codebook_size))
        return int(1000 * self.target_bandwidths[-1] // (rate * bits))


CHECKPOINTS = {
    "facebook/encodec_24khz": EnCodecConfig(),
    "facebook/encodec_32khz": EnCodecConfig(
        sampling_rate=32000,
        num_filters=64,
        upsampling_ratios=(8, 5, 4, 4),
        codebook_size=2048,
        target_bandwidths=(2.2,),
        use_causal_conv=False,
        use_conv_shortcut=False,
    ),
    "facebook/encodec_48khz": EnCodecConfig(
        sampling_rate=48000,
        audio_channels=2,
        target_bandwidths=(3.0, 6.0, 12.0, 24.0),
        use_causal_conv=False,
        norm_type="time_group_norm",
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
    ),
}


class EnCodecModel(nnx.Module):
    """Encoder and decoder; the codebooks are a separate stacked array."""

    def __init__(self, config: EnCodecConfig):
        self.encoder, self.decoder = Encoder(config), Decoder(config)


def load(path=None, codebooks: int | None = None) -> Codec | ChunkedCodec:
    """The codec of a folder, a file or a repository; see `hub.files.read`. Raises InputError."""
    published, weights = files.read(path, "encodec", CHECKPOINTS)
    codec = take(published, weights, codebooks)
    weights.finish()
    return codec


def about(config: EnCodecConfig, codebooks: int | None = None, digest: str = "") -> About:
    """The attributes of a codec of that configuration. Raises InputError for too many codebooks."""
    count, channels = checks.leading(codebooks, config.codebooks), config.audio_channels
    return About("encodec", digest, config.sampling_rate, config.stride, count, config.codebook_size, 0, channels)


def take(published: dict, weights: Weights, codebooks: int | None = None) -> Codec | ChunkedCodec:
    """The codec of a config.json and its tensors; `weights` collects their defects. Raises InputError."""
    config = files.config_of(published, EnCodecConfig, what=weights.what)
    checks.layers(weights, config, codebooks=config.codebooks)
    weights.ignore(r"\.codebook\.(inited|cluster_size|embed_avg)$")
    attributes = about(config, codebooks, fingerprint(dataclasses.asdict(config), weights.tensors))
    with own_mesh():
        model = weights.fill(nnx.eval_shape(lambda: EnCodecModel(config)))
        names = [f"quantizer.layers.{q}.codebook.embed" for q in range(config.codebooks)]
        books_QKZ = weights.stack(names, (config.codebook_size, config.hidden_size))
        used_QKZ = books_QKZ[: attributes.codebooks]
    encode, decode = (list(model.encoder.layers), used_QKZ), (list(model.decoder.layers), used_QKZ)
    hop, parts = config.stride, (config, model, books_QKZ)
    if config.chunk_length_s is not None:
        chunk = config.chunk
        stride = max(1, int((1.0 - config.overlap) * chunk))
        encoder, decoder = Stage(_encode, encode), Stage(_decode, decode)
        return ChunkedCodec(attributes, encoder, decoder, chunk, stride, config.normalize, parts)
    if config.use_causal_conv:
        sizes = (32, config.start, 1)
        encoder = (Carry(_encode, encode, hop, 1, sizes, config.start),)
        decoder = (Carry(_decode, decode, 1, hop, sizes, config.start),)
    else:
        encoder = stages(_encode, encode[0], (None, used_QKZ), unit_in=hop)
        decoder = stages(_decode, decode[0], (used_QKZ, None), unit_out=hop)
    return Codec(attributes, encoder, decoder, parts)


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


def stages(run_part: Callable, layers: list, books: tuple, unit_in: int = 1, unit_out: int = 1) -> tuple:
    """The stages of a network that looks ahead: windows before and after its LSTM, which carries its state.

    books: the codebooks for the first and for the last stage, None for the one that is far from the quantiser.
    """
    at = next((n for n, layer in enumerate(layers) if isinstance(layer, LSTM)), len(layers))
    first, lstm, last = layers[:at], layers[at : at + 1], layers[at + 1 :]
    return (
        Window(run_part, (first, books[0]), unit_in, 1, *(math.ceil(side / unit_in) for side in reach(first))),
        Carry(run_part, (lstm, None), sizes=(64, 8, 1)),
        Window(run_part, (last, books[1]), 1, unit_out, *(math.ceil(side) for side in reach(last))),
    )


def _encode(weights, x_BNC, n_B, tape):
    """Some layers of the encoder, and the quantiser if its codebooks are there."""
    layers, books_QKZ = weights
    x_BNC, _ = run(layers, x_BNC, n_B, tape)
    return x_BNC if books_QKZ is None else quantize(x_BNC, books_QKZ)[0]


def _decode(weights, x_BNC, n_B, tape):
    """Some layers of the decoder, before them the codebooks if they are there."""
    layers, books_QKZ = weights
    x_BNC = x_BNC if books_QKZ is None else dequantize(x_BNC, books_QKZ)
    return run(layers, x_BNC, n_B, tape)[0]
