"""Every recording before it is used: checks, channels and sample rate of the corpus; and its split by a hash."""

import codecs
import hashlib

import numpy as np

from audiolm_jax.data.corpora import SAMPLE_RATE, CorpusConfig, Reject, sound
from audiolm_jax.serialization import text as texts

_MOST_CHANNELS = 64  # more are samples: the axes are the other way round
_FULL_SCALE_SHARE = 0.05  # of the samples; music mastered at the limit stays below
_NOISE_RMS, _NOISE_CORRELATION = 0.2, 0.1  # white noise this loud: samples read in the wrong encoding
_SILENT_PEAK = 1e-4
_NO_POWER = 1e-13  # rounding of a constant


def clean_text(text: str | bytes | None, required: bool, hint: str = "") -> str:
    """The text as models see it (`serialization.text.clean`); bytes are UTF-8, or UTF-16 with a byte order mark.

    Raises:
      Reject: it is in another encoding, or it is missing (followed by `hint`) or empty although required.
    """
    if isinstance(text, bytes):
        encoding = "utf-16" if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        try:
            text = text.decode(encoding)
        except UnicodeDecodeError as error:
            name = encoding.removesuffix("-sig").upper()
            raise Reject(f"text is not {name} (byte {error.start})") from error
    if text is None and required:
        raise Reject(f"text is missing{hint and f': {hint}'}")
    text = texts.clean(text or "")
    if required and not text:
        raise Reject("text is empty")
    if texts.control(text):
        raise Reject("text holds control characters: it is a binary file or in another encoding")
    return text


def check_duration(seconds: float, config: CorpusConfig) -> None:
    if seconds < config.min_seconds:
        raise Reject(f"too short: {seconds:.3f} s, corpus.min_seconds is {config.min_seconds}")
    if seconds > config.max_seconds:
        raise Reject(f"too long: {seconds:.1f} s, corpus.max_seconds is {config.max_seconds}")


def prepare(samples: np.ndarray, sample_rate: int, config: CorpusConfig) -> tuple[np.ndarray, int]:
    """Checks a recording, mixes it to the channels of the corpus and resamples it.

    Args:
      samples: float [samples] or [samples, channels], nominally in [-1, 1].

    Returns:
      (waveform float32 [samples], or [2, samples] with corpus.channels = 2; the rate of the corpus).

    Raises:
      Reject: with the reason.
    """
    rate, channels = config.sample_rate or SAMPLE_RATE, config.channels or 1
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or samples.shape[1] > _MOST_CHANNELS:
        raise Reject(f"audio has the shape {samples.shape}, expected [samples] or [samples, channels]")
    if samples.size == 0:
        raise Reject("holds no samples")
    samples = sound.mixed(samples.astype(np.float32), channels)
    if not np.isfinite(samples).all():
        raise Reject("holds NaN or Inf")
    check_duration(len(samples) / sample_rate, config)

    samples, levels = sound.in_range(samples), Levels()
    levels.add(samples)
    for reason in (levels.silence(), levels.doubt()):
        if reason:
            raise Reject(reason)

    samples = sound.Delivery(sample_rate, rate, channels)(samples, last=True)
    if not len(samples):
        raise Reject(f"too short: no sample is left at {rate} Hz")
    return np.ascontiguousarray(samples[:, 0] if channels == 1 else samples.T, dtype=np.float32), rate


class Levels:
    """What tells silence and samples in a wrong encoding, of a recording that is heard piece by piece."""

    def __init__(self) -> None:
        self._count, self._peak, self._full, self._last_C = 0, 0.0, 0, None
        self._sum_C, self._square_C, self._lagged_C = 0.0, 0.0, 0.0

    def add(self, samples_NC: np.ndarray) -> None:
        """Some more samples [samples, channels], in [-1, 1]."""
        if not len(samples_NC):
            return
        self._count += len(samples_NC)
        self._peak = max(self._peak, float(np.abs(samples_NC).max()))
        self._full += (samples_NC > 0.999).sum() + (samples_NC < -0.999).sum()
        samples_NC = samples_NC.astype(np.float64)
        self._sum_C = self._sum_C + samples_NC.sum(axis=0)
        self._square_C = self._square_C + (samples_NC**2).sum(axis=0)
        self._lagged_C = self._lagged_C + (samples_NC[1:] * samples_NC[:-1]).sum(axis=0)
        if self._last_C is not None:
            self._lagged_C = self._lagged_C + self._last_C * samples_NC[0]
        self._last_C = samples_NC[-1]

    def silence(self) -> str:
        """Why a recording holds nothing to hear, "" if it does."""
        if self._peak < _SILENT_PEAK:
            return f"silent: the loudest sample is {self._peak:.1g}"
        return "constant: every sample is the same" if self._power() < _NO_POWER else ""

    def doubt(self) -> str:
        """Why the samples look as if they were read in a wrong encoding, "" if they do not."""
        share = float(self._full) / max(self._count * np.size(self._sum_C), 1)
        if share > _FULL_SCALE_SHARE:
            return f"{share:.0%} of the samples are at full scale: clipped, or in the wrong encoding"
        power, pairs = self._power(), max(self._count - 1, 1)
        mean_C = self._sum_C / max(self._count, 1)
        correlation = float(np.mean(self._lagged_C / pairs - mean_C**2)) / max(power, _NO_POWER)
        if power > _NOISE_RMS**2 and abs(correlation) < _NOISE_CORRELATION:
            return "loud white noise: the samples are in another encoding than the file says"
        return ""

    def _power(self) -> float:
        count = max(self._count, 1)
        return float(np.mean(self._square_C / count - (self._sum_C / count) ** 2))


def splits(keys: list[str], valid_fraction: float, test_fraction: float) -> list[str]:
    """A split for every key, from a hash of the key alone, so that adding recordings moves none of the others.

    The one exception: a split that would stay empty gets the nearest key where there are at least three.
    """
    once = list(dict.fromkeys(keys))  # parts of one recording share its key, and go into one split
    if len(once) < len(keys):
        found = dict(zip(once, splits(once, valid_fraction, test_fraction), strict=True))
        return [found[key] for key in keys]
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
