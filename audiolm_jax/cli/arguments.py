"""Arguments that several commands share: their flags, and the error for each file or folder that cannot be used."""

import argparse
import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiolm_jax import files
from audiolm_jax.config import check, load
from audiolm_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict


def local(text: str) -> Path:
    """The type of an argument: a path on this machine. Raises ArgumentTypeError for an address."""
    return _refused(files.local, text)


def anywhere(text: str) -> Path:
    """The type of an argument: a path on this machine, or an address that can be read. Raises ArgumentTypeError."""
    return _refused(files.place, text)


def _refused(make: Callable[[str], Path], text: str) -> Path:
    """What `make` makes of the text; its InputError as the one that argparse repeats."""
    try:
        return make(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_config(parser: argparse.ArgumentParser, default: str = "default") -> None:
    text = "a configuration: a .py file, or the name of one in configs/ (default: %(default)s)"
    parser.add_argument("--config", default=default, help=text)


def add_data(parser: argparse.ArgumentParser) -> None:
    text = "folder of the corpus and its tokens (default: WORKDIR/data)"
    parser.add_argument("--data", type=local, metavar="DIR", help=text)


def add_workdir(parser: argparse.ArgumentParser, text: str = "folder of a trained run") -> None:
    parser.add_argument("--workdir", type=anywhere, required=True, metavar="DIR", help=text)


def add_processes(parser: argparse.ArgumentParser) -> None:
    text = "join other processes: tpu, slurm or HOST:PORT,COUNT,ID (default: this process is the only one)"
    parser.add_argument("--processes", metavar="HOW", help=text)


def config(options: argparse.Namespace, only: Sequence[str] = ()) -> "ConfigDict":
    """The checked configuration. only: the sections that a command on a trained run accepts overrides of."""
    for override in options.overrides if only else ():
        if override.partition(".")[0] not in only:
            raise InputError(
                f"--config.{override}: a trained run keeps its configuration; {options.command} takes only keys of "
                f"{' and '.join(only)}"
            )
    values = load("default" if only else options.config, options.overrides)
    check(values)
    return values


def no_overrides(options: argparse.Namespace, reason: str) -> None:
    """Raises InputError for `--config.key=value` of a command that takes none."""
    if options.overrides:
        raise InputError(f"--config.{options.overrides[0]}: {reason}")


@contextlib.contextmanager
def processes(options: argparse.Namespace) -> Iterator[bool]:
    """Joins the processes of --processes for the block; yields whether this one is process 0."""
    if options.processes is None:
        yield True
        return
    from audiolm_jax.training import processes

    processes.start(options.processes)
    with processes.together("Diverged"):
        yield processes.primary()


def writable(directory: Path, flag: str) -> Path:
    """The folder, created if it is missing. Raises InputError if nothing can be written in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".write-{platform.node()}-{os.getpid()}"
        probe.write_bytes(b"?")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{flag}={directory}: cannot be written ({error.strerror or error}); give a folder that you may write to"
        ) from error
    return directory


def data_folder(options: argparse.Namespace) -> Path:
    """The folder of the data set. Raises InputError if it holds no tokens."""
    data = options.data or options.workdir / "data"
    if not (data / "tokens").is_dir():
        raise InputError(f"--data={data}: there are no tokens there; make them with: audiolm prepare --data {data}")
    return data


def trained_run(workdir: Path) -> Path:
    """The folder. Raises InputError if it holds no checkpoint."""
    if not (workdir / "checkpoints").is_dir():
        raise InputError(
            f"--workdir={workdir}: there is no trained run; make one with: audiolm train --workdir {workdir}"
        )
    return workdir


def recording(path: Path | None, sample_rate: int, channels: int, flag: str) -> "np.ndarray | None":
    """The audio file as `audiolm prepare` gives it to a codec of this rate in Hz: float32 [samples] or [2, samples]; or
    None. Raises InputError if it cannot be used."""
    if path is None:
        return None
    from audiolm_jax.data import corpora
    from audiolm_jax.data.corpora import folder

    try:
        # The limit of the model is checked later.
        config = corpora.CorpusConfig("folder", sample_rate=sample_rate, channels=channels, max_seconds=3600.0)
        return folder.load(str(path), config)[0]
    except corpora.Reject as reason:
        raise InputError(f"{flag}={path}: {reason}; give a wav, flac, ogg or mp3 recording") from None
