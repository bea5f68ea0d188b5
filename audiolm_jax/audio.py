"""Waveforms: resampling, the Hann window, mel filters and log-mel energies, in numpy and in jax; wav files in parts."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolm_jax import files

if TYPE_CHECKING:
    import soundfile


def resample(waveform_N: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """Mono float32 samples at `rate` Hz -> at `to_rate` Hz (soxr, high quality)."""
    if rate == to_rate:
        return waveform_N
    import soxr

    return soxr.resample(waveform_N, rate, to_rate, quality="HQ").astype(np.float32)


def hann(samples: int) -> np.ndarray:
    """The periodic Hann window, float64 [samples]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)


def mel_filters(hertz_F: np.ndarray, bands: int, low: float, high: float, narrow: str = "empty") -> np.ndarray:
    """Triangular filters [F, bands] on the HTK mel scale, 2595 log10(1 + f / 700) (O'Shaughnessy 1987), peak 1.

    hertz_F: frequencies of the bins of a spectrum, evenly spaced from 0. low, high: Hz where the first filter begins
    and the last one ends. narrow: a filter that lies between two bins is "empty", "widened" to a bin on both sides (as
    all filters are that are narrower), or 1 at its "nearest" bin.
    """
    mels = np.linspace(*(2595 * np.log10(1 + np.array([low, high]) / 700)), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    if narrow == "widened":
        width = hertz_F[-1] / (len(hertz_F) - 1)
        lower, upper = np.minimum(lower, centre - width), np.maximum(upper, centre + width)
    rising = (hertz_F[:, None] - lower) / (centre - lower)
    falling = (upper - hertz_F[:, None]) / (upper - centre)
    filters_FM = np.maximum(0, np.minimum(rising, falling))
    if narrow == "nearest":
        for band in np.flatnonzero(filters_FM.sum(0) == 0):
            filters_FM[np.argmin(np.abs(hertz_F - centre[band])), band] = 1
    return filters_FM


def log_mel(frames: Any, filters_FM: np.ndarray, floor: float, energy: float = 1.0, size: int | None = None) -> Any:
    """Natural logarithm of mel energies [..., M] of windowed frames [..., W], an array of numpy or jax.

    floor: added to the energies. energy: what power is divided by, e.g. the sum of the squared window. size: of the
    Fourier transform (None: W), F = size // 2 + 1.
    """
    xp = frames.__array_namespace__()
    spectrum = xp.fft.rfft(frames, size)
    power = (spectrum.real**2 + spectrum.imag**2) / energy
    return xp.log(power @ filters_FM + floor)


class WavFile:
    """A wav file of 16 bits that is written in parts."""

    def __init__(self, path: Path, file: "soundfile.SoundFile"):
        self.path, self._file = path, file

    def write(self, waveform: np.ndarray) -> None:
        """The next samples [N] or [channels, N]; readers of the file see them at once. Raises InputError if the disk
        is full."""
        import soundfile

        # soundfile compares what was written with `assert`, and hides the error of the operating system.
        with files.writing(self.path, soundfile.SoundFileError, AssertionError):
            before = self._file.frames
            self._file.write(waveform.T)
            self._file.flush()
            if self._file.frames - before != waveform.shape[-1]:
                raise OSError(f"{waveform.shape[-1]} samples were given and {self._file.frames - before} are there")

    @property
    def seconds(self) -> float:
        return self._file.frames / self._file.samplerate


@contextlib.contextmanager
def writing_wav(path: Path, sample_rate: int, channels: int) -> Iterator[WavFile]:
    """A `WavFile` with a temporary name, which is renamed to `path` at the end of the block (`files.replacing`)."""
    import soundfile

    with files.replacing(path) as temporary:
        with files.writing(path, soundfile.SoundFileError):
            file = soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype="PCM_16", format="WAV")
        with file:
            yield WavFile(path, file)
