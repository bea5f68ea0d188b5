"""Baselines are normalised, fitted on the training split alone, and reach the entropy of sources they can model."""

import itertools

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import baselines

RATE = 12.5


def test_uniform_is_the_bit_rate_of_the_codec():
    assert baselines.uniform_bits_per_second(8, 2048, 12.5) == pytest.approx(1100)


def test_a_source_without_memory_costs_its_entropy():
    rng = np.random.default_rng(0)
    odds_QK = np.array([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25]])
    draw = lambda: np.stack([rng.choice(4, size=400, p=odds_K) for odds_K in odds_QK], axis=1)  # noqa: E731
    train, held_out = [draw() for _ in range(20)], [draw() for _ in range(20)]
    result = baselines.unigram(train, held_out, 4, RATE)
    entropy_Q = [-sum(p * np.log2(p) for p in odds_K if p) for odds_K in odds_QK]
    np.testing.assert_allclose(result.bits_per_second_Q, RATE * np.array(entropy_Q), rtol=0.02)
    assert result.bits_per_second == pytest.approx(result.bits_per_second_Q.sum())
    assert result.code_bits_UQ.shape == (20, 2)


@pytest.mark.parametrize("sizes", [3, (4, 2)])
@pytest.mark.parametrize("train_frames", [1, 9])
def test_probabilities_of_all_grids_sum_to_one(sizes, train_frames):
    rng, sizes_Q = np.random.default_rng(2), np.broadcast_to(sizes, 2)
    train = [rng.integers(0, sizes_Q, (train_frames, 2)).astype(np.uint16)]
    every = [np.array(codes, np.uint16).reshape(2, 2) for codes in itertools.product(*map(range, [*sizes_Q, *sizes_Q]))]
    bits_U = baselines.unigram(train, every, sizes, RATE).code_bits_UQ.sum(axis=1)
    assert (2.0**-bits_U).sum() == pytest.approx(1)
    assert baselines.uniform_bits_per_second(2, (4, 2), 10) == 10 * (2 + 1)


def test_smoothing_is_chosen_on_the_training_split():
    """Few counts over many codes: add-one is far from the best."""
    rng = np.random.default_rng(3)
    odds_K = rng.dirichlet(np.full(512, 0.05))
    train = [rng.choice(512, size=(600, 1), p=odds_K)]
    held_out = [rng.choice(512, size=(600, 1), p=odds_K)]
    bits = baselines.unigram(train, held_out, 512, RATE).code_bits_UQ.sum()
    count_K = np.bincount(train[0][:, 0], minlength=512)
    held_K = np.bincount(held_out[0][:, 0], minlength=512)
    by_alpha = [-(held_K * np.log2((count_K + a) / (600 + 512 * a))).sum() for a in np.geomspace(1e-4, 10, 60)]
    laplace = -(held_K * np.log2((count_K + 1) / (600 + 512))).sum()
    assert min(by_alpha) - 1e-6 <= bits < laplace
    assert bits < 1.02 * min(by_alpha)


@pytest.mark.parametrize(
    ("train", "held_out", "sentence"),
    [
        ([], [np.zeros((2, 1), int)], "no training frames"),
        ([np.zeros((2, 1), int)], [], "no held-out utterances"),
        ([np.zeros((2, 1), int)], [np.zeros((0, 1), int)], "without frames"),
        ([np.zeros((2, 1), int)], [np.full((2, 1), 4)], "code 4 is out of range; codes must lie in 0..3"),
        ([np.full((2, 1), -1)], [np.zeros((2, 1), int)], "code -1 is out of range"),
    ],
)
def test_bad_codes_are_named(train, held_out, sentence):
    with pytest.raises(InputError, match=sentence):
        baselines.unigram(train, held_out, 4, RATE)
