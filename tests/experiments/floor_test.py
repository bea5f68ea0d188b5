"""What an order can reach on a known source: closed forms, a naive count, and the likelihood of real networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import serialization
from audiolm_jax.evaluation.likelihood import Scoring, likelihood
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.transformer import language_model
from audiolm_jax.serialization import SerializationConfig, layout, text
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab
from experiments.entropy_floor import floor, sources
from experiments.entropy_floor.sources import framewise, markov

ORDERS = [
    {"strategy": name, **({"iterations": (3, 2, 1)} if "iterations" in getattr(strategy, "OPTIONS", ()) else {})}
    for name, strategy in serialization.STRATEGIES.items()
]
VOCAB = Vocab(sources.CODEBOOKS, sources.CODEBOOK_SIZE, sources.MAX_FRAMES)
MODEL = ModelConfig(layers=2, width=32, heads=2, kv_heads=1, head_width=16, ffn=32)
DEPTH = DepthConfig(layers=2, width=16, heads=2, kv_heads=1, head_width=8, ffn=24)
LENGTH = 64
FRAMES = sum(length * p for length, p in sources.LENGTHS.items())


def name(options):
    return options["strategy"]


def grid_of(options):
    return serialization.bind(SerializationConfig(**options), sources.CODEBOOKS)


def reachable(said, grid, bound=False):
    """Bits per grid."""
    listed = sources.outcomes(said)
    return float(listed.probability_N @ floor.ideal(listed, grid, bound).bits_N)


def entropy(p):
    p = np.asarray(p, float)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


@pytest.mark.parametrize("said", ["b", "d", "e", "fxyz"])
def test_flat_reaches_the_floor_of_every_grid(said):
    """One cell per step is the chain rule: not only the mean but each probability is that of the source."""
    listed = sources.outcomes(said)
    bits_N = floor.ideal(listed, grid_of({"strategy": "flat"})).bits_N
    np.testing.assert_allclose(bits_N, -np.log2(listed.probability_N), atol=1e-9)


def test_parallel_loses_the_total_correlation_of_a_frame():
    frame = {codes: p for p, codes, _ in framewise.step(0) if codes != sources.END}
    alone = [entropy(np.bincount([c[q] for c in frame], list(frame.values()))) for q in range(3)]
    lost = sum(alone) - entropy(list(frame.values()))
    found = reachable("b", grid_of({"strategy": "parallel"})) - floor.entropy(sources.outcomes("b"))
    assert found == pytest.approx(lost * FRAMES, rel=1e-9)


def test_hierarchical_loses_the_past_of_the_finer_codebooks():
    per_frame = sum(np.log2(3) - entropy([stay, 1 - stay]) for stay in markov.STAY[1:])
    found = reachable("c", grid_of({"strategy": "hierarchical"})) - floor.entropy(sources.outcomes("c"))
    assert found == pytest.approx(per_frame * (FRAMES - 1), rel=1e-9)


def test_delay_loses_what_the_finest_code_says_about_the_next_frame():
    """Per transition: c0 is predicted from the last c0 instead of c2, and c2 then makes up for a part of it."""
    joint = np.zeros((3, 3, 3))  # c1, c2, the next c0, where c0 is 0
    for p1, c1 in sources.either(0, 0.7):
        for p2, c2 in sources.either(c1, 0.5):
            for p0, c0 in sources.either(c2, 0.9):
                joint[c1, c2, c0] += p1 * p2 * p0
    blind = entropy(joint.sum(axis=(0, 1))) - entropy([0.9, 0.1])
    made_up = entropy(joint.sum(axis=2).ravel()) + entropy(joint.sum(axis=1).ravel())
    made_up -= entropy(joint.sum(axis=(1, 2))) + entropy(joint.ravel())  # I(c2; next c0 | c1)
    found = reachable("e", grid_of({"strategy": "delay"})) - floor.entropy(sources.outcomes("e"))
    assert found == pytest.approx((blind - made_up) * (FRAMES - 1), rel=1e-9)


@pytest.mark.parametrize("options", ORDERS, ids=name)
def test_independent_codes_cost_their_entropy_in_any_order(options):
    assert reachable("a", grid_of(options)) == pytest.approx(floor.entropy(sources.outcomes("a")), rel=1e-12)


@pytest.mark.parametrize("said", ["c", "d", "fyx"])
def test_the_bound_of_the_best_model_is_the_entropy(said):
    grid = grid_of({"strategy": "masked"})
    assert reachable(said, grid, bound=True) == pytest.approx(floor.entropy(sources.outcomes(said)), rel=1e-9)
    assert reachable(said, grid) > 1.001 * floor.entropy(sources.outcomes(said)) or said[0] == "f"


@pytest.mark.parametrize("options", ORDERS, ids=name)
def test_reachable_bits_equal_a_naive_count(options):
    """Every cell of every grid by dictionaries: what share of the grids that look the same so far have this code."""
    grid, listed = grid_of(options), sources.outcomes("fxy")
    grids = [listed.grid(n) for n in range(len(listed.frames_N))]

    def value(codes_TQ, t, q):
        return "end" if (t, q) == (len(codes_TQ), 0) else int(codes_TQ[t, q])

    def cells(codes_TQ):
        T = len(codes_TQ)
        ends = [(T, 0)] if grid.causal_levels else []
        return [(t, q) for t in range(T) for q in range(grid.codebooks)] + ends

    def context(codes_TQ, step):
        T = len(codes_TQ)
        seen = {c: value(codes_TQ, *c) for c in cells(codes_TQ) if grid.order(*c, T) < step}
        return (step, T if grid.causal_levels == 0 else None, tuple(sorted(seen.items())))

    total, joint = {}, {}
    for p, codes_TQ in zip(listed.probability_N, grids, strict=True):
        for t, q in cells(codes_TQ):
            key = (t, q, context(codes_TQ, int(grid.order(t, q, len(codes_TQ)))))
            total[key] = total.get(key, 0.0) + p
            joint[key, value(codes_TQ, t, q)] = joint.get((key, value(codes_TQ, t, q)), 0.0) + p
    expected = sum(p * np.log2(total[key] / p) for (key, _), p in joint.items())
    if grid.causal_levels == 0:
        expected += entropy(np.bincount(listed.frames_N, listed.probability_N))
    assert reachable("fxy", grid) == pytest.approx(expected, rel=1e-9)


@functools.cache
def network(depth):
    """A random one with sharp predictions; its logits of one row, padded to LENGTH, and of the depth network after the
    last position, given the tokens there."""
    model = language_model(dataclasses.replace(MODEL, depth=DEPTH if depth else None), VOCAB, nnx.Rngs(1))
    model.unembedding_DV[...] = 4 * model.unembedding_DV[...]
    model.embedding_VD[...] = 6 * model.embedding_VD[...]
    if depth:
        model.depth.output_CdK[...] = 4 * model.depth.output_CdK[...]
        model.depth.embedding_Rd[...] = 6 * model.depth.embedding_Rd[...]

    @jax.jit
    def logits(tokens_LS, ahead_L, count, added_S):
        position_1L = np.arange(LENGTH)[None]
        hidden_1LD = model(tokens_LS[None], position_1L, (position_1L < count).astype(int), ahead_L[None])
        last_1D = jnp.take(hidden_1LD, count - 1, axis=1)
        in_depth = model.depth.logits(model.depth(last_1D, added_S[None, :-1]))[0] if depth else None
        return model.logits(hidden_1LD)[0], in_depth

    return model, logits


def brute_bits(grid, said, codes_TQ):
    """-log2 p of a grid and its end under `network`: every step from an input that holds nothing but earlier steps,
    every cell by listing all ids that may stand there."""
    T, Q = codes_TQ.shape
    K, bits = sources.CODEBOOK_SIZE, 0.0

    def row(*ids_S):
        return list(ids_S) + [ids.PAD] * (grid.streams - len(ids_S))

    def both_logits(rows, ahead, added):
        tokens_LS = np.array(rows + [row()] * (LENGTH - len(rows)), np.int32)
        ahead_L = np.array(ahead + [0] * (LENGTH - len(rows)), np.int32)
        return network(grid.depth)[1](tokens_LS, ahead_L, len(rows), np.array(added, np.int32))

    def logits(rows, ahead):
        logits_LV = np.asarray(both_logits(rows, ahead, row())[0], np.float64)
        return np.pad(logits_LV, ((0, 0), (0, VOCAB.size - logits_LV.shape[1])))  # a depth network has the others

    def surprise(logits_V, candidates, target):
        return np.log2(sum(np.exp(logits_V[c] - logits_V[target]) for c in candidates))

    def code_id(q, code):
        return VOCAB.code_start + q * K + int(code)

    head = [row(ids.BOS), *(row(token) for token in text.encode(said)), row(ids.AUDIO)]
    rows = list(head)
    cells = [(t, q) for q in range(grid.causal_levels) for t in range(T + (q == 0))]
    last = max((grid.position(t, q, T) for t, q in cells), default=-1)
    for step in range(last + 1):
        logits_V = logits(rows, [0] * len(rows))[len(rows) - 1]
        added = row()
        for t, q in cells:
            if grid.position(t, q, T) == step:
                if q and grid.depth:  # the codes of a position one after the other, each given those before
                    logits_CK = np.asarray(both_logits(rows, [0] * len(rows), added)[1], np.float64)
                    logits_V[code_id(q, 0) : code_id(q, K)] = logits_CK[q - 1]
                candidates = [code_id(q, code) for code in range(K)] + ([ids.END_AUDIO] if q == 0 and t > 0 else [])
                target = ids.END_AUDIO if t == T else code_id(q, codes_TQ[t, q])
                bits += surprise(logits_V, candidates, target)
                added[q if grid.streams > 1 else 0] = target
        rows.append(added)
    if grid.causal_levels == 0:
        lengths = [VOCAB.length_id(frames + 1) for frames in range(VOCAB.max_frames)]
        bits += surprise(logits(head, [0] * len(head))[len(head) - 1], lengths, VOCAB.length_id(T))
    step_TQ = layout.order_TQ(grid, T)
    for q in range(grid.causal_levels, Q):
        for step in sorted(set(step_TQ[:, q])):
            seen = [
                row(*(code_id(r, codes_TQ[t, r]) if step_TQ[t, r] < step else ids.MASK for r in range(Q)))
                for t in range(T)
            ]
            logits_LV = logits(head + seen, [0] * len(head) + list(range(T))[::-1])
            for t in range(T):
                if step_TQ[t, q] == step:
                    candidates = [code_id(q, code) for code in range(K)]
                    bits += surprise(logits_LV[len(head) + t], candidates, code_id(q, codes_TQ[t, q]))
    return bits


@pytest.mark.parametrize(
    "said", ["d", "e", "fxyz", *(pytest.param(said, marks=pytest.mark.slow) for said in ("a", "b", "c"))]
)
@pytest.mark.parametrize("options", ORDERS, ids=name)
def test_likelihood_equals_brute_force(options, said):
    grid, listed = grid_of(options), sources.outcomes(said)
    numbers = np.random.default_rng(0).choice(len(listed.frames_N), 3, replace=False)
    documents = [(("text", text.encode(said)), ("audio", listed.grid(n))) for n in numbers]
    found = likelihood(network(grid.depth)[0], grid, VOCAB, documents, 1.0, Scoring("exact"))
    bits_U = found.code_bits_UQ.sum(axis=1) + found.end_bits_U + found.length_bits_U
    expected = [brute_bits(grid, said, listed.grid(n)) for n in numbers]
    assert np.ptp(bits_U) > 1
    np.testing.assert_allclose(bits_U, expected, rtol=1e-5)
