"""Tasks shared by processes, also across machines with a shared folder: one process at a time works on a task.

A lock is an exclusive `flock` on a file (library `filelock`), which the kernel releases when its process ends, however
it ends: no lock is ever stale, and another process takes over the task of one that was killed. The file names its
holder; it is never removed, since two processes could then lock two files of one name. On NFS, Linux turns the lock
into one that the server keeps; a file system without locks raises OSError.

Tasks must be idempotent: every process goes through all of them and skips finished work.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

PAUSE = 1.0  # seconds between two attempts to lock what others hold


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Holds the lock file `path` inside the block, if no other process does; yields whether it is held."""

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{platform.node()} process {os.getpid()}\n".encode(), 0)

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, on_acquired=sign, fallback_to_soft=False)
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(blocking=False)
    try:
        yield lock.is_locked
        if lock.is_locked:
            os.truncate(path, 0)
    finally:
        lock.release()


def holder(path: Path) -> str:
    """Host and process of the last holder of `path`; "nobody" after a block that ended without an error."""
    return (path.read_text(encoding="utf-8").strip() if path.exists() else "") or "nobody"


def share(tasks: dict[str, Path], work: Callable[[str], None], pause: float = PAUSE) -> None:
    """Goes through all tasks (name -> lock file), the first free one first.

    When other processes hold all remaining tasks, prints one line and waits until these are done or released.
    `work(name)` is called once for every task, while its lock is held; an exception of it ends the sharing.
    """
    remaining, printed = list(tasks), ""
    while remaining:
        for name in remaining:
            with claim(tasks[name]) as held:
                if held:
                    work(name)
                    remaining.remove(name)
                    break
        else:
            waiting = ", ".join(f"{name} ({holder(tasks[name])})" for name in remaining)
            if waiting != printed:
                print(f"-- waiting for other processes: {waiting}", flush=True)
                printed = waiting
            time.sleep(pause)
