"""What a strategy draws for a training row that is not the causal one."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LevelView:
    """A bidirectional pass over one audio segment: predict the masked cells of one codebook.

    `masked_T` [T] bool marks the cells of codebook `level` that are hidden and predicted. Coarser codebooks are
    clean. Finer ones are hidden too, except in the `prompt` first frames, which are clean at every codebook.
    """

    level: int
    masked_T: np.ndarray
    prompt: int = 0
