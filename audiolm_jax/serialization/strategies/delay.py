"""Delay: codebook q lags d_q steps behind (MusicGen, arXiv 2306.05284 section 2.1; Parler, Dia, Higgs).

      t  0 1 2                 step  0  1  2  3
    q=0  a d g                 s=0   a  d  g  </audio>
    q=1  b e h    d = 0, 1     s=1   .  b  e  h

T + max(d) steps, or T + 1 if that is more. The end is predicted on stream 0 as soon as codebook 0 has run out; the
other streams then finish their tails, which are trained like everything else (audiocraft cuts the layout at T + 1
steps in training, so its tails are generated but never trained). Any non-decreasing delays; only differences matter,
so delays that start above 0 are shifted to start there.
"""

import numpy as np

from audiolm_jax.serialization import contract

OPTIONS = ("delays",)


def delays_Q(grid) -> np.ndarray:
    delays = grid.config.delays or tuple(range(grid.codebooks))
    return np.asarray(delays) - delays[0]


def validate(grid):
    contract.check_delays(grid)


def order(t, q, T, grid):
    return t + delays_Q(grid)[q]


def streams(grid):
    return grid.codebooks
