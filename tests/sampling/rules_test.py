"""Rules on logits, options and requests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    ],
)
def test_requests_that_cannot_be_met_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        requests.check(wanted, bind("delay", 3), vocab_of(3), None)
