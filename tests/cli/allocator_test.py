import os
import subprocess
import sys

import pytest

# Page faults of three calls of a program with two temporary buffers of 64 MB; the least of five times, since a block of
# another thread may lie in the way at first.
PROGRAM = """
import resource, sys
from audiolm_jax.cli import allocator
if sys.argv[1] == "keep":
    assert allocator.keep_memory()
import jax, jax.numpy as jnp
barrier = jax.lax.optimization_barrier  # keeps the buffers: fused, the program would need none
program = jax.jit(lambda x: jnp.sum(barrier(jnp.sin(barrier(jnp.cos(x + jnp.arange(1 << 24)))))))
def faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        program(1.0).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults(3) for _ in range(5)))
"""


def faults(how: str) -> int:
    # Without the suite's flags: code that is not optimised takes other buffers.
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator is another one")
def test_a_call_does_not_fetch_its_memory_again():
    """Fetched at every call, it is 49,152 pages."""
    fetched = faults("ask")
    assert fetched > 10_000
    assert faults("keep") < fetched / 10
