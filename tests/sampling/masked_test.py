"""The masked loop against a slow reference that runs on the very rows of training."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.sampling import SamplingConfig, causal, masked
from audiolm_jax.sampling.requests import LEVELS, place, prompt_grid
from audiolm_jax.serialization import LevelView, documents, text
from audiolm_jax.serialization.strategies import masked as masked_order
from tests.helpers.sampling_reference import (
    MOST,
    K,
    bind,
    choose_slowly,
    limits_of,
    logits_of,
    models,
    reference,
    request,
    teacher_forced,
    vocab_of,
    windowed,
)


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
            logits_TK = logits_of(vocab, level, logits_TV).astype(np.float64)
            gumbel_TK, rank_T = level_noise(wanted.seed, number, T)
            limits = limits_of(option, level, Q)
            limits.temperature *= 1 - option.anneal * i / max(count - 1, 1)
            if count == 1:
                limits.temperature = option.one_pass_temperature
            logits_TK[:, list(limits.suppressed)] = -np.inf
            drawn_T = np.array([choose_slowly(logits_TK[t], limits, gumbel_TK[t]) for t in range(T)])
            logprob_TK = logits_TK - np.log(np.exp(logits_TK).sum(axis=1, keepdims=True))
            confidence_T = logprob_TK[np.arange(T), drawn_T] + option.confidence_noise * (1 - (i + 1) / count) * rank_T
            left = masked_order.hidden_after(T - prompt, count, grid)[i] if count > 1 else 0
            keep = sorted(np.flatnonzero(hidden_T), key=lambda t: confidence_T[t])[left:]
            codes_TQ[keep, level] = drawn_T[keep]
            number += 1
            yield level, left, codes_TQ.copy()


def level_noise(seed, number, T):
    def one(kind, shape):
        key = jax.random.wrap_key_data(np.array([LEVELS, seed], np.uint32), impl="threefry2x32")
        key = jax.random.fold_in(key, 2 * number + kind)
        return jax.vmap(lambda t: jax.random.gumbel(jax.random.fold_in(key, t), shape))(jnp.arange(T))

    return np.asarray(one(0, (K,))), np.asarray(one(1, ()))


# Defect 7: a schedule that is accepted and then raises. Four codebooks are of unequal sizes.
@pytest.mark.parametrize(
    ("schedule", "iterations"), [("cosine", (4, 3, 1)), ("linear", (4, 3, 1)), ("cosine", (4, 1, 3, 1))]
)
def test_masked_loop_equals_a_reference_on_training_rows(schedule, iterations):
    Q = len(iterations)
    grid = bind("masked", Q, iterations=iterations, schedule=schedule)
    requests = [
        request("abc", 0, Q, frames=7, seed=0),
        request("a longer text", 3, Q, frames=12, seed=1, max_frames=20, anneal=0.5, top_p=(0.9,)),
        request("", 2, Q, frames=5, seed=2, temperature=(0.5, *[1.0] * (Q - 1)), one_pass_temperature=1.0),
        request("a", 1, Q, frames=7, seed=3, min_p=(0.5, *[0.2] * (Q - 1)), suppressed=((0,), (2,), (1, 3), (0,))[:Q]),
    ]
    codes_BFQ, frames_B = levels(grid, requests)
    assert frames_B.tolist() == [7, 12, 5, 7]
    for b, one in enumerate(requests):
        *_, (_, _, expected) = masked_reference(grid, one, frames_B[b])
        np.testing.assert_array_equal(codes_BFQ[b, : frames_B[b]], expected)
        np.testing.assert_array_equal(expected[: len(one.prompt_TQ)], one.prompt_TQ)
        assert expected.min() >= 0 and (codes_BFQ[b, frames_B[b] :] == -1).all()


def test_a_window_goes_from_the_frames_back_into_the_prompt():
    """Hidden states of rows of several lengths, behind padding, and those of the rows of training."""
    grid, vocab = bind("masked", 3, iterations=(5, 4, 1)), vocab_of(3)
    stacked, model = (windowed(one, 6) for one in models(3))
    asked = [request("abc", 0, frames=20), request("longer than that", 4, frames=9), request("", 2, frames=3)]
    frames_B = np.array([20, 9, 3], np.int32)
    _, fixed = masked.start(model, grid, vocab, asked)
    codes_BFQ = np.full((3, 24, 3), -1, np.int32)
    for b, one in enumerate(asked):
        codes_BFQ[b, : len(one.prompt_TQ)] = one.prompt_TQ
    found = np.asarray(masked.hidden_states(model, masked.inputs(codes_BFQ, vocab), frames_B, fixed))
    assert np.isfinite(found).all()
    for b, one in enumerate(asked):
        codes_TQ = codes_BFQ[b, : frames_B[b]]
        view = LevelView(0, codes_TQ[:, 0] < 0, len(one.prompt_TQ))
        document = (*one.document, ("audio", np.maximum(codes_TQ, 0)))
        row = documents.level_row(document, len(document) - 1, view, grid, vocab)
        tokens, positions, ahead = (row[name][None] for name in ("tokens", "positions", "ahead"))
        expected = stacked(tokens, positions, np.ones_like(positions), ahead)[0, -frames_B[b] :]
        np.testing.assert_allclose(found[b, : frames_B[b]], expected, atol=1e-5)


@functools.cache
def trace():
    """The grid after every pass of two rows of unequal length, one with a prompt."""
    grid, vocab, (_, model) = bind("masked", 3, iterations=(5, 4, 1)), vocab_of(3), models(3)
    requests = [request("abc", 0, frames=20, max_frames=20), request("d", 4, frames=9, max_frames=20, seed=1)]
    frames_B = np.array([20, 9])
    _, fixed = masked.start(model, grid, vocab, requests)
    fixed = fixed._replace(frames_B=place(frames_B.astype(np.int32)))
    passes = masked.schedule(requests, frames_B, grid, vocab)
    step = jax.jit(masked.advance, static_argnames="vocab")
    grids = [prompt_grid(requests, 24, 3)]
    for n in range(len(passes.level)):
        now = jax.tree.map(lambda x, n=n: x[n], passes)
        grids.append(np.asarray(step(model, vocab, fixed, now, grids[-1], model.output_DV())))
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
    least = [request("abc", p, length_temperature=5.0, min_frames=n) for p, n in ((0, 7), (2, 5), (1, 5))]
    assert all(masked.lengths(model, grid, vocab, least, hidden_MD) >= [7, 7, 6])
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
