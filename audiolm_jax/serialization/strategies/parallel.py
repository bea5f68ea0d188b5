"""Parallel: all codes of a frame at once, each independent of the others given the past.

      t  0 1 2                 step  0  1  2  3
    q=0  a d g                 s=0   a  d  g  </audio>
    q=1  b e h                 s=1   b  e  h  .

T + 1 steps. What the codes of one frame tell about each other is lost.
"""


def order(t, q, T, grid):
    return t


def streams(grid):
    return grid.codebooks
