"""Rules on logits, options and requests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import serialization
from audiolm_jax.errors import InputError
from audiolm_jax.sampling import SamplingConfig, requests, rules
from audiolm_jax.serialization import layout
from tests.helpers.sampling_reference import CAUSAL, MOST, K, bind, request, vocab_of


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


def test_digits_of_any_width_find_the_same():
    logits_BN = np.random.default_rng(0).standard_normal((20, 300)).astype(np.float32) * 3
    logits_BN[:, 5:9], logits_BN[3, :290] = -np.inf, -0.0
    ones, needed = np.ones_like(logits_BN), np.array([1, 2, 7, 40, 250] * 4)
    kept = [np.isfinite(rules._keep(logits_BN, ones, needed, width)) for width in (1, 2, 4, 8)]
    assert all((kept[0] == other).all() for other in kept)
    for row, found, k in zip(logits_BN, kept[0], needed, strict=True):
        assert found.sum() >= min(k, np.isfinite(row).sum()) and (row[found] >= np.sort(row)[-k]).all()


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
    sizes = sorted({requests.bucket(n, 16) for n in range(1, 1000)})
    assert sizes[:6] == [16, 24, 32, 48, 64, 96]
    assert all(n <= requests.bucket(n, 16) <= max(16, 1.5 * n) for n in range(1, 1000))


def test_steps_of_is_the_layout_length():
    for strategy, Q, delays in CAUSAL:
        grid = bind(strategy, Q, delays)
        for T in (1, 2, 5):
            assert requests.steps_of(T, grid) == len(layout.causal_cells(grid, T)[0])


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
        {"min_p": 1.5},
        {"repetition_penalty": (0.0,)},
        {"repetition_window": -1},
        {"ras_ratio": 2},
        {"suppressed": ()},
        {"suppressed": ("a",)},
        {"min_frames": -1},
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
        (requests.Request((), np.full((2, 3), K, np.int32)), "code 5 is out of range"),
        (request(suppressed=((1,), (5,), ())), "sampling.suppressed holds 5 for codebook 1; its codes are 0..4"),
        (request(suppressed=(tuple(range(5)),)), "sampling.suppressed holds every code for codebook 0"),
        (request(suppressed=((1,), (2,))), "suppressed is .*; it must hold 1 tuple of codes or 3, one per codebook"),
        (request(prompt=3, min_frames=5), "sampling.min_frames is 5; after the prompt there is room for 4"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        requests.check(wanted, bind("delay", 3), vocab_of(3), None)


# The rules of transformers


def hf():
    return pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'").generation.logits_process


def scores(rows=40, codes=11):
    """Logits on both sides of 0, codes of 20 frames that repeat, and the frame of each row, some before the last."""
    rng = np.random.default_rng(7)
    logits_BN = (rng.standard_normal((rows, codes)) * 3).astype(np.float32)
    return logits_BN, rng.integers(0, codes, (rows, 20)).astype(np.int32), rng.integers(0, 21, rows).astype(np.int32)


@pytest.mark.parametrize(("factor", "window", "start"), [(1.3, 0, 0), (1.05, 4, 0), (0.7, 6, 5), (2.0, 0, 9)])
def test_repetition_is_penalised_as_in_transformers(factor, window, start):
    torch = pytest.importorskip("torch")
    logits_BN, codes_BF, frame_B = scores()
    penalty = rules.Penalty(np.float32(factor), np.int32(window), np.int32(start))
    found_BN = np.asarray(rules.penalise(logits_BN, penalty, rules.Past(codes_BF, frame_B)))
    processor = hf().RepetitionPenaltyLogitsProcessor(factor)
    for b, frame in enumerate(frame_B):
        seen = codes_BF[b, max(start, frame - window if window else 0) : frame]
        expected_1N = processor(torch.from_numpy(seen[None].astype(np.int64)), torch.from_numpy(logits_BN[b : b + 1]))
        np.testing.assert_allclose(found_BN[b], expected_1N[0].numpy(), rtol=1e-6)
    unseen = rules.penalise(logits_BN, penalty, rules.Past(np.full_like(codes_BF, -1), frame_B))
    np.testing.assert_array_equal(unseen, logits_BN)


@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
def test_unlikely_codes_are_dropped_as_in_transformers(min_p):
    torch = pytest.importorskip("torch")
    logits_BN, *_ = scores()
    expected_BN = hf().MinPLogitsWarper(min_p)(None, torch.from_numpy(logits_BN)).numpy()
    np.testing.assert_array_equal(rules.likely(logits_BN, np.float32(min_p)), expected_BN)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(0.5, 6, 0.8, 0.2), (1.8, 9, 0.6, 0.3), (1.0, 4, 0.9, 0.1), (0.9, 99, 0.95, 0.5)],
)
def test_filters_apply_in_the_order_of_transformers(temperature, top_k, top_p, min_p):
    torch, process = pytest.importorskip("torch"), hf()
    logits_BN, codes_BF, frame_B = scores(400)
    gumbel_BN = np.random.default_rng(top_k).gumbel(size=logits_BN.shape).astype(np.float32)
    filters = np.int32(top_k), np.float32(top_p), np.float32(min_p)
    limits = rules.LogitRules(np.float32(temperature), *filters, penalty=rules.Penalty(np.float32(1.5)))
    legal_BN = rules.suppress(logits_BN, np.isin(np.arange(10), (3, 8)))
    found_B = rules.choose(legal_BN, limits, gumbel_BN, rules.Past(codes_BF, frame_B))
    processors = [
        process.RepetitionPenaltyLogitsProcessor(1.5),
        process.SuppressTokensLogitsProcessor([3, 8]),
        process.TemperatureLogitsWarper(temperature),
        process.TopKLogitsWarper(top_k),
        process.TopPLogitsWarper(top_p),
        process.MinPLogitsWarper(min_p),
    ]
    for b, frame in enumerate(frame_B):
        seen_1F, scores_1N = torch.from_numpy(codes_BF[b : b + 1, :frame].astype(int)), torch.from_numpy(logits_BN[[b]])
        for processor in processors:
            scores_1N = processor(seen_1F, scores_1N)
        assert found_B[b] == np.argmax(scores_1N[0].numpy() + gumbel_BN[b])


def test_what_repeats_too_much_is_drawn_again_from_all_codes():
    logits_BN, codes_BF, _ = scores(500, 4)
    rng = np.random.default_rng(0)
    gumbel_BN, again_BN = rng.gumbel(size=(2, 500, 4)).astype(np.float32)
    frame_B, window_B = rng.integers(0, 21, 500), rng.integers(0, 9, 500)
    most_B = rng.integers(0, 4, 500)
    temperature_B = np.where(np.arange(500) % 5, 0.5, 0).astype(np.float32)
    limits = rules.LogitRules(temperature_B, np.int32(1), redraw=rules.Redraw(window_B, most_B))
    found_B = np.asarray(rules.choose(logits_BN, limits, gumbel_BN, rules.Past(codes_BF, frame_B, again_BN)))
    changed = 0
    for b, first in enumerate(np.argmax(logits_BN, axis=1)):  # top-k of 1
        count = list(codes_BF[b, max(0, frame_B[b] - window_B[b]) : frame_B[b]]).count(first)
        again = window_B[b] > 0 and count > most_B[b] and temperature_B[b] > 0
        assert found_B[b] == (np.argmax(logits_BN[b] + again_BN[b]) if again else first)
        changed += found_B[b] != first
    assert changed > 20


def test_a_share_is_a_whole_number_of_frames():
    def most(window, ratio):
        return requests.rules([request(ras_window=window, ras_ratio=ratio)], vocab_of(3)).redraw.most[0].tolist()

    assert most((10, 7, 100), (0.1, 0.2, 0.29)) == [1, 1, 29]


def test_rules_that_no_row_uses_are_none():
    off = {"min_p": 0, "suppressed": ((), (), ()), "repetition_penalty": 1, "ras_window": (0,)}
    unused = {"repetition_window": 5, "repetition_prompt": False, "ras_ratio": 0.5}
    found = requests.rules([request(), request(prompt=2, **off, **unused)], vocab_of(3))
    assert found._replace(temperature=None) == rules.LogitRules(None)
    used = requests.rules([request(prompt=2, repetition_penalty=1.1), request(min_p=0.1)], vocab_of(3))
    assert used.penalty.window is None and used.penalty.start is None and used.redraw is None


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("masked", {"repetition_penalty": 1.1}, "repetition_penalty is .*; it must be 1 from codebook 0 on, .* masked"),
        ("hierarchical", {"ras_window": 7}, "sampling.ras_window is .*; it must be 0 from codebook 1 on"),
    ],
)
def test_bidirectional_passes_refuse_what_looks_back(strategy, options, message):
    grid = bind(strategy, 3)
    with pytest.raises(InputError, match=message):
        requests.check(request(**options), grid, vocab_of(3), None)
    requests.check(request(ras_window=(7 * grid.causal_levels, 0, 0)), grid, vocab_of(3), None)


def test_no_least_length_without_an_end():
    grid = serialization.bind(serialization.SerializationConfig(strategy="delay"), 3, "bare")
    with pytest.raises(InputError, match=r"min_frames is 2; this model predicts no end of audio"):
        requests.check(request(frames=5, min_frames=2), grid, vocab_of(3), None)
