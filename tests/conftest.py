"""Eight CPU devices for the whole suite, and a mesh that is always entered."""

import gc
import os
from pathlib import Path

# The suite compiles more than it computes: machine code that is not optimised saves a quarter of its time, and XLA's
# older way of writing loops for a CPU, without MLIR, four tenths of the rest. `make test-all` sets XLA_FLAGS to
# nothing, and so runs everything as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
# Tests that start a run again would otherwise compile the same step again. In variables, for the processes that tests
# start, too.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

# "cuda,cpu" is for the tests of a GPU's kernels alone: elsewhere the tolerances are those of a CPU.
jax.config.update("jax_platforms", os.environ.get("AUDIOLM_TEST_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)

from audiolm_jax.model import sharding  # noqa: E402  (devices must be configured before anything asks for them)

# Files that take the longest begin first: the last of a worker is waited for. Longest first.
LONG = (
    *("training/processes_test.py", "contracts/codecs_test.py", "compare/compare_test.py", "training/loop_test.py"),
    *("contracts/presets_test.py", "contracts/presets_traced_test.py", "families/finetune_test.py"),
    *("families/qwen3_tts_test.py", "families/qwen3_tts_training_test.py"),
    *("serialization/cost_test.py", "contracts/leak_test.py", "cli/cold_start_test.py"),
)


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


def pytest_collection_finish():
    """Modules and tests stay: the garbage collector need not look at them again and again while programs are traced."""
    gc.freeze()


@pytest.fixture(autouse=True)
def mesh():
    """A mesh of one of the eight devices, entered; tests of sharding enter their own inside it."""
    one = sharding.single_device_mesh()
    with jax.set_mesh(one):
        yield one
