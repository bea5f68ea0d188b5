"""Loading libtpu, the compiler for TPUs, without a TPU: without messages, and by several processes at once.

jax loads libtpu whenever it is installed; it then looks for a metadata server and prints that there is none.
"""

import contextlib
import glob
import os
from collections.abc import Iterator

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")  # the device files of a TPU


def quiet_without_chips() -> None:
    """Before jax starts: no messages about a missing TPU on a machine without one."""
    if not any(glob.glob(pattern) for pattern in CHIPS):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def quiet(accelerator_type: str) -> Iterator[None]:
    """A block that loads libtpu for chips of this type, on any machine."""
    wanted = ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": accelerator_type}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
