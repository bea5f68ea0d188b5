"""What a person sees of an error: a sentence that names what was wrong and what would be accepted."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

# Errors of the operating system that are about what was asked for, not about this program.
ENVIRONMENT = {
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOENT ENOTDIR EISDIR ENOSPC EDQUOT EFBIG ENAMETOOLONG ELOOP EEXIST EIO".split()
    if hasattr(errno, name)
}


class InputError(ValueError):
    """Bad input (a file, key, flag or value). The command line prints the message and exits with code 2."""


def exit_code(main: Callable[[], int]) -> int:
    """What a script exits with: what `main` returns, or 2 after the sentence of an `InputError`."""
    try:
        return main()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def disk_sentence(where: Any, reason: str) -> str:
    """The sentence for a write that the operating system refused. where: the path, "" if it is not known."""
    at = f"{where}: " if where else ""
    return f"{at}{reason}; what was finished is kept: fix this and run the same command again"


def disk_error(error: BaseException) -> str | None:
    """The sentence for an error of the disk, however deep a library has wrapped it; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in ENVIRONMENT:
            return disk_sentence(cause.filename, cause.strerror)
        if reason := _disk_reason(str(cause)):
            return disk_sentence("", reason)
        cause = cause.__cause__ or cause.__context__
    return None


def _disk_reason(text: str) -> str | None:
    """Which of the operating system's words for a disk that takes no more a text holds."""
    reasons = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG))
    return next((reason for reason in reasons if reason.lower() in text.lower()), None)


def drop_checkpoint_logs(record: logging.LogRecord) -> bool:
    """A filter for the loggers of absl and asyncio: drops what orbax logs, and asyncio about a full disk.

    Both are raised as well, and end in one sentence. Seen without it when the disk was full while a checkpoint was
    written (orbax 0.12.8): 440 lines with 6 tracebacks before that sentence. orbax logs the error of every array and
    thread; asyncio logs every further write that failed when its future is collected.
    """
    error = str(record.exc_info[1]) if record.exc_info else ""
    return "orbax" not in record.pathname and not _disk_reason(f"{record.getMessage()} {error}")


def hide_closed_event_loop(unraisable: Any) -> None:
    """A `sys.unraisablehook` without the RuntimeError of an event loop that is closed.

    Seen without it when the disk was full while a checkpoint was written: the first write that fails is raised and
    closes the loop, and every further one, done by a thread of tensorstore, prints a traceback (10 of them).
    """
    if str(unraisable.exc_value) != "Event loop is closed":  # CPython's own text (asyncio/base_events.py)
        sys.__unraisablehook__(unraisable)
