"""The network of the default codec: a causal autoencoder whose layers all run at the frame rate.

Axis letters: B batch, N samples, H half frames (two per frame), T frames, D width, Z latent width, Q codebooks,
K codebook size. Only a Fourier transform and two matrix products ever touch samples; everything else is ConvNeXt
blocks (Liu et al. 2022, arXiv:2201.03545, sections 2.4-2.6) made causal at 50 and 25 Hz, which is why it trains and
runs on a CPU. The output is an inverse STFT of predicted magnitude and phase as in Vocos (Siuzdak 2023,
arXiv:2306.00814, section 3.2); the quantiser is the residual VQ of SoundStream (Zeghidour et al. 2021,
arXiv:2107.03312, section III-C).

The streaming state (the last inputs of each convolution, the last samples, the tail of the overlap-add) passes through
a `Tape`, so the same functions train, encode whole utterances and stream.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import audio
from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.model import versions


@dataclass(frozen=True)
class FrameConfig:
    """Shape of the codec. `hop` samples per frame; the network's half frames are hop / 2 samples."""

    sample_rate: int = 16000
    hop: int = 640
    codebooks: int = 16
    codebook_size: int = 1024
    latent: int = 64
    mels: int = 64
    encoder_half_width: int = 192
    encoder_half_blocks: int = 2
    encoder_blocks: int = 3
    width: int = 320
    decoder_blocks: int = 3
    decoder_half_width: int = 256
    decoder_half_blocks: int = 4
    expansion: int = 3
    half_kernel: int = 7
    kernel: int = 5
    # How far the output lags its source. The last of a frame's four STFT frames reaches hop * 3/4 beyond its start;
    # with this delay only the weak last quarter of its window lies beyond what the encoder has seen.
    delay: int = 320

    @property
    def quarter(self) -> int:
        return self.hop // 4


def hann(samples: int) -> np.ndarray:
    """The periodic Hann window, float32 `[samples]`."""
    return audio.hann(samples).astype(np.float32)


def mel_matrix(bins: int, mels: int, sample_rate: int) -> np.ndarray:
    """Mel filters float32 `[bins, mels]`, none narrower than a bin, each summing to one."""
    filters = audio.mel_filters(np.linspace(0, sample_rate / 2, bins), mels, 0, sample_rate / 2, narrow="widened")
    return (filters / filters.sum(0)).astype(np.float32)


class Unfilled:
    """In place of `nnx.Rngs` where shapes alone are asked for: all weights are zeros, as tracing random ones would take
    most of the time that it takes to open the codec."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key


def normal(scale: float, rngs: nnx.Rngs | Unfilled) -> jax.nn.initializers.Initializer:
    initializers = jax.nn.initializers
    return initializers.zeros if isinstance(rngs, Unfilled) else initializers.normal(scale)


def dense(features: int, out: int, rngs: nnx.Rngs | Unfilled, scale: float | None = None) -> nnx.Linear:
    """A linear layer with weights of that scale, or of 1 / sqrt(features)."""
    if scale is None and not isinstance(rngs, Unfilled):
        return nnx.Linear(features, out, rngs=rngs)
    return nnx.Linear(features, out, kernel_init=normal(scale or 1.0, rngs), rngs=rngs)


class Block(nnx.Module):
    """Causal ConvNeXt block: depthwise convolution over time, LayerNorm, expand, GELU, contract, residual."""

    def __init__(self, width: int, kernel: int, expansion: int, rngs: nnx.Rngs | Unfilled):
        self.depthwise_KD = nnx.Param(normal(kernel**-0.5, rngs)(rngs.params(), (kernel, width)))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = dense(width, width * expansion, rngs)
        self.contract = dense(width * expansion, width, rngs, scale=0.02)

    def __call__(self, x_BTD: jax.Array, tape: Tape) -> jax.Array:
        """The streaming state is the kernel - 1 inputs before x."""
        batch, frames, width = x_BTD.shape
        taps_KD = self.depthwise_KD[...]
        seen = jnp.concatenate([tape.take(jnp.zeros((batch, len(taps_KD) - 1, width))), x_BTD], axis=1)
        tape.leave(seen[:, frames:])
        # a sum of shifted products: XLA's CPU backend fuses it, unlike a grouped convolution
        mixed = sum(seen[:, k : k + frames] * taps_KD[k] for k in range(len(taps_KD)))
        hidden = jax.nn.gelu(linear(self.expand, self.norm(mixed)))
        return x_BTD + linear(self.contract, hidden)


def linear(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """The layer on one matrix of rows: XLA's CPU backend takes the gradient of a batched product 1.6 times slower."""
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def blocks(count: int, width: int, kernel: int, expansion: int, rngs: nnx.Rngs | Unfilled) -> versions.List:
    return versions.List([Block(width, kernel, expansion, rngs) for _ in range(count)])


class Encoder(nnx.Module):
    """Waveform -> latents. A half frame sees 2 half frames of windowed samples and two log-mel frames."""

    def __init__(self, config: FrameConfig, rngs: nnx.Rngs | Unfilled):
        c = self.config = config
        features = c.hop + 2 * c.mels
        self.embed = dense(features, c.encoder_half_width, rngs)
        self.half_blocks = blocks(c.encoder_half_blocks, c.encoder_half_width, c.half_kernel, c.expansion, rngs)
        self.merge = dense(2 * c.encoder_half_width, c.width, rngs)
        self.blocks = blocks(c.encoder_blocks, c.width, c.kernel, c.expansion, rngs)
        self.norm = nnx.LayerNorm(c.width, rngs=rngs)
        self.project = dense(c.width, c.latent, rngs)

    def features(self, seen_BN: jax.Array) -> jax.Array:
        """Samples with hop - quarter samples of past in front -> `[B, H, hop + 2 mels]`."""
        c = self.config
        quarters = seen_BN.reshape(seen_BN.shape[0], -1, c.quarter)
        count = quarters.shape[1] - 3
        framed = jnp.concatenate([quarters[:, i : i + count] for i in range(4)], axis=-1) * hann(c.hop)
        mel = audio.log_mel(framed, mel_matrix(c.hop // 2 + 1, c.mels, c.sample_rate), floor=1e-4)
        pairs = mel.reshape(mel.shape[0], -1, 2 * c.mels)
        return jnp.concatenate([4 * framed[:, 1::2], 0.3 * pairs], axis=-1)

    def __call__(self, waveform_BN: jax.Array, tape: Tape) -> jax.Array:
        """Samples (a multiple of hop) -> latents `[B, T, Z]`. Before the first sample there is silence."""
        past = self.config.hop - self.config.quarter
        seen = jnp.concatenate([tape.take(jnp.zeros((len(waveform_BN), past))), waveform_BN], axis=1)
        tape.leave(seen[:, -past:])
        x = linear(self.embed, self.features(seen))
        for block in self.half_blocks:
            x = block(x, tape)
        x = linear(self.merge, x.reshape(x.shape[0], -1, 2 * x.shape[-1]))
        for block in self.blocks:
            x = block(x, tape)
        return linear(self.project, self.norm(x))


class Decoder(nnx.Module):
    """Quantised latents -> waveform, four overlapping STFT frames (magnitude and phase) per frame."""

    def __init__(self, config: FrameConfig, rngs: nnx.Rngs | Unfilled):
        c = self.config = config
        self.embed = dense(c.latent, c.width, rngs)
        self.blocks = blocks(c.decoder_blocks, c.width, c.kernel, c.expansion, rngs)
        self.split = dense(c.width, 2 * c.decoder_half_width, rngs)
        self.half_blocks = blocks(c.decoder_half_blocks, c.decoder_half_width, c.half_kernel, c.expansion, rngs)
        self.norm = nnx.LayerNorm(c.decoder_half_width, rngs=rngs)
        self.head = dense(c.decoder_half_width, 2 * 2 * (c.hop // 2 + 1), rngs)

    def __call__(self, latents_BTZ: jax.Array, tape: Tape) -> jax.Array:
        """Latents `[B, T, Z]` -> `[B, T * hop]` samples, which later frames do not change."""
        c = self.config
        x = linear(self.embed, latents_BTZ)
        for block in self.blocks:
            x = block(x, tape)
        x = linear(self.split, x).reshape(x.shape[0], -1, c.decoder_half_width)
        for block in self.half_blocks:
            x = block(x, tape)
        spectrum = linear(self.head, self.norm(x)).reshape(x.shape[0], 2 * x.shape[1], 2, -1)
        magnitude = jnp.exp(jnp.minimum(spectrum[:, :, 0], 6.0))
        phase = spectrum[:, :, 1]
        framed = jnp.fft.irfft(jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)))
        framed = framed * (hann(c.hop) / 1.5)  # 1.5: what squared Hann windows sum to at four-fold overlap
        # overlap-add: the quarter at place p is the sum over i of piece i of the STFT frame that began at p - i
        pieces = framed.reshape(*framed.shape[:2], 4, c.quarter)
        quarters = sum(jnp.pad(pieces[:, :, i], ((0, 0), (i, 3 - i), (0, 0))) for i in range(4))
        quarters = quarters.at[:, :3].add(tape.take(jnp.zeros((len(x), 3, c.quarter))))
        tape.leave(quarters[:, -3:])
        return quarters[:, :-3].reshape(x.shape[0], -1)


class FrameModel(nnx.Module):
    """Encoder and decoder; the codebooks `[Q, K, Z]` follow running means and are no parameters."""

    def __init__(self, config: FrameConfig, rngs: nnx.Rngs | Unfilled):
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
