"""Serialization strategies: orders on the time x codebook grid.

A strategy is an order: `order(t, q, T, grid)` is the step at which cell (t, q) of a grid of T frames is predicted.
Cells of one step are predicted together, given the text and every cell of an earlier step. Everything else (the
layout a model sees, its inverse, visibility, cost, picture) is derived from it, once, in the files beside this one.

A strategy is one file with these functions, chosen from `STRATEGIES`:

    validate(grid)          raise InputError if an option of the grid does not fit this strategy
    order(t, q, T, grid)    the step of cell (t, q), elementwise; (T, 0) is the place of the end of audio. Plain
                            arithmetic, so that it works on ints, numpy arrays and, in t and T, traced jax arrays
    streams(grid)           S, how many tokens share a position: 1 (cells in turn) or Q (stream q is codebook q)
    causal_levels(grid)     codebooks 0..n-1 come out of the causal pass, the others out of bidirectional passes
    iterations(grid)        bidirectional passes for each remaining codebook, a tuple of Q - causal_levels
    draw(rng, T, grid)      the training view of one audio segment: None (the causal pass) or a LevelView
"""

import dataclasses
from types import ModuleType

import numpy as np

from audiolm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SerializationConfig:
    """The order on the codec grid. Options that a strategy has no use for are refused, not ignored."""

    strategy: str = "delay"  # flat | parallel | delay | coarse_first | hierarchical | masked
    delays: tuple[int, ...] = ()  # delay, coarse_first: steps by which codebook q lags; () is 0, 1, 2, ...
    iterations: tuple[int, ...] = ()  # masked: passes per codebook; () is 16, 1, 1, ... (SoundStorm)
    schedule: str = "cosine"  # masked: fraction still masked after a share of the passes: cosine | linear
    prompt_fraction: float = 1.0  # hierarchical, masked: share of training rows that keep a clean prompt
    causal_fraction: float = 0.5  # hierarchical: share of training rows that train the causal level


@dataclasses.dataclass(frozen=True)
class Grid:
    """A strategy bound to Q codebooks: what every function of a strategy receives."""

    config: SerializationConfig
    codebooks: int

    @property
    def strategy(self) -> ModuleType:
        return STRATEGIES[self.config.strategy]

    @property
    def streams(self) -> int:
        return self.strategy.streams(self)

    @property
    def causal_levels(self) -> int:
        return self.strategy.causal_levels(self)

    @property
    def iterations(self) -> tuple[int, ...]:
        return self.strategy.iterations(self)

    def order(self, t, q, T):
        return self.strategy.order(t, q, T, self)


@dataclasses.dataclass(frozen=True)
class LevelView:
    """A bidirectional pass over one audio segment: predict the masked cells of one codebook.

    `masked_T` [T] bool marks the cells of codebook `level` that are hidden and predicted. Coarser codebooks are
    clean. Finer ones are hidden too, except in the `prompt` first frames, which are clean at every codebook.
    """

    level: int
    masked_T: np.ndarray
    prompt: int = 0


def bind(config: SerializationConfig, codebooks: int) -> Grid:
    """The grid of `config` with Q `codebooks`. Raises InputError for an unknown strategy or unfit options."""
    if config.strategy not in STRATEGIES:
        raise InputError(f"serialization.strategy is {config.strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    if codebooks < 1:
        raise InputError(f"a grid of {codebooks} codebooks was asked for; it must have at least 1")
    for name in ("prompt_fraction", "causal_fraction"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"serialization.{name} is {getattr(config, name)}; it must lie in 0..1")
    grid = Grid(config, codebooks)
    grid.strategy.validate(grid)
    return grid


def refuse_options(grid: Grid, *names: str) -> None:
    """Raise InputError if one of the options `names`, which the strategy has no use for, was set."""
    default = SerializationConfig()
    for name in names:
        value = getattr(grid.config, name)
        if value != getattr(default, name):
            raise InputError(
                f"serialization.{name} is {value}, but the strategy {grid.config.strategy!r} has no {name}; "
                f"leave it at {getattr(default, name)!r}"
            )


from audiolm_jax.serialization.strategies import (  # noqa: E402  they use the names above
    coarse_first,
    delay,
    flat,
    hierarchical,
    masked,
    parallel,
)

STRATEGIES: dict[str, ModuleType] = {
    "flat": flat,
    "parallel": parallel,
    "delay": delay,
    "coarse_first": coarse_first,
    "hierarchical": hierarchical,
    "masked": masked,
}
