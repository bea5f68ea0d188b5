"""Work in a thread: XLA compiles without Python's lock."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any


def in_background(work: Callable[[], Any]) -> Callable[[], None]:
    """Runs `work`, which compiles, in a thread. Returns the function that waits for it.

    Its errors are dropped: the caller does the same again, and raises them.
    """

    def quiet() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=quiet)  # no daemon: XLA would crash if the process ended under it
    thread.start()
    return thread.join
