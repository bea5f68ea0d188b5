"""Coarse first: codebook 0 over all frames, then the others, each causal over the frames (audiocraft's
CoarseFirstPattern; called "valle" there until v1.1, wrongly, for its finer levels are causal).

      t  0 1 2                   step  0  1  2  3         4  5  6  7
    q=0  a d g                   s=0   a  d  g  </audio>  .  .  .  .
    q=1  b e h   delays 0, 0, 1  s=1   .  .  .  .         b  e  h  .
    q=2  c f i                   s=2   .  .  .  .         .  c  f  i

2T + max(d) steps and one for the end, after which T is known. `delays` lag codebooks 1, 2, ... in the second sweep:
Q numbers, the first (codebook 0, a sweep of its own) 0; by default 0, 0, 1, 2, ...
"""

import numpy as np

from audiolm_jax.errors import InputError

OPTIONS = ("delays",)


def delays_Q(grid) -> np.ndarray:
    delays = grid.config.delays or (0, *range(grid.codebooks - 1))
    return np.asarray(delays)


def validate(grid):
    delays = grid.config.delays
    if delays and (len(delays) != grid.codebooks or delays[0] != 0 or list(delays) != sorted(delays)):
        raise InputError(
            f"serialization.delays is {delays}; it must be {grid.codebooks} non-decreasing numbers, the first 0"
        )


def order(t, q, T, grid):
    # The second sweep is one step late: the end of audio has a step of its own, T, and opens it.
    delay = delays_Q(grid)
    first_fine = delay[1] if grid.codebooks > 1 else 0
    return t + (np.asarray(q) > 0) * (T + 1 + delay[q] - first_fine)


def streams(grid):
    return grid.codebooks
