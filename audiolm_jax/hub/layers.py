"""Layers of published networks without torch: the kit that encoders and codecs share. Inference only.

Attributes are named as in the files of `transformers` (`weight`, `bias`, `q_proj`, `fc1`), so that most paths are names
already; every parameter carries the permutation that turns torch's array into ours (see `weights.py`).

Axes: B batch, L positions of queries, M of keys, D width, H key/value heads, G query heads for each of them, K head
width; N positions and C channels of a convolution.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.model import sharding
from audiolm_jax.model.attention import MASKED, rope, rope_table  # noqa: F401  (rotary positions are part of the kit)

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def parameter(shape: tuple[int, ...], *torch: int) -> nnx.Param:
    """A parameter to be filled from a file. torch: axis of torch's array for each of ours."""
    return nnx.Param(jnp.zeros(shape), torch=torch)


class Linear(nnx.Module):
    """x [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        self.weight = parameter((inputs, outputs), 1, 0)
        self.bias = parameter((outputs,), 0) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.weight[...]
        return y if self.bias is None else y + self.bias[...]


class Embedding(nnx.Module):
    """ids [...] -> rows [..., width] of a table."""

    def __init__(self, rows: int, width: int):
        self.weight = parameter((rows, width), 0, 1)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.weight[...][ids]


class Norm(nnx.Module):
    """LayerNorm over the last axis, or RMSNorm (arXiv 1910.07467), which is neither centred nor has a bias."""

    def __init__(self, width: int, epsilon: float, centred: bool = True):
        self.weight, self.epsilon = parameter((width,), 0), epsilon
        self.bias = parameter((width,), 0) if centred else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x if self.bias is None else x - x.mean(-1, keepdims=True)
        y = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + self.epsilon) * self.weight[...]
        return y if self.bias is None else y + self.bias[...]


class Conv(nnx.Module):
    """Convolution without padding: `[B, N, inputs]` -> `[B, (N - reach) // stride + 1, outputs]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = True):
        self.weight = parameter((kernel, inputs, outputs), 2, 1, 0)
        self.bias = parameter((outputs,), 0) if bias else None
        self.stride, self.dilation = stride, dilation

    @property
    def reach(self) -> int:
        """Inputs that one output sees, from the first to the last."""
        return (self.weight.shape[0] - 1) * self.dilation + 1

    def __call__(self, x_BNC: jax.Array) -> jax.Array:
        weight = self.weight[...]
        if weight.shape[1] <= 2 and sharding.platform() == "cpu":
            # Mono or stereo at the sample rate: XLA's convolution takes eight times as long as these products.
            count = (x_BNC.shape[1] - self.reach) // self.stride + 1
            starts = [i * self.dilation for i in range(weight.shape[0])]
            taps = [x_BNC[:, at : at + (count - 1) * self.stride + 1 : self.stride] for at in starts]
            y = sum(
                tap[..., c : c + 1] * w[c] for c in range(weight.shape[1]) for tap, w in zip(taps, weight, strict=True)
            )
        else:
            y = jax.lax.conv_general_dilated(
                x_BNC,
                weight,
                (self.stride,),
                "VALID",
                rhs_dilation=(self.dilation,),
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
        return y if self.bias is None else y + self.bias[...]


class MLP(nnx.Module):
    """fc2(activation(fc1(x))), or gated: down_proj(activation(gate_proj(x)) * up_proj(x)), as files name them."""

    def __init__(self, width: int, hidden: int, activation: str, gated: bool = False, bias: bool = False):
        """activation: a key of ACTIVATIONS."""
        self.activation, self.gated = activation, gated
        if gated:
            self.gate_proj, self.up_proj = Linear(width, hidden, bias), Linear(width, hidden, bias)
            self.down_proj = Linear(hidden, width, bias)
        else:
            self.fc1, self.fc2 = Linear(width, hidden, bias), Linear(hidden, width, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        return self.down_proj(act(self.gate_proj(x)) * self.up_proj(x)) if self.gated else self.fc2(act(self.fc1(x)))


class Attention(nnx.Module):
    """Multi-head attention; positions come in from outside: a bias on the scores, or queries and keys turned (`rope`)
    between `project` and `read`."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        kv_heads: int | None = None,
        biases: str = "",
        scale: float | None = None,
    ):
        """kv_heads: key/value heads, each read by a group of query heads; None: no groups, and no axis G. biases: the
        projections that have one, of "qkvo". scale: of the scores, None: head_width ** -0.5."""
        self.group = "" if kv_heads is None else "G"
        self.kv_heads, self.head_width = kv_heads or heads, head_width
        self.scale = head_width**-0.5 if scale is None else scale
        kv_width = self.kv_heads * head_width
        self.q_proj = Linear(width, heads * head_width, "q" in biases)
        self.k_proj = Linear(width, kv_width, "k" in biases)
        self.v_proj = Linear(width, kv_width, "v" in biases)
        self.o_proj = Linear(heads * head_width, width, "o" in biases)

    def project(self, x_BLD: jax.Array, states_BMD: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(q_BLHGK, k_BMHK, v_BMHK) of queries and of the states that they read (None: themselves)."""
        states_BMD = x_BLD if states_BMD is None else states_BMD
        group = (-1,) if self.group else ()
        q = self.q_proj(x_BLD).reshape(*x_BLD.shape[:2], self.kv_heads, *group, self.head_width)
        heads = (*states_BMD.shape[:2], self.kv_heads, self.head_width)
        return q, self.k_proj(states_BMD).reshape(heads), self.v_proj(states_BMD).reshape(heads)

    def read(self, q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, bias: jax.Array) -> jax.Array:
        """The output `[B, L, D]`. bias, broadcast to [B, H, G, L, M]: floats to add to the scores, or visible keys."""
        g = self.group
        scores = jnp.einsum(f"BLH{g}K,BMHK->BH{g}LM", q_BLHGK * self.scale, k_BMHK)
        scores = jnp.where(bias, scores, MASKED) if bias.dtype == bool else scores + bias
        y = jnp.einsum(f"BH{g}LM,BMHK->BLH{g}K", jax.nn.softmax(scores, axis=-1), v_BMHK)
        return self.o_proj(y.reshape(*y.shape[:2], -1))

    def __call__(self, x_BLD: jax.Array, bias: jax.Array, states_BMD: jax.Array | None = None) -> jax.Array:
        return self.read(*self.project(x_BLD, states_BMD), bias)
