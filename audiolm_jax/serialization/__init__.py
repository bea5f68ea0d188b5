"""Serialization strategies: orders on the time x codebook grid.

A strategy is an order: `order(t, q, T, grid)` is the step at which cell (t, q) of a grid of T frames is predicted.
Cells of one step are predicted together, given the text and every cell of an earlier step. Everything else (layout of
the sequence, visibility, cost, picture) is derived from it in the files beside this one.

A strategy is one module: a file in `strategies/` and its line in `STRATEGIES`, or a module of the user's, named by its
import path (`--config.serialization.strategy=my_package.my_module`). It has two functions,

    order(t, q, T, grid)    the step of cell (t, q), an integer from 0 up; (T, 0) is the end of audio
    streams(grid)           S, how many tokens share a position: 1 (cells in turn) or Q (stream q is codebook q)

and those of the following that differ from their default:

    OPTIONS                   names of the options of SerializationConfig that it takes; others are refused: ()
    validate(grid)            raise InputError if a value of its options does not fit
    causal_levels(grid)       codebooks 0..n-1 come out of the causal pass, the others out of bidirectional passes: Q
    iterations(grid)          bidirectional passes for each remaining codebook, a tuple of Q - causal_levels: ()
    draw(rng, T, grid)        the training view of one audio segment: None (the causal pass) or a LevelView: None
    position(t, q, T, grid)   position of a cell of the causal pass in the sequence: the order

Cells that share a position but not a step are predicted one after the other, by a depth network inside the position.

`order` and `position` are elementwise: t and q are ints or integer arrays that broadcast. For the codebooks of the
causal pass T may be an array too, and t and T traced jax arrays, since sampling computes the cells of a step inside
jit, where T is not known before the end is drawn: so they are arithmetic and comparisons (a table may be indexed by
q, which is never traced), and the step of a cell before the end does not depend on T. For the other codebooks T is an
int. `bind` checks the contract on small grids (contract.py).
"""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

from audiolm_jax.config import key, plugin, validate
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import contract
from audiolm_jax.serialization.framing import FRAMINGS, Framing

# Name -> module, imported when it is first used (`find`).
STRATEGIES: dict[str, ModuleType | str] = {
    "flat": "audiolm_jax.serialization.strategies.flat",
    "parallel": "audiolm_jax.serialization.strategies.parallel",
    "delay": "audiolm_jax.serialization.strategies.delay",
    "coarse_first": "audiolm_jax.serialization.strategies.coarse_first",
    "hierarchical": "audiolm_jax.serialization.strategies.hierarchical",
    "masked": "audiolm_jax.serialization.strategies.masked",
    "depth": "audiolm_jax.serialization.strategies.depth",
}


@dataclasses.dataclass(frozen=True)
class SerializationConfig:
    """The order on the codec grid. Options that a strategy does not take are refused, not ignored."""

    strategy: str = key("delay", "The order on the codec grid.", among=STRATEGIES)
    delays: tuple[int, ...] = key(
        (),
        "delay, coarse_first, depth: steps by which each codebook lags, such as (0, 1, 2, 3); (): that, of depth none.",
    )
    iterations: tuple[int, ...] = key((), "masked: passes per codebook when sampling; (): 16, 1, 1, ... (SoundStorm).")
    schedule: str = key("cosine", "masked: fraction still hidden after a fraction of the passes, cosine or linear.")
    prompt_fraction: float = key(
        1.0, "hierarchical, masked: fraction of training rows that keep a clean prompt.", at_least=0, at_most=1
    )
    causal_fraction: float = key(
        0.5, "hierarchical: fraction of training rows that train the causal level.", at_least=0, at_most=1
    )

    def __post_init__(self) -> None:
        validate(self, "serialization")


def find(path: str, name: str) -> ModuleType:
    """The strategy called `name`, of this package or the user's; `path` is the key with this value.

    Raises InputError for an unknown name, a module that cannot be imported or that lacks `order` or `streams`.
    """
    return plugin(path, name, STRATEGIES, ("order", "streams"))


def label(name: str, names: tuple[str, ...] = ()) -> str:
    """A short name for reports: the last part of a dotted one, unless another one of `names` has it too."""
    last = name.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in {name, *names}].count(last) == 1 else name


@dataclasses.dataclass(frozen=True)
class LevelView:
    """A training row that predicts the masked cells of one codebook of a segment in a bidirectional pass.

    `masked_T` [T] bool: the cells of codebook `level` that are hidden and predicted. Coarser codebooks are visible.
    Finer ones are hidden too, except in the first `prompt` frames, which are visible at every codebook.
    """

    level: int
    masked_T: np.ndarray
    prompt: int = 0


@dataclasses.dataclass(frozen=True)
class Grid:
    """A strategy bound to Q codebooks, and its framing: the argument of every function of a strategy."""

    config: SerializationConfig
    codebooks: int
    framing: Framing = FRAMINGS["markers"]

    @property
    def strategy(self) -> ModuleType:
        return find("serialization.strategy", self.config.strategy)

    @property
    def streams(self) -> int:
        return self.strategy.streams(self)

    @property
    def inputs(self) -> int:
        """Tokens of a position: one of each stream, and those of text beside them (`framing.Beside`)."""
        return self.streams + self.framing.texts

    @property
    def causal_levels(self) -> int:
        return self._optional("causal_levels", self.codebooks)

    @property
    def iterations(self) -> tuple[int, ...]:
        return self._optional("iterations", ())

    def draw(self, rng: np.random.Generator, frames: int) -> LevelView | None:
        return self._optional("draw", None, rng, frames)

    @property
    def depth(self) -> bool:
        """Whether a depth network predicts the streams of a position after the first, one after the other."""
        return contract.in_turn(self)

    def _optional(self, name: str, default: Any, *args: Any) -> Any:
        """The value of the strategy's function of that name, or its default."""
        function = getattr(self.strategy, name, None)
        return function(*args, self) if function else default

    def order(self, t, q, T):
        """The step at which cell (t, q) of T frames is predicted."""
        return self.strategy.order(t, q, T, self)

    def position(self, t, q, T):
        """The position of cell (t, q) of the causal pass, counted from the segment's first."""
        return getattr(self.strategy, "position", self.strategy.order)(t, q, T, self)


def bind(config: SerializationConfig, codebooks: int, framing: str = "markers") -> Grid:
    """The grid of `config` with Q `codebooks` and a framing of framing.py.

    Raises InputError for an unknown strategy or framing, options that it does not take or that do not fit, and a
    module that breaks the contract above.
    """
    if codebooks < 1:
        raise InputError(f"a grid of {codebooks} codebooks was asked for; it must have at least 1")
    if framing not in FRAMINGS:
        raise InputError(f"the framing is {framing!r}; it must be one of {', '.join(FRAMINGS)}")
    grid = Grid(config, codebooks, FRAMINGS[framing])
    accepted = ("strategy", *getattr(grid.strategy, "OPTIONS", ()))
    for option, default in vars(SerializationConfig()).items():
        value = getattr(config, option)
        if option not in accepted and value != default:
            raise InputError(
                f"serialization.{option} is {value}, but the strategy {config.strategy!r} has no {option}; "
                f"leave it at {default!r}"
            )
    if hasattr(grid.strategy, "validate"):
        grid.strategy.validate(grid)
    grid.framing.validate(grid)
    contract.check(grid)
    return grid
