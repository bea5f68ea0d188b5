"""What follows from an order, once for every strategy: the table, the layout and its inverse, who sees whom.

Axis letters: T frames, Q codebooks, S streams, L steps of one audio segment.
"""

import functools

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab


def order_TQ(grid: Grid, frames: int) -> np.ndarray:
    """[T, Q] int: the step at which each cell is predicted."""
    require_frames(frames)
    t, q = np.meshgrid(np.arange(frames), np.arange(grid.codebooks), indexing="ij")
    return np.asarray(grid.order(t, q, frames))


def require_frames(frames: int) -> None:
    if frames < 1:
        raise InputError(f"an audio segment of {frames} frames cannot be serialized; it must have at least 1")


@functools.lru_cache(maxsize=4096)
def causal_cells(grid: Grid, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The layout of the causal pass: which cell each step holds on each stream.

    Returns:
      frame_LS: [steps, S] int, the frame, or -1 where the stream is silent. Frame T of codebook 0 is the end of audio.
      book_LS: [steps, S] int, the codebook, or -1.
    """
    require_frames(frames)
    cells = [(int(grid.order(t, q, frames)), t, q) for q in range(grid.causal_levels) for t in range(frames + (q == 0))]
    steps = max(step for step, _, _ in cells) + 1
    frame_LS = np.full((steps, grid.streams), -1)
    book_LS = np.full((steps, grid.streams), -1)
    for step, t, q in cells:
        stream = q if grid.streams > 1 else 0
        if frame_LS[step, stream] != -1:
            raise AssertionError(f"{grid.config.strategy}: two cells at step {step} of stream {stream}")
        frame_LS[step, stream], book_LS[step, stream] = t, q
    for table in (frame_LS, book_LS):
        table.setflags(write=False)  # shared by every caller of the cache
    return frame_LS, book_LS


def serialize(codes_TQ: np.ndarray, grid: Grid, vocab: Vocab) -> np.ndarray:
    """Codes of the causal levels -> ids [steps, S], </audio> included, PAD where a stream is silent; its special id in
    place of both in a special vocabulary (vocab.py)."""
    code_ids_TQ = vocab.code_ids(codes_TQ)
    frame_LS, book_LS = causal_cells(grid, len(code_ids_TQ))
    tokens_LS = np.tile(vocab.silent_S(grid.streams), (len(frame_LS), 1))
    is_end = frame_LS == len(code_ids_TQ)
    is_code = (frame_LS >= 0) & ~is_end
    tokens_LS[is_code] = code_ids_TQ[frame_LS[is_code], book_LS[is_code]]
    tokens_LS[is_end] = vocab.end
    return tokens_LS


def deserialize(tokens_LS: np.ndarray, grid: Grid, vocab: Vocab) -> np.ndarray:
    """The inverse of `serialize`: ids [steps, S] -> codes [T, causal levels] int32.

    Raises InputError if there is no end of audio, or a cell of the grid is missing or not a code of its codebook.
    """
    tokens_LS = np.asarray(tokens_LS)
    ends = np.flatnonzero(tokens_LS[:, 0] == ids.END_AUDIO)
    if not len(ends):
        raise InputError(f"{len(tokens_LS)} steps of {grid.config.strategy} hold no end of audio")
    frames = frames_before(int(ends[0]), grid)
    frame_LS, book_LS = causal_cells(grid, frames)
    if len(tokens_LS) < len(frame_LS):
        raise InputError(
            f"{frames} frames of {grid.config.strategy} take {len(frame_LS)} steps; {len(tokens_LS)} were given"
        )
    is_code = (frame_LS >= 0) & (frame_LS < frames)
    codes_TQ = np.full((frames, grid.causal_levels), -1, np.int32)
    found = tokens_LS[: len(frame_LS)][is_code] - vocab.code_offsets[book_LS[is_code]]
    codes_TQ[frame_LS[is_code], book_LS[is_code]] = found
    if codes_TQ.min() < 0 or codes_TQ.max() >= vocab.codebook_size:
        raise InputError(f"the steps of {grid.config.strategy} hold ids that are not codes of their codebook")
    return codes_TQ


def frames_before(end_step: int, grid: Grid) -> int:
    """T, from the step at which the end of audio was predicted. Raises InputError where no T fits."""
    T = np.arange(end_step + 1)
    fits = np.flatnonzero(grid.order(T, 0, T) == end_step)
    if not len(fits) or fits[0] == 0:
        raise InputError(f"an end of audio at step {end_step} fits no number of frames of {grid.config.strategy}")
    return int(fits[0])


def heads_of(frame_LS: np.ndarray, book_LS: np.ndarray, vocab: Vocab) -> np.ndarray:
    """[..., S] int32: the legal set (vocab.py) of the cell predicted in each place, 0 where there is none.

    The end may take the place of every frame of codebook 0 but the first: no segment is empty.
    """
    heads = np.where(frame_LS >= 0, ids.HEAD_CODE + book_LS, ids.HEAD_NONE)
    return np.where((book_LS == 0) & (frame_LS > 0), vocab.head_code_or_end, heads).astype(np.int32)


def visibility_TQTQ(grid: Grid, frames: int) -> np.ndarray:
    """[T, Q, T, Q] bool: may the prediction of the first cell use the second one? Those of an earlier step."""
    step_TQ = order_TQ(grid, frames)
    return step_TQ[None, None] < step_TQ[:, :, None, None]
