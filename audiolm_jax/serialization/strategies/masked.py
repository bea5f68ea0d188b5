"""Masked: level by level, the cells of a level in a few bidirectional passes (SoundStorm, arXiv 2305.09636).

      t  0 1 2 3                 pass  0    1    2     3       4
    q=0  a d g j  iterations 3, 1, 1   g    a j  d
    q=1  b e h k                                    b e h k
    q=2  c f i l                                             c f i l

sum(iterations) passes over the whole segment. Cells of one pass are independent of each other given the rest. The
number of frames is needed before the first pass: predicted by a head of its own at <audio>, or requested.

Training (section 3.2 there): a prompt boundary t0 ~ U{0..T-1}, a level q ~ U{0..Q-1}, a masking probability
p = cos(pi u / 2), u ~ U(0, 1). Frames before t0 are clean; after it, coarser levels are clean, cells of level q are
hidden with probability p, at least one (none would be a loss of 0/0), finer levels are all hidden. The loss is on
the hidden cells of level q alone. `prompt_fraction` below 1 puts t0 at 0 in the other rows.

Decoding (section 3.3): after pass i of N of a level, the floor(T * schedule(i / N)) least confident cells are hidden
again; the others are final. `order` gives one fixed order with the same counts (frames ranked by the golden-ratio
sequence), under which N passes are an exactly normalised model; training draws the order, sampling ranks by
confidence, for which no likelihood is tractable.
"""

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import LevelView

OPTIONS = ("iterations", "schedule", "prompt_fraction")
GOLDEN = (np.sqrt(5) - 1) / 2
SCHEDULES = {
    "cosine": lambda share: np.cos(np.pi / 2 * share),
    "linear": lambda share: 1 - share,
}


def validate(grid):
    count = grid.config.iterations
    if count and (len(count) != grid.codebooks or min(count) < 1):
        raise InputError(
            f"serialization.iterations is {count}; it must be {grid.codebooks} numbers from 1 up, one per codebook"
        )
    if grid.config.schedule not in SCHEDULES:
        raise InputError(
            f"serialization.schedule is {grid.config.schedule!r}; it must be one of {', '.join(SCHEDULES)}"
        )


def hidden_after(T, iterations: int, grid) -> np.ndarray:
    """[iterations] int: how many of T cells are still hidden after each pass; the last entry is 0.

    The tiny addition keeps exact products (linear, 10 cells, 5 passes: 8, 6, ...) from being floored to one less.
    """
    share = np.arange(1, iterations + 1) / iterations
    hidden = np.floor(T * SCHEDULES[grid.config.schedule](share) + 1e-6).astype(np.int64)
    hidden[-1] = 0
    return hidden


def order(t, q, T, grid):
    rank_T = np.argsort(np.argsort(np.arange(1, T + 1) * GOLDEN % 1, kind="stable"), kind="stable")
    left_T = T - 1 - rank_T  # cells of the level that are revealed after this one
    passes_Q = iterations(grid)
    first_Q = np.cumsum((0, *passes_Q[:-1]))
    hidden_TQ = [(hidden_after(T, passes, grid) > left_T[:, None]).sum(axis=1) for passes in passes_Q]
    return (first_Q + np.stack(hidden_TQ, axis=-1))[t, q]


def streams(grid):
    return grid.codebooks


def causal_levels(grid):
    return 0


def iterations(grid):
    return grid.config.iterations or (16,) + (1,) * (grid.codebooks - 1)


def draw(rng, T, grid):
    prompt = int(rng.integers(0, T)) if rng.random() < grid.config.prompt_fraction else 0
    level = int(rng.integers(0, grid.codebooks))
    probability = np.cos(np.pi / 2 * rng.random())
    masked_T = (rng.random(T) < probability) & (np.arange(T) >= prompt)
    if not masked_T.any():
        masked_T[rng.integers(prompt, T)] = True
    return LevelView(level, masked_T, prompt)
