"""Hierarchical: codebook 0 causally, then each finer codebook in one bidirectional pass (VALL-E, arXiv 2301.02111).

      t  0 1 2                     step  0  1  2  3         4      5
    q=0  a d g     causal pass     s=0   a  d  g  </audio>
    q=1  b e h     one pass                                 b e h
    q=2  c f i     one pass                                        c f i

T + 1 sequential steps and Q - 1 passes over the whole segment. Inside a finer codebook the frames are independent
given all coarser codes (of the whole segment) and the text. One network does both; a training row is either the
causal row (`causal_fraction` of them) or one finer codebook, drawn uniformly (VALL-E section 4.2.2). In
`prompt_fraction` of the latter the first frames, uniformly up to half, are clean at every codebook, so that a voice
prompt can be continued; VALL-E keeps a prompt in every row.
"""

import numpy as np

from audiolm_jax.serialization import LevelView

OPTIONS = ("prompt_fraction", "causal_fraction")


def order(t, q, T, grid):
    q = np.asarray(q)
    return t * (q == 0) + (q > 0) * (T + q)


def streams(grid):
    return grid.codebooks


def causal_levels(grid):
    return 1


def iterations(grid):
    return (1,) * (grid.codebooks - 1)


def draw(rng, T, grid):
    if grid.codebooks == 1 or rng.random() < grid.config.causal_fraction:
        return None
    level = int(rng.integers(1, grid.codebooks))
    prompt = int(rng.integers(0, T // 2 + 1)) if rng.random() < grid.config.prompt_fraction else 0
    return LevelView(level, np.arange(T) >= prompt, prompt)
