"""The cells of a comparison: every strategy of every size from every seed, each a training run with an equal share.

Seeds come first: all strategies and sizes of the first seed, then those of the second, so that a grid that was stopped
is a whole comparison of fewer seeds. A seed decides initial weights, data order and training noise, and is the same
for every strategy and size.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from audiolm_jax import serialization
from audiolm_jax.config import section
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import SerializationConfig


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

    A strategy takes the options of the section serialization that it accepts. Without compare.sizes there is one size,
    "", the section model as it is.

    Raises InputError for an option that no strategy has, or whose value a strategy that has it refuses, and for a size
    that makes no model.
    """
    default = dataclasses.asdict(SerializationConfig())
    options = {k: v for k, v in config.serialization.items() if k != "strategy" and v != default[k]}
    orders, unused = {}, set(options)
    for name in config.compare.strategies:
        known = getattr(serialization.find("compare.strategies", name), "OPTIONS", ())
        accepted = {option: value for option, value in options.items() if option in known}
        serialization.bind(SerializationConfig(name, **accepted), codebooks)
        orders[name] = {**default, **accepted, "strategy": name}
        unused -= accepted.keys()
    for option in options:
        if option in unused:
            raise InputError(
                f"serialization.{option} is {options[option]}, but none of the strategies "
                f"{', '.join(config.compare.strategies)} has that option; leave it at {default[option]!r}"
            )
    parts = {}
    for size, changes in (dict(config.compare.sizes.items()) or {"": {}}).items():
        for strategy, order in orders.items():
            part = config.copy_and_resolve_references()
            part.serialization.update(order)
            part.model.update(changes)
            section(part, "model")
            parts[size, strategy] = part
    return parts


def schedule(config: ConfigDict, parts: Mapping[tuple[str, str], ConfigDict], shares: Mapping) -> list[Cell]:
    """The cells in the order in which they are trained, each with its seed, rows and steps.

    parts: `variants`; shares: `budget.equal_shares`, with the same keys.
    """
    seeds = config.compare.seeds or (config.seed,)
    cells = []
    for seed in seeds:
        for (size, strategy), part in parts.items():
            own = part.copy_and_resolve_references()
            own.seed = seed
            own.data.batch_size = shares[size, strategy]["rows_per_step"]
            own.training.steps = shares[size, strategy]["training_steps"]
            entry = serialization.label(strategy, tuple(config.compare.strategies))
            if len(config.compare.sizes) > 1:
                entry = f"{entry}-{size}"
            cells.append(Cell(f"{entry}-{seed}" if len(seeds) > 1 else entry, entry, strategy, size, seed, own))
    return cells
