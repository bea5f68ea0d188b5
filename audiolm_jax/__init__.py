"""Native audio-token language models in JAX: one transformer, every order on the codec grid.

import audiolm_jax

generator = audiolm_jax.load("facebook/musicgen-small")  # or the workdir of a run, or a file exported from it
result = generator.generate(text="slow jazz with a loud piano", seconds=8)
result.waveform, result.sample_rate
"""

from typing import Any


def load(source: Any, **options: Any) -> Any:
    """The Generator of a trained run or of a published checkpoint; see `loading.load`."""
    from audiolm_jax import loading  # importing the package alone imports no JAX

    return loading.load(source, **options)
