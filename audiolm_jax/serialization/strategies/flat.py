"""Flat: one cell after the other, frame by frame (AudioLM, SODA, Orpheus, Llama-Mimi).

      t  0 1 2                 step  0  1  2  3  4  5  6
    q=0  a d g                 S=1   a  b  d  e  g  h  </audio>
    q=1  b e h

Nothing is assumed independent; T*Q + 1 steps.
"""


def order(t, q, T, grid):
    return t * grid.codebooks + q


def streams(grid):
    return 1
