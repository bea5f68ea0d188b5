"""The one error a person sees: a sentence that names what was wrong and what would be accepted."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input (a file, key, flag or value). The command line prints the message and exits with code 2."""


def exit_code(main: Callable[[], int]) -> int:
    """What a script exits with: what `main` returns, or 2 after the sentence of an `InputError`."""
    try:
        return main()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
