"""Audio and pictures as data URIs, so that the page needs nothing beside itself."""

import base64
import io
from pathlib import Path

import numpy as np

from audiolm_jax import audio
from audiolm_jax.errors import InputError

BANDS = 72
FRAMES_PER_SECOND = 80
_RANGE_DECIBEL = 70.0


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def read(path: Path) -> tuple[np.ndarray, int]:
    """Waveform float32 [samples] (the mean of the channels) and sample rate of an audio file. Raises InputError."""
    import soundfile

    try:
        waveform, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"cannot read {path} for the report: {error}") from error
    return waveform.mean(1), sample_rate


def audio_uri(waveform: np.ndarray, sample_rate: int, compressed: bool = False) -> str:
    """16-bit FLAC, or Ogg Opus (a fifth of it, lossy) where `compressed`; every current browser plays both."""
    import soundfile

    buffer = io.BytesIO()
    waveform = np.clip(np.nan_to_num(waveform), -1, 1)
    if compressed:
        soundfile.write(buffer, waveform, sample_rate, format="OGG", subtype="OPUS")
        return data_uri("audio/ogg", buffer.getvalue())
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return data_uri("audio/flac", buffer.getvalue())


def spectrogram_uri(waveform: np.ndarray, sample_rate: int) -> str:
    """Log-mel spectrogram as a palette PNG, time to the right, 70 dB below the loudest point to it."""
    import matplotlib
    from PIL import Image

    levels_FM = _log_mel(np.nan_to_num(waveform), sample_rate)
    pixels_MF = np.round(255 * levels_FM.T[::-1]).astype(np.uint8)
    palette = (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    image = Image.frombytes("P", pixels_MF.shape[::-1], pixels_MF.tobytes())
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def _log_mel(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energies [frames, BANDS] in [0, 1]: 0 is 70 dB below the loudest."""
    window = max(sample_rate // 32, 16)
    hop = max(sample_rate // FRAMES_PER_SECOND, 1)
    padded = np.pad(waveform, (window // 2, window))
    starts = np.arange(0, max(len(waveform), 1), hop)
    frames_FW = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    size = 2 * window
    bins = np.arange(size // 2 + 1) * sample_rate / size
    filters_KM = audio.mel_filters(bins, BANDS, 0, sample_rate / 2)
    decibel_FM = 10 / np.log(10) * audio.log_mel(frames_FW, filters_KM, floor=1e-10, size=size)
    loudest = max(decibel_FM.max(), -30.0)  # silence stays dark
    return np.clip((decibel_FM - loudest) / _RANGE_DECIBEL + 1, 0, 1)
