"""Files: atomic writes (to a temporary name, then renamed), what libraries read, safetensors, digests, object stores.

The package reads JSON and safetensors, hashes configurations and words a full disk here and nowhere else.
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_jax.errors import InputError, disk_sentence, shortened

NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
REASON = 200  # characters of a library's message that are repeated
REAL = ("F16", "BF16", "F32", "F64")  # types of safetensors that are weights
NUMPY = (*REAL, "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # those that numpy has, or ml_dtypes


def place(address: str | Path) -> Path:
    """A path on this machine, or one behind an address such as gs://bucket/run (etils.epath, through fsspec or
    tensorflow), with the same methods but for appending and renaming, which object stores lack.

    Raises InputError for an address that nothing here can read.
    """
    text = os.fspath(address)
    if not remote(text):
        return Path(text)
    import fsspec
    from etils import epath

    scheme = text.partition("://")[0]
    try:
        path = epath.Path(text)
        if not importlib.util.find_spec("tensorflow"):
            fsspec.get_filesystem_class(scheme)
    except KeyError:
        raise InputError(f"{text}: addresses of {scheme}:// are not read; give gs://, s3:// or a folder") from None
    except (ImportError, ValueError) as error:
        extra = ": pip install 'audiolm-jax[gcs]'" if scheme == "gs" else ""
        raise InputError(f"{text}: what reads addresses of {scheme}:// is not installed ({error}){extra}") from None
    return path


def local(address: str | Path, what: str = "") -> Path:
    """A path on this machine. what: the key that named it. Raises InputError for an address."""
    if remote(address):
        raise InputError(
            f"{what and f'{what}: '}{address} is an address, and a path on this machine is needed: mount the bucket "
            "(gcsfuse), or copy it here"
        )
    return Path(address)


def remote(path: str | Path) -> bool:
    return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it is renamed to `path` at the end, and removed if the block raises.

    The file is there already, empty; its name is random and was free (a link planted in its place is never followed),
    ends in .tmp and lies in the folder of `path`, which must exist: a rename is atomic within one file system only.
    What was written is on the disk (fsync) before the rename, which is on the disk when this returns. A killed process
    leaves its .tmp file behind.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name[:60]}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def building(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder, whose entries are in `folder` at the end; if the block raises, nothing is left.

    Raises InputError if an entry is there already.
    """
    folder = Path(folder).absolute()
    fresh = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = (folder.parent if fresh else folder) / f"{folder.name[:60]}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        if fresh:
            os.rename(temporary, folder)
            return
        entries = sorted(temporary.iterdir())
        taken = [entry.name for entry in entries if (folder / entry.name).exists()]
        if taken:
            raise InputError(f"{folder}: holds {', '.join(taken)} already; give another folder")
        for entry in entries:
            os.rename(entry, folder / entry.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    """fsync of a file or a folder, on file systems that have it."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(opened)


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


@contextlib.contextmanager
def reading(
    path: Any, form: str, what: str = "", remedy: str = "it may be truncated, or of another format"
) -> Iterator[None]:
    """Turns whatever a library raises when it reads a user's file into an InputError of one sentence with its name.

    form: what the file should be, such as "JSON". what: the key, flag or argument that named it; the message begins
    with it. remedy: ends the sentence. An InputError of the block passes through.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # Panics of libraries in Rust are no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        name = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, KeyError):
            reason = f"{error} is missing"
        else:
            reason = shortened(" ".join(str(error).split()), REASON) or name
        raise InputError(f"{what and f'{what}: '}{path} cannot be read as {form} ({reason}); {remedy}") from error


def parse_json(text: str | bytes, where: Any, what: str = "", **options: Any) -> dict[str, Any]:
    """The object that a JSON text holds. where: the file, for the InputError about anything else."""
    with reading(where, "JSON", what, "it may be damaged, or of a newer version"):
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8"), **options)
        if not isinstance(value, dict):
            raise TypeError(f"it holds {shortened(repr(value), 40)} where an object is needed")
    return value


def read_json(path: str | Path, what: str = "") -> dict[str, Any]:
    """The object in a JSON file. what: as of `reading`. Raises InputError if there is no such file or object."""
    with reading(path, "JSON", what, "it may be missing, or not readable"):
        text = place(path).read_bytes()
    return parse_json(text, path, what)


def not_newer(values: Mapping[str, Any], where: Any, format: int) -> None:
    """Raises InputError if the "format" of what a file describes (absent: 1) is not one from 1 to `format`."""
    number = values.get("format", 1)
    if number not in range(1, format + 1):
        raise InputError(
            f"{where}: is of format {shortened(repr(number), 40)}, which a newer version of audiolm_jax wrote; this "
            f"one reads up to {format}, so upgrade it"
        )


def read_safetensors(path: str | Path, what: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """(numpy arrays by name, in the order of the names; the metadata of the header) of a safetensors file.

    what: the key, flag or argument that named the file; the message begins with it. Raises InputError, also for types
    that numpy lacks (float8, 4 bits), naming a tensor.
    """
    from safetensors import safe_open

    with reading(path, "safetensors", what), safe_open(path, framework="numpy") as file:
        names = sorted(file.keys())
        types = {name: file.get_slice(name).get_dtype() for name in names}
        other = [name for name in names if types[name] not in NUMPY]
        if other:
            raise InputError(
                f"{what and f'{what}: '}{path}: {other[0]} is of type {types[other[0]]}"
                f"{f', and so are {len(other) - 1} more' if other[1:] else ''}; quantised weights are not read, give "
                f"them as {', '.join(REAL)}"
            )
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file. Raises InputError."""
    from safetensors import safe_open

    with reading(path, "safetensors"), safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


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
