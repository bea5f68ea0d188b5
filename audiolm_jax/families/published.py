"""A published checkpoint, or a run that was imported from one, by the family that reads it (`FAMILIES`)."""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.families import FAMILIES
from audiolm_jax.hub import files as hub
from audiolm_jax.model import checkpoints
from audiolm_jax.model.spec import Source, Spec
from audiolm_jax.model.transformer import Transformer

WHAT = "a published model"  # begins a message


def module(name: str) -> ModuleType:
    """The file of a family. Raises InputError for one that this version lacks."""
    if name not in FAMILIES:
        raise InputError(f"the model is of the family {name!r}, which this version lacks; it has {', '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[name])


def is_published(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint in the Hugging Face layout."""
    return (folder / hub.CONFIG).is_file() and not (folder / checkpoints.FOLDER).is_dir()


def _of_checkpoint(folder: Path) -> tuple[str, dict]:
    """(the name of the family that reads a folder, its config.json). Raises InputError if none does."""
    kinds = {kind: name for name in FAMILIES for kind in module(name).TYPES}
    config = hub.read_config(folder / hub.CONFIG, kinds, WHAT)
    return kinds[config["model_type"]], config


def read(source: str | Path, dtype: str = "auto") -> Any:
    """The published model of a folder, or of a repository owner/name or owner/name@revision.

    dtype: as `model.dtype`. Raises one InputError that names everything missing, unexpected or of a wrong shape.
    """
    of_checkpoint = functools.cache(_of_checkpoint)  # of a repository it is asked twice

    def needed(folder: Path) -> tuple[Sequence[str], dict]:
        name, config = of_checkpoint(folder)
        return module(name).FILES, config

    folder, repository = hub.folder(source, WHAT, needed)
    name, config = of_checkpoint(folder)
    with files.reading(folder, f"a model of the family {name!r}", WHAT):
        published = module(name).read(folder, dtype, config)
    return dataclasses.replace(published, spec=dataclasses.replace(published.spec, source=Source(name, repository)))


def import_run(source: str | Path, workdir: str | Path) -> str:
    """A published model as the workdir of a run; returns what was imported, of a repository its commit.

    Everything is read before anything is written, and WORKDIR is there whole or not at all. Raises InputError if there
    is a run already.
    """
    workdir = Path(workdir)
    if (workdir / checkpoints.FOLDER).is_dir():
        raise InputError(f"{workdir}: there is a run already; give another folder")
    published = read(source)
    with files.writing(workdir), files.building(workdir) as temporary:
        module(published.spec.source.family).save(temporary, published)
    return published.spec.source.repository or str(source)


def of_run(workdir: Path, model: Transformer, spec: Spec) -> Any:
    """The published model of a run that began with `import_run`. Raises InputError for another codec than its own."""
    return module(spec.source.family).of_run(workdir if workdir.is_dir() else workdir.parent, model, spec)


def export_run(workdir: str | Path, folder: str | Path, step: int | None = None) -> None:
    """The weights of such a run in the layout that they were published in. Raises InputError for any other run."""
    model, spec = checkpoints.restore_params(workdir, step)
    if not spec.source.family:
        raise InputError(f"{workdir}: was not imported from a published checkpoint; give a name ending in .safetensors")
    module(spec.source.family).write(folder, of_run(Path(workdir), model, spec))
