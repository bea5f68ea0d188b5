"""Windows, mel filters and log-mel energies, in numpy and in jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import audio


def test_hann_is_periodic():
    np.testing.assert_allclose(audio.hann(4), [0, 0.5, 1, 0.5], atol=1e-15)
    window = audio.hann(400)
    np.testing.assert_allclose(window[:200] + window[200:], 1)  # shifted by half they sum to one
    np.testing.assert_allclose(window, np.hanning(401)[:-1], atol=1e-15)


def test_filters_are_triangles_on_the_mel_scale():
    hertz = np.linspace(0, 8000, 4001)
    filters = audio.mel_filters(hertz, 20, 100, 8000)
    mel = 2595 * np.log10(1 + np.array([100, 8000]) / 700)
    edges = 700 * (10 ** (np.linspace(*mel, 22) / 2595) - 1)
    for band in range(20):
        expected = np.interp(hertz, edges[band : band + 3], [0, 1, 0])
        np.testing.assert_allclose(filters[:, band], expected, atol=1e-12)


@pytest.mark.parametrize(("narrow", "smallest"), [("empty", 0), ("nearest", 1), ("widened", 0.5)])
def test_narrow_filters(narrow, smallest):
    """80 bands on 129 bins: some lie between two bins."""
    filters = audio.mel_filters(np.linspace(0, 8000, 129), 80, 0, 8000, narrow)
    assert filters.max() <= 1 and filters.min() >= 0
    assert filters.sum(0).min() == 0 if narrow == "empty" else filters.max(0).min() > 0
    empty = audio.mel_filters(np.linspace(0, 8000, 129), 80, 0, 8000).sum(0) == 0
    assert empty.any() and filters[:, empty].max(0).min() >= smallest


def test_log_mel_in_numpy_and_jax():
    frames = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    filters = np.random.default_rng(1).random((65, 5)).astype(np.float32)
    power = np.abs(np.fft.rfft(frames.astype(np.float64), 128)) ** 2 / 7
    expected = np.log(power @ filters + 1e-3)
    np.testing.assert_allclose(audio.log_mel(frames, filters, 1e-3, 7.0, 128), expected, rtol=1e-5)
    traced = jax.jit(lambda x: audio.log_mel(x, filters, 1e-3, 7.0, 128))(jnp.asarray(frames))
    np.testing.assert_allclose(traced, expected, rtol=1e-4)
