"""Sources of known distribution: what they list is a distribution, and what they give follows it."""

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from experiments.entropy_floor import floor, samples, sources

TEXTS = [letter + list(source.texts())[-1] for letter, source in sources.SOURCES.items()]


def chain_entropy(text):
    """The entropy by the chain rule over states, which lists no grid."""
    source = sources.SOURCES[text[0]]
    mass, total = {source.start(text[1:]): 1.0}, 0.0
    while mass:
        following = {}
        for state, p in mass.items():
            for q, frame, after in source.step(state):
                if q > 0:
                    total -= p * q * np.log2(q)
                if q > 0 and frame != sources.END:
                    following[after] = following.get(after, 0.0) + p * q
        mass = following
    return total


@pytest.mark.parametrize("text", TEXTS)
def test_the_list_is_a_distribution_over_different_grids(text):
    listed = sources.outcomes(text)
    assert listed.probability_N.sum() == pytest.approx(1, abs=1e-12)
    assert (listed.probability_N > 0).all()
    flat_NX = listed.codes_NTQ.reshape(len(listed.frames_N), -1)
    assert len(np.unique(flat_NX, axis=0)) == len(flat_NX)
    here_NT = np.arange(listed.codes_NTQ.shape[1]) < listed.frames_N[:, None]
    np.testing.assert_array_equal(listed.codes_NTQ.min(axis=2) >= 0, here_NT)
    assert listed.codes_NTQ.max() < sources.CODEBOOK_SIZE
    assert 2 <= listed.frames_N.min() <= listed.frames_N.max() <= sources.MAX_FRAMES


@pytest.mark.parametrize("text", TEXTS)
def test_entropy_of_the_list_is_that_of_the_chain(text):
    assert floor.entropy(sources.outcomes(text)) == pytest.approx(chain_entropy(text), rel=1e-12)


def test_the_aligned_source_says_its_text():
    listed = sources.outcomes("fxzy")
    for number in range(0, len(listed.frames_N), 97):
        codes_TQ = listed.grid(number)
        letters = [c for n, c in enumerate(codes_TQ[:, 0]) if n == 0 or c != codes_TQ[n - 1, 0]]
        assert letters == [0, 2, 1]


def test_draws_follow_the_list_and_give_every_source_its_share():
    drawn = sources.draw(np.random.default_rng(0), 3000)
    said = [text for text, _ in drawn]
    counts = [sum(text[0] == letter for text in said) for letter in sources.SOURCES]
    assert max(abs(count - 500) for count in counts) < 100
    for letter in "aef":
        probability = {text: p * sources.outcomes(text).probability_N for text, p in sources.texts(letter).items()}
        grids = [sources.outcomes(text).grid(number) for text, number in drawn if text[0] == letter]
        for name, statistic in samples.STATISTICS.items():
            assert samples.p_value(samples.expected(name, probability), [statistic(x) for x in grids], 0.0) > 1e-4


def test_a_source_named_twice_is_drawn_twice_as_often():
    drawn = sources.draw(np.random.default_rng(0), 3000, "abb")
    assert abs(sum(text[0] == "b" for text, _ in drawn) - 2000) < 100


def test_a_split_reads_like_recordings():
    split = sources.Split([("fxyz", 5), ("a", 1)], "train")
    assert (len(split), split.head(1)["text"], split[0]["text"]) == (2, "a", "fxyz")
    np.testing.assert_array_equal(split[0]["codes"], sources.outcomes("fxyz").grid(5))
    assert split.head(0)["frames"] == len(split[0]["codes"])


@pytest.mark.parametrize("text", ["", "q", "fxx", "ax"])
def test_a_text_that_no_source_gives_is_refused(text):
    with pytest.raises(InputError, match="no source gives the text"):
        sources.outcomes(text)
