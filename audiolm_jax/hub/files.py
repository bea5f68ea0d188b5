"""Published models in the Hugging Face layout, `config.json` beside `model.safetensors`, without torch.

A source is a folder, a safetensors file with its config.json beside it, or a repository `owner/name@revision`, which
`huggingface_hub` downloads once and keeps in its cache. Large models are several safetensors files and an index. What
is a whole model by itself may be named without a revision: that is @main, and the commit is told; a codec may not, as
what it is trained with must be the same in a year.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from audiolm_jax import files
from audiolm_jax.errors import InputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
REPOSITORY = r"[\w.-]+/[\w.-]+(@[\w.-]+)?"
LISTED = 12  # problems of a file that a message names


def locate(source: str | Path) -> tuple[Path, Path]:
    """(config.json, weights) of a source. Raises InputError saying which file is missing and where it should be."""
    path = Path(source).expanduser()
    if path.is_dir():
        config, weights = path / CONFIG, path / WEIGHTS
    elif path.is_file() or path.suffix:
        config, weights = path.parent / CONFIG, path
    elif re.fullmatch(REPOSITORY, str(source)):
        config, weights = _download(str(source), (CONFIG, WEIGHTS), "codec.path")
        return config, weights
    else:
        raise InputError(
            f"codec.path: {source} is no folder, no safetensors file and no repository owner/name@revision"
        )
    if weights.is_file() and weights.suffix != ".safetensors":
        raise InputError(f"codec.path: {weights} is not a safetensors file; weights are never read from other formats")
    for file in (weights, config):
        if not file.is_file():
            raise InputError(
                f"codec.path: {file} does not exist{_hint(file.parent)}; a codec is {CONFIG} beside {WEIGHTS}"
            )
    return config, weights


def _hint(folder: Path) -> str:
    """What to say of a folder without weights that holds a pickle."""
    others = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLES]
    return f" ({others[0]} is a pickle, which is never read; convert it to safetensors)" if others else ""


def is_repository(source: str | Path) -> bool:
    """Whether a source is no path here but names a repository: owner/name@revision, or owner/name if no folder `owner`
    is here, in which `name` would be missing."""
    path, text = Path(source).expanduser(), str(source)
    if path.exists() or not re.fullmatch(REPOSITORY, text):
        return False
    return "@" in text or not path.parent.exists()


def folder(source: str | Path, what: str, needed: tuple[str, ...] = ()) -> tuple[Path, str]:
    """(the folder of a source whose weights may be several files, owner/name@commit of a repository or "").

    Of a repository it is downloaded, with the files `needed`, all of the commit that its revision (or main) is at.
    what: begins a message. Raises InputError for what is neither a folder nor a repository, or cannot be downloaded.
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
    commit = f"{name}@{config.parent.name}"  # where the library keeps a file says of which commit it is
    if not revision:
        logging.warning("%s: taken at its latest commit; %s will stay the same", source, commit)
    _download(commit, needed, what)
    try:
        _download(commit, (WEIGHTS,), what, absent=FileNotFoundError)
    except FileNotFoundError:
        [index] = _download(commit, (INDEX,), what)
        _download(commit, shards(index, what), what)
    return config.parent, commit


def shards(index: Path, what: str) -> tuple[str, ...]:
    """The names of the files that an index lists. Raises InputError if it is none."""
    try:
        return tuple(sorted(set(json.loads(index.read_text())["weight_map"].values())))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{what}: {index} cannot be read as an index of weights ({error!r})") from None


def read_folder(directory: Path, kinds: tuple[str, ...], what: str) -> tuple[dict, "Weights"]:
    """(config, weights) of a folder. Raises InputError unless its config.json has a "model_type" among `kinds`."""
    config, weights, index = (directory / name for name in (CONFIG, WEIGHTS, INDEX))
    if not config.is_file():
        raise InputError(f"{what}: {config} does not exist; a model is {CONFIG} beside {WEIGHTS}")
    given = _json(config, what)
    found = given.get("model_type") if isinstance(given, dict) else None
    if found not in kinds:
        raise InputError(f"{what}: {config} describes a model of type {found!r}; {' or '.join(kinds)} is needed")
    if weights.is_file() or not index.is_file():
        names, path = (WEIGHTS,), weights
    else:
        names, path = shards(index, what), index
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{what}: {directory} lacks {', '.join(missing)}{_hint(directory)}; {CONFIG} is there")
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        tensors |= _tensors(directory / name, what)
    return given, Weights(path, tensors, what)


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {path} cannot be read as JSON ({error})") from None


def _tensors(path: Path, what: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(
            f"{what}: {path} cannot be read as safetensors ({error}); it may be truncated, or another format under "
            f"that name"
        ) from None


def _download(source: str, names: tuple[str, ...], what: str, absent: type | None = None) -> list[Path]:
    """Paths of files of a repository. absent: what to raise for one that the repository lacks, if not InputError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    if not revision:
        raise InputError(
            f"{what}: {source} names no revision, so what it means may change; write {name}@COMMIT, with the "
            f"commit from the repository's history (or @main to take the latest)"
        )
    found = []
    for file in names:
        try:
            found.append(Path(hf_hub_download(name, file, revision=revision)))
        except Exception as error:  # the library raises errors of several HTTP clients
            lacks = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            if absent and lacks:
                raise absent(file) from None
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"{what}: {file} of {source} could not be downloaded ({said}); without a network, put {CONFIG}, "
                f"{WEIGHTS} and whatever else that repository has beside them into a folder and give the folder"
            ) from None
    return found


def read(source: str | Path | None, kind: str, example: str) -> tuple[dict, "Weights"]:
    """(config, weights) of a source. Raises InputError unless its config.json has "model_type": kind.

    example: a repository of that kind, to name where no source is given.
    """
    if source is None:
        raise InputError(
            f"codec.path: the codec {kind!r} ships with no weights; give a folder with {CONFIG} and {WEIGHTS}, or a "
            f"repository such as {example}@main"
        )
    config_path, weights_path = locate(source)
    config = _json(config_path, "codec.path")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != kind:
        raise InputError(f"codec.path: {config_path} describes a model of type {found!r}; {kind!r} is needed")
    return config, Weights(weights_path, _tensors(weights_path, "codec.path"))


def config_of(given: dict, config_class: type, where: Any = "config.json", what: str = "codec.path") -> Any:
    """The fields of a published config that a codec reads. Raises InputError for values that it does not accept."""
    names = config_class.__dataclass_fields__
    try:
        return config_class(**{k: v for k, v in given.items() if k in names and v is not None})
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {where} holds values that this package cannot use ({error})") from None


class Weights:
    """The tensors of a file, given out by name. Everything wrong with them is collected and told at once."""

    def __init__(self, path: Path, tensors: dict[str, np.ndarray], what: str = "codec.path"):
        """what: the key, flag or argument that named the file, with which a message begins."""
        self.path, self.tensors, self.what = path, fold(tensors), what
        self.problems: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor, or zeros of that shape if it is not what it should be, which `finish` will say."""
        found = self.tensors.pop(name, None)
        if found is None:
            self.problems.append(f"{name} is missing")
        elif found.shape != shape:
            self.problems.append(f"{name} is {found.shape} where {shape} is needed")
        elif not np.isfinite(found).all():
            self.problems.append(f"{name} holds NaN or infinite values")
        else:
            return np.asarray(found, np.float32)
        return np.zeros(shape, np.float32)

    def fill(self, module: nnx.Module, renamed: Callable[[str], str] = str) -> nnx.Module:
        """The module with every parameter taken by its path. renamed: a path -> its name in the file."""
        graph, state = nnx.split(module)
        flat = dict(nnx.to_flat_state(state))
        for path, variable in flat.items():
            axes = variable.get_metadata()["torch"]
            theirs = tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
            array = self.take(renamed(".".join(map(str, path))), theirs).transpose(axes)
            flat[path] = variable.replace(jnp.asarray(np.ascontiguousarray(array)))
        return nnx.merge(graph, nnx.from_flat_state(flat))

    def stack(self, names: list[str], shape: tuple[int, ...]) -> jnp.ndarray:
        """Tensors of one shape as one array, in the order of their names."""
        return jnp.asarray(np.stack([self.take(name, shape) for name in names]))

    @contextlib.contextmanager
    def below(self, prefix: str) -> Iterator["Weights"]:
        """The tensors whose names begin with `prefix`, without it: those of a part that is a model by itself."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        inner = {name.removeprefix(prefix): self.tensors.pop(name) for name in names}
        part = Weights(self.path, inner, self.what)
        yield part
        self.problems += [prefix + problem for problem in part.problems]
        self.tensors |= {prefix + name: tensor for name, tensor in part.tensors.items()}

    def ignore(self, pattern: str) -> None:
        """Drops tensors that a codec has no use for (counters of the training)."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if not re.search(pattern, name)}

    def finish(self) -> None:
        """Raises InputError naming everything that was missing, misshapen or not asked for."""
        problems = self.problems + [f"{name} is unexpected" for name in self.tensors]
        if problems:
            more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
            raise InputError(
                f"{self.what}: {self.path} does not fit its {CONFIG}: {'; '.join(problems[:LISTED])}{more}; give the "
                f"{CONFIG} that it was published with"
            )


def fold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight normalisation w = g v / |v| folded, in both of torch's naming schemes; the norm is over all axes but 0."""
    folded = dict(tensors)
    for gain, direction in (("weight_g", "weight_v"), *[(f"parametrizations.weight.original{n}" for n in (0, 1))]):
        for name in [n for n in tensors if n.endswith(f".{gain}")]:
            base = name.removesuffix(gain)
            if base + direction not in tensors:
                continue
            g, v = folded.pop(name).astype(np.float32), folded.pop(base + direction).astype(np.float32)
            folded[f"{base}weight"] = v * (g / norms(v))
    return folded


def unfold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every `conv.weight` as gain and direction, which models of weight-normalised convolutions are saved with."""
    unfolded = {}
    for name, tensor in tensors.items():
        if name.endswith(".conv.weight"):
            base = name.removesuffix("weight") + "parametrizations.weight.original"
            unfolded |= {f"{base}0": norms(tensor), f"{base}1": tensor}
        else:
            unfolded[name] = tensor
    return unfolded


def norms(v: np.ndarray) -> np.ndarray:
    """Over all axes but the first, which stay as ones."""
    return np.sqrt((v.astype(np.float64) ** 2).sum(tuple(range(1, v.ndim)), keepdims=True)).astype(np.float32)


def named(module: nnx.Module, renamed: Callable[[str], str] = str) -> dict[str, np.ndarray]:
    """The parameters of a module under their names in a file, in torch's layout."""
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        inverse = np.argsort(variable.get_metadata()["torch"])
        tensors[renamed(".".join(map(str, path)))] = np.ascontiguousarray(np.asarray(variable[...]).transpose(inverse))
    return tensors


def write(folder: str | Path, config: dict, tensors: dict[str, np.ndarray]) -> None:
    """Saves a codec so that `transformers` opens it."""
    from safetensors.numpy import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    files.write_json(folder / CONFIG, config)


def fingerprint(config: Any, tensors: dict[str, np.ndarray]) -> str:
    """Sha256 of a configuration and weights by name, whatever file they came from."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name], np.float32).tobytes())
    return digest.hexdigest()
