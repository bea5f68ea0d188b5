"""One channel of samples, whatever its sample rate."""

import numpy as np


def resample(waveform_N: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """Mono float32 samples at `rate` Hz -> at `to_rate` Hz (soxr, high quality)."""
    if rate == to_rate:
        return waveform_N
    import soxr

    return soxr.resample(waveform_N, rate, to_rate, quality="HQ").astype(np.float32)
