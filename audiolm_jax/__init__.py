"""Native audio-token language models in JAX: one transformer, every order on the codec grid.

import audiolm_jax

generator = audiolm_jax.load("facebook/musicgen-small")  # or the workdir of a run, or a file exported from it
result = generator.generate(text="slow jazz with a loud piano", seconds=8)
result.waveform, result.sample_rate
result.save("jazz.wav")  # or, in a notebook, `result` alone: a player
"""

import glob
import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiolm_jax.loading import load
    from audiolm_jax.sampling import SamplingConfig
    from audiolm_jax.sampling.generator import Generator
    from audiolm_jax.sampling.result import Result

__all__ = ["Generator", "Result", "SamplingConfig", "load"]

_HOMES = {
    "load": "audiolm_jax.loading",
    "SamplingConfig": "audiolm_jax.sampling",
    "Generator": "audiolm_jax.sampling.generator",
    "Result": "audiolm_jax.sampling.result",
}

# What libtpu would ask a metadata server for, and print twenty lines about where there is none.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TPUS = ("/dev/accel*", "/dev/vfio/[0-9]*")  # the device files of a TPU


def _quiet_without_tpus() -> None:
    """Before jax, which loads libtpu wherever it is installed, starts: no messages on a machine without a TPU."""
    if not any(glob.glob(pattern) for pattern in TPUS):
        for name, value in LIBTPU.items():
            os.environ.setdefault(name, value)


_quiet_without_tpus()


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: importing the package alone imports no JAX."""
    if name == "__version__":
        from importlib.metadata import version

        return version("audiolm-jax")
    if name not in _HOMES:
        raise AttributeError(f"module 'audiolm_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
