import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.model import attention, sharding
from audiolm_jax.model.kernels import cpu, cpu_loss


@pytest.fixture
def small(monkeypatch):
    """Blocks so small that a few positions are many of them."""
    monkeypatch.setattr(cpu, "QUERIES", 8)
    monkeypatch.setattr(cpu_loss, "PREDICTIONS", 4)


def normal(rng, *shape) -> jax.Array:
    return jnp.array(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("length", "window"), [(37, 0), (16, 0), (37, 11)])
def test_attention_and_its_gradients_equal_the_dense_reference(small, monkeypatch, length, window):
    rng = np.random.default_rng(0)
    b, h, g, k = 2, 2, 2, 4
    args = normal(rng, b, length, h, g, k), normal(rng, b, length, h, k), normal(rng, b, length, h, k)
    segments = np.sort(rng.integers(0, 4, (b, length)), axis=1)
    ahead = np.where(rng.random((b, length)) < 0.3, 9, 0)
    seen = attention.sight(jnp.array(segments), jnp.array(ahead), window)
    weight = normal(rng, b, length, h, g, k)

    def run(attend):
        return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(attend(*qkv, seen) * weight), (0, 1, 2)))(*args)

    used = run(attention.attend)  # takes the blocks on this mesh
    direct = run(cpu.attend)
    monkeypatch.setattr(sharding, "on_one_cpu", lambda: False)
    dense = run(attention.attend)
    for a, b, c in zip(*map(jax.tree.leaves, (used, direct, dense)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=2e-5)


def test_attention_gradient_is_zero_exactly_where_a_query_must_not_see(small):
    rng = np.random.default_rng(1)
    length, k = 20, 4
    segments = np.repeat([1, 2, 3, 0], [9, 2, 6, 3])[None]
    ahead = np.where(np.arange(length) == 12, 3, 0)[None]
    seen = np.asarray(attention.sight(jnp.array(segments), jnp.array(ahead)))[0]
    q, keys, values = normal(rng, 1, length, 1, 1, k), normal(rng, 1, length, 1, k), normal(rng, 1, length, 1, k)

    def out(keys, values):
        return cpu.attend(q, keys, values, seen[None])[0, :, 0, 0].sum(-1)

    for jacobian in jax.jit(jax.jacrev(out, (0, 1)))(keys, values):
        touched = np.any(np.asarray(jacobian)[:, 0, :, 0] != 0, axis=-1)
        # A query with one key gives it weight one whatever the key: nothing to differentiate there.
        assert not np.any(touched & ~seen)
        assert np.all(touched[seen.sum(1) > 1] == seen[seen.sum(1) > 1])


@pytest.mark.parametrize("n,s", [(23, 3), (8, 1)])
def test_normalisers_and_their_gradients_equal_dense_logits(small, n, s):
    rng = np.random.default_rng(2)
    width, sets, ids = 6, 4, 11
    hidden, weight, g = normal(rng, n, width), normal(rng, sets, ids, width), normal(rng, n, s)
    legal = np.ones((sets, ids), bool)
    legal[1, 7:] = False
    which = rng.integers(-1, sets, (n, s))
    which[which == 2] = 3  # a set that nothing predicts
    target = rng.integers(-1, 7, (n, s))

    def dense(hidden, weight):
        logits = jnp.where(legal, jnp.einsum("ND,XWD->NXW", hidden, weight), -jnp.inf)
        row = np.arange(n)[:, None]
        lse = jnp.where(which >= 0, jax.nn.logsumexp(logits, axis=-1)[row, which], 0)
        return lse, jnp.where((which >= 0) & (target >= 0), logits[row, which, target], 0)

    def run(function):
        def total(hidden, weight):
            lse, logit = function(hidden, weight)
            return jnp.sum(lse * g + logit * g**2), (lse, logit)

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, weight)

    got, expected = run(lambda h, w: cpu_loss.normalisers(h, w, legal, which, target)), run(dense)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
