"""Work shared by processes, also on several machines with one folder between them: each task is done by one at a time.

A claim is an exclusive `flock` on a file, which the kernel gives up when its process ends, however it ends: there are
no stale claims, and what a killed process had begun is taken over by the next one that asks. The file says who holds
it; it is never removed, since two processes could otherwise hold two files of one name. On NFS, Linux turns the lock
into one that the server keeps; a file system without locks raises OSError.

Tasks must be idempotent: every process goes through all of them, and finds those that another one did done before.
"""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE = 1.0  # seconds between two attempts to claim what others hold


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Holds the lock file `path` inside the block, if nobody else does; yields whether it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(file, 0)
        os.pwrite(file, f"{platform.node()} process {os.getpid()}\n".encode(), 0)
        yield True
        os.ftruncate(file, 0)
    finally:
        os.close(file)  # which gives up the lock


def holder(path: Path) -> str:
    """Who held `path` when it was last claimed: host and process; "nobody" after a claim that ended well."""
    return (path.read_text(encoding="utf-8").strip() if path.exists() else "") or "nobody"


def share(tasks: dict[str, Path], work: Callable[[str], None], pause: float = PAUSE) -> None:
    """Goes through all tasks (name -> lock file), the first ones first, whichever of them are free.

    Where all that are left are held by others, it says so in one line and waits for them to be done or given up.
    `work(name)` is called once for every task, while it is claimed; what it raises ends the sharing.
    """
    left, said = list(tasks), ""
    while left:
        for name in left:
            with claim(tasks[name]) as mine:
                if mine:
                    work(name)
                    left.remove(name)
                    break
        else:
            waiting = ", ".join(f"{name} ({holder(tasks[name])})" for name in left)
            if waiting != said:
                print(f"-- waiting for what others are doing: {waiting}", flush=True)
                said = waiting
            time.sleep(pause)
