"""The inverse of a layout, and who may see whom, by their definitions."""

import numpy as np

from audiolm_jax.serialization import layout
from audiolm_jax.serialization import vocab as ids


def deserialize(tokens_LS, grid, vocab):
    """Ids [L, S] of a segment, padded or not -> its codes [T, causal levels]: every cell looked up where it stands."""
    ends = np.flatnonzero(tokens_LS[:, 0] == ids.END_AUDIO)
    assert len(ends) == 1, "a segment has one end"
    [frames] = [T for T in range(1, len(tokens_LS) + 1) if grid.position(T, 0, T) == ends[0]]
    codes_TQ = np.full((frames, grid.causal_levels), -1, np.int32)
    for t in range(frames):
        for q in range(grid.causal_levels):
            token = tokens_LS[grid.position(t, q, frames), q if grid.streams > 1 else 0]
            codes_TQ[t, q] = token - vocab.code_offsets[q]
    return codes_TQ


def visibility_TQTQ(grid, frames):
    """[T, Q, T, Q] bool: may the prediction of the first cell use the second one? Those of an earlier step."""
    step_TQ = layout.order_TQ(grid, frames)
    return step_TQ[None, None] < step_TQ[:, :, None, None]
