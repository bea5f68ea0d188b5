"""Peaks of chips by jax's name of the device, and what an unknown device is measured to do."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from audiolm_jax.model import versions
from audiolm_jax.training import chips


@pytest.mark.parametrize(
    "kind, tflops",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_the_peak_of_a_mesh_is_that_of_its_chips(kind, tflops, monkeypatch):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(device_kind=kind)] * 4), size=4)
    monkeypatch.setattr(versions, "mesh", lambda: mesh)
    assert chips.peak_flops() == 4 * tflops * 1e12
    assert chips.peak_flops(7.0) == 4 * 7e12


def test_an_unknown_device_is_measured(mesh, monkeypatch):
    monkeypatch.setattr(chips, "measured_flops", lambda: 3e9)
    assert chips.peak_flops() == mesh.size * 3e9


def test_a_product_is_timed():
    seconds = chips.best_seconds(jax.jit(lambda x: x @ x), np.ones((8, 8), np.float32), repeats=2)
    assert 0 < seconds < 1
    assert 1e6 < chips.measured_flops(size=64, repeats=1) < 1e16
