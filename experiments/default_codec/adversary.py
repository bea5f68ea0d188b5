"""The optional adversary of the codec: a discriminator on complex spectra at several resolutions (MS-STFT).

Discriminator, hinge losses and feature matching of EnCodec (Défossez et al. 2022, arXiv:2210.13438, section 3.4), with
windows for speech at 16 kHz and a width that two CPU cores can train. Weight normalisation is left out: the optimiser
clips.

Axis letters: B batch, F frames of a spectrum, K frequencies, C channels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.model import versions
from experiments.default_codec.objective import stft


@dataclasses.dataclass(frozen=True)
class AdversaryConfig:
    """windows: of the spectra, in samples; hop is a quarter. width: channels of every convolution."""

    windows: tuple[int, ...] = (256, 512, 1024)
    width: int = 8
    dilations: tuple[int, ...] = (1, 2, 4)


class Resolution(nnx.Module):
    """Convolutions over one spectrum `[B, F, K]`, which halve the frequencies three times."""

    def __init__(self, config: AdversaryConfig, rngs: nnx.Rngs):
        def conv(inputs, outputs, kernel, **options):
            return nnx.Conv(inputs, outputs, kernel, padding="SAME", rngs=rngs, **options)

        width = config.width
        self.hidden = versions.List([conv(2, width, (3, 9))])
        for dilation in config.dilations:
            self.hidden.append(conv(width, width, (3, 9), strides=(1, 2), kernel_dilation=(dilation, 1)))
        self.hidden.append(conv(width, width, (3, 3)))
        self.last = conv(width, 1, (3, 3))

    def __call__(self, spectrum_BFK: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Logits `[B, F, K / 8, 1]`, large where the waveform seems real, and what every hidden layer gave."""
        x, features = jnp.stack([spectrum_BFK.real, spectrum_BFK.imag], axis=-1), []
        for layer in self.hidden:
            x = jax.nn.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x), features


class Adversary(nnx.Module):
    def __init__(self, config: AdversaryConfig, rngs: nnx.Rngs):
        self.config = config
        self.resolutions = versions.List([Resolution(config, rngs) for _ in config.windows])

    def __call__(self, waveform_BN: jax.Array) -> list[tuple[jax.Array, list[jax.Array]]]:
        """Scores of waveforms, one array per resolution."""
        return [r(stft(waveform_BN, w)) for r, w in zip(self.resolutions, self.config.windows, strict=True)]


def discriminator_loss(adversary: Adversary, real_BN: jax.Array, fake_BN: jax.Array) -> jax.Array:
    """Hinge loss: logits above 1 for what is real and below -1 for what is not; 2 where it cannot tell."""
    both = adversary(jnp.concatenate([real_BN, fake_BN]))
    losses = []
    for logits, _ in both:
        real, fake = jnp.split(logits, 2)
        losses.append(jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())
    return sum(losses) / len(losses)


def generator_losses(adversary: Adversary, real_BN: jax.Array, fake_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hinge loss of the codec, and the distance of the hidden layers relative to their mean size."""
    hinge, matching = [], []
    for (logits, fakes), (_, reals) in zip(adversary(fake_BN), adversary(real_BN), strict=True):
        hinge.append(jax.nn.relu(1 - logits).mean())
        for fake, real in zip(fakes, jax.lax.stop_gradient(reals), strict=True):
            matching.append(jnp.abs(fake - real).mean() / jnp.abs(real).mean())
    return sum(hinge) / len(hinge), sum(matching) / len(matching)
