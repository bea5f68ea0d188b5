"""Configurations: sections as frozen dataclasses, a file with `get_config()`, overrides from the command line.

The dataclass of a section (`SECTIONS`) defines its keys: `key` gives each its default, its meaning and the values it
takes, and `validate` checks them. A configuration is an `ml_collections.ConfigDict` of all sections; a file
changes some keys of `defaults()`, which `configs/default.py` returns:

    from configs import default

    def get_config():
        config = default.get_config()
        config.model.layers = 6
        return config

Neither this file nor those of the dataclasses import JAX: a configuration is checked before the slow imports.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import importlib.machinery
import importlib.util
import math
import numbers
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from operator import ge, gt, le, lt
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax.errors import InputError

# Section of the configuration -> its frozen dataclass. "" holds the keys outside of sections.
SECTIONS = {
    "": "audiolm_jax.config:TopLevel",
    "corpus": "audiolm_jax.data.corpora:CorpusConfig",
    "codec": "audiolm_jax.codecs:CodecConfig",
    "tokens": "audiolm_jax.data.config:TokensConfig",
    "data": "audiolm_jax.data.config:DataConfig",
    "text": "audiolm_jax.serialization.text:TextConfig",
    "serialization": "audiolm_jax.serialization:SerializationConfig",
    "model": "audiolm_jax.model.config:ModelConfig",
    "depth": "audiolm_jax.model.config:DepthConfig",
    "sharding": "audiolm_jax.model.config:ShardingConfig",
    "optimizer": "audiolm_jax.training.config:OptimizerConfig",
    "training": "audiolm_jax.training.config:TrainingConfig",
    "finetune": "audiolm_jax.families.config:FinetuneConfig",
    "lora": "audiolm_jax.model.config:LoraConfig",
    "sampling": "audiolm_jax.sampling:SamplingConfig",
    "evaluation": "audiolm_jax.evaluation.config:EvaluationConfig",
    "compare": "audiolm_jax.compare.config:CompareConfig",
}

PACKAGE = Path(__file__).resolve().parent

_BOUNDS = {"at_least": (">=", ge), "above": (">", gt), "at_most": ("<=", le), "below": ("<", lt)}
_NOUNS = {tuple[int, ...]: "a tuple of integers"}
_NOUNS |= {bool: "True or False", int: "an integer", float: "a number", str: "text", Mapping: "a mapping"}


def key(
    default: Any,
    meaning: str,
    *,
    among: Sequence[str] | Mapping[str, ModuleType | str] = (),
    filled: bool = False,
    **bounds: float,
) -> Any:
    """A field of a section. bounds: at_least, above, at_most, below; they and `among` hold for every item of a tuple.

    `among` as a mapping is a table of modules; a user's module is accepted too (`plugin`). filled: no empty tuple.
    """
    rules = {"meaning": meaning, "bounds": bounds, "among": among, "filled": filled}
    values = {"default_factory": lambda: dict(default)} if isinstance(default, dict) else {"default": default}
    return dataclasses.field(**values, metadata=rules)


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the configuration: its path such as "model.layers", its annotation, and what `key` says of it."""

    path: str
    kind: Any
    default: Any
    meaning: str = ""
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    among: Sequence[str] | Mapping[str, ModuleType | str] = ()
    filled: bool = False

    @property
    def range(self) -> str:
        """The accepted names, or the bounds in symbols."""
        outside = ", or a module such as my_package.my_module" if isinstance(self.among, Mapping) else ""
        return ", ".join(self.among) + outside or " and ".join(f"{_BOUNDS[n][0]} {b}" for n, b in self.bounds.items())

    @property
    def accepted(self) -> str:
        """The accepted values, as the end of a sentence."""
        form, item = _parts(self.kind)
        noun = f"one of {self.range}" if self.among else f"{_NOUNS.get(item, 'anything')} {self.range}".strip()
        if form is tuple:
            return f"a tuple of {'one or more items' if self.filled else 'items'}, each {noun}"
        return f"{noun} or None" if form is None else noun

    def check(self, value: Any) -> Any:
        """The value, lists as tuples (JSON has no tuples). Raises InputError for a value that the key does not take."""
        with contextlib.suppress(ValueError, OverflowError):
            value = _convert(value, self.kind)
            items = value if isinstance(value, tuple) else () if value is None else (value,)
            fits = [_BOUNDS[name][1](item, bound) for item in items for name, bound in self.bounds.items()]
            if self.among:
                fits += [item in self.among or (isinstance(self.among, Mapping) and possible(item)) for item in items]
            if all(fits) and (items or not self.filled):
                return value
        raise InputError(f"{self.path}={value if isinstance(value, str) else repr(value)} must be {self.accepted}")

    def parse(self, text: str) -> Any:
        """The value that an override writes as `text`. Raises InputError for one of another type."""
        try:
            return _convert(_parse(text, self.kind), self.kind)
        except (ValueError, SyntaxError, KeyError, OverflowError):
            raise InputError(
                f"--config.{self.path}={text} must be {self.accepted}, as in {self.path}={self.default}"
            ) from None


def _parts(kind: Any) -> tuple[Any, Any]:
    """(tuple, type of its items), (None, the type besides None) or (type, type) of an annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if tuple in (kind, origin):
        return tuple, arguments[0] if arguments else object
    if origin is types.UnionType:
        return None, arguments[0]
    return (Mapping, Mapping) if origin is collections.abc.Mapping else (kind, kind)


def _convert(value: Any, kind: Any) -> Any:
    """`value` if it is of the annotation `kind`, lists as tuples; else ValueError."""
    form, item = _parts(kind)
    if form is tuple:
        return tuple(_convert(part, item) for part in (value if isinstance(value, tuple | list) else (value,)))
    if form is None and value is None:
        return None
    if item is Mapping:
        fits = isinstance(value, Mapping | ConfigDict)
    elif item in (int, float):
        number = numbers.Real if item is float else numbers.Integral
        fits = isinstance(value, number) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and (item is float or abs(value) < 2**63)
    else:
        fits = isinstance(value, item)
    if not fits:
        raise ValueError(value)
    return value


def _parse(text: str, kind: Any) -> Any:
    """The value that `text` writes, before `_convert` checks its type. Raises what `Key.parse` catches."""
    form, item = _parts(kind)
    if form is tuple:
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
        if any(mark in text for mark in "()[]'\""):
            raise ValueError(text)
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if form is None and text == "None":
        return None
    if item is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    return item(text) if item in (int, float, str) else ast.literal_eval(text)


@functools.cache
def keys_of(section: type, name: str) -> dict[str, Key]:
    """The keys of the dataclass of section `name`; a field that holds another section (metadata "section") is none."""
    kinds, prefix = typing.get_type_hints(section), f"{name}." if name else ""
    return {
        field.name: Key(
            prefix + field.name,
            kinds[field.name],
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
            **field.metadata,
        )
        for field in dataclasses.fields(section)
        if "section" not in field.metadata
    }


def validate(section: Any, name: str) -> None:
    """Checks every value of a section, for its `__post_init__`; lists become tuples.

    Raises InputError naming the first key whose value is not of the annotated type or not in the accepted range.
    """
    for attribute, known in keys_of(type(section), name).items():
        object.__setattr__(section, attribute, known.check(getattr(section, attribute)))


@dataclasses.dataclass(frozen=True)
class TopLevel:
    """Keys outside of sections."""

    seed: int = key(
        0, "Seed of weights, data order and training noise. Corpora have their own.", at_least=0, at_most=2**32 - 1
    )

    def __post_init__(self) -> None:
        validate(self, "")


def accepts(name: str) -> type:
    """The dataclass of section `name`."""
    module, _, attribute = SECTIONS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def keys() -> dict[str, Key]:
    """Every key there is, by its path, in the order of SECTIONS."""
    return {known.path: known for name in SECTIONS for known in keys_of(accepts(name), name).values()}


def defaults() -> ConfigDict:
    """A configuration of all keys at their defaults."""
    config = ConfigDict()
    for name in SECTIONS:
        values = {attribute: known.default for attribute, known in keys_of(accepts(name), name).items()}
        config.update({name: values} if name else values)
    return config


def folder() -> Path:
    """The folder of the package's configurations: beside the package in a clone, inside it in a wheel."""
    inside, beside = PACKAGE / "configs", PACKAGE.parent / "configs"
    return inside if inside.is_dir() else beside


def find(name: str) -> Path:
    """The file of a configuration: a path, or the bare name of one that comes with the package.

    Raises InputError if there is no such file.
    """
    path = Path(name)
    bare = (folder() / name, folder() / f"{name}.py") if path.name == str(name) else ()
    for candidate in (path, *bare):
        if candidate.suffix == ".py" and candidate.is_file():
            return candidate
    names = sorted(p.stem for p in folder().glob("*.py"))
    raise InputError(f"--config={name}: there is no such file; give a path to a .py file or one of {', '.join(names)}")


def load(name: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """The configuration of file or name `name`, with overrides such as "model.layers=6", locked.

    Keys that the file does not set have their defaults. Raises InputError if the file cannot be run, lacks
    `get_config`, or an override does not fit.
    """
    path = find(name)
    # `from configs import default` finds the package's configurations, then those beside the file.
    package = sys.modules.setdefault("configs", ModuleType("configs"))
    others = [*getattr(package, "__path__", []), str(path.resolve().parent)]
    package.__path__ = list(dict.fromkeys([str(folder()), *others]))
    spec = importlib.util.spec_from_file_location(f"audiolm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = ConfigDict(module.get_config()).unlock()
        flat(config)  # raises TypeError for keys that are no text
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--config={name}: {path} does not run: {type(error).__name__}: {error}; it must be a Python file "
            "with a function get_config() that returns a ConfigDict"
        ) from error
    for section, values in defaults().items():
        if section not in config:
            config[section] = values
        elif isinstance(values, ConfigDict) and isinstance(config[section], ConfigDict):
            config[section].update({key: value for key, value in values.items() if key not in config[section]})
    config.lock()
    for text in overrides:
        override(config, text)
    return config


def override(config: ConfigDict, text: str) -> None:
    """Sets one key from `key.path=value`.

    Raises InputError for an unknown key (naming the nearest ones) and for a value of another type.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--config.{text}: a value is missing; write --config.{text}=VALUE")
    present = flat(config)
    below = [name for name in present if name.startswith(f"{path}.")]
    if path == "compare.sizes" or below:
        names = ", ".join(below) or "set in a configuration file"
        raise InputError(f"--config.{path}={value}: {path} is a section; its keys are {names}")
    if path not in present:
        parent, _, leaf = path.rpartition(".")
        beside = [name.removeprefix(f"{parent}.") for name in present if parent and name.startswith(f"{parent}.")]
        near = [f"{parent}.{name}" for name in difflib.get_close_matches(leaf, beside, n=2, cutoff=0.6)]
        alike = [name for name in present if name.rpartition(".")[2] == leaf]
        near += difflib.get_close_matches(path, alike, n=3, cutoff=0)
        near = near or difflib.get_close_matches(path, present, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near[:3])}?" if near else f"the top-level keys are {', '.join(config)}"
        raise InputError(f"--config.{path}: there is no such key; {hint}")
    known = keys().get(path) or Key(path, type(present[path]), present[path])  # the latter of compare.sizes
    with config.ignore_type():
        config.update_from_flattened_dict({path: known.parse(value)})


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{"model.layers": 4, ...} of every key."""
    out = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out.update(flat(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def section(config: ConfigDict, name: str, **changes: Any) -> Any:
    """Section `name` as its frozen dataclass, with `changes`.

    Raises InputError for keys that it does not have and for values that it refuses.
    """
    target, values = accepts(name), config.get(name, {})
    if not isinstance(values, Mapping | ConfigDict):
        raise InputError(f"config section {name} is {values!r}; it must map keys to values")
    values = {**values, **changes}
    check_names(values, target, name)
    return target(**values)


def check_names(names: Iterable[str], section: type, path: str) -> None:
    """Raises InputError for the first name that is no key of the dataclass `section`, which stands at `path`."""
    known = keys_of(section, path)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise InputError(f"config key {path}.{name} does not exist; did you mean {path}.{near[0]}?")


def check(config: ConfigDict) -> None:
    """Builds every section once, so that a wrong key or value is named before any work starts.

    Sections that the command does not use are checked too: that takes milliseconds, as no section imports what it
    configures. Modules of the user's are imported here, those of the package when they are used.
    """
    top = keys_of(TopLevel, "")
    for name in config:
        if name not in SECTIONS and name not in top:
            near = difflib.get_close_matches(name, [*SECTIONS, *top], n=1, cutoff=0)
            raise InputError(f"config section {name} does not exist; did you mean {near[0]}?")
    TopLevel(**{name: config[name] for name in top if name in config})
    for name in filter(None, SECTIONS):
        built = section(config, name)
        for attribute, known in keys_of(type(built), name).items():
            names = getattr(built, attribute) if isinstance(known.among, Mapping) else ()
            for module in (names,) if isinstance(names, str) else names:
                if module not in known.among:
                    plugin(known.path, module, known.among)


def possible(name: str) -> bool:
    """Whether a name may be that of a user's module: it has a dot, or there is a module of that name."""
    if name not in sys.modules and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # last, so that it hides nothing; `python -m audiolm_jax` has it anyway
    return "." in name or importlib.machinery.PathFinder.find_spec(name) is not None


def plugin(key: str, name: str, table: Mapping[str, ModuleType | str], functions: Iterable[str] = ()) -> ModuleType:
    """The module called `name` in `table` (name -> module or its import path), or the user's module of that path, which
    is installed or below the current directory and has the `functions` of the table's contract.

    Raises InputError, naming `key`, for an unknown name and a module that cannot be imported or lacks a function.
    """
    entry = table.get(name, name) if isinstance(name, str) else None
    if isinstance(entry, ModuleType):
        return entry
    if not entry or not possible(entry):
        raise InputError(f"{key}={name} must be one of {', '.join(table)}, or a module such as my_package.my_module")
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
