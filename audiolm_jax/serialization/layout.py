"""The table of steps and the layout of the causal pass, from the order of any strategy.

A cell is predicted at a step (`Grid.order`) and is at a position (`Grid.position`) of the sequence. Axis letters: T
frames, Q codebooks, S streams, L positions of one audio segment.
"""

import functools

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.contract import causal_indices
from audiolm_jax.serialization.vocab import Vocab


def order_TQ(grid: Grid, frames: int) -> np.ndarray:
    """[T, Q] int: the step at which each cell is predicted."""
    require_frames(frames)
    return np.asarray(grid.order(*np.mgrid[:frames, : grid.codebooks], frames))


def require_frames(frames: int) -> None:
    if frames < 1:
        raise InputError(f"an audio segment of {frames} frames cannot be serialized; it must have at least 1")


@functools.lru_cache(maxsize=4096)
def causal_cells(grid: Grid, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The layout of the causal pass: the cell at each position of each stream.

    Returns:
      frame_LS: [L, S] int, the frame, or -1 where the stream is silent. Frame T of codebook 0, or of all of them, is
        the end of audio.
      book_LS: [L, S] int, the codebook, or -1.
    """
    require_frames(frames)
    t_N, q_N = causal_indices(grid, frames)
    position_N = np.asarray(grid.position(t_N, q_N, frames))
    stream_N = q_N if grid.streams > 1 else 0 * q_N
    frame_LS = np.full((position_N.max() + 1, grid.streams), -1)
    book_LS = frame_LS.copy()
    frame_LS[position_N, stream_N], book_LS[position_N, stream_N] = t_N, q_N
    if (frame_LS >= 0).sum() < len(t_N):
        raise InputError(
            f"serialization.strategy={grid.config.strategy}: two cells of {frames} frames share a position of a stream"
        )
    for table in (frame_LS, book_LS):
        table.setflags(write=False)  # shared by every caller of the cache
    return frame_LS, book_LS


def serialize(codes_TQ: np.ndarray, grid: Grid, vocab: Vocab) -> np.ndarray:
    """Codes of the causal levels -> ids [L, S], the end included; silent streams hold `framing.silent_S`."""
    code_ids_TQ = vocab.code_ids(codes_TQ)
    frame_LS, book_LS = causal_cells(grid, len(code_ids_TQ))
    tokens_LS = np.tile(grid.framing.silent_S(grid.streams, vocab), (len(frame_LS), 1))
    is_end = frame_LS == len(code_ids_TQ)
    is_code = (frame_LS >= 0) & ~is_end
    tokens_LS[is_code] = code_ids_TQ[frame_LS[is_code], book_LS[is_code]]
    tokens_LS[is_end] = np.broadcast_to(grid.framing.end(vocab), grid.codebooks)[book_LS[is_end]]
    return tokens_LS


def causal_heads(grid: Grid, frames: int, vocab: Vocab) -> np.ndarray:
    """[L, S] int32: the legal set (vocab.py) of the cell at each position, 0 where nothing is predicted.

    If ends are predicted, every frame of codebook 0 but the first may be the end: no segment is empty.
    """
    frame_LS, book_LS = causal_cells(grid, frames)
    predicted_LS = (frame_LS >= 0) & (grid.framing.ends | (frame_LS < frames))
    heads_LS = np.where(predicted_LS, ids.HEAD_CODE + book_LS, ids.HEAD_NONE)
    if grid.framing.end_is_frame:
        return np.where(frame_LS == frames, vocab.head_of_end + book_LS, heads_LS).astype(np.int32)
    or_end_LS = grid.framing.ends & (book_LS == 0) & (frame_LS > 0)
    return np.where(or_end_LS, vocab.head_code_or_end, heads_LS).astype(np.int32)
