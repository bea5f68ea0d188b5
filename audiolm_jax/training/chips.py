"""Peak FLOP/s of accelerators, from data sheets or measured on the current device."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from audiolm_jax.model import versions

# Dense bfloat16 peak of a chip, FLOP/s. GPUs: NVIDIA's data sheets; TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
PEAKS = {
    "h200": 989e12,
    "h100": 989e12,
    "a100": 312e12,
    "l40s": 362e12,
    "l4": 121e12,
    "t4": 65e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}
# Prefix of jax's device_kind -> chip; the first match counts.
KINDS = {
    "NVIDIA H200": "h200",
    "NVIDIA H100": "h100",
    "NVIDIA A100": "a100",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "Tesla T4": "t4",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
}


def peak_flops(tflops: float = 0.0) -> float:
    """FLOP/s of the current mesh: `tflops` per device if it is not 0, else of PEAKS, or measured on another device."""
    mesh = versions.mesh()
    kind = mesh.devices.flat[0].device_kind
    chip = next((chip for beginning, chip in KINDS.items() if kind.startswith(beginning)), None)
    return (tflops * 1e12 or PEAKS.get(chip) or measured_flops()) * mesh.size


def measured_flops(dtype: Any = jnp.float32, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of a device: the best of a few products of square matrices of `size` (1024 on a CPU, else 8192)."""
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    # Random numbers: a GPU multiplies constants with less power, and so faster.
    matrix = jax.jit(lambda: jax.random.normal(jax.random.key(0), (size, size), dtype))()
    return 2 * size**3 / best_seconds(jax.jit(jnp.matmul), matrix, matrix, repeats=repeats)


def best_seconds(function: Callable, *arguments: Any, repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` runs after one that compiles."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
