"""The best likelihood that an order on the grid can reach on a source whose grids can all be listed.

A strategy predicts the cells of one step independently of each other, each given the text and every cell of an
earlier step. So the best model of that form takes, for each cell, its true distribution given exactly these, and what
it needs is

    reachable = sum over cells of H(cell | text, cells of earlier steps)

which exceeds the entropy of the source by what the cells of one step tell about each other. Here it is summed over
the list of all grids (`corpora.sources.Outcomes`), for any `order`, without asking for a strategy by name. What counts
as end, length and code is split as in `likelihood.py`:

- Where codebook 0 is causal, each of its frames may be the end instead: -log2 p(no end) and -log2 p(end) are end bits.
- Where nothing is causal, the length is known first: -log2 p(T) are length bits, and everything is given T.
- "bound": levels in any order of their cells, one at a time. By the chain rule that costs H(level | coarser, T)
  whatever the order, so the average over orders that the any-order bound takes costs the same: the bound of the best
  model is the entropy itself.
"""

import dataclasses

import numpy as np

from audiolm_jax.serialization import Grid, layout
from experiments.entropy_floor.sources import Outcomes

ENDED = -2  # stands for the end of audio among the codes


@dataclasses.dataclass(frozen=True)
class Ideal:
    """Bits of every grid of an `Outcomes` under the best model of an order."""

    code_bits_NQ: np.ndarray
    end_bits_N: np.ndarray
    length_bits_N: np.ndarray

    @property
    def bits_N(self) -> np.ndarray:
        return self.code_bits_NQ.sum(axis=1) + self.end_bits_N + self.length_bits_N


def entropy(listed: Outcomes) -> float:
    """Bits per grid, its end included: the floor."""
    return float(listed.probability_N @ -np.log2(listed.probability_N))


def ideal(listed: Outcomes, grid: Grid, bound: bool = False) -> Ideal:
    """The best model under the order of `grid`; with `bound`, under the any-order bound of the levels that are not
    causal (`likelihood.py`)."""
    p_N, count = listed.probability_N, len(listed.probability_N)
    code_bits_NQ, end_bits_N, length_bits_N = np.zeros((count, grid.codebooks)), np.zeros(count), np.zeros(count)
    # What a prediction may depend on, as a number: grids of equal context look the same so far.
    context_N = np.zeros(count, int)
    if grid.causal_levels == 0:
        length_bits_N = _surprise(p_N, context_N, listed.frames_N)
        context_N = _refine(context_N, listed.frames_N)

    step_NTQ = _steps(listed, grid)
    if bound:  # the cells of a level together
        for q in range(grid.causal_levels, grid.codebooks):
            step_NTQ[..., q] = np.where(step_NTQ[..., q] >= 0, step_NTQ.size + q, -1)
    padded = np.pad(listed.codes_NTQ, ((0, 0), (0, 1), (0, 0)), constant_values=-1)
    value_NTQ = np.where(step_NTQ >= 0, padded, -1)
    is_end_NT = (np.arange(value_NTQ.shape[1]) == listed.frames_N[:, None]) & (grid.causal_levels > 0)
    value_NTQ[..., 0] = np.where(is_end_NT, ENDED, value_NTQ[..., 0])

    for step in np.unique(step_NTQ[step_NTQ >= 0]):
        places = np.argwhere((step_NTQ == step).any(axis=0))
        here_NC = np.stack([step_NTQ[:, t, q] == step for t, q in places], axis=1)
        value_NC = np.where(here_NC, value_NTQ[:, places[:, 0], places[:, 1]], -1)
        before_N = context_N
        for value_N in value_NC.T:
            context_N = _refine(context_N, value_N)
        if step >= step_NTQ.size:
            code_bits_NQ[:, places[0, 1]] = _surprise(p_N, before_N, context_N)
            continue
        for here_N, value_N, q in zip(here_NC.T, value_NC.T, places[:, 1], strict=True):
            code_N = here_N & (value_N != ENDED)
            if q == 0 and grid.causal_levels:
                end_bits_N[here_N] += _surprise(p_N[here_N], before_N[here_N], value_N[here_N] == ENDED)
            code_bits_NQ[code_N, q] += _surprise(p_N[code_N], before_N[code_N], value_N[code_N])
    return Ideal(code_bits_NQ, end_bits_N, length_bits_N)


def _steps(listed: Outcomes, grid: Grid) -> np.ndarray:
    """[N, T + 1, Q] int: the step of every cell of every grid, the end of audio included; -1 where there is none."""
    count, longest, Q = listed.codes_NTQ.shape
    step_NTQ = np.full((count, longest + 1, Q), -1)
    for frames in np.unique(listed.frames_N):
        step_TQ = np.full((longest + 1, Q), -1)
        step_TQ[:frames] = layout.order_TQ(grid, frames)
        if grid.causal_levels:
            step_TQ[frames, 0] = grid.order(frames, 0, frames)
        step_NTQ[listed.frames_N == frames] = step_TQ
    return step_NTQ


def _refine(context_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """Contexts that also know `value_N`, numbered from 0 again."""
    values, value_N = np.unique(value_N, return_inverse=True)
    return np.unique(context_N * len(values) + value_N, return_inverse=True)[1]


def _surprise(p_N: np.ndarray, context_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """-log2 p(value | context) of every grid, in a population of grids with probabilities p_N (up to a factor)."""
    joint_N = _refine(context_N, value_N)
    return np.log2(np.bincount(context_N, p_N)[context_N] / np.bincount(joint_N, p_N)[joint_N])
