"""Native audio-token language models in JAX: one transformer, every order on the codec grid.

import audiolm_jax

generator = audiolm_jax.load("facebook/musicgen-small")  # or the workdir of a run, or a file exported from it
result = generator.generate(text="slow jazz with a loud piano", seconds=8)
result.waveform, result.sample_rate
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiolm_jax.loading import load
    from audiolm_jax.sampling import SamplingConfig
    from audiolm_jax.sampling.generator import Generator, Result

__all__ = ["Generator", "Result", "SamplingConfig", "load"]

_HOMES = {
    "load": "audiolm_jax.loading",
    "SamplingConfig": "audiolm_jax.sampling",
    "Generator": "audiolm_jax.sampling.generator",
    "Result": "audiolm_jax.sampling.generator",
}


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
