"""Published models in the Hugging Face layout, `config.json` beside `model.safetensors`, without torch.

`read` opens a codec: a folder, a safetensors file with its config.json beside it, or a repository
`owner/name@revision`, which `huggingface_hub` downloads once and caches. `folder` and `read_folder` open a language
model or an encoder, whose weights may be several safetensors files with an index. A model without a revision is taken
at @main, and the commit is logged. A codec needs its revision: tokens are read with it long after they were written.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from audiolm_jax import files
from audiolm_jax.config import keys_of
from audiolm_jax.errors import InputError, shortened
from audiolm_jax.hub.weights import Weights

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MOST = {"sampling_rate": 2**20, "sliding_window": 2**16}  # what no weights bound is less; other sizes than 2**31
REPOSITORY = r"[\w.-]+/[\w.-]+(@[\w.-]+)?"


def read(source: str | Path | None, kind: str, known: Iterable[str]) -> tuple[dict, Weights]:
    """(config, weights) of a codec: a folder, a safetensors file with its config.json beside it, or a repository.

    Raises InputError unless its config.json has "model_type": kind. known: repositories of that kind; the message for
    no source names the first.
    """
    what = "codec.path"
    if source is None:
        raise InputError(
            f"{what}: the codec {kind!r} ships with no weights; give a folder with {CONFIG} and {WEIGHTS}, or a "
            f"repository such as {next(iter(known))}@main"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        config, weights = path / CONFIG, path / WEIGHTS
    elif path.is_file() or path.suffix:
        config, weights = path.parent / CONFIG, path
    elif re.fullmatch(REPOSITORY, str(source)):
        config, weights = _download(str(source), (CONFIG, WEIGHTS), what)
    else:
        raise InputError(f"{what}: {source} is no folder, no safetensors file and no repository owner/name@revision")
    if weights.is_file() and weights.suffix != ".safetensors":
        raise InputError(f"{what}: {weights} is not a safetensors file; weights are never read from other formats")
    for file in (weights, config):
        if not file.is_file():
            raise InputError(f"{what}: {file} does not exist{_hint(file.parent)}; a codec is {CONFIG} beside {WEIGHTS}")
    return read_config(config, (kind,), what), Weights(weights, files.read_safetensors(weights, what)[0], what)


def read_config(path: Path, kinds: Collection[str], what: str) -> dict:
    """The fields of a config.json. Raises InputError unless its "model_type" is among `kinds`."""
    if not path.is_file():
        raise InputError(f"{what}: {path} does not exist; a model is {CONFIG} beside {WEIGHTS}")
    fields = files.read_json(path, what)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        needed = " or ".join(map(repr, kinds))
        raise InputError(f"{what}: {path} describes a model of type {kind!r}; {needed} is needed")
    return fields


def _hint(folder: Path) -> str:
    """A hint for a folder that holds a pickle instead of safetensors, or ""."""
    pickles = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLES]
    return f" ({pickles[0]} is a pickle, which is never read; convert it to safetensors)" if pickles else ""


def is_repository(source: str | Path) -> bool:
    """Whether a source is a repository: owner/name@revision, or owner/name if there is no local folder `owner`."""
    path, text = Path(source).expanduser(), str(source)
    if path.exists() or not re.fullmatch(REPOSITORY, text):
        return False
    return "@" in text or not path.parent.exists()


def folder(source: str | Path, what: str, needed: Callable[[Path], tuple[Sequence[str], dict]]) -> tuple[Path, str]:
    """(the folder of a source, "" or owner/name@commit of a repository).

    A repository is downloaded at the commit of its revision (or of main): config.json, all weights, and other files.
    needed: the folder with config.json -> (the names of those, the fields of config.json). what: the key, flag or
    argument that named the source; messages begin with it. Raises InputError.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path, ""
    if not is_repository(source):
        raise InputError(f"{what}: there is no folder {source}; give one, or a repository owner/name@revision")
    name, _, revision = str(source).partition("@")
    try:
        [config] = _download(f"{name}@{revision or 'main'}", (CONFIG,), what)
    except InputError as error:
        raise error if revision else InputError(f"there is no folder {source}, and as a repository: {error}") from None
    commit = f"{name}@{config.parent.name}"  # the library's cache has a folder per commit
    if not revision:
        logging.warning("%s: using its latest commit; %s names the same weights forever", source, commit)
    names, fields = needed(config.parent)
    _download(commit, names, what)
    weights, index = weight_files(fields, what)
    try:
        _download(commit, (weights,) if weights else (), what, absent=FileNotFoundError)
    except FileNotFoundError:
        weights = ""
    if not weights:
        [path] = _download(commit, (index,), what)
        _download(commit, shards(path, what), what)
    return config.parent, commit


def weight_files(fields: dict, what: str) -> tuple[str, str]:
    """(the file of weights, the index of several) of a config.json. Where that names one itself, as `transformers` has
    it beside weights of another layout, the other is "". Raises InputError for a name outside of the folder."""
    name = fields.get("transformers_weights")
    if name is None:
        return WEIGHTS, INDEX
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or not name.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise InputError(
            f"{what}: {CONFIG} has transformers_weights={shortened(repr(name), 40)}; a file beside it is "
            "needed, *.safetensors or *.safetensors.index.json"
        )
    return (name, "") if name.endswith(".safetensors") else ("", name)


def shards(index: Path, what: str) -> tuple[str, ...]:
    """The names of the files of weights that an index lists. Raises InputError if it cannot be read."""
    with files.reading(index, "an index of weights", what):
        names = sorted(set(files.read_json(index, what)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:
            raise ValueError(f"it names {outside[0]!r}, which is no safetensors file beside it")
    return tuple(names)


def read_folder(directory: Path, kinds: Collection[str], what: str, config: dict | None = None) -> tuple[dict, Weights]:
    """(config, weights) of a folder; config: if it was read already. Raises InputError unless its config.json has a
    "model_type" among `kinds`."""
    fields = config or read_config(directory / CONFIG, kinds, what)
    name, many = weight_files(fields, what)
    weights, index = directory / name, directory / many
    if weights.is_file() or not index.is_file():
        names, path = (name or many,), directory / (name or many)
    else:
        names, path = shards(index, what), index
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{what}: {directory} lacks {', '.join(missing)}{_hint(directory)}; {CONFIG} is there")
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        tensors |= files.read_safetensors(directory / name, what)[0]
    return fields, Weights(path, tensors, what)


def _download(source: str, names: tuple[str, ...], what: str, absent: type | None = None) -> list[Path]:
    """Paths of downloaded files. absent: the exception for a file that the repository lacks (None: InputError)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    if not revision:
        raise InputError(
            f"{what}: {source} names no revision, so its weights may change; write {name}@COMMIT, with the "
            f"commit from the repository's history (or @main to take the latest)"
        )
    paths = []
    for file in names:
        try:
            paths.append(Path(hf_hub_download(name, file, revision=revision)))
        except Exception as error:  # the library raises errors of several HTTP clients
            lacks = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            if absent and lacks:
                raise absent(file) from None
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{what}: {file} of {source} could not be downloaded ({reason}); without a network, put {CONFIG}, "
                f"{WEIGHTS} and whatever else that repository has beside them into a folder and give the folder"
            ) from None
    return paths


def config_of(fields: dict, config_class: type, what: str = "codec.path") -> Any:
    """A dataclass from its fields in a published config.json. Raises InputError for values that it refuses."""
    known = keys_of(config_class, "")
    given = {name: value for name, value in fields.items() if name in known and value is not None}
    try:
        for name, value in given.items():
            if isinstance(known[name].default, tuple) and not isinstance(value, list | tuple):
                raise InputError(f"{name}={shortened(repr(value), 40)} must be a list")
        values = {name: known[name].check(value) for name, value in given.items()}
        for name, value in values.items():
            least, most = 0 if name.endswith("layers") else 1, MOST.get(name, 2**31)
            for item in value if isinstance(value, tuple) else (value,):
                if type(item) is int and not least <= item < most:
                    raise InputError(f"{name}={shortened(repr(value), 40)} must be from {least} to {most - 1}")
        return config_class(**values)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{what}: {CONFIG} holds values that this package cannot use ({error})") from None


def part(fields: dict, name: str, what: str) -> dict:
    """The object `name` in a config.json, empty if it is absent. Raises InputError for any other value."""
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{what}: {CONFIG} has {name}={shortened(repr(value), 40)}; an object is needed")
    return value


def write(directory: str | Path, config: dict, tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors so that `transformers` opens them."""
    files.write_json(Path(directory) / CONFIG, config)  # makes the folder
    files.write_safetensors(Path(directory) / WEIGHTS, tensors, {"format": "pt"})
