"""Parallel: all codes of a frame at once, each independent of the others given the past.

      t  0 1 2                 step  0  1  2  3
    q=0  a d g                 s=0   a  d  g  </audio>
    q=1  b e h                 s=1   b  e  h  .

T + 1 steps. What the codes of one frame tell about each other is lost.
"""

import numpy as np

from audiolm_jax.serialization import refuse_options


def validate(grid):
    refuse_options(grid, "delays", "iterations", "schedule", "prompt_fraction", "causal_fraction")


def order(t, q, T, grid):
    return t + 0 * np.asarray(q)


def streams(grid):
    return grid.codebooks


def causal_levels(grid):
    return grid.codebooks


def iterations(grid):
    return ()


def draw(rng, T, grid):
    return None
