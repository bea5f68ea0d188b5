"""The end of audio as a frame of zeros (framing `zeros`): the likelihood is normalised, and sampling draws from it."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation.likelihood import likelihood
from audiolm_jax.model import losses, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.transformer import language_model, unstack
from audiolm_jax.sampling import SamplingConfig, causal, requests
from audiolm_jax.serialization import SerializationConfig, bind, documents
from audiolm_jax.serialization.vocab import TEXT_START, Vocab

DEPTH = DepthConfig(
    layers=1, width=12, heads=2, kv_heads=1, head_width=6, ffn=16, join="prefix", positions="rotary",
    embeddings="backbone",
)  # fmt: skip
MODEL = ModelConfig(layers=2, width=16, heads=2, kv_heads=1, head_width=8, ffn=16, depth=DEPTH, dtype="float32")
VOCAB = Vocab(3, 2, max_frames=4, text_size=20, text_given=True)
GRID = bind(SerializationConfig("depth"), 3, "zeros")
WORDS = ("text", np.arange(TEXT_START, TEXT_START + 5, dtype=np.int32))


@pytest.fixture(scope="module")
def model():
    """Random, with an end that is neither rare nor certain."""
    with jax.set_mesh(sharding.single_device_mesh()):
        graph, state = nnx.split(language_model(MODEL, VOCAB, nnx.Rngs(0)))
        leaves, tree = jax.tree.flatten(state)
        rng = np.random.default_rng(3)
        leaves = [jax.device_put(0.7 * rng.normal(size=x.shape).astype(np.float32), x.sharding) for x in leaves]
        yield nnx.merge(graph, tree.unflatten(leaves))


def segments(frames):
    """Every segment of so many frames."""
    frame = [np.array(codes) for codes in itertools.product(range(2), repeat=3)][1:]
    return [np.stack(codes).astype(np.int32) for codes in itertools.product(frame, repeat=frames)]


def bits(model, codes, before=()):
    scored = likelihood(model, GRID, VOCAB, [(*before, WORDS, ("audio", x)) for x in codes], 12.5)
    return scored.code_bits_UQ.sum(axis=1), scored.end_bits_U


def drawn(model, wanted):
    """Codes [T, Q] of every request."""
    *_, (_, state) = causal.generate(unstack(model), GRID, VOCAB, wanted)
    return [x[:T] for x, T in zip(np.asarray(state.codes_BFQ), np.asarray(state.frames_B))]


def request(seed=0, prompt=(), frames=None, **options):
    prompt_TQ = np.array(prompt, np.int32).reshape(-1, 3)
    other = (("text", WORDS[1] + 3),)
    return requests.Request((WORDS,), prompt_TQ, frames, seed, SamplingConfig(chunk=4, **options), unconditional=other)


@pytest.mark.parametrize("before", [(), (WORDS, ("audio", np.array([[1, 0, 0], [0, 0, 1]], np.int32)))])
def test_segments_of_all_lengths_sum_to_one(model, before):
    """Those of 1 and 2 frames with their end, and what is longer: 3 frames without an end."""
    earlier = 0.0
    if before:
        code, end = bits(model, [before[1][1]])
        earlier = code[0] + end[0]
    total = 0.0
    for frames in (1, 2):
        code, end = bits(model, segments(frames), before)
        assert (end > 0).all()
        total += (2.0 ** -(code + end - earlier)).sum()
    code, end = bits(model, segments(3), before)
    earlier_end = bits(model, [before[1][1]])[1][0] if before else 0.0
    rest = (2.0 ** -(code + earlier_end - earlier)).sum()
    assert 0.05 < rest < 0.95
    assert total + rest == pytest.approx(1, abs=1e-4)


def test_sampling_draws_what_the_likelihood_says(model):
    """Counts of all segments of at most 2 frames against their probabilities (Pearson's test), and none that is not
    one of them."""
    count = 3000
    found = drawn(model, [request(seed, max_frames=2) for seed in range(count)])
    kinds = [x.tobytes() + bytes(x.shape) for x in (*segments(1), *segments(2))]
    (code_1, end_1), (code_2, _) = (bits(model, segments(frames)) for frames in (1, 2))
    expected = count * 2.0 ** -np.concatenate([code_1 + end_1, code_2])  # the end of the longest is forced
    seen = np.array([sum(x.tobytes() + bytes(x.shape) == kind for x in found) for kind in kinds])
    assert seen.sum() == count == pytest.approx(expected.sum(), rel=1e-4)
    often = expected > 5
    pooled = [np.append(x[often], x[~often].sum()) for x in (seen, expected)]
    statistic = ((pooled[0] - pooled[1]) ** 2 / pooled[1]).sum()
    freedom = len(pooled[0]) - 1
    assert freedom > 10 and statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_no_end_before_the_least_length_and_none_at_a_length_that_was_asked_for(model):
    seeds, prompt = range(40), [[1, 0, 1], [0, 1, 0]]
    wanted = [request(seed, min_frames=3) for seed in seeds] + [request(seed, frames=3) for seed in seeds]
    wanted += [request(seed, prompt=prompt, frames=4) for seed in seeds]
    found = drawn(model, wanted)
    assert {len(x) for x in found[:40]} == {3, 4} and {len(x) for x in found[40:80]} == {3}
    assert all(x[:2].tolist() == prompt and len(x) == 4 for x in found[80:])
    assert all(x.any(axis=1).all() for x in found)
    for n, alone in enumerate(drawn(model, wanted[35:45])):  # a row does not depend on the others
        np.testing.assert_array_equal(alone, found[35 + n])


def test_guidance_may_lead_to_the_end_too(model):
    found = drawn(model, [request(seed, guidance=1.5) for seed in range(20)])
    assert len({len(x) for x in found}) > 1 and all(x.any(axis=1).all() for x in found)


def test_what_is_counted_of_the_end(model):
    """Its frame is one of the class end, and the codes before count under their codebooks."""
    codes = [segments(2)[11], segments(2)[2], np.array([[0, 0, 1], [1, 1, 1]], np.int32)]
    rows = [documents.causal_row((WORDS, ("audio", x)), GRID, VOCAB) for x in codes]
    names = {"tokens": "BLS", "positions": "BL", "targets": "BLS", "heads": "BLS", "weights": "BLS"}
    batch = {f"{name}_{axes}": np.stack([row[name] for row in rows]) for name, axes in names.items()}

    @jax.jit
    def sums(model, batch):
        hidden = model(batch["tokens_BLS"], batch["positions_BL"], 0 * batch["positions_BL"] + 1)
        return losses.loss_and_sums(losses.scored(model, hidden, batch, VOCAB), VOCAB)[1]

    found = sums(model, batch)
    code, end = bits(model, codes)
    assert found["count_X"].tolist() == [0, 0, 6, 6, 6, 3]
    np.testing.assert_allclose(found["nll_X"][2:5].sum(), code.sum() * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(found["nll_X"][5], end.sum() * np.log(2), rtol=1e-5)


def test_a_prompt_that_has_ended_is_refused():
    with pytest.raises(InputError, match="frame 1 of an audio segment is code 0 in every codebook"):
        requests.check(request(prompt=[[1, 0, 0], [0, 0, 0]]), GRID, VOCAB, None)
