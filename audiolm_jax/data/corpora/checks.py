"""Every recording before it is used: checks, one channel, one sample rate; and its split by a hash."""

import hashlib

import numpy as np

from audiolm_jax.audio import resample
from audiolm_jax.data.corpora import CorpusConfig, Reject

_OVERSHOOT = 2.0  # decoders of lossy formats pass 1.0 a little; integers stored as floats pass it by far
_FULL_SCALE_SHARE = 0.05  # of the samples; music mastered at the limit stays below
_NOISE_RMS, _NOISE_CORRELATION = 0.2, 0.1  # white noise this loud: samples read in the wrong encoding
_SILENT_PEAK = 1e-4


def clean_text(text: str | bytes | None, required: bool) -> str:
    """The text with single spaces.

    Raises:
      Reject: it is not UTF-8, or it is missing or empty although required.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Reject(f"text is not UTF-8 (byte {error.start})") from error
    if text is None and required:
        raise Reject("text is missing")
    text = " ".join((text or "").split())
    if required and not text:
        raise Reject("text is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise Reject("text holds control characters: it is a binary file or in another encoding")
    return text


def check_duration(seconds: float, config: CorpusConfig) -> None:
    if seconds < config.min_seconds:
        raise Reject(f"too short: {seconds:.3f} s, corpus.min_seconds is {config.min_seconds}")
    if seconds > config.max_seconds:
        raise Reject(f"too long: {seconds:.1f} s, corpus.max_seconds is {config.max_seconds}")


def prepare(samples: np.ndarray, sample_rate: int, config: CorpusConfig) -> tuple[np.ndarray, int]:
    """Checks a recording, mixes its channels and resamples it.

    Args:
      samples: float [samples] or [samples, channels], nominally in [-1, 1].

    Returns:
      (waveform float32 [samples * config.sample_rate / sample_rate], config.sample_rate).

    Raises:
      Reject: with the reason.
    """
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if samples.ndim != 1:
        raise Reject(f"audio has the shape {samples.shape}, expected [samples] or [samples, channels]")
    if samples.size == 0:
        raise Reject("holds no samples")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise Reject("holds NaN or Inf")
    check_duration(len(samples) / sample_rate, config)

    peak = float(np.abs(samples).max())
    if peak < _SILENT_PEAK:
        raise Reject(f"silent: the loudest sample is {peak:.1g}")
    if peak > _OVERSHOOT:
        raise Reject(f"samples reach {peak:.4g}, floating-point audio must lie in [-1, 1]: wrong encoding")
    samples = np.clip(samples, -1, 1)
    full_scale = float(np.mean(np.abs(samples) > 0.999))
    if full_scale > _FULL_SCALE_SHARE:
        raise Reject(f"{full_scale:.0%} of the samples are at full scale: clipped, or in the wrong encoding")
    centred = samples - samples.mean()
    power = float(np.mean(centred**2))
    if power == 0:
        raise Reject("constant: every sample is the same")
    correlation = float(np.mean(centred[1:] * centred[:-1])) / power if len(centred) > 1 else 1.0
    if power > _NOISE_RMS**2 and abs(correlation) < _NOISE_CORRELATION:
        raise Reject("loud white noise: the samples are in another encoding than the file says")

    if sample_rate != config.sample_rate:
        samples = np.clip(resample(samples, sample_rate, config.sample_rate), -1, 1)
    return np.ascontiguousarray(samples, dtype=np.float32), config.sample_rate


def splits(keys: list[str], valid_fraction: float, test_fraction: float) -> list[str]:
    """A split for every key, from a hash of the key alone, so that adding recordings moves none of the others.

    The one exception: a split that would stay empty gets the nearest key where there are at least three.
    """
    positions = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 for key in keys]
    names = [
        "valid" if position < valid_fraction else "test" if position >= 1 - test_fraction else "train"
        for position in positions
    ]
    if len(keys) >= 3:
        if valid_fraction and "valid" not in names:
            names[int(np.argmin(positions))] = "valid"
        if test_fraction and "test" not in names:
            names[int(np.argmax(positions))] = "test"
    return names
