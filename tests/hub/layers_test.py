"""The kit against naive loops in float64, and its parameters under the names and in the layout of torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.hub import layers
from audiolm_jax.hub.weights import Weights, named

RNG = np.random.default_rng(0)


def filled(module):
    """(the module with random weights, its tensors as torch would save them)."""
    tensors = {name: RNG.standard_normal(x.shape).astype(np.float32) for name, x in named(module).items()}
    weights = Weights("random", dict(tensors))
    module = weights.fill(nnx.eval_shape(lambda: module))
    weights.finish()
    return module, tensors


@pytest.mark.parametrize("centred", [True, False])
def test_norm(centred):
    norm, tensors = filled(layers.Norm(12, 1e-3, centred))
    assert set(tensors) == ({"weight", "bias"} if centred else {"weight"})
    x = RNG.standard_normal((3, 5, 12))
    y = x - x.mean(-1, keepdims=True) if centred else x
    expected = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3) * tensors["weight"] + tensors.get("bias", 0)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=1e-4)


@pytest.mark.parametrize("activation", list(layers.ACTIVATIONS))
@pytest.mark.parametrize("gated", [True, False])
def test_mlp(activation, gated):
    mlp, t = filled(layers.MLP(6, 10, activation, gated, bias=True))
    names = ("gate_proj", "up_proj", "down_proj") if gated else ("fc1", "fc2")
    assert set(t) == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    first, *middle, last = ((lambda x, n=n: x @ t[f"{n}.weight"].T + t[f"{n}.bias"]) for n in names)
    act = np.asarray(layers.ACTIVATIONS[activation](first(x)))
    np.testing.assert_allclose(mlp(x), last(act * middle[0](x) if gated else act), atol=1e-4)


@pytest.mark.parametrize("biases", ["", "qvo", "qkvo"])
@pytest.mark.parametrize("kv_heads", [None, 4, 2, 1])
def test_attention_equals_a_loop_over_heads(biases, kv_heads):
    """Self- and cross-attention; query head h reads key/value head h // (heads / kv_heads)."""
    heads, width, batch = 4, 3, 2
    attention, t = filled(layers.Attention(10, heads, width, kv_heads, biases))
    assert {name for name in t if "bias" in name} == {f"{letter}_proj.bias" for letter in biases}
    x, states = RNG.standard_normal((batch, 5, 10)), RNG.standard_normal((batch, 7, 10))
    visible = RNG.random((5, 7)) < 0.7
    visible[:, 0] = True
    group = heads // (kv_heads or heads)

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    q, k, v = linear("q_proj", x), linear("k_proj", states), linear("v_proj", states)
    parts = []
    for h in range(heads):
        mine, theirs = slice(h * width, (h + 1) * width), slice(h // group * width, (h // group + 1) * width)
        scores = np.where(visible, q[..., mine] @ k[..., theirs].swapaxes(1, 2) / np.sqrt(width), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[..., theirs])
    expected = linear("o_proj", np.concatenate(parts, -1))
    x, states = (jnp.asarray(a, jnp.float32) for a in (x, states))
    np.testing.assert_allclose(attention(x, jnp.asarray(visible), states), expected, atol=1e-4)
    added = jnp.where(visible, 0.0, layers.MASKED)
    np.testing.assert_allclose(attention(x, added, states), expected, atol=1e-4)
    everything = jnp.zeros((5, 5))
    np.testing.assert_allclose(attention(x, everything), attention(x, everything, x), atol=1e-6)


@pytest.mark.parametrize("inputs", [1, 3])  # few inputs take another way on a CPU
def test_convolution(inputs):
    conv, t = filled(layers.Conv(inputs, 4, kernel=3, stride=2, dilation=2))
    assert conv.reach == 5
    x = RNG.standard_normal((2, 12, inputs)).astype(np.float32)
    expected = np.zeros((2, 4, 4))
    for n in range(4):
        for k in range(3):
            expected[:, n] += x[:, 2 * n + 2 * k] @ t["weight"][:, :, k].T
    np.testing.assert_allclose(jax.jit(conv)(x), expected + t["bias"], atol=1e-5)


def test_embedding_and_defects_of_a_file():
    table, t = filled(layers.Embedding(5, 3))
    np.testing.assert_array_equal(table(jnp.array([[4, 0]])), t["weight"][[[4, 0]]])
    weights = Weights("a.safetensors", {"weight": np.zeros((3, 5), np.float32), "more": np.zeros(1)}, "--from")
    weights.fill(nnx.eval_shape(lambda: layers.Linear(5, 4, bias=True)))
    with pytest.raises(InputError) as caught:
        weights.finish()
    for words in ("--from: a.safetensors", r"weight is (3, 5) where (4, 5)", "bias is missing", "more is unexpected"):
        assert words in str(caught.value)
