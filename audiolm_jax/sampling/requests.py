"""Requests -> the fixed-shape arrays of the loops: numpy, on the host, once per request.

Axes: B requested rows; M rows of the model, B or, with guidance, 2B (the second half is unconditional); P positions of
the prompt; F frames of the grid. P and F are rounded up to buckets, so that few shapes are compiled.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.rules import LogitRules, Penalty, Redraw
from audiolm_jax.serialization import Grid, documents, layout
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab

# The key of a draw is fold_in(key of (stage, seed), step): never one key for two draws.
CAUSAL, LEVELS, LENGTH, AGAIN = range(4)

# Smallest buckets of positions, frames and states: a smaller one would save less time than its compilation takes.
PROMPT, FRAMES, STATES = 32, 64, 16


@dataclasses.dataclass(frozen=True)
class Request:
    """One row: the segments before the audio, its first frames, and how the others are sampled.

    document: segments before it, () for none. prompt_TQ: int32 [frames, Q], the frames to continue (0 or more).
    frames: length of the finished segment, prompt included; None: the model predicts the end. sampling may differ
    between the rows of a batch, but for `chunk`, which is that of the first row. encoded_EW: states for the
    cross-attention (model.cross_width). unconditional: the document of the unconditional branch of guidance; None:
    `document` without its text. window: sample -> the document of a window that begins there (windows.py); None:
    `document` for all.
    """

    document: documents.Document
    prompt_TQ: np.ndarray
    frames: int | None = None
    seed: int = 0
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    encoded_EW: np.ndarray | None = None
    unconditional: documents.Document | None = None
    window: Callable[[int], documents.Document] | None = None


class Prompts(NamedTuple):
    """Padded rows of the prompt: tokens [M, P, S], positions, segments (1 or 0 after the end), ahead, all [M, P].

    states [M, P, W]: those of the documents, None if no row has any.
    """

    tokens_MPS: np.ndarray
    positions_MP: np.ndarray
    segments_MP: np.ndarray
    ahead_MP: np.ndarray
    length_M: np.ndarray
    states_MPW: np.ndarray | None


def bucket(size: int, smallest: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ... that holds `size`, from the power of two `smallest` up."""
    rounded = smallest
    while rounded < size:
        rounded = rounded * 3 // 2 if rounded & (rounded - 1) == 0 else rounded * 4 // 3
    return rounded


def check(request: Request, grid: Grid, vocab: Vocab, context: int | None) -> None:
    """Raises InputError for no room after the prompt, codes out of range, no frames, too many positions, an option of
    the sampling that this model cannot honour.

    context: the number of positions that the model was trained on; None: unchecked.
    """
    if request.prompt_TQ.ndim != 2 or request.prompt_TQ.shape[1] != grid.codebooks:
        raise InputError(
            f"a prompt of codes has shape {request.prompt_TQ.shape}; it must be [frames, {grid.codebooks}]"
        )
    vocab.code_ids(request.prompt_TQ)
    grid.framing.check_codes(request.prompt_TQ)
    if not grid.framing.ends and request.frames is None:
        raise InputError("this model predicts no end of audio: the length is needed, in seconds or frames")
    prompt, most = len(request.prompt_TQ), longest(request, vocab)
    if request.frames is not None and not 1 <= request.frames <= most:
        raise InputError(f"{request.frames} frames were asked for; a segment has 1..{most}")
    limit = most if request.frames is None else request.frames
    if prompt >= limit:
        raise InputError(f"the prompt has {prompt} frames and the segment {limit}; it must leave room for 1 more")
    _check_sampling(request.sampling, grid, vocab)
    _check_positions(request, grid, vocab, context)
    least = request.sampling.min_frames
    if least and request.frames is None and (room := limits(request, grid, vocab, context)[0] - prompt) < least:
        raise InputError(f"sampling.min_frames is {least}; after the prompt there is room for {room}")


def _check_sampling(sampling: SamplingConfig, grid: Grid, vocab: Vocab) -> None:
    if sampling.min_frames and not grid.framing.ends:
        raise InputError(f"sampling.min_frames is {sampling.min_frames}; this model predicts no end of audio")
    if sampling.guidance != 1 and grid.framing.texts:
        raise InputError(f"sampling.guidance is {sampling.guidance}; this model was never trained without its text")
    for q, codes in enumerate(sampling.per_codebook("suppressed", grid.codebooks)):
        size = vocab.codebook_sizes[q]
        wrong = [code for code in codes if not 0 <= code < size]
        if wrong or len(set(codes)) == size:
            raise InputError(
                f"sampling.suppressed holds {wrong[0] if wrong else 'every code'} for codebook {q}; its codes are "
                f"0..{size - 1}, and one of them must remain"
            )
    for name, off in (("repetition_penalty", 1), ("ras_window", 0)):
        values = sampling.per_codebook(name, grid.codebooks)
        if any(value != off for value in values[grid.causal_levels :]):
            raise InputError(
                f"sampling.{name} is {values}; it must be {off} from codebook {grid.causal_levels} on, whose frames "
                f"{grid.config.strategy} draws together: none is before another"
            )


def _check_positions(request: Request, grid: Grid, vocab: Vocab, context: int | None) -> None:
    if context is None:
        return
    prompt = len(request.prompt_TQ)
    needed = positions(request, prompt + 1, grid, vocab)
    if needed > context:
        raise InputError(
            f"the prompt (text, earlier audio and {prompt} frames) and one frame more take {needed} positions; "
            f"the context of this model has {context}: shorten the prompt or the text"
        )
    if request.frames is not None:
        needed = positions(request, request.frames, grid, vocab)
        if needed > context:
            raise InputError(
                f"{request.frames} frames and their prompt take {needed} positions; the context of this model has "
                f"{context}"
            )


def longest(request: Request, vocab: Vocab) -> int:
    return min(request.sampling.max_frames or vocab.max_frames, vocab.max_frames)


def positions(request: Request, frames: int, grid: Grid, vocab: Vocab) -> int:
    """Positions of the longest row of the passes that generate `frames` frames."""

    def prompt(causal: bool) -> int:
        return len(documents.prompt_row(request.document, grid, vocab, causal)["tokens"])

    causal_row = prompt(causal=True) + steps_of(frames, grid) if grid.causal_levels else 0
    level_row = prompt(causal=False) + frames if grid.causal_levels < grid.codebooks else 0
    return max(causal_row, level_row)


def limits(request: Request, grid: Grid, vocab: Vocab, context: int | None) -> tuple[int, int]:
    """(frames at which the end is forced, first frame at which it is legal). Without request.frames the end is forced
    where the context is full."""
    if request.frames is not None:
        return request.frames, request.frames
    prompt, limit = len(request.prompt_TQ), longest(request, vocab)
    if context is not None:
        more = range(prompt + 2, limit + 1)  # one frame after the prompt fits (`check`)
        limit = prompt + 1 + bisect.bisect_right(more, context, key=lambda n: positions(request, n, grid, vocab))
    return limit, max(1, prompt + request.sampling.min_frames)


def steps_of(frames, grid: Grid):
    """Positions of the causal pass over `frames` frames, </audio> included; elementwise, also for jax arrays."""
    steps = grid.position(frames, 0, frames)
    for q in range(grid.causal_levels):
        last = grid.position(frames - 1, q, frames)
        steps = jnp.maximum(steps, last) if isinstance(steps, jax.Array) else np.maximum(steps, last)
    return steps + 1


def prefilled_steps(frames: int, grid: Grid) -> int:
    """Positions with cells of the first `frames` frames alone, which are prefilled; the loop forces later cells."""
    return int(min(grid.position(frames, q, frames + 1) for q in range(grid.causal_levels)))


def causal_prompt(request: Request, grid: Grid, vocab: Vocab) -> documents.Row:
    """The row of the document, the opening of the audio, and the positions of `prefilled_steps`."""
    row = documents.prompt_row(request.document, grid, vocab, causal=True)
    steps = prefilled_steps(len(request.prompt_TQ), grid)
    if steps == 0:
        return row
    frame_LS, book_LS = layout.causal_cells(grid, len(request.prompt_TQ) + 1)
    frame_LS, book_LS = frame_LS[:steps], book_LS[:steps]
    code_ids_LS = vocab.code_ids(request.prompt_TQ)[frame_LS, book_LS]
    tokens_LS = np.where(frame_LS >= 0, code_ids_LS, grid.framing.silent_S(grid.streams, vocab)).astype(np.int32)
    if grid.framing.texts:
        text_L = documents.beside_steps(beside_of(request), steps)
        tokens_LS = np.concatenate([tokens_LS, text_L[:, None]], axis=1)
    return row | {
        "tokens": np.concatenate([row["tokens"], tokens_LS]),
        "ahead": np.concatenate([row["ahead"], np.zeros(steps, np.int32)]),
    }


def unconditional(request: Request) -> Request:
    """The request of the unconditional branch of guidance (trained by `drop_text`)."""
    document = request.unconditional
    if document is None:
        document = tuple(segment for segment in request.document if segment[0] != "text")
    return dataclasses.replace(request, document=document)


def prompts(requests: Sequence[Request], grid: Grid, vocab: Vocab, causal: bool, guided: bool) -> Prompts:
    """The padded prompt rows of all requests, and after them the unconditional ones if `guided`."""
    every = [*requests, *(unconditional(request) for request in requests)] if guided else requests
    rows = [
        causal_prompt(request, grid, vocab) if causal else documents.prompt_row(request.document, grid, vocab, False)
        for request in every
    ]
    length_M = np.array([len(row["tokens"]) for row in rows], np.int32)
    width = bucket(int(length_M.max()), PROMPT)
    tokens_MPS = np.full((len(rows), width, grid.inputs), ids.PAD, np.int32)
    ahead_MP = np.zeros((len(rows), width), np.int32)
    for m, row in enumerate(rows):
        tokens_MPS[m, : length_M[m]] = row["tokens"]
        ahead_MP[m, : length_M[m]] = row["ahead"]
    positions_MP = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    segments_MP = (positions_MP < length_M[:, None]).astype(np.int32)
    states_MPW, with_states = None, {m: row["states"] for m, row in enumerate(rows) if "states" in row}
    for m, states_LW in with_states.items():
        if states_MPW is None:
            states_MPW = np.zeros((len(rows), width, states_LW.shape[1]), np.float32)
        states_MPW[m, : len(states_LW)] = states_LW
    return Prompts(tokens_MPS, positions_MP, segments_MP, ahead_MP, length_M, states_MPW)


def beside_of(request: Request) -> np.ndarray:
    """The text beside the steps of the audio that is to come, int32 [X]; its last token goes on after it."""
    return dict(request.document)["beside"]


def beside(requests: Sequence[Request], grid: Grid) -> np.ndarray | None:
    """The text beside the steps of all rows, [B, X], lengthened by its last token; None if the framing has none.

    Rows of the model are those of the requests: `check` refuses guidance.
    """
    if not grid.framing.texts:
        return None
    every = [beside_of(request) for request in requests]
    width = bucket(max(map(len, every)), PROMPT)
    return np.stack([documents.beside_steps(text_X, width) for text_X in every]).astype(np.int32)


def encoded(requests: Sequence[Request], width: int, guided: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """(states [M, E, width], valid_ME) for the cross-attention, none in unconditional rows; None if width is 0."""
    if not width:
        return None
    states = [np.zeros((0, width)) if request.encoded_EW is None else request.encoded_EW for request in requests]
    return padded([*states, *[np.zeros((0, width))] * (len(requests) if guided else 0)])


def padded(states: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """States [tokens, width] of every row -> (states [M, E, width], valid_ME)."""
    states_MEW = np.zeros((len(states), bucket(max(map(len, states)), STATES), states[0].shape[1]), np.float32)
    for m, row_EW in enumerate(states):
        states_MEW[m, : len(row_EW)] = row_EW
    length_M = np.array([len(row_EW) for row_EW in states])
    return states_MEW, np.arange(states_MEW.shape[1]) < length_M[:, None]


def prompt_grid(requests: Sequence[Request], frames: int, codebooks: int) -> np.ndarray:
    """codes [B, frames, Q]: the prompts, -1 elsewhere."""
    codes_BFQ = np.full((len(requests), frames, codebooks), -1, np.int32)
    for b, request in enumerate(requests):
        codes_BFQ[b, : len(request.prompt_TQ)] = request.prompt_TQ
    return codes_BFQ


def place(tree: Any) -> Any:
    """Host arrays replicated on the current mesh, as the loops return them: all chunks share an executable."""
    return jax.tree.map(lambda x: jax.device_put(x, P(*(None,) * np.ndim(x))), tree)


def keys(requests: Sequence[Request], stage: int) -> jax.Array:
    """[B] keys, each from the seed of its own row: the two words of a Threefry key are stage and seed."""
    data_B2 = np.array([(stage, request.seed % 2**32) for request in requests], np.uint32)
    return jax.random.wrap_key_data(place(data_B2), impl="threefry2x32")


def guidance(requests: Sequence[Request]) -> np.ndarray | None:
    """[B] coefficients, or None if no row is guided: then there is no second half of the batch."""
    guidance_B = np.array([request.sampling.guidance for request in requests], np.float32)
    return None if (guidance_B == 1).all() else guidance_B


def rules(requests: Sequence[Request], vocab: Vocab) -> LogitRules:
    """The rules [B, Q] of all requests; a filter is None if no row uses it."""

    def each(name: str) -> list[tuple]:
        return [request.sampling.per_codebook(name, vocab.codebooks) for request in requests]

    def table(name: str, dtype: type, off: float) -> np.ndarray | None:
        values_BQ = np.array(each(name), dtype)
        return None if (values_BQ == off).all() else values_BQ

    suppressed_BQK = np.zeros((len(requests), vocab.codebooks, vocab.largest_codebook), bool)
    for b, codebooks in enumerate(each("suppressed")):
        for q, codes in enumerate(codebooks):
            suppressed_BQK[b, q, list(codes)] = True
    factor_BQ = table("repetition_penalty", np.float32, 1)
    start_B = [0 if request.sampling.repetition_prompt else len(request.prompt_TQ) for request in requests]
    start_BQ = np.tile(np.array(start_B, np.int32)[:, None], vocab.codebooks) if any(start_B) else None
    window_BQ = table("ras_window", np.int32, 0)
    # A share as a number of frames, exact: 0.1 of 10 frames is one.
    most_BQ = np.floor(np.array(each("ras_window")) * np.array(each("ras_ratio")) + 1e-9).astype(np.int32)
    return LogitRules(
        table("temperature", np.float32, np.nan),
        table("top_k", np.int32, 0),
        table("top_p", np.float32, 1),
        table("min_p", np.float32, 0),
        suppressed_BQK if suppressed_BQK.any() else None,
        None if factor_BQ is None else Penalty(factor_BQ, table("repetition_window", np.int32, 0), start_BQ),
        None if window_BQ is None else Redraw(window_BQ, most_BQ),
    )
