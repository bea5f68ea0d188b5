"""Eight CPU devices for the whole suite, and a mesh that is always entered."""

import os
from pathlib import Path

# The suite compiles more than it computes: machine code that is not optimised saves a quarter of its time. `make
# test-all` sets XLA_FLAGS to nothing, and so runs everything as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

# "cuda,cpu" is for the tests of a GPU's kernels alone: elsewhere the tolerances are those of a CPU.
jax.config.update("jax_platforms", os.environ.get("AUDIOLM_TEST_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
# Tests that start a run again would otherwise compile the same step again.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

from audiolm_jax.model import sharding  # noqa: E402  (devices must be configured before anything asks for them)


@pytest.fixture(autouse=True)
def mesh():
    """A mesh of one of the eight devices, entered; tests of sharding enter their own inside it."""
    one = sharding.single_device_mesh()
    with jax.set_mesh(one):
        yield one
