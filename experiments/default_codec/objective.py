"""What the default codec is trained for: spectra at several resolutions, and phase. No adversary.

The spectral terms follow Parallel WaveGAN (Yamamoto et al. 2020, arXiv:1910.11480, equations 4-6: spectral convergence
and log magnitude), with the log-mel distance of HiFi-GAN (arXiv:2010.05646, equation 7) beside them. The relative
complex error is what keeps phase, without which a waveform comes out right on average and rough to listen to.
The envelope term asks for the small movements of loudness that distances of logarithms hardly notice.
"""

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.codecs.default_model import hann, mel_matrix

RESOLUTIONS = ((256, 40), (512, 64), (1024, 80))  # (window, mel bands); hop is a quarter of the window
COMPLEX_WINDOWS = (512, 1280)
FLOOR = 3e-4  # amplitude under which a spectrum counts as silent (speech is normalised to an RMS of 0.08)
ENVELOPE_WINDOW = 512  # its spectrum, hop 8 ms, also gives the third-octave envelopes
SEGMENT = 48  # frames over which envelopes are correlated: 384 ms, as in STOI
LOUDNESS = 0.23  # Zwicker's exponent from power to loudness, as in PESQ (ITU-T P.862, 10.2.2.5)
WEIGHTS = {"log": 1.0, "mel": 1.5, "loudness": 4.0, "convergence": 0.5, "complex": 0.25, "envelope": 2.0}


def stft(waveform_BN: jax.Array, window: int) -> jax.Array:
    """`[B, frames, window / 2 + 1]` complex, scaled so that white noise of deviation s has bins of about s."""
    hop = window // 4
    count = waveform_BN.shape[-1] // hop - 3
    pieces = waveform_BN[:, : (count + 3) * hop].reshape(waveform_BN.shape[0], -1, hop)
    framed = jnp.concatenate([pieces[:, i : i + count] for i in range(4)], axis=-1)
    scaled = hann(window) / np.sqrt((hann(window) ** 2).sum())
    return jnp.fft.rfft(framed * scaled)


def third_octaves(bins: int, sample_rate: int) -> np.ndarray:
    """The 15 third-octave bands of STOI, the lowest centred at 150 Hz, as a 0/1 matrix `[bins, 15]`."""
    hertz = np.linspace(0, sample_rate / 2, bins)[:, None]
    centre = 150 * 2 ** (np.arange(15) / 3)
    return ((hertz >= centre * 2 ** (-1 / 6)) & (hertz < centre * 2 ** (1 / 6))).astype(np.float32)


def envelope_miss(got_power: jax.Array, want_power: jax.Array, sample_rate: int) -> jax.Array:
    """One minus the mean correlation of third-octave envelopes over segments of 384 ms.

    STOI without its clipping and its removal of silence (Taal et al. 2011, IEEE TASLP 19(7), equations 1 and 5).
    """
    bands = third_octaves(got_power.shape[-1], sample_rate)
    starts = range(0, got_power.shape[1] - SEGMENT + 1, SEGMENT // 4)

    def segments(power):
        envelope = jnp.sqrt(power @ bands + FLOOR**2)
        cut = jnp.stack([envelope[:, start : start + SEGMENT] for start in starts])
        return cut - cut.mean(2, keepdims=True)

    got, want = segments(got_power), segments(want_power)
    quiet = SEGMENT * 1e-6  # so that silence, where there is nothing to follow, does not count
    norm = jnp.sqrt(((got**2).sum(2) + quiet) * ((want**2).sum(2) + quiet))
    return 1 - ((got * want).sum(2) / norm).mean()


def reconstruction(output_BN: jax.Array, target_BN: jax.Array, sample_rate: int) -> dict:
    """The terms of the loss, each a mean over batch and time; `total` is their weighted sum."""
    terms = dict.fromkeys(WEIGHTS, 0.0)
    for window in sorted({w for w, _ in RESOLUTIONS} | set(COMPLEX_WINDOWS)):
        got, want = stft(output_BN, window), stft(target_BN, window)
        if window in COMPLEX_WINDOWS:
            error = ((got.real - want.real) ** 2 + (got.imag - want.imag) ** 2).sum((1, 2))
            energy = (want.real**2 + want.imag**2).sum((1, 2)) + FLOOR
            terms["complex"] += jnp.sqrt(error / energy + 1e-6).mean() / len(COMPLEX_WINDOWS)
        mels = dict(RESOLUTIONS).get(window)
        if mels is None:
            continue
        got_power, want_power = (s.real**2 + s.imag**2 for s in (got, want))
        if window == ENVELOPE_WINDOW:
            terms["envelope"] = envelope_miss(got_power, want_power, sample_rate)
        log = 0.5 * jnp.abs(jnp.log(got_power + FLOOR**2) - jnp.log(want_power + FLOOR**2)).mean()
        filters = mel_matrix(window // 2 + 1, mels, sample_rate)
        got_mel, want_mel = got_power @ filters, want_power @ filters
        mel = 0.5 * jnp.abs(jnp.log(got_mel + FLOOR**2) - jnp.log(want_mel + FLOOR**2)).mean()
        got_loud, want_loud = (got_mel + FLOOR**2) ** LOUDNESS, (want_mel + FLOOR**2) ** LOUDNESS
        loudness = jnp.abs(got_loud - want_loud).mean() / want_loud.mean()
        got_size, want_size = jnp.sqrt(got_power + FLOOR**2), jnp.sqrt(want_power + FLOOR**2)
        miss = jnp.sqrt(((got_size - want_size) ** 2).sum((1, 2)) / (want_power.sum((1, 2)) + FLOOR) + 1e-6).mean()
        for name, value in (("log", log), ("mel", mel), ("loudness", loudness), ("convergence", miss)):
            terms[name] += value / len(RESOLUTIONS)
    terms["total"] = sum(weight * terms[name] for name, weight in WEIGHTS.items())
    return terms
