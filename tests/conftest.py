"""Eight CPU devices for the whole suite, and a mesh that is always entered."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from audiolm_jax import sharding  # noqa: E402  (devices must be configured before anything asks for them)


@pytest.fixture(autouse=True)
def mesh():
    """A mesh of one of the eight devices, entered; tests of sharding enter their own inside it."""
    one = sharding.single_device_mesh()
    with jax.set_mesh(one):
        yield one
