"""Configurations: a file with `get_config()`, overrides from the command line, sections as frozen dataclasses.

A configuration file returns an `ml_collections.ConfigDict`, usually `configs/default.py` with a few keys changed:

    from configs import default

    def get_config():
        config = default.get_config()
        config.model.layers = 6
        return config

Each section is splatted into the signature that uses it (`SECTIONS`), so a key that nothing reads is an error.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax.errors import InputError

# Section of the configuration -> what takes its keys: a frozen dataclass or a function's keyword arguments.
SECTIONS = {
    "corpus": "audiolm_jax.data.corpora:CorpusConfig",
    "codec": "audiolm_jax.codecs:load",
    "tokens": "audiolm_jax.data.tokens:TokensConfig",
    "data": "audiolm_jax.data.examples:DataConfig",
    "serialization": "audiolm_jax.serialization:SerializationConfig",
    "model": "audiolm_jax.model.transformer:ModelConfig",
    "sharding": "audiolm_jax.model.sharding:ShardingConfig",
    "optimizer": "audiolm_jax.training.optimizer:OptimizerConfig",
    "training": "audiolm_jax.training.step:TrainingConfig",
    "finetune": "audiolm_jax.families.finetune:FinetuneConfig",
    "lora": "audiolm_jax.model.lora:LoraConfig",
    "sampling": "audiolm_jax.sampling:SamplingConfig",
    "evaluation": "audiolm_jax.evaluation.run:EvaluationConfig",
    "compare": "audiolm_jax.compare.cells:CompareConfig",
}

PACKAGE = Path(__file__).resolve().parent


def folder() -> Path:
    """Where the configurations that come with the package lie: beside it in a clone, inside it in a wheel."""
    inside, beside = PACKAGE / "configs", PACKAGE.parent / "configs"
    return inside if inside.is_dir() else beside


def find(name: str) -> Path:
    """The file of a configuration: a path, or the bare name of one that comes with the package.

    Raises InputError if there is no such file.
    """
    path = Path(name)
    for candidate in (path, folder() / path.name, folder() / f"{path.name}.py"):
        if candidate.suffix == ".py" and candidate.is_file():
            return candidate
    names = sorted(p.stem for p in folder().glob("*.py"))
    raise InputError(f"--config={name}: there is no such file; give a path to a .py file or one of {', '.join(names)}")


def load(name: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """The configuration of file or name `name`, with overrides such as "model.layers=6", locked.

    Raises InputError if the file cannot be run, lacks `get_config`, or an override does not fit.
    """
    path = find(name)
    _make_importable(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(f"audiolm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = ConfigDict(module.get_config())
    except Exception as error:
        raise InputError(
            f"--config={name}: {path} does not run: {type(error).__name__}: {error}; it must be a Python file "
            "with a function get_config() that returns a ConfigDict"
        ) from error
    config.lock()
    for text in overrides:
        override(config, text)
    return config


def _make_importable(directory: Path) -> None:
    """Makes `from configs import default` work from a clone, from a wheel, and beside the file being loaded."""
    package = sys.modules.setdefault("configs", ModuleType("configs"))
    old = list(getattr(package, "__path__", []))
    package.__path__ = list(dict.fromkeys([str(folder()), *old, str(directory)]))


def override(config: ConfigDict, text: str) -> None:
    """Sets one key from `key.path=value`; the value must have the type of the one it replaces.

    Raises InputError for an unknown key (naming the nearest ones) and for a value of another type.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--config.{text}: a value is missing; write --config.{text}=VALUE")
    *parents, leaf = key.split(".")
    section = config
    for depth, name in enumerate(parents):
        if not isinstance(section, ConfigDict) or name not in section:
            raise InputError(_unknown(config, key, ".".join(parents[: depth + 1])))
        section = section[name]
    if not isinstance(section, ConfigDict) or leaf not in section:
        raise InputError(_unknown(config, key, key))
    old = section[leaf]
    if isinstance(old, ConfigDict):
        keys = ", ".join(f"{key}.{name}" for name in old) or "set in a configuration file"
        raise InputError(f"--config.{key}={value}: {key} is a section; its keys are {keys}")
    try:
        section[leaf] = _parse(value, old)
    except (ValueError, SyntaxError, TypeError, KeyError):
        kind = "a tuple such as (1, 2)" if isinstance(old, tuple) else type(old).__name__
        raise InputError(f"--config.{key}={value}: must be {kind}, as in {key}={old!r}") from None


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{"model.layers": 4, ...} of every key."""
    out = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out.update(flat(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def _unknown(config: ConfigDict, key: str, wrong: str) -> str:
    keys = list(flat(config))
    parent, _, leaf = key.rpartition(".")
    beside = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == parent]
    near = [f"{parent}.{name}" for name in difflib.get_close_matches(leaf, beside, n=2, cutoff=0.6) if parent]
    near += [name for name in keys if name.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(key, keys, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"the top-level keys are {', '.join(config)}"
    return f"--config.{key}: there is no key {wrong}; {hint}"


def _parse(text: str, old: Any) -> Any:
    if isinstance(old, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(old, int):
        return int(text.replace("_", ""))
    if isinstance(old, float):
        return float(text)
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        value = _tuple(text)
        kinds = {type(item) for item in old}
        if old and any(type(item) not in kinds | ({int} if float in kinds else set()) for item in value):
            raise ValueError
        return value
    try:  # no old value to tell the type
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _tuple(text: str) -> tuple:
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if any(mark in text for mark in "()[]'\""):
        raise ValueError
    return tuple(item.strip() for item in text.split(",") if item.strip())


def accepts(name: str) -> Callable:
    """What takes the keys of section `name`: imported when asked for."""
    module, _, attribute = SECTIONS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def section(config: ConfigDict, name: str, **changes: Any) -> Any:
    """Section `name` as its frozen dataclass (or whatever `SECTIONS` names), with `changes`.

    Raises InputError for keys that it does not take and for values that it refuses.
    """
    values = {**config[name], **changes} if name in config else changes
    target = accepts(name)
    known = list(inspect.signature(target).parameters)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise InputError(f"config key {name}.{key} does not exist; did you mean {name}.{near[0]}?")
    return target(**values)


def check(config: ConfigDict) -> None:
    """Builds every section once, so that a wrong key or value is named before any work starts."""
    for name in config:
        if name != "seed" and name not in SECTIONS:
            near = difflib.get_close_matches(name, SECTIONS, n=1, cutoff=0)
            raise InputError(f"config section {name} does not exist; did you mean {near[0]}?")
        if name in SECTIONS and dataclasses.is_dataclass(accepts(name)):
            section(config, name)
    if "serialization" in config:
        importlib.import_module("audiolm_jax.serialization").find(
            "serialization.strategy", config.serialization.strategy
        )


def plugin(key: str, name: str, table: Mapping[str, ModuleType | str], functions: Iterable[str] = ()) -> ModuleType:
    """The module called `name`: of `table` (name -> module, or where to import it from), or any that can be imported.

    A name with a dot is a module of the user's, in an installed package or below the current directory, with the
    `functions` that the contract of `table` asks for. `key` is what the user set, such as "codec.name".

    Raises InputError for an unknown name, a module that cannot be imported, and one that lacks a function.
    """
    entry = table.get(name, name) if isinstance(name, str) else None
    if isinstance(entry, ModuleType):
        return entry
    if not entry or "." not in entry:
        raise InputError(
            f"{key}={name} must be one of {', '.join(table)}, or the name of a module with a dot in it, such as "
            "my_package.my_module"
        )
    if entry not in sys.modules and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that it hides nothing; `python -m audiolm_jax` has it anyway
    try:
        module = importlib.import_module(entry)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{key}={name} cannot be imported: {type(error).__name__}: {reason}; give one of {', '.join(table)}, or a "
            "module in an installed package or the current directory"
        ) from error
    missing = [function for function in functions if not callable(getattr(module, function, None))]
    if missing:
        raise InputError(f"{key}={name}: the module must have a function {' and '.join(missing)}")
    return module
