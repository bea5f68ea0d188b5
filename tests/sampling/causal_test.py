"""The causal loop against a slow reference that knows neither cache nor batch, and how it is compiled."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.sampling import SamplingConfig, causal
from audiolm_jax.sampling.requests import check, limits, positions
from audiolm_jax.serialization import documents, layout
from tests.helpers.compiling import AS_USERS
from tests.helpers.sampling_reference import (
    CAUSAL,
    MOST,
    K,
    assert_same,
    bind,
    models,
    reference,
    request,
    run,
    teacher_forced,
    vocab_of,
    windowed,
)


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


@pytest.mark.parametrize(("strategy", "Q", "delays"), [CAUSAL[3], CAUSAL[5], CAUSAL[6], CAUSAL[9]])
def test_rules_that_look_back_and_other_options_hold_alone_and_among_others(strategy, Q, delays):
    grid = bind(strategy, Q, delays)
    causal_alone = (1,) * grid.causal_levels + (0,) * (Q - grid.causal_levels)
    penalty = tuple(0.3 if here else 1.0 for here in causal_alone)
    window = tuple(4 * here for here in causal_alone)
    both = {"repetition_penalty": penalty, "repetition_window": 3, "ras_window": window, "ras_ratio": 0.25}
    requests = [
        request("abcd", 2, Q, seed=1, **both, suppressed=((0,), *[(1,)] * (Q - 1)), min_p=0.05, min_frames=3),
        request("", 4, Q, seed=2, repetition_penalty=penalty, repetition_prompt=False, frames=7),
        request("abc", 1, Q, seed=3, ras_window=window, ras_ratio=0.3, top_k=1, min_frames=2),
        request("a", 0, Q, seed=5, temperature=0.0, ras_window=window, ras_ratio=0.0, min_p=0.5),
    ]
    found = run(grid, requests)
    assert_same(found, [reference(grid, one) for one in requests])
    assert_same(found[:1], run(grid, requests[:1]))
    assert len(found[0]) >= 5 and len(found[2]) >= 3, "min_frames after the prompt"
    plain = [dataclasses.replace(one, sampling=SamplingConfig(chunk=8, max_frames=MOST)) for one in requests[:3]]
    changed = [one.shape != two.shape or (one != two).any() for one, two in zip(found, run(grid, plain), strict=False)]
    assert sum(changed) >= 2
    greedy = dataclasses.replace(requests[3], sampling=SamplingConfig(temperature=0, chunk=8, max_frames=MOST))
    assert_same(found[3:], run(grid, [*plain, greedy])[3:])


def test_options_that_are_off_leave_no_trace_in_the_program():
    grid, vocab, (_, model) = bind("delay", 3), vocab_of(3), models(3)

    def program(**options):
        fixed, state = causal.start(model, grid, vocab, [request("abc", 2, **options)])
        return causal.chunk_program().lower(model, grid, vocab, 8, fixed, state, model.init_cache(1, 32)).as_text()

    off = {"min_p": 0, "suppressed": ((), (), ()), "repetition_penalty": 1, "ras_window": (0,), "min_frames": 2}
    plain = program()
    assert program(**off, repetition_window=5, repetition_prompt=False, ras_ratio=0.5) == plain
    used = [{"min_p": 0.1}, {"suppressed": 1}, {"repetition_penalty": 1.1}, {"ras_window": 7}]
    assert len({plain, *(program(**options) for options in used)}) == 5
    codes_BCF = "tensor<1x3x64xi32>"
    assert codes_BCF not in plain and codes_BCF in program(ras_window=7)
    assert program(repetition_penalty=1.3, repetition_prompt=True) == program(repetition_penalty=(1.05, 1, 1))


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
    assert limits(wanted, grid, vocab, None) == (30, 2)
    assert limits(wanted, grid, vocab, 17) == (10, 2)
    assert positions(wanted, 10, grid, vocab) == 17
    assert limits(bind_frames(wanted, 9), grid, vocab, 17) == (9, 9)
    with pytest.raises(
        InputError, match="2 frames\\) and one frame more take 10 positions; the context of this model has 9"
    ):
        check(wanted, grid, vocab, 9)
    with pytest.raises(InputError, match="11 frames and their prompt take 18 positions"):
        check(bind_frames(wanted, 11), grid, vocab, 17)


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
    return causal.chunk_program().lower(model, grid, vocab, 8, fixed, state, cache).compile(AS_USERS).as_text()


def test_what_a_prefill_gives_is_known_without_tracing_it():
    """Shapes, types and shardings: the chunk that is compiled ahead of the prefill is the one that runs."""
    grid, vocab, model = bind("delay", 3), vocab_of(3), models(3)[1]
    known = []
    start = causal.start(
        model, grid, vocab, [request("abc"), request("abcd", 2)], None, lambda *both: known.append(both)
    )
    for expected, x in zip(jax.tree.leaves(known[0]), jax.tree.leaves(start), strict=True):
        assert (expected.shape, expected.dtype, expected.sharding) == (x.shape, x.dtype, x.sharding)
    assert jax.tree.structure(known[0]) == jax.tree.structure(start)


def test_chunk_updates_the_cache_in_place():
    hlo, shape = compiled_chunk(), r"f32\[2,1,32,16\]"
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
    programs = causal.chunk_program(), causal.prefill

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
    assert causal.cache_sizes(70, 8) == [32] * 4 + [64] * 4 + [96]
    assert causal.cache_sizes(97, 8) == [32] * 4 + [64] * 4 + [128] * 5
    assert causal.cache_sizes(70, 8, window=60) == [32] * 4 + [59] * 5
    grid = bind("delay", 3)
    wanted, small = ([request("abc", b, frames=7, seed=4, chunk=chunk) for b in range(3)] for chunk in (8, 2))
    assert_same(run(grid, small), run(grid, wanted))


def test_a_window_is_a_ring_that_grows():
    """Slots: 4, 6, 6 and so on, and as many as there are steps."""
    grid, model = bind("flat", 3), windowed(models(3)[1], 7)
    small, wanted = ([request("abc", b, frames=7, seed=4, chunk=chunk) for b in range(3)] for chunk in (1, 40))
    *_, (_, ring) = causal.generate(model, grid, vocab_of(3), small)
    fixed, state = causal.start(model, grid, vocab_of(3), wanted)
    state, _ = causal.chunk_program()(model, grid, vocab_of(3), 24, fixed, state, model.init_cache(3, 24))
    np.testing.assert_array_equal(ring.codes_BFQ, state.codes_BFQ)
    assert any((whole != ring.codes_BFQ[b, :7]).any() for b, whole in enumerate(run(grid, wanted)))
