"""Files: atomic writes (to a temporary name, then renamed), safetensors, digests, and object stores.

The package reads and writes safetensors, hashes configurations and words a full disk here and nowhere else.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_jax.errors import InputError, disk_sentence


def place(address: str | Path) -> Path:
    """A path on this machine, or one behind an address such as gs://bucket/run (etils.epath, through fsspec or
    tensorflow), with the same methods but for appending and renaming, which object stores lack."""
    text = os.fspath(address)
    if not remote(text):
        return Path(text)
    from etils import epath

    return epath.Path(text)


def remote(path: str | Path) -> bool:
    return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it is renamed to `path` at the end, and removed if the block raises.

    It ends in .tmp, holds the process id and lies in the folder of `path`, which must exist: a rename is atomic within
    one file system only. A killed process leaves its .tmp file behind.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file, and the folders above it, atomically (object stores write objects atomically anyway)."""
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


@contextlib.contextmanager
def writing(where: Any, *also: type[Exception]) -> Iterator[None]:
    """Turns an OSError, or one of `also`, into an InputError of one sentence: the disk is full, not writable, ..."""
    try:
        yield
    except (OSError, *also) as error:
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise InputError(disk_sentence(where, f"cannot be written ({reason})")) from error


def read_safetensors(path: str | Path, what: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """(numpy arrays by name, in the order of the names; the metadata of the header) of a safetensors file.

    what: the key, flag or argument that named the file; the message begins with it. Raises InputError.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(
            f"{what and f'{what}: '}{path} cannot be read as safetensors ({error}); it may be truncated, or of another "
            "format"
        ) from None


def write_safetensors(path: str | Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Writes numpy arrays by name, into a folder that exists."""
    import numpy as np
    from safetensors.numpy import save

    content = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(content)  # not `save_file`: it hides the errors of the operating system


def digest(config: Any, tensors: Mapping[str, Any] | None = None) -> str:
    """Sha256 (hex) of JSON values and of the bytes of numpy arrays by name, whatever the order of keys and names."""
    import numpy as np

    hashed = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        hashed.update(name.encode() + np.asarray(tensor).tobytes())
    return hashed.hexdigest()
