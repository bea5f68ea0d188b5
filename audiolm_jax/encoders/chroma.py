"""Chroma: the loudest of the twelve pitch classes over time, which is the melody that MusicGen-melody follows.

Computed in numpy as by `MusicgenMelodyFeatureExtractor` of `transformers` (arXiv 2306.05284, section 2.3; the filters
are those of librosa). The paper, audiocraft and the training of the models first keep the stems "vocals" and "other"
that Demucs separates, so that bass and drums do not hide the melody. Here, as in `transformers`, the mixture is taken
as it is: for a full mix, run a source separation first and pass the stem with the melody.

Axes: N samples, T frames of the spectrogram, C frames that the model sees, W pitch classes (the first is C), F bins.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from audiolm_jax.audio import hann, resample
from audiolm_jax.errors import InputError

FFT, HOP = 2**14, 2**12  # samples; 0.5 and 0.13 s at 32 kHz
SECONDS = 30  # of a recording are used, from its start
CHANNELS = 8  # at the most; more are taken for a transposed array


@dataclasses.dataclass(frozen=True)
class Melody:
    """The melody to follow: a recording, or None (the input for which the model was trained without a melody)."""

    frames: int  # C; a shorter melody is repeated
    classes: int  # W
    sample_rate: int  # Hz
    waveform_N: np.ndarray | None = None

    @functools.cached_property
    def chroma_CW(self) -> np.ndarray:
        """Float32, one-hot: the loudest class of every frame. Silence, and no recording, have the first class."""
        if self.waveform_N is None:
            loudest_T = np.zeros(1, int)
        else:
            waveform_N = self.waveform_N[: SECONDS * self.sample_rate]
            loudest_T = strengths(waveform_N, self.sample_rate, self.classes).argmax(axis=1)
        return np.eye(self.classes, dtype=np.float32)[np.resize(loudest_T, self.frames)]

    def of(self, recording: Any) -> "Melody":
        """The melody of a recording: None, floats [samples] or [channels, samples] at `sample_rate`, or (floats, Hz).

        Raises InputError for anything else.
        """
        if recording is None:
            return dataclasses.replace(self, waveform_N=None)
        waveform, rate = recording if isinstance(recording, tuple) else (recording, self.sample_rate)
        waveform = np.asarray(waveform)
        if waveform.ndim not in (1, 2) or not np.issubdtype(waveform.dtype, np.floating):
            raise InputError(
                f"a melody is a waveform of floats, [samples] or [channels, samples], not {waveform.dtype} of shape "
                f"{waveform.shape}"
            )
        if waveform.ndim == 2 and waveform.shape[0] > CHANNELS:
            raise InputError(
                f"a melody has shape {waveform.shape}; a waveform is [samples] or [channels, samples] (transpose what "
                "soundfile reads)"
            )
        if not waveform.size or not np.isfinite(waveform).all():
            raise InputError("a melody is empty, or holds NaN or infinite samples")
        mono_N = waveform.mean(axis=0) if waveform.ndim == 2 else waveform
        return dataclasses.replace(self, waveform_N=resample(mono_N.astype(np.float32), rate, self.sample_rate))

    def rolled(self, start: int) -> "Melody":
        """The SECONDS of melody from sample `start` on; the recording repeats after its end."""
        if self.waveform_N is None:
            return self
        index_N = np.arange(start, start + SECONDS * self.sample_rate) % len(self.waveform_N)
        return dataclasses.replace(self, waveform_N=self.waveform_N[index_N])


def strengths(waveform_N: np.ndarray, sample_rate: int, classes: int = 12) -> np.ndarray:
    """[T, W]: the energy of every pitch class, divided by that of the loudest in its frame (unless it is silent)."""
    short = max(0, FFT - len(waveform_N))
    padded_N = np.pad(waveform_N.astype(np.float64), (short // 2, short - short // 2))
    padded_N = np.pad(padded_N, FFT // 2, mode="reflect")
    window_F = hann(FFT)
    frames_TF = np.lib.stride_tricks.sliding_window_view(padded_N, FFT)[::HOP] * window_F
    power_TF = np.abs(np.fft.rfft(frames_TF)) ** 2 / (window_F**2).sum()
    energy_TW = power_TF @ filters(sample_rate, classes).T
    return energy_TW / np.maximum(energy_TW.max(axis=1, keepdims=True), 1e-6)


@functools.cache
def filters(sample_rate: int, classes: int = 12) -> np.ndarray:
    """[W, F]: the weight of every bin of the spectrum in a class; librosa.filters.chroma tuned to A = 440 Hz.

    A Gaussian around the class, one bin wide; all classes of a bin are weighted by its octave, most around 880 Hz.
    """
    frequency_F = np.arange(1, FFT) * (sample_rate / FFT)
    pitch_F = classes * np.log2(frequency_F / (440.0 / 16))
    pitch_F = np.concatenate([pitch_F[:1] - 1.5 * classes, pitch_F])  # bin 0 has no pitch: far below bin 1
    width_F = np.append(np.maximum(np.diff(pitch_F), 1.0), 1)
    half = np.round(classes / 2)
    distance_WF = pitch_F - np.arange(classes)[:, None]
    distance_WF = np.remainder(distance_WF + half + 10 * classes, classes) - half
    bump_WF = np.exp(-0.5 * (2 * distance_WF / width_F) ** 2)
    bump_WF /= np.sqrt((bump_WF**2).sum(axis=0))
    bump_WF *= np.exp(-0.5 * ((pitch_F / classes - 5) / 2) ** 2)
    return np.roll(bump_WF, -3 * (classes // 12), axis=0)[:, : FFT // 2 + 1].astype(np.float32)
