"""Bits are those of a normalised model: on tiny vocabularies the probabilities of all grids sum to one."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import intervals
from audiolm_jax.evaluation.likelihood import Scoring, _score, likelihood, score
from audiolm_jax.model import versions
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.transformer import language_model
from audiolm_jax.serialization import STRATEGIES, LevelView, SerializationConfig, bind, documents
from audiolm_jax.serialization.vocab import END_AUDIO, HEAD_CODE, TEXT_START, Vocab

MODEL = ModelConfig(layers=2, width=16, heads=2, kv_heads=1, head_width=8, ffn=16)
DEPTH = DepthConfig(layers=1, width=12, heads=2, kv_heads=1, head_width=6, ffn=16, join="prefix", positions="rotary")
WORDS = ("text", np.arange(TEXT_START, TEXT_START + 5, dtype=np.int32))
RATE = 12.5

CAUSAL = [
    {"strategy": "flat"},
    {"strategy": "parallel"},
    {"strategy": "delay"},
    {"strategy": "delay", "delays": (0, 3)},
    {"strategy": "coarse_first"},
    {"strategy": "hierarchical"},
    {"strategy": "depth"},
    {"strategy": "depth", "delays": (0, 3)},
]
MASKED = [
    {"strategy": "masked"},
    {"strategy": "masked", "iterations": (2, 2)},
    {"strategy": "masked", "iterations": (1, 3), "schedule": "linear"},
]


def name(options):
    return "-".join(str(value) for value in options.values())


def sharp_model(vocab, seed=0, grid=None):
    """A random model whose predictions are far from uniform, so that a missing or doubled factor shows."""
    config = dataclasses.replace(MODEL, depth=DEPTH if grid is not None and grid.depth else None)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: language_model(config, vocab, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    everywhere = jax.NamedSharding(versions.mesh(), jax.P())
    leaves = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in jax.tree.leaves(shapes)]
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(shapes), jax.device_put(leaves, everywhere)))


def grids(frames, codebooks, size):
    sizes = (size,) * codebooks if isinstance(size, int) else size
    for codes in itertools.product(*map(range, sizes * frames)):
        yield np.array(codes, np.int32).reshape(frames, codebooks)


def nats_of(model, grid, vocab, codes, **options):
    """(code nats, end nats, length nats) of each grid of codes, after some text."""
    result = likelihood(model, grid, vocab, [(WORDS, ("audio", x)) for x in codes], RATE, Scoring(**options))
    per_code = result.code_bits_UQ.sum(axis=1)
    return [bits * np.log(2) for bits in (per_code, result.end_bits_U, result.length_bits_U)]


@pytest.mark.parametrize("options", CAUSAL + MASKED, ids=name)
@pytest.mark.parametrize(("frames", "codebooks", "size"), [(2, 2, 3), (3, 2, 2), (2, 2, (3, 2)), (2, 2, (2, 4))])
def test_the_probabilities_of_all_grids_of_a_length_sum_to_one(options, frames, codebooks, size):
    vocab = Vocab(codebooks, size, max_frames=4)
    grid = bind(SerializationConfig(**options), codebooks)
    model = sharp_model(vocab, grid=grid)
    code_nats, _, _ = nats_of(model, grid, vocab, list(grids(frames, codebooks, size)), method="exact")
    assert np.ptp(code_nats) > 2
    assert np.exp(-code_nats).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_codebook_has_the_codes_of_its_own_size(strategy):
    vocab, grid = Vocab(3, (7, 5, 3), max_frames=4), bind(SerializationConfig(strategy), 3)
    model = sharp_model(vocab, grid=grid)
    code_nats, _, _ = nats_of(model, grid, vocab, list(grids(1, 3, (7, 5, 3))), method="exact")
    assert len(code_nats) == 7 * 5 * 3
    assert np.exp(-code_nats).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("options", CAUSAL, ids=name)
def test_codes_and_ends_of_all_lengths_sum_to_one(options):
    """Every T up to 2, and the mass of everything longer: the codes of 3 frames without their end."""
    vocab = Vocab(2, 2, max_frames=4)
    grid = bind(SerializationConfig(**options), 2)
    model, total = sharp_model(vocab, grid=grid), 0.0
    for frames in (1, 2):
        code_nats, end_nats, length_nats = nats_of(model, grid, vocab, list(grids(frames, 2, 2)))
        total += np.exp(-code_nats - end_nats).sum()
        assert (end_nats > 0).all()
        assert not length_nats.any()
    longer = list(grids(3, 2, 2))
    code_nats, end_nats, _ = nats_of(model, grid, vocab, longer)
    rows = [documents.causal_row((WORDS, ("audio", x)), grid, vocab) for x in longer]
    for row in rows:
        row["weights"] = (row["targets"] == END_AUDIO).astype(np.float32)
    last_end_nats = score(model, vocab, rows)[:, 2]
    rest = np.exp(-code_nats - end_nats + last_end_nats).sum()
    assert 0.01 < rest < 0.99
    assert total + rest == pytest.approx(1, abs=1e-4)


def test_lengths_sum_to_one_and_do_not_see_the_frames():
    vocab = Vocab(2, 2, max_frames=4)
    grid, model = bind(SerializationConfig("masked"), 2), sharp_model(vocab)
    _, end_nats, length_nats = nats_of(model, grid, vocab, [np.zeros((T, 2), np.int32) for T in (1, 2, 3, 4)])
    assert np.exp(-length_nats).sum() == pytest.approx(1, abs=1e-4)
    assert not end_nats.any()
    _, _, other = nats_of(model, grid, vocab, list(grids(2, 2, 2)), draws=3)
    np.testing.assert_allclose(other, length_nats[1], rtol=1e-5)


def test_code_and_end_bits_are_the_log_softmax_over_legal_sets():
    """A naive reference: the logits of one row, masked by the table of legal ids, in numpy."""
    vocab = Vocab(3, 5, max_frames=8)
    grid, model = bind(SerializationConfig("delay", delays=(0, 0, 2)), 3), sharp_model(vocab)
    codes_TQ = np.random.default_rng(0).integers(0, 5, (4, 3)).astype(np.int32)
    document = (WORDS, ("audio", codes_TQ), WORDS)
    row = documents.causal_row(document, grid, vocab)
    length = len(row["positions"])
    ones = np.ones((1, length), np.int32)
    hidden = model(row["tokens"][None], row["positions"][None], ones, row["ahead"][None])
    logits_LV = np.asarray(model.logits(hidden)[0], np.float64)
    expected = {"codes": np.zeros(3), "end": 0.0, "text": 0.0}
    for position, stream in zip(*np.nonzero(row["heads"])):
        head, target = row["heads"][position, stream], row["targets"][position, stream]
        odds = np.exp(logits_LV[position])
        legal = vocab.legal_HV[head]
        if head == vocab.head_code_or_end:
            p_end = odds[END_AUDIO] / odds[legal].sum()
            expected["end"] -= np.log2(p_end if target == END_AUDIO else 1 - p_end)
            head, legal = HEAD_CODE, vocab.legal_HV[HEAD_CODE]
        if target == END_AUDIO:
            continue
        bits = -np.log2(odds[target] / odds[legal].sum())
        if head >= HEAD_CODE:
            expected["codes"][head - HEAD_CODE] += bits
        else:
            expected["text"] += bits
    result = likelihood(model, grid, vocab, [document], RATE, Scoring(text=True))
    np.testing.assert_allclose(result.code_bits_UQ[0], expected["codes"], rtol=1e-4)
    np.testing.assert_allclose(result.end_bits_U[0], expected["end"], rtol=1e-4)
    np.testing.assert_allclose(result.text_bits_U[0], expected["text"], rtol=1e-4)
    assert result.bits_per_second == pytest.approx(expected["codes"].sum() / (4 / RATE), rel=1e-4)


def any_order_bound(model, grid, vocab, codes_TQ):
    """Code nats of the bound by enumeration: the mean over all orders of each level of -log p(level | order)."""
    frames, codebooks = codes_TQ.shape
    rows, weights = [], []
    for level in range(codebooks):
        orders = list(itertools.permutations(range(frames)))
        for order_T in orders:
            for step in range(frames):
                hidden_T = np.array(order_T) >= step
                row = documents.level_row((WORDS, ("audio", codes_TQ)), 1, LevelView(level, hidden_T), grid, vocab)
                row["weights"][-frames:, level] = np.array(order_T) == step
                rows.append(row)
                weights.append(1 / len(orders))
    return np.array(weights) @ score(model, vocab, rows)[:, :codebooks].sum(axis=1)


def test_the_bound_is_the_mean_over_all_orders_and_bounds_a_normalised_model():
    vocab = Vocab(2, 2, max_frames=4)
    grid, model = bind(SerializationConfig("masked"), 2), sharp_model(vocab)
    every = list(grids(2, 2, 2))
    bound = np.array([any_order_bound(model, grid, vocab, codes_TQ) for codes_TQ in every])
    assert np.exp(-bound).sum() < 1 + 1e-4  # Jensen: the mixture over orders sums to one
    draws = 400
    result = likelihood(model, grid, vocab, [(WORDS, ("audio", x)) for x in every], RATE, Scoring(draws=draws))
    assert result.tag == "bound"
    error = np.sqrt(result.code_variance_UQ.sum(axis=1))
    assert (np.abs(result.code_bits_UQ.sum(axis=1) - bound / np.log(2)) < 4 * error + 1e-3).all()
    assert (error > 0).any()
    mean = np.abs((result.code_bits_UQ.sum(axis=1) - bound / np.log(2)).mean())
    assert mean < 4 * np.sqrt(np.square(error).sum()) / len(every)


def test_one_draw_is_unbiased_over_seeds_and_stratified_draws_too():
    vocab = Vocab(2, 2, max_frames=4)
    grid, model = bind(SerializationConfig("masked"), 2), sharp_model(vocab)
    codes_TQ = np.array([[0, 0], [1, 1], [1, 0], [0, 0]], np.int32)
    exact = any_order_bound(model, grid, vocab, codes_TQ) / np.log(2)
    for draws in (1, 3):
        many = likelihood(model, grid, vocab, [(WORDS, ("audio", codes_TQ))] * 300, RATE, Scoring(draws=draws))
        bits_U = many.code_bits_UQ.sum(axis=1)
        assert bits_U.mean() == pytest.approx(exact, abs=4 * bits_U.std() / np.sqrt(300))


def test_the_order_decides_the_tag():
    vocab = Vocab(2, 2, max_frames=4)
    model = sharp_model(vocab)
    utterance = (WORDS, ("audio", np.zeros((3, 2), np.int32)))
    for options, tag in (
        ({"strategy": "flat"}, "exact"),
        ({"strategy": "hierarchical"}, "exact"),
        ({"strategy": "masked"}, "bound"),
        ({"strategy": "masked", "iterations": (1, 1)}, "exact"),
    ):
        grid = bind(SerializationConfig(**options), 2)
        result = likelihood(model, grid, vocab, [utterance], RATE)
        assert result.tag == tag
        assert (result.code_variance_UQ.sum() > 0) == (tag == "bound")


def test_bits_do_not_depend_on_the_company_an_utterance_keeps():
    """Padding, batch and bucket change nothing; several segments add up in the causal pass."""
    vocab = Vocab(2, 4, max_frames=64)
    grid, model = bind(SerializationConfig("hierarchical"), 2), sharp_model(vocab)
    rng = np.random.default_rng(1)
    many = [(WORDS, ("audio", rng.integers(0, 4, (T, 2)).astype(np.int32))) for T in (3, 28, 17, 3)]
    together = likelihood(model, grid, vocab, many, RATE)
    small = likelihood(model, grid, vocab, many, RATE, Scoring(positions_per_batch=1))
    alone = likelihood(model, grid, vocab, many[2:3], RATE)
    np.testing.assert_allclose(together.code_bits_UQ, small.code_bits_UQ, rtol=1e-4)
    np.testing.assert_allclose(together.code_bits_UQ[2], alone.code_bits_UQ[0], rtol=1e-4)
    np.testing.assert_allclose(together.end_bits_U[2], alone.end_bits_U[0], rtol=1e-4)
    assert together.frames_U.tolist() == [3, 28, 17, 3]
    assert together.seconds_U.sum() == pytest.approx(51 / RATE)


def test_several_segments_of_a_document_all_count():
    vocab = Vocab(2, 2, max_frames=4)
    grid, model = bind(SerializationConfig("hierarchical"), 2), sharp_model(vocab)
    first, second = np.array([[0, 1]], np.int32), np.array([[1, 1], [0, 1]], np.int32)
    both = likelihood(model, grid, vocab, [(WORDS, ("audio", first), WORDS, ("audio", second))], RATE)
    single = likelihood(model, grid, vocab, [(WORDS, ("audio", first))], RATE)
    assert both.frames_U.tolist() == [3]
    assert (both.code_bits_UQ > single.code_bits_UQ).all()
    chain = [(WORDS, ("audio", first), WORDS, ("audio", x)) for x in grids(2, 2, 2)]
    code_bits = likelihood(model, grid, vocab, chain, RATE).code_bits_UQ.sum(axis=1)
    assert (2.0 ** -(code_bits - single.code_bits_UQ.sum())).sum() == pytest.approx(1, abs=1e-4)


def test_few_shapes_are_compiled_and_all_rows_are_scored_once():
    vocab = Vocab(1, 3, max_frames=60)
    grid, model = bind(SerializationConfig("flat"), 1), sharp_model(vocab)
    utterances = [(("audio", np.zeros((T, 1), np.int32)),) for T in range(1, 45, 2)]
    before = _score._cache_size()
    result = likelihood(model, grid, vocab, utterances, RATE, Scoring(positions_per_batch=128))
    assert (result.code_bits_UQ > 0).all()
    assert _score._cache_size() - before <= 2  # 32 and 48 positions


def test_batches_spread_over_devices():
    from audiolm_jax.model import sharding

    vocab = Vocab(2, 4, max_frames=64)
    grid, model = bind(SerializationConfig("delay"), 2), sharp_model(vocab)
    rng = np.random.default_rng(2)
    many = [(("audio", rng.integers(0, 4, (5, 2)).astype(np.int32)),) for _ in range(9)]
    single = likelihood(model, grid, vocab, many, RATE)
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        spread = likelihood(sharp_model(vocab), grid, vocab, many, RATE)
    np.testing.assert_allclose(single.code_bits_UQ, spread.code_bits_UQ, rtol=1e-4)


def test_errors_and_intervals():
    vocab = Vocab(2, 4, max_frames=64)
    grid, model = bind(SerializationConfig("masked"), 2), sharp_model(vocab)
    rng = np.random.default_rng(3)
    many = [(("audio", rng.integers(0, 4, (T, 2)).astype(np.int32)),) for T in rng.integers(2, 16, 30)]
    result = likelihood(model, grid, vocab, many, RATE)
    interval = intervals.ratio(result.code_bits_UQ.sum(axis=1), result.seconds_U)
    assert interval.value == pytest.approx(result.bits_per_second)
    assert interval.low < interval.value < interval.high
    assert (interval.high - interval.low) / 3.92 == pytest.approx(result.standard_error, rel=0.35)
    draws_error = np.sqrt(result.code_variance_UQ.sum()) / result.seconds_U.sum()
    assert 0 < draws_error < 2 * result.standard_error
    assert result.bits_per_second_Q.sum() == pytest.approx(result.bits_per_second)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"utterances": []}, "no utterances"),
        ({"utterances": [(WORDS,)]}, "utterance 0 .* no audio"),
        ({"method": "guess"}, "'guess'; it must be one of auto, exact, bound"),
        ({"draws": 0}, "0 draws"),
    ],
)
def test_bad_requests_are_named(arguments, sentence):
    vocab = Vocab(2, 4, max_frames=64)
    utterances = arguments.get("utterances", [(("audio", np.zeros((2, 2), np.int32)),)])
    with pytest.raises(InputError, match=sentence):
        scoring = Scoring(**{name: value for name, value in arguments.items() if name != "utterances"})
        likelihood(sharp_model(vocab), bind(SerializationConfig("masked"), 2), vocab, utterances, RATE, scoring)
