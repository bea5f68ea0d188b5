"""`audiolm config`."""

import argparse
import difflib
import inspect
import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax.cli import arguments
from audiolm_jax.config import SECTIONS, Key, accepts, keys, keys_of
from audiolm_jax.errors import InputError

HELP = """
Every key with its value, its meaning and, in brackets, what it takes. A star marks what differs from the defaults.

examples:
  audiolm config
  # what a configuration and overrides change
  audiolm config --config demo --config.model.layers=6
  # some sections alone
  audiolm config model training
"""

WIDTH, COLUMN = 100, 32


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_config(parser)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="print these sections alone")


def run(options: argparse.Namespace) -> None:
    """Raises InputError for a section, a key or a value that is not accepted."""
    names = [name for name in SECTIONS if name]
    for name in options.sections:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
            raise InputError(f"SECTION={name} must be one of {', '.join(names)}; did you mean {near}?")
    config = arguments.config(options)
    print(*lines(config, options.sections or list(SECTIONS)), sep="\n")


def lines(config: ConfigDict, sections: list[str]) -> Iterator[str]:
    """The keys of `sections` in lines of at most 100 columns, then what differs from the defaults in all sections."""
    changed = []
    for name in SECTIONS:
        section, printed = accepts(name), name in sections
        if printed and name:
            heading = f"{name}: {inspect.getdoc(section).splitlines()[0]}"
            yield from ["", *textwrap.wrap(heading, WIDTH, subsequent_indent="  ")]
        for attribute, key in keys_of(section, name).items():
            value = (config[name] if name else config)[attribute]
            value = value.to_dict() if isinstance(value, ConfigDict) else value
            if value != key.default:
                changed.append(f"  {shlex.quote(f'--config.{key.path}={argument_text(value)}')}")
            if printed:
                yield from key_lines(attribute, key, value)
    total = len(keys())
    differing = f"{len(changed)} of {total} keys differ from the defaults (*):"
    yield from ["", differing if changed else f"All {total} keys have their defaults."]
    yield from changed


def key_lines(attribute: str, key: Key, value: Any) -> Iterator[str]:
    """A key: its value on the left; its meaning, what it takes and the default, if another, on the right."""
    accepted = key.range
    if all(name in key.meaning for name in key.among):
        accepted = accepted.removeprefix(", ".join(key.among)).removeprefix(", ")
    notes = [f"[{accepted}]"] if accepted else []
    notes += [] if value == key.default else [f"(default: {argument_text(key.default)})"]
    unbroken = [note if key.among else note.replace(" ", "\N{NO-BREAK SPACE}") for note in notes]
    right = textwrap.wrap(" ".join([key.meaning, *unbroken]), WIDTH - COLUMN, break_on_hyphens=False)
    left = f"{'*' if value != key.default else ' '} {attribute} = {argument_text(value)}"
    right = [line.replace("\N{NO-BREAK SPACE}", " ") for line in right]
    for number, line in enumerate(right if len(left) < COLUMN else ["", *right]):
        yield f"{'' if number else left:{COLUMN}}{line}".rstrip()


def argument_text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple) and value:
        return ",".join(map(argument_text, value))
    return str(value) if value != "" else '""'
