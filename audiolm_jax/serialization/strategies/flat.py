"""Flat: one cell after the other, frame by frame (AudioLM, SODA, Orpheus, Llama-Mimi).

      t  0 1 2                 step  0  1  2  3  4  5  6
    q=0  a d g                 S=1   a  b  d  e  g  h  </audio>
    q=1  b e h

Nothing is assumed independent; T*Q + 1 steps.
"""

from audiolm_jax.serialization import refuse_options


def validate(grid):
    refuse_options(grid, "delays", "iterations", "schedule", "prompt_fraction", "causal_fraction")


def order(t, q, T, grid):
    return t * grid.codebooks + q


def streams(grid):
    return 1


def causal_levels(grid):
    return grid.codebooks


def iterations(grid):
    return ()


def draw(rng, T, grid):
    return None
