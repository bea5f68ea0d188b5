"""The masked loop: bidirectional passes for the codebooks without a causal pass, level by level.

`masked` (SoundStorm, arXiv 2305.09636, section 3.3; MaskGIT, arXiv 2202.04200): pass i of the N of a level draws all
of its hidden cells, ranks them by confidence (their log-probability, plus Gumbel noise that sinks to 0), and hides as
many of the least confident again as the schedule says, among the cells of this level and row alone. The other cells
are final. `hierarchical` (VALL-E): the finer levels, one pass each. The inputs are those of training
(`documents.level_row`): coarser levels visible, finer ones MASK, the prompt visible at every level.

Axes: B rows; M rows of the model (B, or 2B with guidance); F frames of the grid; N passes; Q codebooks; K codes of
the largest one.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import attention
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import causal, requests
from audiolm_jax.sampling.rules import LogitRules, choose, guide, suppress
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.strategies import masked
from audiolm_jax.serialization.vocab import Vocab


class Pass(NamedTuple):
    """One pass; the schedule holds all of them along a leading axis N."""

    level: jax.Array
    number: jax.Array  # from 0 over all levels, folded into the keys
    hidden_B: jax.Array  # cells of the level that are hidden after it
    rules: LogitRules  # [B]
    noise_B: jax.Array  # scale of the Gumbel noise on the confidence


class Fixed(NamedTuple):
    """The constants of a pass."""

    frames_B: jax.Array
    keys_B: jax.Array
    guidance_B: jax.Array | None
    length_M: jax.Array
    valid_MP: jax.Array
    prompt_cache: tuple


def inputs(codes_BFQ: jax.Array, vocab: Vocab) -> jax.Array:
    """Ids of the frames, MASK in cells that are still to be sampled (-1)."""
    offsets_Q = jnp.asarray(vocab.code_offsets)
    return jnp.where(codes_BFQ < 0, ids.MASK, codes_BFQ + offsets_Q).astype(jnp.int32)


def hidden_states(model: Transformer, tokens_MFS: jax.Array, frames_M: jax.Array, fixed: Fixed) -> jax.Array:
    """hidden_MFD of frames that see the prompt and the first frames_M frames of their row."""
    F = tokens_MFS.shape[1]
    positions_MF = fixed.length_M[:, None] + jnp.arange(F, dtype=jnp.int32)
    x_MFD, rope = model.add_positions(model.embed(tokens_MFS), positions_MF)
    seen_ML = model.rows(jnp.concatenate([fixed.valid_MP, jnp.arange(F) < frames_M[:, None]], axis=1).astype(jnp.int32))
    all_MF = jnp.ones_like(seen_ML[:, -F:])
    first_MF = first_seen(frames_M, fixed, F, model.config.window)
    sight = attention.sight_between(all_MF, seen_ML, all_MF * seen_ML.shape[1], first_MF)
    for block, prompt in zip(model.layers, fixed.prompt_cache, strict=True):
        q, k, v = block.qkv(x_MFD, rope)
        before = (prompt[name].swapaxes(1, 2).astype(k.dtype) for name in "kv")
        k, v = (jnp.concatenate(pair, axis=1) for pair in zip(before, (k, v), strict=True))
        x_MFD = block.finish(x_MFD, attention.attend(q, k, v, sight))
    return model.norm(x_MFD)


def first_seen(frames_M: jax.Array, fixed: Fixed, F: int, window: int) -> jax.Array | None:
    """The first key [M, F] that a frame sees, in a row of keys of the prompt, padded, and of the frames; None: 0.

    Frames beyond those of the row see what the last one sees, so that every query sees a key.
    """
    if not window:
        return None
    length_M1, last_M1 = fixed.length_M[:, None], jnp.maximum(frames_M[:, None] - 1, 0)
    first_MF = length_M1 + jnp.minimum(jnp.arange(F, dtype=jnp.int32), last_M1) + (1 - window)
    return first_MF + jnp.where(first_MF > length_M1, fixed.valid_MP.shape[1] - length_M1, 0)


def level_logits(output_DV: jax.Array, vocab: Vocab, hidden_MFD: jax.Array, level: jax.Array) -> jax.Array:
    """Logits [M, F, K] of one codebook; those after the last code of a smaller codebook are of other ids."""
    start = jnp.asarray(vocab.without_text.code_offsets)[level]
    head_DK = jax.lax.dynamic_slice_in_dim(output_DV, start, vocab.largest_codebook, axis=1).astype(hidden_MFD.dtype)
    logits_MFK = jnp.einsum("MFD,DK->MFK", hidden_MFD, head_DK, preferred_element_type=jnp.float32)
    return jax.sharding.reshard(logits_MFK, P())


def advance(
    model: Transformer, vocab: Vocab, fixed: Fixed, now: Pass, codes_BFQ: jax.Array, output_DV: jax.Array
) -> jax.Array:
    """The grid after one pass. output: the model's output matrix, replicated on every device."""
    batch, F, Q = codes_BFQ.shape
    copies = len(fixed.length_M) // batch
    tokens_MFS = jnp.tile(inputs(codes_BFQ, vocab), (copies, 1, 1))
    hidden_MFD = hidden_states(model, tokens_MFS, jnp.tile(fixed.frames_B, copies), fixed)
    logits_BFK = level_logits(output_DV, vocab, hidden_MFD, now.level)
    if fixed.guidance_B is not None:
        logits_BFK = guide(logits_BFK[:batch], logits_BFK[batch:], fixed.guidance_B[:, None])
    if not vocab.legal_QK.all():
        logits_BFK = jnp.where(jnp.asarray(vocab.legal_QK)[now.level], logits_BFK, -jnp.inf)

    rules = jax.tree.map(lambda x: x[:, None], now.rules)
    logits_BFK = suppress(logits_BFK, rules.suppressed)
    drawn_BF = choose(logits_BFK, rules, _gumbel(fixed.keys_B, 2 * now.number, logits_BFK.shape[1:]))
    confidence_BF = jnp.take_along_axis(jax.nn.log_softmax(logits_BFK), drawn_BF[:, :, None], axis=-1)[..., 0]
    confidence_BF += now.noise_B[:, None] * _gumbel(fixed.keys_B, 2 * now.number + 1, (F,))

    level_BF = jnp.take_along_axis(codes_BFQ, jnp.broadcast_to(now.level, (batch, F, 1)), axis=2)[..., 0]
    hidden_BF = (level_BF < 0) & (jnp.arange(F) < fixed.frames_B[:, None])
    level_BF = jnp.where(revealed(confidence_BF, hidden_BF, now.hidden_B), drawn_BF, level_BF)
    return jnp.where(jnp.arange(Q) == now.level, level_BF[:, :, None], codes_BFQ)


def revealed(confidence_BF: jax.Array, hidden_BF: jax.Array, left_B: jax.Array) -> jax.Array:
    """bool [B, F]: the cells that keep their code, all hidden ones but the `left_B` least confident."""
    # Cells that are not hidden rank above all that are.
    order_BF = jnp.argsort(jnp.where(hidden_BF, confidence_BF, jnp.inf), axis=1)
    return hidden_BF & (jnp.argsort(order_BF, axis=1) >= left_B[:, None])


def _gumbel(keys_B: jax.Array, number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise [B, F, ...] with keys by row, number and frame, so that it does not depend on other rows or the bucket."""

    def noise(key, t):
        return jax.random.gumbel(jax.random.fold_in(key, t), shape[1:])

    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
    return jax.vmap(jax.vmap(noise, in_axes=(None, 0)), in_axes=(0, None))(keys_B, jnp.arange(shape[0]))


@functools.partial(jax.jit, static_argnames=("vocab",))
def run_levels(model: Transformer, vocab: Vocab, fixed: Fixed, schedule: Pass, codes_BFQ: jax.Array) -> jax.Array:
    """The grid after all passes of the schedule. One executable per (rows, prompt bucket, frames bucket)."""
    output_DV = jax.sharding.reshard(model.output_DV(), P())  # once, not in every pass
    if not vocab.legal_QK.all():  # a slice of the largest size fits behind the last codebook
        output_DV = jnp.pad(output_DV, ((0, 0), (0, vocab.largest_codebook)))

    def one_pass(codes_BFQ, now):
        return advance(model, vocab, fixed, now, codes_BFQ, output_DV), None

    return jax.lax.scan(one_pass, codes_BFQ, schedule)[0]


@functools.partial(jax.jit, static_argnames=("vocab",))
def draw_lengths(model, vocab: Vocab, hidden_MD, shortest_B, longest_B, temperature_B, keys_B) -> jax.Array:
    """[B]: the number of frames, drawn at <audio> from the trained lengths between the bounds of each row."""
    batch = len(shortest_B)
    logits_BV = jax.sharding.reshard(model.logits(hidden_MD[:batch]), P())
    first = vocab.without_text.length_start
    logits_BT = logits_BV[:, first : first + vocab.max_frames]
    frames_T = jnp.arange(1, vocab.max_frames + 1)
    legal_BT = (frames_T >= shortest_B[:, None]) & (frames_T <= longest_B[:, None])
    gumbel_BT = jax.vmap(lambda key: jax.random.gumbel(key, (vocab.max_frames,)))(keys_B)
    return choose(jnp.where(legal_BT, logits_BT, -jnp.inf), LogitRules(temperature_B), gumbel_BT) + 1


def schedule(batch: Sequence[requests.Request], frames_B: np.ndarray, grid: Grid, vocab: Vocab) -> Pass:
    """Every pass over the levels that the causal loop leaves, along a leading axis."""
    # Rules that look back are those of the causal pass (`requests.check`).
    rules = requests.rules(batch, vocab)._replace(penalty=None, redraw=None)
    prompt_B = np.array([len(request.prompt_TQ) for request in batch])
    one_pass_B = np.array([request.sampling.one_pass_temperature for request in batch], np.float32)
    noise_scale_B = np.array([request.sampling.confidence_noise for request in batch])
    anneal_B = np.array([request.sampling.anneal for request in batch], np.float32)
    passes = []
    for level, count in enumerate(grid.iterations, start=grid.causal_levels):
        hidden_BN = [masked.hidden_after(int(n), count, grid) for n in frames_B - prompt_B]
        level_rules = jax.tree.map(lambda x, level=level: x[:, level], rules)
        for i in range(count):
            cooling_B = 1 - anneal_B * (i / max(count - 1, 1))
            temperature_B = one_pass_B if count == 1 else rules.temperature[:, level] * cooling_B
            # In the last pass, which hides nothing, it is 0.
            noise_B = noise_scale_B * (1 - (i + 1) / count)
            hidden_B = np.array([hidden_N[i] for hidden_N in hidden_BN], np.int32)
            pass_rules = level_rules._replace(temperature=temperature_B.astype(np.float32))
            passes.append(
                Pass(np.int32(level), np.int32(len(passes)), hidden_B, pass_rules, noise_B.astype(np.float32))
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *passes)


def start(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    prompt_cache: tuple | None = None,
) -> tuple[jax.Array | None, Fixed]:
    """Prefills the prompts: (hidden_MD at <audio>, the constants of the passes without `frames_B`).

    With the prompt cache of the causal loop nothing is computed (hidden_MD is None), unless there is earlier audio,
    which is in the layout of the causal pass there.
    """
    guidance_B = requests.guidance(batch)
    prompts = requests.prompts(batch, grid, vocab, causal=False, guided=guidance_B is not None)
    hidden_MD = None
    earlier_audio = any(kind == "audio" for request in batch for kind, _ in request.document)
    if prompt_cache is None or earlier_audio:
        hidden_MD, prompt_cache = causal.prefill(model, *requests.place(prompts))
    valid_MP = np.arange(prompt_cache[0]["k"].shape[2]) < prompts.length_M[:, None]
    fixed = Fixed(None, requests.keys(batch, requests.LEVELS), guidance_B, prompts.length_M, valid_MP, None)
    return hidden_MD, requests.place(fixed)._replace(prompt_cache=prompt_cache)


def lengths(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    hidden_MD: jax.Array,
    context: int | None = None,
) -> np.ndarray:
    """[B]: the number of frames of each row, requested or predicted; always more than its prompt has."""
    longest_B = np.array([requests.limits(request, grid, vocab, context)[0] for request in batch], np.int32)
    shortest_B = np.array([r.frames or len(r.prompt_TQ) + max(1, r.sampling.min_frames) for r in batch], np.int32)
    temperature_B = np.array([request.sampling.length_temperature for request in batch], np.float32)
    if (shortest_B == longest_B).all():
        return longest_B
    keys_B = requests.keys(batch, requests.LENGTH)
    return np.asarray(draw_lengths(model, vocab, hidden_MD, shortest_B, longest_B, temperature_B, keys_B))


def generate(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    coarse: tuple[causal.Fixed, causal.State] | None = None,
    context: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(codes_BFQ, frames_B), -1 after the end of a row.

    coarse: the last (Fixed, State) of the causal loop, if the strategy has one. `model` is unstacked. A mesh is
    entered.
    """
    hidden_MD, fixed = start(model, grid, vocab, batch, coarse and coarse[0].prompt_cache)
    if coarse is None:
        frames_B = lengths(model, grid, vocab, batch, hidden_MD, context)
        codes_BFQ = requests.prompt_grid(batch, requests.bucket(int(frames_B.max()), requests.FRAMES), grid.codebooks)
    else:
        coarse_BFQ, frames_B = np.asarray(coarse[1].codes_BFQ), np.asarray(coarse[1].frames_B)
        frames = requests.bucket(int(frames_B.max()), requests.FRAMES)
        after = max(0, frames - coarse_BFQ.shape[1])
        codes_BFQ = np.pad(coarse_BFQ[:, :frames], ((0, 0), (0, after), (0, 0)), constant_values=-1)
    if grid.iterations:  # Q = 1 leaves hierarchical no finer level
        fixed = fixed._replace(frames_B=requests.place(np.asarray(frames_B, np.int32)))
        passes = schedule(batch, frames_B, grid, vocab)
        codes_BFQ = run_levels(model, vocab, fixed, *requests.place((passes, codes_BFQ)))
    return np.asarray(codes_BFQ), frames_B
