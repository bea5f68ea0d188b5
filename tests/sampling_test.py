"""The loops against slow references that know neither cache nor batch, on small random models."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import serialization, text
from audiolm_jax import vocab as ids
from audiolm_jax.errors import InputError
from audiolm_jax.model import ModelConfig, Transformer, unstack
from audiolm_jax.sampling import SamplingConfig, causal, masked, plan, rules
from audiolm_jax.serialization import LevelView, SerializationConfig, documents, layout
from audiolm_jax.serialization import masked as masked_order
from audiolm_jax.vocab import Vocab

K, MOST = 5, 7
CAUSAL = [
    ("flat", 3, ()),
    ("parallel", 2, ()),
    ("delay", 3, ()),
    ("delay", 3, (0, 1, 5)),
    ("coarse_first", 3, (0, 1, 3)),
    ("hierarchical", 2, ()),
]


def bind(strategy, Q, delays=(), **options):
    return serialization.bind(SerializationConfig(strategy=strategy, delays=delays, **options), Q)


def vocab_of(Q):
    return Vocab(Q, K, 80)


@functools.cache
def models(Q):
    """(stacked, unstacked) with outputs scaled up, so that what is drawn depends on what was seen."""
    config = ModelConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=32)
    model = Transformer(config, vocab_of(Q).size, nnx.Rngs(Q))
    model.unembedding_DV[...] = 3 * model.unembedding_DV[...]
    model.embedding_VD[...] = 6 * model.embedding_VD[...]
    return model, unstack(model)


def request(said="abc", prompt=0, Q=3, frames=None, seed=0, **options):
    """Prompts are seeded codes; at most MOST frames."""
    options = {"chunk": 8, "max_frames": MOST, **options}
    codes_TQ = np.random.default_rng(prompt).integers(0, K, (prompt, Q)).astype(np.int32)
    document = (("text", text.encode(said)),) if said else ()
    return plan.Request(document, codes_TQ, frames, seed, SamplingConfig(**options))


def run(grid, requests, context=None):
    """Codes of each row, [T, Q] with -1 where the causal loop makes nothing."""
    _, unstacked = models(grid.codebooks)
    *_, (_, state) = causal.generate(unstacked, grid, vocab_of(grid.codebooks), requests, context)
    assert np.asarray(state.done_B).all()
    return [np.asarray(state.codes_BFQ)[b, :T] for b, T in enumerate(np.asarray(state.frames_B))]


@functools.cache
def forward(Q, streams, length):
    model, _ = models(Q)

    @jax.jit
    def logits_LV(tokens_LS, ahead_L, count):
        position_1L = jnp.arange(length)[None]
        segments_1L = (position_1L < count).astype(jnp.int32)
        return model.logits(model(tokens_LS[None], position_1L, segments_1L, ahead_L[None]))[0]

    return logits_LV


def teacher_forced(Q, tokens_LS, ahead_L=None):
    """Logits [L, V] of a whole row in one uncached pass."""
    length = plan.bucket(len(tokens_LS), 64)
    pad = length - len(tokens_LS)
    ahead_L = np.zeros(len(tokens_LS), np.int32) if ahead_L is None else ahead_L
    padded = np.pad(tokens_LS, ((0, pad), (0, 0))), np.pad(ahead_L, (0, pad))
    return np.asarray(forward(Q, tokens_LS.shape[1], length)(*padded, len(tokens_LS)))[: len(tokens_LS)]


@functools.partial(jax.jit, static_argnums=(2,))
def noise(seed, step, shape, stage=plan.CAUSAL):
    key = jax.random.wrap_key_data(jnp.stack([jnp.uint32(stage), seed.astype(jnp.uint32)]), impl="threefry2x32")
    return jax.random.gumbel(jax.random.fold_in(key, step), shape)


def choose_slowly(logits_N, temperature, top_k, top_p, gumbel_N):
    """The rules as sorted lists, for one cell."""
    if temperature == 0:
        return int(np.argmax(logits_N))
    logits_N = logits_N.astype(np.float64) / temperature
    order = np.argsort(-logits_N)
    kept = order[: top_k or len(order)]
    if top_p < 1:
        probability = np.exp(logits_N[kept] - logits_N[kept].max())
        before = np.cumsum(probability) / probability.sum() - probability / probability.sum()
        kept = kept[before < top_p]
    return int(max(kept, key=lambda n: logits_N[n] + gumbel_N[n]))


def reference(grid, wanted):
    """One row, by the definition of the order, the whole row recomputed without a cache in every step."""
    vocab, Q, option = vocab_of(grid.codebooks), grid.codebooks, wanted.sampling
    T = wanted.frames or option.max_frames
    codes_TQ = np.full((T, Q), -1)
    codes_TQ[: len(wanted.prompt_TQ)] = wanted.prompt_TQ
    seen = [wanted.document] + ([] if option.guidance == 1 else [plan.unconditional(wanted).document])
    rows = [documents.prompt_row(document, grid, vocab, True)["tokens"] for document in seen]
    step = 0
    while True:
        cells = [(t, q) for q in range(grid.causal_levels) for t in range(T + (q == 0)) if grid.order(t, q, T) == step]
        if not cells and step >= plan.steps_of(T, grid):
            return codes_TQ[:T]
        logits_V, *bare_V = (teacher_forced(Q, row)[-1] for row in rows)
        if bare_V:
            logits_V = bare_V[0] + option.guidance * (logits_V - bare_V[0])
        gumbel_CN = np.asarray(noise(np.int32(wanted.seed), step, (min(grid.streams, grid.causal_levels), K + 1)))
        tokens_S = np.full(grid.streams, ids.PAD, np.int32)
        for t, q in cells:
            stream = q if grid.streams > 1 else 0
            if t == T:
                tokens_S[stream] = ids.END_AUDIO
                continue
            if codes_TQ[t, q] < 0:
                candidates_N = np.append(logits_V[vocab.code_offsets[q] :][:K], logits_V[ids.END_AUDIO])
                if q or t < max(1, len(wanted.prompt_TQ)) or wanted.frames:
                    candidates_N = candidates_N[:K]
                limits = (option.per_codebook(name, Q)[q] for name in ("temperature", "top_k", "top_p"))
                code = choose_slowly(candidates_N, *limits, gumbel_CN[stream])
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


# Causal loop


@pytest.mark.parametrize(("strategy", "Q", "delays"), CAUSAL)
def test_cached_loop_equals_teacher_forced_reference(strategy, Q, delays):
    grid = bind(strategy, Q, delays)
    for seed in range(0, 200, 10):
        requests = [
            request("abc", 0, Q, seed=seed),
            request("a longer text", 2, Q, seed=seed + 1),
            request("", 3, Q, frames=5, seed=seed + 2),
        ]
        found = run(grid, requests)
        the_end_was_drawn = min(len(codes_TQ) for codes_TQ in found[:2]) < MOST
        if seed and not the_end_was_drawn:
            continue
        assert_same(found, [reference(grid, one) for one in requests])
        for one, codes_TQ in zip(requests, found, strict=True):
            np.testing.assert_array_equal(codes_TQ[: len(one.prompt_TQ)], one.prompt_TQ)
            made_TQ = codes_TQ[:, : grid.causal_levels]
            assert made_TQ.min() >= 0 and made_TQ.max() < K, "tails are complete, every code is legal"
        assert len(found[2]) == 5, "a given length is kept: the end is illegal before it and forced at it"
        if the_end_was_drawn:
            return
    raise AssertionError("the end was never drawn")


@pytest.mark.parametrize(("strategy", "Q", "delays"), CAUSAL)
def test_defect_2_and_11_a_prompt_of_any_length_continues_identically(strategy, Q, delays):
    # Defect 2: the delay applied twice to a prompt. Defect 11: a prompt that is ignored or not counted in the length.
    grid = bind(strategy, Q, delays)
    first = request("abc", 0, Q, frames=6, seed=3)
    if strategy == "hierarchical":  # the finer level of the prompt stands for something that was generated
        first = dataclasses.replace(first, sampling=dataclasses.replace(first.sampling, temperature=(0.5,)))
    whole = run(grid, [first, first, first])[0]
    whole = np.where(whole < 0, 0, whole)
    continued = run(grid, [dataclasses.replace(first, prompt_TQ=whole[:P]) for P in (1, 3, 5)])
    for codes_TQ in continued:
        assert len(codes_TQ) == 6
        np.testing.assert_array_equal(codes_TQ[:, : grid.causal_levels], whole[:, : grid.causal_levels])


@pytest.mark.parametrize(("strategy", "Q", "delays"), [CAUSAL[0], CAUSAL[2], CAUSAL[4]])
def test_cached_logits_equal_those_of_one_uncached_pass(strategy, Q, delays):
    # Codes alone would hide a slip that moves logits by little, such as positions shifted by one.
    grid, vocab, (_, model) = bind(strategy, Q, delays), vocab_of(Q), models(Q)
    requests = [request("abc", 0, Q, frames=7), request("a longer text", 2, Q, frames=7), request("", 3, Q, frames=7)]
    whole = run(grid, requests)
    fixed, state = causal.start(model, grid, vocab, requests)
    cache = model.init_cache(len(requests), causal.cache_sizes(1, 8)[0])
    state, _ = causal.chunk_program()(model, grid, vocab, 8, fixed, state, cache)
    logits_BV = np.asarray(model.logits(state.hidden_MD))
    for b, one in enumerate(requests):
        before = documents.prompt_row(one.document, grid, vocab, True)["tokens"]
        steps = layout.serialize(whole[b], grid, vocab)[: int(state.step_B[b])]
        if len(steps) == int(state.step_B[b]) and not state.done_B[b]:
            expected_V = teacher_forced(Q, np.concatenate([before, steps]))[-1]
            np.testing.assert_allclose(logits_BV[b], expected_V, atol=2e-4)
    assert not np.asarray(state.done_B)[0], "the comparison was made"


def test_row_does_not_depend_on_its_neighbours():
    grid = bind("delay", 3)
    own = request("abc", 2, seed=5)
    alone = run(grid, [own])
    few = run(grid, [request("x", 0, seed=1), own, request("yy", 3, seed=2)])
    # Another prompt bucket, another grid bucket and another cache size.
    many = run(grid, [request("a text of more than one bucket " * 2, 1, seed=7, max_frames=70), request("b"), own])
    assert_same([few[1], many[2]], alone * 2)


def test_defect_3_segments_shorter_than_the_delay_are_complete():
    grid = bind("delay", 3, (0, 1, 5))
    requests = [request(f"t{T}", 0, frames=T, seed=T) for T in (1, 2, 3)]
    found = run(grid, requests)
    assert [len(codes_TQ) for codes_TQ in found] == [1, 2, 3]
    assert_same(found, [reference(grid, one) for one in requests])


def test_rules_differ_between_rows_and_codebooks():
    grid = bind("delay", 3)
    requests = [
        request("abc", 0, seed=0, temperature=(0.0, 1.5, 0.7)),
        request("abc", 2, seed=1, top_k=(2, 0, 1)),
        request("abc", 0, frames=5, seed=2, top_k=(4,), top_p=(0.3, 0.9, 1.0)),
    ]
    assert_same(run(grid, requests), [reference(grid, one) for one in requests])


def test_defect_4_guidance_uses_the_requested_coefficient():
    grid = bind("delay", 3)
    requests = [request("abc", b, frames=6, seed=0, guidance=g) for b, g in enumerate((1.0, 3.0, 0.0))]
    found = run(grid, requests)
    assert_same(found, [reference(grid, one) for one in requests])
    # A row with a coefficient of 1 beside rows with others equals the loop without guidance.
    plain = [dataclasses.replace(one, sampling=SamplingConfig(chunk=8, max_frames=MOST)) for one in requests]
    np.testing.assert_array_equal(found[0], run(grid, plain)[0])
    assert any((one != two).any() for one, two in zip(found[1:], run(grid, plain)[1:], strict=True))


def test_limit_is_what_fits_the_context():
    grid, vocab = bind("delay", 3), vocab_of(3)
    wanted = request("abc", 2, max_frames=30)
    # BOS, text and <audio> take 5 positions, T frames T + 2 steps.
    assert plan.limits(wanted, grid, vocab, None) == (30, 2)
    assert plan.limits(wanted, grid, vocab, 17) == (10, 2)
    assert plan.positions(wanted, 10, grid, vocab) == 17
    assert plan.limits(bind_frames(wanted, 9), grid, vocab, 17) == (9, 9)
    with pytest.raises(
        InputError, match="2 frames\\) and one frame more take 10 positions; the context of this model has 9"
    ):
        plan.check(wanted, grid, vocab, 9)
    with pytest.raises(InputError, match="11 frames and their prompt take 18 positions"):
        plan.check(bind_frames(wanted, 11), grid, vocab, 17)


def bind_frames(wanted, frames):
    return dataclasses.replace(wanted, frames=frames)


def test_complete_frames_follow_the_order():
    def complete(grid, step, T):
        codes_BFQ = np.zeros((1, 16, grid.codebooks), np.int32)
        state = causal.State(codes_BFQ, np.array([T]), np.array([step]), None, None, None)
        return int(causal.complete_frames(state, grid)[0])

    assert [complete(bind("flat", 3), s, 4) for s in (0, 2, 3, 5, 6, 12)] == [0, 0, 1, 1, 2, 4]
    assert [complete(bind("delay", 3), s, 4) for s in (0, 2, 3, 4, 6)] == [0, 0, 1, 2, 4]
    assert [complete(bind("coarse_first", 2), s, 4) for s in (4, 5, 6, 9)] == [0, 0, 1, 4]


# Structure of the compiled chunk


@functools.cache
def compiled_chunk():
    grid, vocab, (_, model) = bind("delay", 3), vocab_of(3), models(3)
    fixed, state = causal.start(model, grid, vocab, [request("abc"), request("abcd", 2)])
    cache = model.init_cache(2, 32)
    return causal.chunk_program().lower(model, grid, vocab, 8, fixed, state, cache).compile().as_text()


def test_chunk_updates_the_cache_in_place():
    hlo, shape = compiled_chunk(), r"f32\[2,32,1,16\]"
    assert re.search(rf"= {shape}\S* dynamic-update-slice", hlo) or re.search(rf"{shape}.*fusion", hlo)
    copies = [line for line in hlo.splitlines() if re.search(rf"= {shape}\S* copy\(", line)]
    assert not copies, copies
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", hlo, re.DOTALL)
    assert aliased and aliased.group(1).count("may-alias") + aliased.group(1).count("must-alias") >= 2, "cache donated"


def test_chunk_has_a_static_trip_count_and_never_calls_the_host():
    hlo = compiled_chunk()
    assert '"known_trip_count":{"n":"8"}' in hlo
    assert not re.search(r"callback|outfeed|infeed|xla_python", hlo)


def test_defect_12_one_compilation_per_bucket():
    grid = bind("parallel", 3)
    programs = causal.chunk_program(), causal.prefill_program()

    def compiled():
        return [program._cache_size() for program in programs]

    before = compiled()
    run(grid, [request("abc", 0, frames=7, chunk=2), request("de", 0, seed=1, chunk=2)])  # four chunks
    first = compiled()
    assert first[0] - before[0] == 1 and first[1] - before[1] <= 1
    # Other texts, prompts, seeds, lengths, temperatures.
    run(grid, [request("other", 3, seed=9, chunk=2), request("", 1, temperature=(0.3,), chunk=2)])
    run(grid, [request("abc", 2, frames=7, chunk=2), request("d", 0, frames=2, chunk=2)])
    assert compiled() == first


def test_cache_grows_by_doubling_and_the_codes_do_not_change():
    assert causal.cache_sizes(20, 8) == [32, 32, 32]
    assert causal.cache_sizes(70, 8) == [32] * 4 + [64] * 4 + [128]
    grid = bind("delay", 3)
    wanted, small = ([request("abc", b, frames=7, seed=4, chunk=chunk) for b in range(3)] for chunk in (8, 2))
    assert_same(run(grid, small), run(grid, wanted))


# Masked loop


def levels(grid, requests, coarse=None):
    return masked.generate(models(grid.codebooks)[1], grid, vocab_of(grid.codebooks), requests, coarse)


def masked_reference(grid, wanted, T, coarse_T=None):
    """One row, level by level, on the very rows that training makes; yields the grid after every pass."""
    vocab, Q, option = vocab_of(grid.codebooks), grid.codebooks, wanted.sampling
    prompt, number = len(wanted.prompt_TQ), 0
    codes_TQ = np.full((T, Q), -1)
    codes_TQ[:prompt] = wanted.prompt_TQ
    if coarse_T is not None:
        codes_TQ[:, 0] = coarse_T
    for level, count in enumerate(grid.iterations, start=grid.causal_levels):
        for i in range(count):
            hidden_T = codes_TQ[:, level] < 0
            view = LevelView(level, hidden_T, prompt)
            document = (*wanted.document, ("audio", np.maximum(codes_TQ, 0)))
            row = documents.level_row(document, len(document) - 1, view, grid, vocab)
            logits_TV = teacher_forced(Q, row["tokens"], row["ahead"])[-T:]
            if option.guidance != 1:
                row = documents.level_row(document[-1:], 0, view, grid, vocab)
                bare_TV = teacher_forced(Q, row["tokens"], row["ahead"])[-T:]
                logits_TV = bare_TV + option.guidance * (logits_TV - bare_TV)
            logits_TK = logits_TV[:, vocab.code_offsets[level] :][:, :K].astype(np.float64)
            gumbel_TK, rank_T = level_noise(wanted.seed, number, T)
            limits = [option.per_codebook(name, Q)[level] for name in ("temperature", "top_k", "top_p")]
            limits[0] *= 1 - option.anneal * i / max(count - 1, 1)
            if count == 1:
                limits[0] = option.one_pass_temperature
            drawn_T = np.array([choose_slowly(logits_TK[t], *limits, gumbel_TK[t]) for t in range(T)])
            logprob_TK = logits_TK - np.log(np.exp(logits_TK).sum(axis=1, keepdims=True))
            confidence_T = logprob_TK[np.arange(T), drawn_T] + option.confidence_noise * (1 - (i + 1) / count) * rank_T
            left = masked_order.hidden_after(T - prompt, count, grid)[i] if count > 1 else 0
            keep = sorted(np.flatnonzero(hidden_T), key=lambda t: confidence_T[t])[left:]
            codes_TQ[keep, level] = drawn_T[keep]
            number += 1
            yield level, left, codes_TQ.copy()


def level_noise(seed, number, T):
    def one(kind, shape):
        key = jax.random.wrap_key_data(np.array([plan.LEVELS, seed], np.uint32), impl="threefry2x32")
        key = jax.random.fold_in(key, 2 * number + kind)
        return jax.vmap(lambda t: jax.random.gumbel(jax.random.fold_in(key, t), shape))(jnp.arange(T))

    return np.asarray(one(0, (K,))), np.asarray(one(1, ()))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])  # defect 7: a schedule that is accepted and then raises
def test_masked_loop_equals_a_reference_on_training_rows(schedule):
    grid = bind("masked", 3, iterations=(4, 3, 1), schedule=schedule)
    requests = [
        request("abc", 0, frames=7, seed=0),
        request("a longer text", 3, frames=12, seed=1, max_frames=20, anneal=0.5, top_p=(0.9,)),
        request("", 2, frames=5, seed=2, temperature=(0.5, 1.0, 1.0), one_pass_temperature=1.0),
    ]
    codes_BFQ, frames_B = levels(grid, requests)
    assert frames_B.tolist() == [7, 12, 5]
    for b, one in enumerate(requests):
        *_, (_, _, expected) = masked_reference(grid, one, frames_B[b])
        np.testing.assert_array_equal(codes_BFQ[b, : frames_B[b]], expected)
        np.testing.assert_array_equal(expected[: len(one.prompt_TQ)], one.prompt_TQ)
        assert expected.min() >= 0 and (codes_BFQ[b, frames_B[b] :] == -1).all()


@functools.cache
def trace():
    """The grid after every pass of two rows of unequal length, one with a prompt."""
    grid, vocab, (_, model) = bind("masked", 3, iterations=(5, 4, 1)), vocab_of(3), models(3)
    requests = [request("abc", 0, frames=20, max_frames=20), request("d", 4, frames=9, max_frames=20, seed=1)]
    frames_B = np.array([20, 9])
    _, fixed = masked.start(model, grid, vocab, requests)
    fixed = fixed._replace(frames_B=plan.place(frames_B.astype(np.int32)))
    passes = masked.schedule(requests, frames_B, grid)
    step = jax.jit(masked.advance, static_argnames="vocab")
    grids = [plan.prompt_grid(requests, 24, 3)]
    for n in range(len(passes.level)):
        grids.append(np.asarray(step(model, vocab, fixed, jax.tree.map(lambda x, n=n: x[n], passes), grids[-1])))
    return grid, requests, frames_B, passes, grids


def test_defect_5_hidden_cells_are_counted_and_ranked_in_their_own_level_and_row():
    grid, requests, frames_B, passes, grids = trace()
    assert np.asarray(passes.level).tolist() == [0] * 5 + [1] * 4 + [2]
    for b, one in enumerate(requests):
        free = frames_B[b] - len(one.prompt_TQ)
        expected = [n for count in grid.iterations for n in (masked_order.hidden_after(free, count, grid))]
        hidden = [
            int((after[b, : frames_B[b], level] < 0).sum())
            for after, level in zip(grids[1:], passes.level, strict=True)
        ]
        assert hidden[:9] == expected[:9]
        assert hidden[9] == 0
        assert 0 < hidden[0] < free, "cells are revealed little by little"


def test_kept_cells_are_frozen_and_nothing_is_written_beyond_a_row():
    _, requests, frames_B, _, grids = trace()
    for before, after in itertools.pairwise(grids):
        np.testing.assert_array_equal(after[before >= 0], before[before >= 0])
    for b, one in enumerate(requests):
        np.testing.assert_array_equal(grids[-1][b, : len(one.prompt_TQ)], one.prompt_TQ)
        assert (grids[-1][b, : frames_B[b]] >= 0).all() and (grids[-1][b, frames_B[b] :] == -1).all()


def test_defect_6_a_level_starts_from_the_inputs_of_training():
    _, requests, frames_B, passes, grids = trace()
    vocab = vocab_of(3)
    for number, level in enumerate(np.asarray(passes.level)):
        for b, one in enumerate(requests):
            before = grids[number][b, : frames_B[b]]
            view = LevelView(int(level), before[:, level] < 0, len(one.prompt_TQ))
            expected, _, _ = documents.hide(np.maximum(before, 0), view, vocab)
            np.testing.assert_array_equal(np.asarray(masked.inputs(before[None], vocab))[0], expected)
            if number and level != passes.level[number - 1]:
                assert (before[:, :level] >= 0).all(), "nothing of a coarser level is hidden"
                assert (before[len(one.prompt_TQ) :, level:] == -1).all(), "nothing of a finer level is drawn"


def test_masked_row_does_not_depend_on_its_neighbours():
    grid = bind("masked", 3, iterations=(4, 1, 1))
    own = request("abc", 2, frames=9, seed=5, max_frames=70)
    codes_BFQ, _ = levels(grid, [own])
    other, _ = levels(grid, [request("x" * 40, 0, frames=70, seed=1, max_frames=70), own])
    assert other.shape[1] != codes_BFQ.shape[1]
    np.testing.assert_array_equal(other[1, :9], codes_BFQ[0, :9])


def test_lengths_are_drawn_between_prompt_and_limit():
    grid, vocab, (_, model) = bind("masked", 3), vocab_of(3), models(3)
    requests = [request("abc", p, frames=f, length_temperature=5.0, seed=p) for p, f in ((0, None), (5, None), (2, 4))]
    drawn = set()
    for seed in range(20):
        requests = [dataclasses.replace(one, seed=seed) for one in requests]
        hidden_MD, _ = masked.start(model, grid, vocab, requests)
        frames_B = masked.lengths(model, grid, vocab, requests, hidden_MD)
        assert 1 <= frames_B[0] <= MOST and frames_B[1] in (6, 7) and frames_B[2] == 4
        drawn.add(int(frames_B[0]))
    assert len(drawn) > 3
    cold = [dataclasses.replace(one, sampling=SamplingConfig(max_frames=MOST)) for one in requests]
    logits_V = teacher_forced(3, documents.prompt_row(cold[0].document, grid, vocab, False)["tokens"])[-1]
    most_likely = int(np.argmax(logits_V[vocab.length_start :][:MOST])) + 1
    assert masked.lengths(model, grid, vocab, cold, hidden_MD)[0] == most_likely


def test_hierarchical_finer_levels_equal_the_reference_and_share_the_prompt_cache():
    grid, vocab, (_, model) = bind("hierarchical", 3), vocab_of(3), models(3)
    requests = [request("abc", 0, seed=0), request("defg", 3, frames=6, seed=1, one_pass_temperature=0.8)]
    *_, (fixed, state) = causal.generate(model, grid, vocab, requests)
    codes_BFQ, frames_B = levels(grid, requests, (fixed, state))
    for b, one in enumerate(requests):
        coarse_T = np.asarray(state.codes_BFQ)[b, : frames_B[b], 0]
        *_, (_, _, expected) = masked_reference(grid, one, frames_B[b], coarse_T)
        np.testing.assert_array_equal(codes_BFQ[b, : frames_B[b]], expected)


def test_earlier_audio_of_a_document_is_seen_by_every_pass():
    codes_TQ = np.random.default_rng(0).integers(0, K, (4, 3)).astype(np.int32)
    turn = (("text", text.encode("q")), ("audio", codes_TQ), ("text", text.encode("a")))
    grid, vocab, (_, model) = bind("hierarchical", 3), vocab_of(3), models(3)
    wanted = dataclasses.replace(request("abc", 2, frames=6, seed=3), document=turn)
    *_, (fixed, state) = causal.generate(model, grid, vocab, [wanted])
    coarse_T = np.asarray(state.codes_BFQ)[0, :6, 0]
    np.testing.assert_array_equal(coarse_T, reference(grid, wanted)[:, 0])
    codes_BFQ, _ = levels(grid, [wanted], (fixed, state))
    *_, (_, _, expected) = masked_reference(grid, wanted, 6, coarse_T)
    np.testing.assert_array_equal(codes_BFQ[0, :6], expected)


def test_masked_guidance_equals_the_mix_and_1_is_off():
    grid = bind("masked", 3, iterations=(3, 1, 1))
    plain = [request("abc", 1, frames=9, max_frames=9, seed=s) for s in (0, 1)]
    guided = [dataclasses.replace(plain[0], sampling=dataclasses.replace(plain[0].sampling, guidance=30.0)), plain[1]]
    without, _ = levels(grid, plain)
    with_, _ = levels(grid, guided)
    np.testing.assert_array_equal(with_[1], without[1])
    assert (with_[0] != without[0]).any()
    *_, (_, _, expected) = masked_reference(grid, guided[0], 9)
    np.testing.assert_array_equal(with_[0, :9], expected)


# Rules and options


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (4, 0.7), (0, 1.0), (1, 0.1), (99, 0.999)])
def test_top_keeps_what_a_sorted_list_keeps(top_k, top_p):
    logits_BN = np.random.default_rng(top_k).standard_normal((50, 9)).astype(np.float32) * 3
    logits_BN[:, 2] = -np.inf
    found = np.isfinite(np.asarray(rules.top(logits_BN, np.int32(top_k), np.float32(top_p))))
    for logits_N, kept_N in zip(logits_BN, found, strict=True):
        order = np.argsort(-logits_N)[: min(top_k or 8, 8)]
        probability = np.exp(logits_N[order]) / np.exp(logits_N[order]).sum()
        expected = order if top_p == 1 else order[np.cumsum(probability) - probability < top_p]
        assert sorted(expected) == np.flatnonzero(kept_N).tolist()


def test_top_keeps_equal_logits_together_and_orders_across_zero():
    assert np.isfinite(rules.top(np.array([1.0, 1.0, 0.0]), np.int32(1), None)).tolist() == [True, True, False]
    assert np.isfinite(rules.top(np.array([-1.0, -3.0, 0.5]), np.int32(2), None)).tolist() == [True, False, True]
    assert np.isfinite(rules.top(np.array([-1.0, -3.0, -2.0]), np.int32(2), None)).tolist() == [True, False, True]


def test_choose_draws_from_the_distribution():
    logits_N = np.log(np.array([0.5, 0.3, 0.2, 1e-30]))
    gumbel_BN = jax.random.gumbel(jax.random.key(0), (4000, 4))
    drawn_B = np.asarray(
        rules.choose(jnp.broadcast_to(logits_N, (4000, 4)), rules.LogitRules(np.float32(1)), gumbel_BN)
    )
    np.testing.assert_allclose(np.bincount(drawn_B, minlength=4) / 4000, [0.5, 0.3, 0.2, 0], atol=0.03)
    cold_B = np.asarray(rules.choose(jnp.broadcast_to(logits_N, (4000, 4)), rules.LogitRules(np.float32(0)), gumbel_BN))
    assert (cold_B == 0).all()


def test_guide_mixes_by_the_coefficient_of_each_row():
    c, u = np.array([[1.0, 2.0]] * 3), np.array([[0.5, 4.0]] * 3)
    found = rules.guide(c, u, np.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(found, [[1.0, 2.0], [0.5, 4.0], [2.0, -2.0]])


def test_buckets_hold_what_is_asked_and_grow_by_at_most_a_half():
    sizes = sorted({plan.bucket(n, 16) for n in range(1, 1000)})
    assert sizes[:6] == [16, 24, 32, 48, 64, 96]
    assert all(n <= plan.bucket(n, 16) <= max(16, 1.5 * n) for n in range(1, 1000))


def test_steps_of_is_the_layout_length():
    for strategy, Q, delays in CAUSAL:
        grid = bind(strategy, Q, delays)
        for T in (1, 2, 5):
            assert plan.steps_of(T, grid) == len(layout.causal_cells(grid, T)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": (-1.0,)},
        {"top_p": (0.0,)},
        {"top_k": (-1,)},
        {"guidance": -0.5},
        {"chunk": 0},
        {"anneal": 1.5},
        {"temperature": ()},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=f"sampling.{next(iter(options))}"):
        SamplingConfig(**options)


def test_options_per_codebook_must_fit_the_codebooks():
    assert SamplingConfig(temperature=0.5).per_codebook("temperature", 3) == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match=r"sampling.top_k is \(1, 2\); it must hold 1 number or 3"):
        SamplingConfig(top_k=(1, 2)).per_codebook("top_k", 3)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (request(frames=0), "0 frames were asked for"),
        (request(frames=MOST + 1), "8 frames were asked for; a segment has 1..7"),
        (request(prompt=7), "the prompt has 7 frames and the segment 7"),
        (request(prompt=4, frames=4), "the prompt has 4 frames and the segment 4"),
        (request(prompt=2, Q=2), "must be \\[frames, 3\\]"),
        (plan.Request((), np.full((2, 3), K, np.int32)), "code 5 is out of range"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        plan.check(wanted, bind("delay", 3), vocab_of(3), None)
