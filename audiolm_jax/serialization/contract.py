"""The contract of a strategy (`audiolm_jax/serialization/__init__.py`), checked when it is bound to its codebooks.

The checks look at a few T and find slips; they are no proof for every T.
"""

import functools
import itertools
from typing import NoReturn

import numpy as np

from audiolm_jax.errors import InputError

FRAMES = (1, 2, 3, 5, 8)  # T of the checked grids


def check(grid) -> None:
    """Raises InputError if the strategy of `grid` breaks the contract."""
    options = getattr(grid.strategy, "OPTIONS", ())
    if isinstance(options, str) or not set(options) <= vars(grid.config).keys():
        _refuse(grid, f"OPTIONS is {options!r}; it must be a tuple of names of {', '.join(vars(grid.config))}")
    Q, causal, streams, passes = grid.codebooks, grid.causal_levels, grid.streams, grid.iterations
    if not 0 <= causal <= Q:
        _refuse(grid, f"causal_levels(grid) is {causal}; it must be 0..{Q}")
    if streams != Q and (streams != 1 or causal < Q):
        _refuse(grid, f"streams(grid) is {streams} for {Q} codebooks; it must be {Q}, or 1 if all of them are causal")
    if len(passes) != Q - causal or min(passes, default=1) < 1:
        _refuse(grid, f"iterations(grid) is {passes}; it must be {Q - causal} numbers from 1 up, one per codebook left")
    if causal < Q and not hasattr(grid.strategy, "draw"):
        _refuse(grid, "codebooks outside the causal pass need a function draw(rng, T, grid)")
    for T in FRAMES:
        _check_levels(grid, _integers(grid, "order", *np.mgrid[:T, :Q], T))
        if causal:
            _check_causal(grid, T)
    if causal < Q and grid.depth:
        _refuse(grid, f"causal_levels(grid) is {causal}; a depth network predicts all {Q} codebooks")


def causal_indices(grid, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(t_N, q_N) of every cell of the causal pass, the end of audio last: the cell (T, 0), or all of frame T."""
    if grid.framing.end_is_frame:
        t_TQ, q_TQ = np.mgrid[: frames + 1, : grid.causal_levels]
        return t_TQ.ravel(), q_TQ.ravel()
    t_TQ, q_TQ = np.mgrid[:frames, : grid.causal_levels]
    return np.append(t_TQ, frames), np.append(q_TQ, 0)


@functools.lru_cache(maxsize=256)
def in_turn(grid) -> bool:
    """Whether cells of one position have different steps."""
    if grid.streams == 1 or not hasattr(grid.strategy, "position"):
        return False
    q_Q = np.arange(grid.causal_levels)
    frames = 2 + int(np.max(grid.position(0 * q_Q, q_Q, 1)))  # enough for every codebook to be at one position
    t_N, q_N = causal_indices(grid, frames)
    places = np.stack([grid.position(t_N, q_N, frames), grid.order(t_N, q_N, frames)])
    return len(np.unique(places, axis=1).T) > len(np.unique(places[0]))


def check_delays(grid) -> None:
    """For `validate` of a strategy whose delays may start anywhere. Raises InputError."""
    delays = grid.config.delays
    if delays and (len(delays) != grid.codebooks or min(delays) < 0 or list(delays) != sorted(delays)):
        raise InputError(
            f"serialization.delays is {delays}; it must be {grid.codebooks} non-decreasing numbers from 0 up"
        )


def _check_levels(grid, step_TQ: np.ndarray) -> None:
    for level, passes in enumerate(grid.iterations, start=grid.causal_levels):
        first, coarser = step_TQ[:, level].min(), step_TQ[:, :level].max(initial=-1)
        if first <= coarser:
            _refuse(grid, f"order is {first} in codebook {level}, no later than {coarser} in a coarser one")
        if len(np.unique(step_TQ[:, level])) > passes:
            _refuse(grid, f"order has more steps in codebook {level} than the {passes} of iterations(grid)")


def _check_causal(grid, T: int) -> None:
    t_N, q_N = causal_indices(grid, T)
    position_N, step_N = (_integers(grid, name, t_N, q_N, T) for name in ("position", "order"))
    cells = list(zip(t_N.tolist(), q_N.tolist(), strict=True))
    cell_at = {}
    for cell, position in zip(cells, position_N.tolist(), strict=True):
        other = cell_at.setdefault((position, cell[1] if grid.streams > 1 else 0), cell)
        if other != cell:
            _refuse(grid, f"cells {other} and {cell} of {T} frames both stand at position {position} of one stream")
    for q in range(grid.causal_levels):
        if (np.diff(position_N[q_N == q]) < 0).any():
            _refuse(grid, f"codebook {q} of {T} frames does not run forward in time (its end is cell ({T}, 0))")

    # A segment may end wherever a longer one has a frame of codebook 0; sampling does not know T before.
    longer_position_N, longer_step_N = (_integers(grid, name, t_N, q_N, FRAMES[-1]) for name in ("position", "order"))
    differs_N = (position_N != longer_position_N) | (step_N != longer_step_N)
    differs_N &= np.minimum(position_N, longer_position_N) <= position_N[-1]
    if differs_N.any():
        cell = cells[int(np.argmax(differs_N))]
        _refuse(grid, f"the step of cell {cell}, which comes before the end, depends on the number of frames")

    for a, b in itertools.pairwise(np.lexsort((q_N, position_N))):
        pair = f"cells {cells[a]} and {cells[b]} of {T} frames"
        steps = f"are predicted at steps {step_N[a]} and {step_N[b]}"
        if grid.depth and position_N[a] == position_N[b] and step_N[a] >= step_N[b]:
            why = "a depth network predicts the codebooks of a position one after the other, the coarsest first"
            _refuse(grid, f"{pair} share position {position_N[a]} and {steps}: {why}")
        if position_N[a] < position_N[b] and step_N[a] >= step_N[b]:
            _refuse(grid, f"{pair} stand at positions {position_N[a]} and {position_N[b]} but {steps}")


def _integers(grid, function: str, t: np.ndarray, q: np.ndarray, T: int) -> np.ndarray:
    """`order` or `position` of many cells, of the shape of t."""
    value = np.asarray(getattr(grid, function)(t, q, T))
    if value.shape != t.shape or not np.issubdtype(value.dtype, np.integer) or value.min() < 0:
        smallest = f", {value.min()} the smallest" if value.size else ""
        wanted = f"{function}(t, q, T, grid) must give an integer from 0 up for every cell"
        gives = f"for cells of shape {t.shape} it gives {value.dtype} of shape {value.shape}{smallest}"
        _refuse(grid, f"{wanted}; {gives}")
    return value


def _refuse(grid, why: str) -> NoReturn:
    raise InputError(f"serialization.strategy={grid.config.strategy}: {why}")
