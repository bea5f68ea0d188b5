"""Errors that the user can fix, and their messages: one sentence that names what is wrong and what is accepted."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

LISTED = 6  # things of a kind that a message names

OPEN_FILES = (errno.EMFILE, errno.ENFILE)
# Errors of the operating system that the user can fix: permissions, space, paths, limits.
ENVIRONMENT = {
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOENT ENOTDIR EISDIR ENOSPC EDQUOT EFBIG ENAMETOOLONG ELOOP EEXIST EIO".split()
    if hasattr(errno, name)
}.union(OPEN_FILES)
REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, *OPEN_FILES)  # found in the text of any error

LONGEST = 2000  # characters of a message


class InputError(ValueError):
    """Bad input (a file, key, flag or value). The command line prints the message and exits with code 2.

    A message of more than LONGEST characters (a long value, a hundred names) loses its middle.
    """

    def __init__(self, message: str = ""):
        super().__init__(shortened(message, LONGEST))


def listed(problems: Sequence[str], most: int = LISTED) -> str:
    """The first few of some problems, and how many more there are."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def shortened(text: str, longest: int) -> str:
    """The text, or its first three quarters and its end with the number of characters between them."""
    if len(text) <= longest:
        return text
    head = 3 * longest // 4
    tail = longest - head
    return f"{text[:head]} ... ({len(text) - longest} characters left out) ... {text[-tail:]}"


def exit_code(main: Callable[[], int]) -> int:
    """The exit code of a script: what `main` returns, or 2 after printing an `InputError`."""
    try:
        return main()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def disk_sentence(where: Any, reason: str) -> str:
    """The message for a write that the operating system refused. where: the path, "" if it is not known."""
    at = f"{where}: " if where else ""
    return f"{at}{reason}; what was finished is kept: fix this and run the same command again"


def disk_error(error: BaseException) -> str | None:
    """The message for a disk error anywhere in the chain of causes of `error`; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in ENVIRONMENT:
            return disk_sentence(cause.filename, cause.strerror)
        if reason := _disk_reason(str(cause)):
            return disk_sentence("", reason)
        cause = cause.__cause__ or cause.__context__
    return None


def _disk_reason(text: str, numbers: Sequence[int] = REASONS) -> str | None:
    """The operating system's message for a full or read-only disk, or too many open files, in `text`, if any."""
    reasons = map(os.strerror, numbers)
    return next((reason for reason in reasons if reason.lower() in text.lower()), None)


def open_files(text: str) -> str | None:
    """The message for a `text` that says that too many files are open, whatever wrote it; None for another one."""
    if not _disk_reason(text, OPEN_FILES):
        return None
    try:
        import resource

        limit = f"this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (ulimit -n)"
    except ImportError:  # Windows
        limit = "the limit of the system is reached"
    return (
        f"too many files are open: {limit}; what was finished is kept: raise the limit (ulimit -n 4096) and run the "
        "same command again"
    )


def drop_checkpoint_logs(record: logging.LogRecord) -> bool:
    """A filter for the loggers of absl and asyncio: drops the logs of orbax, and those of asyncio about a full disk.

    The first such error is raised as well and ends in one sentence. Without the filter a disk that was full while a
    checkpoint was written (orbax 0.12.8) gave 440 lines with 6 tracebacks before it: orbax logs the error of every
    array and thread; asyncio logs every further write that failed when its future is collected.
    """
    error = str(record.exc_info[1]) if record.exc_info else ""
    return "orbax" not in record.pathname and not _disk_reason(f"{record.getMessage()} {error}")


def unraisable(unraisable: Any) -> None:
    """A `sys.unraisablehook` that drops an interrupt, which is raised again (cli/interrupts.py), the RuntimeError of a
    closed event loop, and the AttributeError of one that could not open its sockets (too many open files).

    When the disk is full while a checkpoint is written, the first failed write is raised and closes the loop. Every
    further one, by a thread of tensorstore, would print a traceback (10 of them).
    """
    # CPython's own words (asyncio/base_events.py, asyncio/selector_events.py)
    words = ("Event loop is closed", "'_UnixSelectorEventLoop' object has no attribute")
    if not str(unraisable.exc_value).startswith(words) and unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
