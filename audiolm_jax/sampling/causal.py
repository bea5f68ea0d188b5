"""The causal loop: one jitted program for every strategy with a causal pass, driven by its order alone.

At position s of a row, the cells (t, q) with position(t, q, T) = s are drawn from the last hidden state, each from its
legal set; cells of the prompt keep their codes; the ids of all are the next input. The end of audio is the cell (T, 0):
drawing it fixes T, and the other codebooks finish their tails. Until then T is the limit, where the end is forced. If
the end is a frame (`framing.end_is_frame`), code 0 in all codebooks of a frame that may be it fixes T.

Axes: B rows; M rows of the model (B, or 2B with guidance); F frames of the grid; C cells of a step, one per stream
that has one; Q codebooks; K codes of the largest one.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import sharding, versions
from audiolm_jax.model.losses import by_codebook
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import performance, requests
from audiolm_jax.sampling.background import in_background
from audiolm_jax.sampling.rules import LogitRules, Past, choose, guide, suppress
from audiolm_jax.serialization import Grid, cost
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab


class State(NamedTuple):
    """The variables of a step. `frames_B` is T once the end was drawn, the limit before."""

    codes_BFQ: jax.Array  # int32, -1: still to be sampled
    frames_B: jax.Array
    step_B: jax.Array  # the position whose cells come next; constant after the last one
    done_B: jax.Array
    slot: jax.Array  # generated positions so far, the same for all rows
    hidden_MD: jax.Array  # of the last position: predicts the cells of step_B


class Fixed(NamedTuple):
    """The constants of a step."""

    end_from_B: jax.Array  # the first frame that may be the end
    keys_B: jax.Array
    again_B: jax.Array | None  # keys of draws that replace another
    rules: LogitRules  # [B, Q]
    guidance_B: jax.Array | None
    length_M: jax.Array  # positions of the prompt
    valid_MP: jax.Array
    prompt_cache: tuple
    encoded_valid_ME: jax.Array | None = None  # states of an encoder that a row attends to
    beside_BX: jax.Array | None = None  # text beside the steps, of which the last goes on


class Cells(NamedTuple):
    """The C cells of a step, of every row."""

    book_BC: jax.Array
    present_BC: jax.Array
    may_end_BC: jax.Array
    forced_end_BC: jax.Array
    known_BC: jax.Array  # the code, -1 where it is to be drawn
    gumbel_BCN: jax.Array
    past: Past | None  # for rules that look back
    not_zero_BC: jax.Array | None = None  # where the end is a frame: what must not be the last code of that

    def column(self, c: jax.Array | int) -> "Cells":
        """Cell number c alone."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, c, 1, axis=1), self)


def cells(grid: Grid, step_B: jax.Array, frames_B: jax.Array, frames: int) -> tuple[jax.Array, jax.Array]:
    """The cells of a grid of `frames` rows at position step_B: (here_BFQ bool over 0..frames, end_B bool).

    Q is the number of causal codebooks. `end_B`: whether the end of audio, the cell (T, 0), is one of them.
    """
    t = np.arange(frames + 1)[:, None]
    q = np.arange(grid.causal_levels)
    T = frames_B[:, None, None]
    here_BFQ = (grid.position(t, q, T) == step_B[:, None, None]) & ((t < T) | ((t == T) & (q == 0)))
    end_B = jnp.any(here_BFQ[:, :, 0] & (t[:, 0] == T[:, :, 0]), axis=1)
    return here_BFQ, end_B


def advance(model: Transformer, grid: Grid, vocab: Vocab, fixed: Fixed, state: State) -> tuple[State, jax.Array]:
    """Draws the cells of one step: the state with them but for `hidden_MD`, and the next tokens_MS, with text
    beside them."""
    batch, frames, _ = state.codes_BFQ.shape
    K = vocab.largest_codebook
    here_BFQ, forced_end_B = cells(grid, state.step_B, state.frames_B, frames)
    frame_BC = jnp.argmax(here_BFQ, axis=1).astype(jnp.int32)
    present_BC = jnp.any(here_BFQ, axis=1)
    book_BC = jnp.broadcast_to(jnp.arange(grid.causal_levels, dtype=jnp.int32), present_BC.shape)
    if grid.streams == 1:  # at most one cell, of a codebook that differs between rows
        book_BC = jnp.argmax(present_BC, axis=1, keepdims=True).astype(jnp.int32)
        frame_BC = jnp.take_along_axis(frame_BC, book_BC, axis=1)
        present_BC = jnp.any(present_BC, axis=1, keepdims=True)

    row_B1 = jnp.arange(batch)[:, None]
    known_BC = state.codes_BFQ[row_B1, jnp.minimum(frame_BC, frames - 1), book_BC]
    # Noise of all cells at once: a row draws the same alone and among others.
    shape_CN = (book_BC.shape[1], K + 1)
    noise = jax.vmap(lambda key, step: jax.random.gumbel(jax.random.fold_in(key, step), shape_CN))
    past = None
    if fixed.rules.penalty is not None or fixed.rules.redraw is not None:
        codes_BCF = jnp.take_along_axis(state.codes_BFQ, book_BC[:, None], axis=2).swapaxes(1, 2)
        again_BCN = None if fixed.rules.redraw is None else noise(fixed.again_B, state.step_B)
        past = Past(codes_BCF, frame_BC, again_BCN)
    may_end_BC, end_is_frame = frame_BC >= fixed.end_from_B[:, None], grid.framing.end_is_frame
    here = Cells(
        book_BC,
        present_BC,
        may_end_BC=(book_BC == 0) & may_end_BC & (not end_is_frame),
        forced_end_BC=forced_end_B[:, None] & (book_BC == 0),
        known_BC=jnp.where(frame_BC < frames, known_BC, -1),
        gumbel_BCN=noise(fixed.keys_B, state.step_B),
        past=past,
        not_zero_BC=(book_BC == grid.codebooks - 1) & ~may_end_BC if end_is_frame else None,
    )
    chosen_BC = _draw(model, grid, vocab, fixed, here, state.hidden_MD)

    is_end_BC = present_BC & (chosen_BC == K)
    if end_is_frame:
        zeros_BC = jnp.all(present_BC & (chosen_BC == 0) & may_end_BC, axis=1, keepdims=True)
        is_end_BC, chosen_BC = is_end_BC | zeros_BC, jnp.where(zeros_BC, K, chosen_BC)
    frames_B = jnp.where(jnp.any(is_end_BC, axis=1), frame_BC[:, 0], state.frames_B)
    # A select over the grid, not a scatter: rows differ in their frames, and on a CPU narrow updates copy the buffer.
    written_BFQ = here_BFQ[:, :frames] & (chosen_BC != K)[:, None, :]
    sampled_BFQ = jnp.where(written_BFQ, chosen_BC[:, None, :], state.codes_BFQ[:, :, : grid.causal_levels])
    codes_BFQ = jnp.concatenate([sampled_BFQ, state.codes_BFQ[:, :, grid.causal_levels :]], axis=-1)

    code_ids_BC = jnp.asarray(vocab.code_offsets)[book_BC] + chosen_BC
    end = grid.framing.end(vocab)
    end_BC = jnp.asarray(end)[book_BC] if end_is_frame else end
    code_ids_BC = jnp.where(chosen_BC == K, end_BC, code_ids_BC)
    silent_S = grid.framing.silent_S(grid.streams, vocab)
    tokens_BC = jnp.where(present_BC, code_ids_BC, silent_S[: code_ids_BC.shape[1]]).astype(jnp.int32)
    tokens_BS = jnp.pad(tokens_BC, ((0, 0), (0, grid.streams - tokens_BC.shape[1])))
    if fixed.beside_BX is not None:
        at_B = jnp.minimum(state.step_B, fixed.beside_BX.shape[1] - 1)
        text_B1 = jnp.take_along_axis(fixed.beside_BX, at_B[:, None], axis=1)
        tokens_BS = jnp.concatenate([tokens_BS, text_B1], axis=1)
    tokens_MS = jnp.tile(tokens_BS, (len(state.hidden_MD) // batch, 1))
    step_B = jnp.where(state.done_B, state.step_B, state.step_B + 1)
    done_B = step_B >= requests.steps_of(frames_B, grid)
    return State(codes_BFQ, frames_B, step_B, done_B, state.slot, state.hidden_MD), tokens_MS


def _draw(model: Transformer, grid: Grid, vocab: Vocab, fixed: Fixed, here: Cells, hidden_MD: jax.Array) -> jax.Array:
    """The codes of the cells of a step, K for the end: at once, or the streams after the first by the depth network."""
    # Sampling is replicated: it takes a few numbers per row.
    logits_MV, predicted = jax.sharding.reshard(model.logits(hidden_MD), P()), vocab.without_text
    end_M11 = logits_MV[:, None, ids.END_AUDIO, None]
    if model.depth is None:
        codes_MCK = by_codebook(logits_MV, predicted)[:, : grid.causal_levels]
        if grid.streams == 1:
            book_MC = jnp.tile(here.book_BC, (len(hidden_MD) // len(here.book_BC), 1))
            codes_MCK = jnp.take_along_axis(codes_MCK, book_MC[:, :, None], axis=1)
        return _decide(codes_MCK, end_M11, vocab, fixed, here)

    first_MK = logits_MV[:, predicted.first.code_start :][:, : vocab.codebook_sizes[0]]
    first_MK = jnp.pad(first_MK, ((0, 0), (0, vocab.largest_codebook - first_MK.shape[1])))
    first = here.column(0)
    first_B1 = _decide(first_MK[:, None], end_M11, vocab, fixed, first)
    copies = len(hidden_MD) // len(first_B1)
    offsets_Q = jnp.asarray(vocab.code_offsets)

    def token_M(cell: Cells, code_B1: jax.Array) -> jax.Array:
        is_code_B1 = cell.present_BC & (code_B1 < vocab.largest_codebook)
        return jnp.tile(jnp.where(is_code_B1, offsets_Q[cell.book_BC] + code_B1, ids.PAD)[:, 0], copies)

    def pick(c, logits_MK: jax.Array, chosen_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
        cell = here.column(c + 1)
        if cell.not_zero_BC is not None:
            zeros_B1 = jnp.all((chosen_BC == 0) | (stream_C > c), axis=1, keepdims=True)
            cell = cell._replace(not_zero_BC=cell.not_zero_BC & zeros_B1)
        code_B1 = _decide(jax.sharding.reshard(logits_MK, P())[:, None], end_M11, vocab, fixed, cell)
        return token_M(cell, code_B1), jax.lax.dynamic_update_slice_in_dim(chosen_BC, code_B1, c + 1, axis=1)

    chosen_BC = jnp.pad(first_B1, ((0, 0), (0, grid.streams - 1)))
    stream_C = jnp.arange(grid.streams, dtype=jnp.int32)
    needed = jnp.max(jnp.where(here.present_BC, stream_C, 0))  # cells after the last one of all rows need no pass
    table_VD = None if model.config.depth.embeddings == "own" else model.embedding_VD[...]
    return model.depth.draw(hidden_MD, token_M(first, first_B1), needed, pick, chosen_BC, table_VD)


def _decide(codes_MCK, end_MC1, vocab: Vocab, fixed: Fixed, here: Cells) -> jax.Array:
    """Cells from the logits of their codebooks and of the end of audio: the codes [B, C], K for the end."""
    batch, K = len(here.book_BC), vocab.largest_codebook
    end_MC1 = jnp.broadcast_to(end_MC1, (*codes_MCK.shape[:2], 1))
    candidates_BCN = jnp.concatenate([codes_MCK, end_MC1], axis=-1)
    if fixed.guidance_B is not None:
        candidates_BCN = guide(candidates_BCN[:batch], candidates_BCN[batch:], fixed.guidance_B[:, None])
    if not vocab.legal_QK.all():
        legal_QN = jnp.pad(vocab.legal_QK, ((0, 0), (0, 1)), constant_values=True)
        candidates_BCN = jnp.where(legal_QN[here.book_BC], candidates_BCN, -jnp.inf)
    if here.not_zero_BC is not None:
        zero_BCN = here.not_zero_BC[..., None] & (jnp.arange(K + 1) == 0)
        candidates_BCN = jnp.where(zero_BCN, -jnp.inf, candidates_BCN)
    rules = fixed.rules.at(here.book_BC)
    candidates_BCN = suppress(candidates_BCN, rules.suppressed)
    end_BC = jnp.where(here.may_end_BC, candidates_BCN[:, :, K], -jnp.inf)
    candidates_BCN = candidates_BCN.at[:, :, K].set(end_BC)
    chosen_BC = choose(candidates_BCN, rules, here.gumbel_BCN, here.past)
    chosen_BC = jnp.where(here.known_BC >= 0, here.known_BC, chosen_BC)
    return jnp.where(here.forced_end_BC, K, chosen_BC)


def run_chunk(model, grid: Grid, vocab: Vocab, steps: int, fixed: Fixed, state: State, cache) -> tuple[State, tuple]:
    """`steps` steps for every row; finished rows are masked. See `chunk_program`."""

    def step(_, carry):
        state, cache = carry
        state, tokens_MS = advance(model, grid, vocab, fixed, state)
        prompt, position_M = (fixed.prompt_cache, fixed.valid_MP), fixed.length_M + state.slot
        hidden_MD, cache = model.step(tokens_MS, position_M, state.slot, *prompt, cache, fixed.encoded_valid_ME)
        return state._replace(hidden_MD=hidden_MD, slot=state.slot + 1), cache

    return jax.lax.fori_loop(0, steps, step, (state, cache))


@jax.jit
def prefill(
    model: Transformer, tokens_MPS, positions_MP, segments_MP, ahead_MP, length_M, states_MPW=None, encoded=None
) -> tuple[jax.Array, tuple]:
    """The prompts (`requests.Prompts`) in one pass: (hidden_MD of each row's last position, prompt cache).

    One executable per (rows, prompt bucket).
    """
    hidden_MPD, prompt_cache = model.prefill(tokens_MPS, positions_MP, segments_MP, ahead_MP, encoded, states_MPW)
    return jnp.take_along_axis(hidden_MPD, (length_M - 1)[:, None, None], axis=1)[:, 0], prompt_cache


def prefilled(model: Transformer, tokens_MPS: Any, *others: Any) -> tuple[Any, tuple]:
    """What `prefill` gives, as shapes. Without states of an encoder it need not be traced for that: it can be later,
    beside the compiling."""
    if others[-1] is not None:
        return sharding.on_mesh(jax.eval_shape(prefill, model, tokens_MPS, *others), versions.mesh())
    M, P, _ = tokens_MPS.shape
    spec = model.rules.spec("batch", None)

    def empty() -> tuple[jax.Array, tuple]:
        hidden_MD = jnp.zeros((M, model.config.width), model.config.compute_dtype, out_sharding=spec)
        return hidden_MD, model.init_cache(M, P)

    return sharding.on_mesh(jax.eval_shape(empty), versions.mesh())


def chunk_program():
    """`run_chunk` jitted for the current mesh, the cache donated and updated in place.

    One executable per (rows, prompt bucket, cache bucket).
    """
    return _chunk_program(sharding.platform())


@functools.cache
def _chunk_program(platform: str):
    static, options = ("grid", "vocab", "steps"), performance.compiler_options()  # by platform
    return jax.jit(run_chunk, static_argnames=static, donate_argnames=("cache",), compiler_options=options)


@functools.partial(jax.jit, static_argnames=("slots",))
def grow(cache: tuple, slots: int) -> tuple:
    """The cache with more slots. One executable per pair of sizes."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0))), cache)


def cache_sizes(steps: int, chunk: int, window: int = 0) -> list[int]:
    """Slots of the generated cache in every chunk: doubled when it is full, but the last size is three quarters of that
    if it suffices, and none is larger than what a window sees."""
    sizes, size = [], 4 * chunk
    for generated in range(chunk, steps + chunk, chunk):
        while size < generated:
            size *= 2
        sizes.append(size)
    fitted = 3 * size // 4
    most = cost.kept(fitted if 4 * chunk < size and generated <= fitted else size, window)
    return [min(size, most) for size in sizes]


def start(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    context: int | None = None,
    meanwhile: Callable[[Fixed, State], Any] | None = None,
) -> tuple[Fixed, State]:
    """Prefills the prompts of all requests: the constants of the loop and its first state.

    meanwhile: called before with both, of which what the prefill gives is abstract.
    """
    guidance_B = requests.guidance(batch)
    prompts = requests.prompts(batch, grid, vocab, causal=True, guided=guidance_B is not None)
    encoded = requests.place(requests.encoded(batch, model.config.cross_width, guidance_B is not None))
    bounds = [requests.limits(request, grid, vocab, context) for request in batch]
    limit_B, end_from_B = (np.array(values, np.int32) for values in zip(*bounds, strict=True))
    first_B = np.array([requests.prefilled_steps(len(r.prompt_TQ), grid) for r in batch], np.int32)
    codes_BFQ = requests.prompt_grid(batch, requests.bucket(int(limit_B.max()), requests.FRAMES), grid.codebooks)
    keys_B, rules = requests.keys(batch, requests.CAUSAL), requests.rules(batch, vocab)
    again_B = None if rules.redraw is None else requests.keys(batch, requests.AGAIN)
    placed = requests.place((end_from_B, keys_B, again_B, rules, guidance_B, prompts.length_M, prompts.segments_MP > 0))
    before = requests.place((codes_BFQ, limit_B, first_B, np.zeros(len(batch), bool), np.int32(0)))
    after = None if encoded is None else encoded[1], requests.place(requests.beside(batch, grid))
    inputs = model, *requests.place(prompts), encoded
    if meanwhile is not None:
        hidden_MD, prompt_cache = prefilled(*inputs)
        meanwhile(Fixed(*placed, prompt_cache, *after), State(*before, hidden_MD))
    hidden_MD, prompt_cache = prefill(*inputs)
    return Fixed(*placed, prompt_cache, *after), State(*before, hidden_MD)


def compile_ahead(
    model: Transformer, grid: Grid, vocab: Vocab, chunk: int, fixed: Fixed, state: State, slots: int
) -> Callable[[], None]:
    """Compiles the first chunk in a thread, beside the prefill: XLA leaves processors idle. Returns its `join`.

    It is traced before: it takes longest to compile, and two threads that trace wait for each other.
    """
    cache = jax.eval_shape(functools.partial(model.init_cache, len(fixed.length_M), slots))
    arguments = (model, grid, vocab, chunk, fixed, state, sharding.on_mesh(cache, versions.mesh()))
    return in_background(chunk_program().lower(*arguments).compile)


def generate(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    context: int | None = None,
    ahead: bool = False,
) -> Iterator[tuple[Fixed, State]]:
    """Yields the state after every chunk, until all rows are done. Reading it is the only transfer to the host.

    `model` is unstacked (`transformer.unstack`). A mesh is entered. ahead: nothing is compiled yet (`compile_ahead`).
    """
    chunk = batch[0].sampling.chunk
    compiled: list[Callable[[], None]] = []

    def sizes(state: State) -> list[int]:
        steps = int(np.max(requests.steps_of(np.asarray(state.frames_B), grid) - np.asarray(state.step_B)))
        return cache_sizes(steps, chunk, model.config.window)

    def meanwhile(fixed: Fixed, state: State) -> None:
        compiled.append(compile_ahead(model, grid, vocab, chunk, fixed, state, sizes(state)[0]))

    fixed, state = start(model, grid, vocab, batch, context, meanwhile if ahead else None)
    cache = None
    for join in compiled:
        join()
    for slots in sizes(state):
        if cache is None:
            cache = model.init_cache(len(fixed.length_M), slots)
        elif cache[0]["k"].shape[2] < slots:
            cache = grow(cache, slots)
        state, cache = chunk_program()(model, grid, vocab, chunk, fixed, state, cache)
        yield fixed, state
        if np.asarray(state.done_B).all():
            return


def complete_frames(state: State, grid: Grid) -> np.ndarray:
    """[B]: leading frames of each row whose causal cells are all drawn."""
    T_B = np.asarray(state.frames_B)
    t, q = np.arange(state.codes_BFQ.shape[1])[:, None], np.arange(grid.causal_levels)
    T = T_B[:, None, None]
    complete_BF = (grid.position(t, q, T) < np.asarray(state.step_B)[:, None, None]).all(axis=-1)
    return np.minimum(np.logical_and.accumulate(complete_BF, axis=1).sum(axis=1), T_B)
