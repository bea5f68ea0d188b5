"""The cells of a comparison: every strategy of every size from every seed, each a training run with an equal share.

Seeds come first: all strategies and sizes of the first seed, then those of the second, so that a grid that was stopped
is a whole comparison of fewer seeds. A seed decides initial weights, data order and training noise, and is the same
for every strategy and size.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax import config as configs
from audiolm_jax import serialization
from audiolm_jax.compare.report.schema import EQUAL
from audiolm_jax.errors import InputError
from audiolm_jax.model.transformer import ModelConfig
from audiolm_jax.serialization import SerializationConfig


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What is compared, and under which budget."""

    strategies: tuple[str, ...] = ("flat", "delay", "hierarchical", "masked")
    seeds: tuple[int, ...] = ()  # of the runs of each strategy; (): the seed of the configuration alone
    sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # name -> changed model keys
    equal: str = "flops"  # "flops": training FLOPs; "tokens": frames of audio per step and in all
    flops: float = 0.0  # equal "flops": training FLOPs of every strategy; 0: what training.steps steps take
    tolerance: float = 0.05  # largest difference of what is equal between strategies, as a fraction

    def __post_init__(self) -> None:
        if not self.strategies:
            raise InputError("compare.strategies is empty; it must name at least one strategy")
        for name in self.strategies:
            serialization.find("compare.strategies", name)
        if len(set(self.strategies)) < len(self.strategies):
            raise InputError(f"compare.strategies is {self.strategies}; a strategy may be named once")
        if len(set(self.seeds)) < len(self.seeds) or not all(isinstance(s, int) and s >= 0 for s in self.seeds):
            raise InputError(f"compare.seeds is {self.seeds}; it must hold integers from 0 on, each once")
        if self.equal not in EQUAL:
            raise InputError(f"compare.equal is {self.equal!r}; it must be one of {', '.join(EQUAL)}")
        if self.flops < 0 or self.tolerance < 0:
            raise InputError(f"compare.flops={self.flops} and compare.tolerance={self.tolerance} must not be negative")
        if self.flops and self.equal != "flops":
            raise InputError(f"compare.flops={self.flops:g} is the budget of compare.equal='flops', not {self.equal!r}")
        for name, changes in self.sizes.items():
            _check_size(name, changes)


def _check_size(name: str, changes: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise InputError(f"compare.sizes holds the name {name!r}; letters, digits, '_' and '.' make folder names")
    if not isinstance(changes, Mapping | ConfigDict):
        raise InputError(f"compare.sizes.{name} is {changes!r}; it must map keys of the section model to values")
    known = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    for key, value in changes.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise InputError(f"compare.sizes.{name}.{key}: the section model has no key {key}; did you mean {near}?")
        if type(value) is not type(known[key]):
            kind = type(known[key]).__name__
            raise InputError(f"compare.sizes.{name}.{key} is {value!r}; it must be {kind}, as in {known[key]!r}")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: its name (of its folder too), the row of the results that it belongs to, and its configuration."""

    name: str
    entry: str
    strategy: str
    size: str
    seed: int
    config: ConfigDict


def variants(config: ConfigDict, codebooks: int) -> dict[tuple[str, str], ConfigDict]:
    """The configuration of each (size, strategy), without its share of the budget.

    A strategy takes its name and those of the set options that it has a use for. Without compare.sizes there is one
    size, "", the section model as it is.

    Raises InputError for an option that none of the strategies accepts, and a size that makes no model.
    """
    default = dataclasses.asdict(SerializationConfig())
    options = {k: v for k, v in config.serialization.items() if k != "strategy" and v != default[k]}
    orders, refused = {}, dict.fromkeys(options)
    for name in config.compare.strategies:
        accepted = {"strategy": name}
        for option, value in options.items():
            try:
                serialization.bind(SerializationConfig(**accepted, **{option: value}), codebooks)
                accepted[option] = value
                refused.pop(option, None)
            except InputError as refusal:
                if option in refused:
                    refused[option] = refusal
        orders[name] = {**default, **accepted}
    if refused:
        raise next(iter(refused.values()))
    found = {}
    for size, changes in (dict(config.compare.sizes.items()) or {"": {}}).items():
        for strategy, order in orders.items():
            part = config.copy_and_resolve_references()
            part.serialization.update(order)
            part.model.update(changes)
            configs.section(part, "model")
            found[size, strategy] = part
    return found


def entry_name(config: ConfigDict, size: str, strategy: str) -> str:
    """The name of a strategy of one size in folders and the report: with its size where there are several."""
    name = serialization.label(strategy, tuple(config.compare.strategies))
    return f"{name}-{size}" if len(config.compare.sizes) > 1 else name


def plan(config: ConfigDict, parts: Mapping[tuple[str, str], ConfigDict], shares: Mapping) -> list[Cell]:
    """The cells in the order in which they are done, each with its seed, rows and steps.

    parts: `variants`; shares: `shares.equal_shares`, with the same keys.
    """
    seeds = config.compare.seeds or (config.seed,)
    cells = []
    for seed in seeds:
        for (size, strategy), part in parts.items():
            own = part.copy_and_resolve_references()
            own.seed = seed
            own.data.batch_size = shares[size, strategy]["rows_per_step"]
            own.training.steps = shares[size, strategy]["training_steps"]
            entry = entry_name(config, size, strategy)
            cells.append(Cell(f"{entry}-{seed}" if len(seeds) > 1 else entry, entry, strategy, size, seed, own))
    return cells
