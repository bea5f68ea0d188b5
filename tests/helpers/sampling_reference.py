"""Small random models and the causal loop by its definition: no cache, no batch, no jax in the order."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import serialization
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.transformer import language_model, unstack
from audiolm_jax.sampling import SamplingConfig, causal, requests
from audiolm_jax.sampling.requests import Request, bucket, steps_of, unconditional
from audiolm_jax.serialization import SerializationConfig, documents, text
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab

K, MOST = 5, 7
UNEQUAL = (5, 3, 4, 2)  # codes of each of four codebooks
CAUSAL = [
    ("flat", 3, ()),
    ("parallel", 2, ()),
    ("delay", 3, ()),
    ("delay", 3, (0, 1, 5)),
    ("coarse_first", 3, (0, 1, 3)),
    ("hierarchical", 2, ()),
    ("flat", 4, ()),
    ("delay", 4, ()),
    ("depth", 3, ()),
    ("depth", 4, (0, 1, 1, 3)),
]
SIZES = {"layers": 1, "width": 24, "heads": 2, "kv_heads": 1, "head_width": 8, "ffn": 32}
DEPTH = DepthConfig(**SIZES)


def bind(strategy, Q, delays=(), **options):
    return serialization.bind(SerializationConfig(strategy=strategy, delays=delays, **options), Q)


def vocab_of(Q):
    return Vocab(Q, UNEQUAL if len(UNEQUAL) == Q else K, 80)


@functools.cache
def models(Q, depth=None):
    """(stacked, unstacked) with outputs scaled up, so that what is drawn depends on what was seen."""
    config = ModelConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=32, depth=depth)
    model = language_model(config, vocab_of(Q), nnx.Rngs(Q))
    model.unembedding_DV[...] = 3 * model.unembedding_DV[...]
    model.embedding_VD[...] = 6 * model.embedding_VD[...]
    if depth is not None:
        model.depth.output_CdK[...] = 3 * model.depth.output_CdK[...]
        if depth.embeddings == "own":
            model.depth.embedding_Rd[...] = 6 * model.depth.embedding_Rd[...]
    return model, unstack(model)


def windowed(model, window):
    """An unstacked model with a sliding window."""
    model = nnx.clone(model)
    model.config = dataclasses.replace(model.config, window=window)
    return model


def depth_of(grid):
    """The depth network of the models that sample on a grid."""
    return DEPTH if grid.depth else None


def request(said="abc", prompt=0, Q=3, frames=None, seed=0, **options):
    """Prompts are seeded codes; at most MOST frames."""
    options = {"chunk": 8, "max_frames": MOST, **options}
    codes_TQ = np.random.default_rng(prompt).integers(0, K, (prompt, Q)).astype(np.int32) % vocab_of(Q).codebook_sizes
    document = (("text", text.encode(said)),) if said else ()
    return Request(document, codes_TQ, frames, seed, SamplingConfig(**options))


def run(grid, requests, context=None, depth=None):
    """Codes of each row, [T, Q] with -1 where the causal loop makes nothing."""
    _, unstacked = models(grid.codebooks, depth or depth_of(grid))
    *_, (_, state) = causal.generate(unstacked, grid, vocab_of(grid.codebooks), requests, context)
    assert np.asarray(state.done_B).all()
    return [np.asarray(state.codes_BFQ)[b, :T] for b, T in enumerate(np.asarray(state.frames_B))]


@functools.cache
def forward(Q, streams, length, depth):
    model, _ = models(Q, depth)

    @jax.jit
    def hidden_and_logits(tokens_LS, ahead_L, count):
        position_1L = jnp.arange(length)[None]
        segments_1L = (position_1L < count).astype(jnp.int32)
        hidden_1LD = model(tokens_LS[None], position_1L, segments_1L, ahead_L[None])
        return hidden_1LD[0], model.logits(hidden_1LD)[0]

    return hidden_and_logits


def passed(Q, tokens_LS, ahead_L=None, depth=None):
    """Hidden states [L, D] and logits [L, V] of a whole row in one uncached pass."""
    length = bucket(len(tokens_LS), 64)
    pad = length - len(tokens_LS)
    ahead_L = np.zeros(len(tokens_LS), np.int32) if ahead_L is None else ahead_L
    padded = np.pad(tokens_LS, ((0, pad), (0, 0))), np.pad(ahead_L, (0, pad))
    found = forward(Q, tokens_LS.shape[1], length, depth)(*padded, len(tokens_LS))
    return [np.asarray(x)[: len(tokens_LS)] for x in found]


def teacher_forced(Q, tokens_LS, ahead_L=None):
    return passed(Q, tokens_LS, ahead_L)[1]


@functools.cache
def in_depth(Q, depth):
    model, _ = models(Q, depth)

    @jax.jit
    def logits_CK(hidden_D, tokens_S):
        table_VD = model.embedding_VD[...]
        return model.depth.logits(model.depth(hidden_D[None], tokens_S[None, :-1], table_VD))[0]

    return logits_CK


def logits_of(vocab, q, logits_V):
    """The logits of the codes of a codebook; of K codes, those that it has not are impossible."""
    size = vocab.codebook_sizes[q]
    codes = logits_V[..., vocab.code_offsets[q] :][..., :size]
    return np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, K - size)], constant_values=-np.inf)


@functools.partial(jax.jit, static_argnums=(2,))
def noise(seed, step, shape, stage=requests.CAUSAL):
    key = jax.random.wrap_key_data(jnp.stack([jnp.uint32(stage), seed.astype(jnp.uint32)]), impl="threefry2x32")
    return jax.random.gumbel(jax.random.fold_in(key, step), shape)


LIMITS = "temperature top_k top_p min_p suppressed repetition_penalty repetition_window ras_window ras_ratio".split()


def limits_of(option, q, Q):
    """The options of one codebook."""
    limits = {name: option.per_codebook(name, Q)[q] for name in LIMITS}
    return types.SimpleNamespace(**limits, repetition_prompt=option.repetition_prompt)


def choose_slowly(logits_N, limits, gumbel_N, before=(), prompt=0, again_N=None):
    """The rules as sorted lists, for one cell. before: the codes of its codebook in the frames before, of which
    `prompt` are those of the prompt. again_N: noise of a second draw."""
    legal_N = logits_N.astype(np.float64)
    legal_N[list(limits.suppressed)] = -np.inf
    before, logits_N = list(before), legal_N.copy()
    first = max(0, len(before) - limits.repetition_window) if limits.repetition_window else 0
    for code in set(before[first if limits.repetition_prompt else max(first, prompt) :]):
        logits_N[code] *= limits.repetition_penalty if logits_N[code] < 0 else 1 / limits.repetition_penalty
    if limits.temperature == 0:
        return int(np.argmax(logits_N))
    logits_N /= limits.temperature
    order = np.argsort(-logits_N)
    kept = order[: limits.top_k or len(order)]
    if limits.top_p < 1:
        probability = np.exp(logits_N[kept] - logits_N[kept].max())
        lower = np.cumsum(probability) / probability.sum() - probability / probability.sum()
        kept = kept[lower < limits.top_p]
    kept = [n for n in kept if np.exp(logits_N[n] - logits_N.max()) >= limits.min_p]
    drawn = int(max(kept, key=lambda n: logits_N[n] + gumbel_N[n]))
    if limits.ras_window and before[-limits.ras_window :].count(drawn) / limits.ras_window > limits.ras_ratio + 1e-9:
        return int(np.argmax(legal_N + again_N))
    return drawn


def reference(grid, wanted, depth=None):
    """One row, by the definition of the order, the whole row recomputed without a cache in every step, and the depth
    network for every cell."""
    vocab, Q, option = vocab_of(grid.codebooks), grid.codebooks, wanted.sampling
    depth = depth or depth_of(grid)
    T = wanted.frames or option.max_frames
    codes_TQ = np.full((T, Q), -1)
    codes_TQ[: len(wanted.prompt_TQ)] = wanted.prompt_TQ
    seen = [wanted.document] + ([] if option.guidance == 1 else [unconditional(wanted).document])
    rows = [documents.prompt_row(document, grid, vocab, True)["tokens"] for document in seen]

    def candidates(hidden_D, logits_V, tokens_S, q):
        """Logits of the codes of codebook q and of the end."""
        if q and grid.depth:
            codes_K = np.asarray(in_depth(Q, depth)(hidden_D, tokens_S))[q - 1]
            codes_K = np.where(np.arange(K) < vocab.codebook_sizes[q], np.resize(codes_K, K), -np.inf)
            return np.append(codes_K, -np.inf)
        return np.append(logits_of(vocab, q, logits_V), logits_V[ids.END_AUDIO])

    step = 0
    while True:
        t_q = [(t, q) for q in range(grid.causal_levels) for t in range(T + (q == 0))]
        cells = [(t, q) for t, q in t_q if grid.position(t, q, T) == step]
        if not cells and step >= steps_of(T, grid):
            return codes_TQ[:T]
        states = [[x[-1] for x in passed(Q, row, depth=depth)] for row in rows]
        drawn = np.int32(wanted.seed), step, (min(grid.streams, grid.causal_levels), K + 1)
        gumbel_CN, again_CN = (np.asarray(noise(*drawn, stage)) for stage in (requests.CAUSAL, requests.AGAIN))
        tokens_S = np.full(grid.streams, ids.PAD, np.int32)
        for t, q in cells:
            stream = q if grid.streams > 1 else 0
            if t == T:
                tokens_S[stream] = ids.END_AUDIO
                continue
            if codes_TQ[t, q] < 0:
                candidates_N, *bare_N = (candidates(*state, tokens_S, q) for state in states)
                if bare_N:
                    possible = np.isfinite(candidates_N)
                    with_N, without_N = candidates_N[possible], bare_N[0][possible]
                    candidates_N[possible] = without_N + option.guidance * (with_N - without_N)
                prompt = len(wanted.prompt_TQ)
                if q or t < max(1, prompt + option.min_frames) or wanted.frames:
                    candidates_N = candidates_N[:K]
                first_N, again_N = (x[stream, : len(candidates_N)] for x in (gumbel_CN, again_CN))
                past = codes_TQ[:t, q], prompt, again_N
                code = choose_slowly(candidates_N, limits_of(option, q, Q), first_N, *past)
                if code == K:
                    T, tokens_S[stream] = t, ids.END_AUDIO
                    continue
                codes_TQ[t, q] = code
            tokens_S[stream] = vocab.code_offsets[q] + codes_TQ[t, q]
        rows = [np.concatenate([row, tokens_S[None]]) for row in rows]
        step += 1


def assert_same(found, expected):
    for b, (one, other) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(one, other, err_msg=f"row {b}")
