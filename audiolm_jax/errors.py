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


def of_the_disk(error: BaseException) -> str | None:
    """The sentence for an error of the disk, however deep a library has wrapped it; None for any other error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in ENVIRONMENT:
            where = f"{seen.filename}: " if seen.filename else ""
            return f"{where}{seen.strerror}; what was finished is kept: mend this and run the same command again"
        for known in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            if os.strerror(known).lower() in str(seen).lower():
                return f"{os.strerror(known)}; what was finished is kept: mend this and run the same command again"
        seen = seen.__cause__ or seen.__context__
    return None


def not_orbax(record: logging.LogRecord) -> bool:
    """What orbax logs about an error that it raises, or has raised, would be a traceback beside the one sentence.

    asyncio logs of every further write that failed when its future is collected, whenever that is: by a path of
    orbax's source for a task, by that of the file it wrote (`*.orbax-checkpoint-tmp`) for a plain future.
    """
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()


def not_after_the_first(unraisable: Any) -> None:
    """One failed write of a checkpoint is raised, and told; its threads would print a traceback for each other one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
