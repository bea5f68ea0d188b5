"""The masked loop: bidirectional passes that make the codebooks a causal pass does not, level by level.

`masked` (SoundStorm, arXiv 2305.09636, section 3.3; MaskGIT, arXiv 2202.04200): pass i of the N of a level draws all
of its hidden cells, ranks them by confidence (their log-probability, plus Gumbel noise that sinks to 0), and hides the
least confident again, as many as the schedule says: counted and ranked over the cells of this level and this row
alone. Kept cells stay. `hierarchical` (VALL-E): the finer levels, one pass each. What a pass sees is what training
shows (`documents.level_row`): coarser levels clean, finer ones MASK, the prompt clean at every level.

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
from audiolm_jax.sampling.rules import LogitRules, choose, guide
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.strategies import masked
from audiolm_jax.serialization.vocab import Vocab


class Pass(NamedTuple):
    """One pass; the schedule holds all of them along a leading axis N."""

    level: jax.Array
    number: jax.Array  # counts from 0 over all levels: what its random numbers are drawn from
    hidden_B: jax.Array  # cells of the level that are hidden after it
    rules: LogitRules  # [B]
    noise_B: jax.Array  # scale of the Gumbel noise on the confidence


class Fixed(NamedTuple):
    """What a pass reads."""

    frames_B: jax.Array
    keys_B: jax.Array
    guidance_B: jax.Array | None
    length_M: jax.Array
    valid_MP: jax.Array
    prompt_cache: tuple


def inputs(codes_BFQ: jax.Array, vocab: Vocab) -> jax.Array:
    """Ids of the frames, MASK in cells that are still to be sampled. Finer levels are -1 before their turn."""
    offsets_Q = jnp.asarray(vocab.code_offsets)
    return jnp.where(codes_BFQ < 0, ids.MASK, codes_BFQ + offsets_Q).astype(jnp.int32)


def see(model: Transformer, tokens_MFS: jax.Array, frames_M: jax.Array, fixed: Fixed) -> jax.Array:
    """hidden_MFD of frames that see the prompt and each other, the first frames_M of every row."""
    F = tokens_MFS.shape[1]
    positions_MF = fixed.length_M[:, None] + jnp.arange(F, dtype=jnp.int32)
    x_MFD, rope = model.add_positions(model.embed(tokens_MFS), positions_MF)
    seen_ML = model.rows(jnp.concatenate([fixed.valid_MP, jnp.arange(F) < frames_M[:, None]], axis=1).astype(jnp.int32))
    all_MF = jnp.ones_like(seen_ML[:, -F:])
    sight = attention.sight_between(all_MF, seen_ML, all_MF * seen_ML.shape[1])
    for block, prompt in zip(model.layers, fixed.prompt_cache, strict=True):
        q, k, v = block.qkv(x_MFD, rope)
        before = (prompt[name].swapaxes(1, 2).astype(k.dtype) for name in "kv")
        k, v = (jnp.concatenate(pair, axis=1) for pair in zip(before, (k, v), strict=True))
        x_MFD = block.finish(x_MFD, attention.attend(q, k, v, sight))
    return model.norm(x_MFD)


def level_logits(output_DV: jax.Array, vocab: Vocab, hidden_MFD: jax.Array, level: jax.Array) -> jax.Array:
    """Logits [M, F, K] of one codebook: the head of this level only, and of what follows a smaller codebook."""
    start = jnp.asarray(vocab.code_offsets)[level]
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
    hidden_MFD = see(model, tokens_MFS, jnp.tile(fixed.frames_B, copies), fixed)
    logits_BFK = level_logits(output_DV, vocab, hidden_MFD, now.level)
    if fixed.guidance_B is not None:
        logits_BFK = guide(logits_BFK[:batch], logits_BFK[batch:], fixed.guidance_B[:, None])
    if not vocab.legal_QK.all():
        logits_BFK = jnp.where(jnp.asarray(vocab.legal_QK)[now.level], logits_BFK, -jnp.inf)

    draw, rank = (_gumbel(fixed.keys_B, 2 * now.number + kind, shape) for kind, shape in ((0, logits_BFK), (1, None)))
    rules = LogitRules(*(x if x is None else x[:, None] for x in now.rules))
    drawn_BF = choose(logits_BFK, rules, draw(F))
    confidence_BF = jnp.take_along_axis(jax.nn.log_softmax(logits_BFK), drawn_BF[:, :, None], axis=-1)[..., 0]
    confidence_BF += now.noise_B[:, None] * rank(F)

    level_BF = jnp.take_along_axis(codes_BFQ, jnp.broadcast_to(now.level, (batch, F, 1)), axis=2)[..., 0]
    hidden_BF = (level_BF < 0) & (jnp.arange(F) < fixed.frames_B[:, None])
    level_BF = jnp.where(revealed(confidence_BF, hidden_BF, now.hidden_B), drawn_BF, level_BF)
    return jnp.where(jnp.arange(Q) == now.level, level_BF[:, :, None], codes_BFQ)


def revealed(confidence_BF: jax.Array, hidden_BF: jax.Array, left_B: jax.Array) -> jax.Array:
    """bool [B, F]: the cells that keep their code, all hidden ones but the `left_B` least confident."""
    # Ranks among the hidden cells of this level and row: everything else is more confident than any of them.
    order_BF = jnp.argsort(jnp.where(hidden_BF, confidence_BF, jnp.inf), axis=1)
    return hidden_BF & (jnp.argsort(order_BF, axis=1) >= left_B[:, None])


def _gumbel(keys_B, number, like):
    """Noise by row, pass and frame, so that it depends neither on the other rows nor on the bucket."""
    shape = () if like is None else like.shape[2:]

    def noise(frames: int) -> jax.Array:
        def one(key, t):
            return jax.random.gumbel(jax.random.fold_in(key, t), shape)

        step_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
        return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(step_B, jnp.arange(frames))

    return noise


def run_levels(model: Transformer, vocab: Vocab, fixed: Fixed, schedule: Pass, codes_BFQ: jax.Array) -> jax.Array:
    """All passes of the schedule. Pure; `levels_program` is its compiled form."""

    output_DV = jax.sharding.reshard(model.output_DV(), P())  # once, not in every pass
    if not vocab.legal_QK.all():  # a slice of the largest size fits behind the last codebook
        output_DV = jnp.pad(output_DV, ((0, 0), (0, vocab.largest_codebook)))

    def one_pass(codes_BFQ, now):
        return advance(model, vocab, fixed, now, codes_BFQ, output_DV), None

    return jax.lax.scan(one_pass, codes_BFQ, schedule)[0]


def run_lengths(model, vocab: Vocab, hidden_MD, shortest_B, longest_B, temperature_B, keys_B) -> jax.Array:
    """[B]: the number of frames, drawn at <audio> from the trained lengths between the bounds of each row."""
    batch = len(shortest_B)
    logits_BV = jax.sharding.reshard(model.logits(hidden_MD[:batch]), P())
    logits_BT = logits_BV[:, vocab.length_start : vocab.length_start + vocab.max_frames]
    frames_T = jnp.arange(1, vocab.max_frames + 1)
    legal_BT = (frames_T >= shortest_B[:, None]) & (frames_T <= longest_B[:, None])
    gumbel_BT = jax.vmap(lambda key: jax.random.gumbel(key, (vocab.max_frames,)))(keys_B)
    return choose(jnp.where(legal_BT, logits_BT, -jnp.inf), LogitRules(temperature_B), gumbel_BT) + 1


@functools.cache
def levels_program():
    """One executable per (rows, prompt bucket, frames bucket)."""
    return jax.jit(run_levels, static_argnames=("vocab",))


@functools.cache
def lengths_program():
    """One executable per number of rows."""
    return jax.jit(run_lengths, static_argnames=("vocab",))


def schedule(batch: Sequence[requests.Request], frames_B: np.ndarray, grid: Grid) -> Pass:
    """Every pass over the levels that the causal loop leaves, along a leading axis."""
    rules = requests.rules(batch, grid.codebooks)
    prompt_B = np.array([len(request.prompt_TQ) for request in batch])
    one_pass_B = np.array([request.sampling.one_pass_temperature for request in batch], np.float32)
    noise_scale_B = np.array([request.sampling.confidence_noise for request in batch])
    anneal_B = np.array([request.sampling.anneal for request in batch], np.float32)
    passes = []
    for level, count in enumerate(grid.iterations, start=grid.causal_levels):
        hidden_BN = [_hidden(int(n), count, grid) for n in frames_B - prompt_B]
        for i in range(count):
            gone = i / max(count - 1, 1)
            temperature_B = one_pass_B if count == 1 else rules.temperature[:, level] * (1 - anneal_B * gone)
            level_rules = LogitRules(*(x if x is None else x[:, level] for x in rules))
            # The last pass hides nothing again, so its noise would do nothing.
            noise_B = noise_scale_B * (1 - (i + 1) / count)
            passes.append(
                Pass(
                    np.int32(level),
                    np.int32(len(passes)),
                    np.array([hidden_N[i] for hidden_N in hidden_BN], np.int32),
                    level_rules._replace(temperature=temperature_B.astype(np.float32)),
                    noise_B.astype(np.float32),
                )
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *passes)


def _hidden(cells: int, count: int, grid: Grid) -> np.ndarray:
    """Cells of a level hidden after each of `count` passes: none are hidden again where there is one pass."""
    return np.zeros(1, np.int64) if count == 1 else masked.hidden_after(cells, count, grid)


def start(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    prompt_cache: tuple | None = None,
) -> tuple[jax.Array | None, Fixed]:
    """Prefill: (hidden_MD at <audio>, what the passes read, `frames_B` still to be set).

    With the prompt cache of the causal loop there is none: up to <audio> it holds what these passes would compute,
    as long as no earlier audio stands there in the layout of the causal pass.
    """
    guidance_B = requests.guidance(batch)
    prompts = requests.prompts(batch, grid, vocab, causal=False, guided=guidance_B is not None)
    hidden_MD = None
    earlier_audio = any(kind == "audio" for request in batch for kind, _ in request.document)
    if prompt_cache is None or earlier_audio:
        hidden_MD, prompt_cache = causal.prefill_program()(model, *requests.place(prompts))
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
    """[B]: the number of frames of each row, given or predicted; always more than its prompt has."""
    longest_B = np.array([requests.limits(request, grid, vocab, context)[0] for request in batch], np.int32)
    shortest_B = np.array([r.frames or len(r.prompt_TQ) + 1 for r in batch], np.int32)
    temperature_B = np.array([request.sampling.length_temperature for request in batch], np.float32)
    if (shortest_B == longest_B).all():
        return longest_B
    keys_B = requests.keys(batch, requests.LENGTH)
    return np.asarray(lengths_program()(model, vocab, hidden_MD, shortest_B, longest_B, temperature_B, keys_B))


def generate(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    batch: Sequence[requests.Request],
    coarse: tuple[causal.Fixed, causal.State] | None = None,
    context: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(codes_BFQ, frames_B), -1 after the end of a row.

    coarse: what the causal loop ended with, where the strategy has one. `model` is unstacked; a mesh is entered.
    """
    hidden_MD, fixed = start(model, grid, vocab, batch, coarse and coarse[0].prompt_cache)
    if coarse is None:
        frames_B = lengths(model, grid, vocab, batch, hidden_MD, context)
        codes_BFQ = requests.prompt_grid(batch, requests.bucket(int(frames_B.max()), requests.FRAMES), grid.codebooks)
    else:
        coarse_BFQ, frames_B = np.asarray(coarse[1].codes_BFQ), np.asarray(coarse[1].frames_B)
        codes_BFQ = np.full(
            (len(batch), requests.bucket(int(frames_B.max()), requests.FRAMES), grid.codebooks), -1, np.int32
        )
        shared = min(codes_BFQ.shape[1], coarse_BFQ.shape[1])
        codes_BFQ[:, :shared] = coarse_BFQ[:, :shared]
    if grid.iterations:  # Q = 1 leaves hierarchical no finer level
        fixed = fixed._replace(frames_B=requests.place(np.asarray(frames_B, np.int32)))
        passes = schedule(batch, frames_B, grid)
        codes_BFQ = levels_program()(model, vocab, fixed, *requests.place((passes, codes_BFQ)))
    return np.asarray(codes_BFQ), frames_B
