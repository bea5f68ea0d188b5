"""Files that are there whole or not at all: written under a temporary name beside the final one, then renamed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def place(address: str | Path) -> Path:
    """A path on this machine, or one behind an address such as gs://bucket/run (etils.epath, through fsspec or
    tensorflow), which behaves like it as far as an object store can: nothing is appended, nothing renamed."""
    text = os.fspath(address)
    if not remote(text):
        return Path(text)
    from etils import epath

    return epath.Path(text)


def remote(path: str | Path) -> bool:
    return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the temporary name to write to; it becomes `path` at the end, and is gone if the block raises.

    The name ends in .tmp, is this process's own and lies in the folder of `path`, which must exist: a rename is
    atomic within one file system only. What a kill leaves behind is such a .tmp file.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """A UTF-8 file, and the folders above it; an object of an object store is there whole or not at all anyway."""
    path = place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if remote(path):
        path.write_text(text)
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 2, **options: Any) -> None:
    """A JSON file that ends in a newline, and the folders above it. options: those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n")
