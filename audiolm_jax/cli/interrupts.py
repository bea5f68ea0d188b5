"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the main thread is: within a callback of the garbage collector (jax has one) or
a destructor it is printed and dropped, and some packages drop it while they are imported. It is raised again until the
command has noticed.
"""

import _thread
import signal
import threading
from types import FrameType

AGAIN = 1.5  # seconds; closing files takes less

caught = threading.Event()
_watching = threading.Event()


def install() -> None:
    """For this process, unless it was started to ignore Ctrl-C. `caught.set()` ends the repetition."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _watching.is_set():
        _watching.set()
        threading.Thread(target=_again, daemon=True).start()
    signal.default_int_handler(number, frame)


def _again() -> None:
    while not caught.wait(AGAIN):
        _thread.interrupt_main()
