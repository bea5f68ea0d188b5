"""The one error a person sees: a sentence that names what was wrong and what would be accepted."""


class InputError(ValueError):
    """Bad input (a file, key, flag or value). The command line prints the message and exits with code 2."""
