"""Depth: the codes of a frame one after the other, by a small network inside the frame (Moshi, arXiv 2410.00037 section
3.4.2; CSM, Qwen3-TTS, MOSS-TTS-Local; RQ-Transformer, arXiv 2203.01941).

      t  0 1 2                 position  0  1  2  3
    q=0  a d g                 s=0       a  d  g  </audio>
    q=1  b e h    d = 0, 0     s=1       b  e  h  .

The sequence is that of `delay` with the same delays: a cell stands at position t + d_q. The first stream of a position
is predicted by the transformer as everywhere, the others one by one by the depth network (`model/depth.py`), each
given those before it. So every cell is predicted given all earlier ones, and nothing is lost of what the codes of a
frame tell about each other. T + max(d) passes of the transformer, or T + 1 if that is more, and up to Q - 1 small ones
in each. Delays, by default none, are non-decreasing; only differences matter.
"""

import numpy as np

from audiolm_jax.serialization import contract

OPTIONS = ("delays",)


def validate(grid):
    contract.check_delays(grid)


def order(t, q, T, grid):
    return position(t, q, T, grid) * grid.codebooks + q


def position(t, q, T, grid):
    delays = np.asarray(grid.config.delays or (0,) * grid.codebooks)
    return t + (delays - delays[0])[q]


def streams(grid):
    return grid.codebooks
