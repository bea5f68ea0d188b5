import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.model import losses, sharding
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.serialization.vocab import AUDIO, END_AUDIO, EOS, TEXT_APART, TEXT_START, Vocab

VOCAB = Vocab(codebooks=4, codebook_size=16, max_frames=6)
B, L, S, D = 4, 6, 5, 8


UNEQUAL = Vocab(4, (16, 5, 3, 9), max_frames=18, extra_ids=4, text_size=4)
PIECES = Vocab(4, 16, max_frames=6, text_size=TEXT_APART + 1)


@pytest.fixture(params=[VOCAB, UNEQUAL, PIECES], ids=["equal", "unequal", "pieces"], autouse=True)
def sizes(request, monkeypatch):
    """Every test here once with codebooks of one size, once with a size for each, few text ids and some extra ones, and
    once with so many text ids that they are apart."""
    monkeypatch.setitem(globals(), "VOCAB", request.param)


def predictions(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random heads and a random legal target of each, every kind of prediction among them."""
    rng = np.random.default_rng(seed)
    heads = rng.integers(0, VOCAB.heads, (B, L, S)).astype(np.int32)
    targets = np.zeros_like(heads)
    for index in np.ndindex(*heads.shape):
        if heads[index]:
            targets[index] = rng.choice(np.flatnonzero(VOCAB.legal_HV[heads[index]]))
    heads[0, 0, 0], targets[0, 0, 0] = VOCAB.head_code_or_end, END_AUDIO
    heads[0, 0, 1], targets[0, 0, 1] = 1, EOS
    heads[0, 0, 2], targets[0, 0, 2] = 1, AUDIO
    heads[0, 0, 3], targets[0, 0, 3] = 1, TEXT_START
    return heads, targets


def inputs(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    rows = -(-VOCAB.size // 128) * 128
    return jnp.array(rng.normal(size=(B, L, D)), jnp.float32), jnp.array(rng.normal(size=(D, rows)), jnp.float32)


def naive(hidden, out, targets, heads) -> tuple[np.ndarray, np.ndarray]:
    """One prediction at a time: a softmax over the ids its legal set names."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(out, np.float64)[:, : VOCAB.size]
    logprob, end = np.zeros(heads.shape), np.zeros(heads.shape)
    for index in np.ndindex(*heads.shape):
        if not heads[index]:
            continue
        row, legal = logits[index[:2]], VOCAB.legal_HV[heads[index]]
        p = np.exp(row - row[legal].max()) * legal
        p /= p.sum()
        logprob[index] = np.log(p[targets[index]])
        if heads[index] == VOCAB.head_code_or_end:
            end[index] = np.log(p[END_AUDIO] if targets[index] == END_AUDIO else 1 - p[END_AUDIO])
    return logprob, end


@pytest.mark.parametrize("chunk", [None, L, 4])  # in blocks, dense, dense in pieces
def test_equals_a_naive_loop(chunk):
    hidden, out = inputs()
    heads, targets = predictions()
    got = jax.jit(lambda *args: losses.target_logprobs(*args, VOCAB, chunk=chunk))(hidden, out, targets, heads)
    logprob, end = naive(hidden, out, targets, heads)
    np.testing.assert_allclose(got["logprob_BLS"], logprob, atol=2e-5)
    np.testing.assert_allclose(got["end_BLS"], end, atol=2e-5)


def test_normalised_over_each_legal_set():
    hidden, out = inputs()
    heads, targets = np.nonzero(VOCAB.legal_HV)  # every id of every set, a stream each
    heads, targets = (np.broadcast_to(x.astype(np.int32), (B, L, len(x))) for x in (heads, targets))
    got = jax.jit(lambda *args: losses.target_logprobs(*args, VOCAB))(hidden, out, targets, heads)
    p = np.exp(got["logprob_BLS"])
    for head in range(1, VOCAB.heads):
        np.testing.assert_allclose(p[..., heads[0, 0] == head].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, L])
def test_illegal_ids_get_no_gradient(chunk):
    hidden, out = inputs()
    heads, targets = predictions()

    @jax.jit
    def gradient(heads):
        def total(out):
            return losses.target_logprobs(hidden, out, targets, heads, VOCAB, chunk=chunk)["logprob_BLS"].sum()

        return jax.grad(total)(out)

    for head in range(1, VOCAB.heads):
        grad = gradient(np.where(heads == head, head, 0))
        legal = np.append(VOCAB.legal_HV[head], np.zeros(out.shape[1] - VOCAB.size, bool))
        assert np.all(np.asarray(grad)[:, ~legal] == 0)
        assert np.all(np.any(np.asarray(grad)[:, legal] != 0, axis=0))


def batch() -> dict:
    heads, targets = predictions()
    weights = np.random.default_rng(1).uniform(0.5, 2, heads.shape).astype(np.float32) * (heads > 0)
    weights[1] = 0
    return {"targets_BLS": targets, "heads_BLS": heads, "weights_BLS": weights}


def test_loss_and_sums_equal_a_naive_loop():
    hidden, out = inputs()
    rows = batch()
    total, sums = jax.jit(lambda *args: losses.loss_and_sums([losses.score(*args, VOCAB)], VOCAB))(hidden, out, rows)
    logprob, end = naive(hidden, out, rows["targets_BLS"], rows["heads_BLS"])
    np.testing.assert_allclose(total, -np.sum(rows["weights_BLS"] * logprob), rtol=1e-5)
    np.testing.assert_allclose(sums["weight"], rows["weights_BLS"].sum(), rtol=1e-6)
    nll, count = np.zeros(3 + VOCAB.codebooks), np.zeros(3 + VOCAB.codebooks)
    for index in np.ndindex(*logprob.shape):
        head = rows["heads_BLS"][index]
        if not rows["weights_BLS"][index]:
            continue
        if head == VOCAB.head_code_or_end:
            nll[-1] -= end[index]
            count[-1] += 1
            head = 0 if rows["targets_BLS"][index] == END_AUDIO else 3
        if head:
            nll[head - 1] -= logprob[index] - end[index]
            count[head - 1] += 1
    np.testing.assert_allclose(sums["nll_X"], nll, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sums["count_X"], count)
    assert len(losses.class_names(VOCAB)) == len(nll)


def test_z_loss_adds_the_squared_normaliser():
    hidden, out = inputs()
    rows = batch()
    parts = [losses.score(hidden, out, rows, VOCAB)]
    plain, _ = losses.loss_and_sums(parts, VOCAB)
    with_z, _ = losses.loss_and_sums(parts, VOCAB, z_loss=0.1)
    lse = losses.target_logprobs(hidden, out, rows["targets_BLS"], rows["heads_BLS"], VOCAB)["lse_BLS"]
    np.testing.assert_allclose(with_z - plain, 0.1 * np.sum(rows["weights_BLS"] * np.asarray(lse) ** 2), rtol=1e-3)


@pytest.mark.parametrize(
    "preset,tensor", [("fsdp_tensor", 2), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("data", "fsdp"))]
)
@pytest.mark.parametrize("chunk", [None, 3])
def test_sharded_vocabulary_gives_the_same_loss_and_gradient(preset, tensor, chunk):
    hidden, out = inputs()
    heads, targets = predictions()

    def loss(hidden, out, rules):
        got = losses.target_logprobs(hidden, out, targets, heads, VOCAB, rules, chunk)
        return got["logprob_BLS"].sum()

    expected = jax.value_and_grad(loss, (0, 1))(hidden, out, sharding.PRESETS["data"])
    config = ShardingConfig(preset, tensor)
    mesh = sharding.make_mesh(config, jax.devices()[: 4 * tensor])
    rules = config.rules
    with jax.set_mesh(mesh):
        args = (
            jax.device_put(np.asarray(hidden), rules.spec("batch", None, None)),
            jax.device_put(np.asarray(out), rules.spec("embed", "vocab")),
        )
        got = jax.jit(jax.value_and_grad(lambda h, o: loss(h, o, rules), (0, 1)))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)
