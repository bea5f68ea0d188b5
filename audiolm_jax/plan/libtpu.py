"""Loading libtpu, the compiler for TPUs, for chips that are not here, and by several processes at once."""

import contextlib
import os
from collections.abc import Iterator

from audiolm_jax import LIBTPU as ENVIRONMENT


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
