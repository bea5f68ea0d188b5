"""The transformer block and its parts. Axes as in `transformer.py`; E states of an encoder."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.model import attention, sharding
from audiolm_jax.model.attention import MASKED
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.sharding import Rules, gather
from audiolm_jax.serialization.vocab import TEXT_START

Encoded = tuple[jax.Array, jax.Array]  # states of an encoder [B, E, cross_width], valid_BE
Cross = tuple[dict[str, jax.Array], jax.Array]  # {"cross_k": [B, H, E, K], "cross_v": same}, valid_BE


def row_axes(axes: int) -> tuple[str, ...]:
    """Logical names of the leading axes of an input: `[B]` in a decoding step, `[B, L]` in a pass."""
    return ("batch", "length")[:axes]


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], axes: tuple, rules: Rules, scale: float) -> nnx.Param:
    """A float32 weight, normally distributed, sharded from the start. rngs: None where shapes alone are asked for
    (`checkpoints.abstract_model`): zeros, which are traced in a tenth of the time."""
    if rngs is None:
        return bias(shape, axes, rules)
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, out_sharding=rules.spec(*axes)))


def product(
    subscripts: str, x: jax.Array, weight: jax.Array, spec: jax.sharding.PartitionSpec, dtype: jnp.dtype | None = None
) -> jax.Array:
    """einsum of x and a weight, accumulated in float32 whatever their dtypes; the result in `dtype` (None: that of x).

    On a CPU the result is float32 and cast: XLA has kernels for 16-bit products with 32-bit results and at least two
    rows, and writes a float32 copy of the weights for any other. Accelerators accumulate in float32 anyway.
    """
    dtype = dtype or x.dtype
    if x.dtype == jnp.float32 or sharding.platform() != "cpu":
        return jnp.einsum(subscripts, x, weight, preferred_element_type=dtype, out_sharding=spec)
    terms, result = subscripts.split("->")
    letters = terms.split(",")[1]
    summed = math.prod(size for letter, size in zip(letters, weight.shape, strict=True) if letter not in result)
    one_row = x.size == summed  # a second one costs next to nothing
    if one_row:
        x = jnp.pad(x, ((0, 1), *((0, 0),) * (x.ndim - 1)))
    y = jnp.einsum(subscripts, x, weight, preferred_element_type=jnp.float32, out_sharding=spec)
    return (y[:1] if one_row else y).astype(dtype)


def stacked(make: Callable[[nnx.Rngs | None], nnx.Module], count: int, rngs: nnx.Rngs | None) -> nnx.Module:
    """`count` modules, each with keys of its own, as one whose weights have a leading axis. rngs: as in `normal`."""
    if rngs is None:
        return jax.vmap(make, axis_size=count)(None)
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), count))


def bias(shape: tuple[int, ...], axes: tuple, rules: Rules) -> nnx.Param:
    """A bias of zeros, sharded like the axes of its weight."""
    return nnx.Param(jnp.zeros(shape, out_sharding=rules.spec(*axes)))


def biased(y: jax.Array, module: nnx.Module, name: str) -> jax.Array:
    """y plus the bias of that name, if the module has one."""
    return y + getattr(module, name)[...].astype(y.dtype) if hasattr(module, name) else y


def add_projection(module: nnx.Module, name: str, width: int, rngs: nnx.Rngs | None) -> None:
    """Gives a module the matrix and bias that project states of an encoder to the model's width, if it is another."""
    c = module.config
    if width != c.width:
        setattr(module, f"{name}_WD", normal(rngs, (width, c.width), (None, "embed"), module.rules, width**-0.5))
        setattr(module, f"{name}_bias_D", bias((c.width,), (None,), module.rules))


def projected(states_BEW: jax.Array, module: nnx.Module, name: str, rows: tuple[str | None, ...]) -> jax.Array:
    """States times the matrix of that name plus its bias; unchanged without one. rows: names of the leading axes."""
    if not hasattr(module, f"{name}_WD"):
        return states_BEW
    weight_WD = gather(getattr(module, f"{name}_WD")[...], (None, "embed"), module.rules, states_BEW.dtype)
    spec = module.rules.spec(*rows, None)
    return biased(product("BEW,WD->BED", states_BEW, weight_WD, spec), module, f"{name}_bias_D")


def with_states(x_BLD: jax.Array, states_BLW: jax.Array, module: nnx.Module) -> jax.Array:
    """x plus the states of encoders, each with a projection of its own, concatenated along W (model.state_widths).
    Where all states of an encoder are zero nothing is added, not even the bias.

    Raises InputError if W is not the sum of the widths.
    """
    widths = module.config.state_widths
    if states_BLW.shape[-1] != sum(widths):
        raise InputError(
            f"states of width {states_BLW.shape[-1]} were given; model.state_widths={widths} takes {sum(widths)}"
        )
    states_BLW = jax.sharding.reshard(states_BLW, module.rules.spec(*row_axes(2), None))
    for n, (end, width) in enumerate(zip(itertools.accumulate(widths), widths, strict=True)):
        part_BLW = states_BLW[..., end - width : end]
        present_BL1 = jnp.any(part_BLW != 0, axis=-1, keepdims=True)
        x_BLD += jnp.where(present_BL1, projected(part_BLW, module, f"states{n}", row_axes(2)), 0)
    return x_BLD


def rms_normed(y: jax.Array, eps: float) -> jax.Array:
    """y over the root of its mean square along the last axis (arXiv 1910.07467), without a gain."""
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)


def heads_normed(qk: jax.Array, module: nnx.Module) -> jax.Array:
    """Queries and the key `[..., G + 1, K]`, each normed over K, in float32, with the gain of queries or of keys
    (Qwen3, arXiv 2505.09388, section 2); unchanged without model.qk_norm."""
    if not module.config.qk_norm:
        return qk
    queries = jnp.broadcast_to(module.q_norm_K[...], (qk.shape[-2] - 1, qk.shape[-1]))
    gain_AK = jnp.concatenate([queries, module.k_norm_K[None]])
    return (rms_normed(qk.astype(jnp.float32), module.config.norm_eps) * gain_AK).astype(qk.dtype)


def scaled(q: jax.Array, config: Any) -> jax.Array:
    """Queries `[..., K]` times model.attention_scale, or over the root of K."""
    return q * (config.attention_scale or q.shape[-1] ** -0.5)


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last axis, in float32."""

    def __init__(self, config: Any):
        self.config = config
        self.scale = nnx.Param(jnp.ones((config.width,)))
        if config.norm == "layernorm":
            self.bias = nnx.Param(jnp.zeros((config.width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.config.norm == "layernorm":
            y -= jnp.mean(y, axis=-1, keepdims=True)
        y = rms_normed(y, self.config.norm_eps) * self.scale[...]
        if self.config.norm == "layernorm":
            y += self.bias[...]
        return y.astype(x.dtype)


def activation(h: jax.Array, mlp: str) -> jax.Array:
    """h `[..., C, F]` -> `[..., F]`: C is gate and value of "gated", or 1."""
    if mlp == "gated":
        return jax.nn.silu(h[..., 0, :]) * h[..., 1, :]
    return jax.nn.gelu(h[..., 0, :], approximate=mlp == "plain")


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Rows `[..., D]` float32 to add at int32 positions `[...]`: all cosines, then all sines; 0 in an odd last channel.

    The table of tensor2tensor, whose frequencies go from 1 to 1/10000 inclusive (not that of arXiv 1706.03762).
    """
    half = width // 2
    step = np.float32(-np.log(10000.0) / max(half - 1, 1))
    angle = positions.astype(jnp.float32)[..., None] * np.exp(np.arange(half, dtype=np.float32) * step)
    rows = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return jnp.pad(rows, ((0, 0),) * (rows.ndim - 1) + ((0, width % 2),))


class TextTable(nnx.Module):
    """Text ids -> vectors of the model's width: a table of its own width W and an MLP with biases, as wide inside
    (`text_embedding` and `text_projection` of Qwen3-TTS). Row n is id TEXT_START + n; an id of 0 (PAD) adds nothing."""

    def __init__(self, config: Any, rules: Rules, rngs: nnx.Rngs):
        rows, W, D = config.text_rows, config.text_width, config.width
        self.rules, self.dtype = rules, config.compute_dtype
        self.embedding_VW = normal(rngs, (rows, W), (None, "embed"), rules, W**-0.5)
        self.up_WF = normal(rngs, (W, W), ("embed", None), rules, W**-0.5)
        self.down_FD = normal(rngs, (W, D), (None, "embed"), rules, W**-0.5)
        self.up_bias_F, self.down_bias_D = (bias((width,), (None,), rules) for width in (W, D))

    def __call__(self, text: jax.Array) -> jax.Array:
        """text `[B, ...]` -> `[B, ..., D]`."""
        rows = row_axes(text.ndim)
        text = jax.sharding.reshard(text, self.rules.spec(*rows))
        spec = self.rules.spec(*rows, None)
        table_VW = gather(self.embedding_VW[...], (None, "embed"), self.rules)
        x = table_VW.at[text - TEXT_START].get(out_sharding=spec, mode="clip").astype(self.dtype)
        x = product("...W,WF->...F", x, gather(self.up_WF[...], ("embed", None), self.rules, x.dtype), spec)
        x = jax.nn.silu(biased(x, self, "up_bias_F"))
        x = product("...F,FD->...D", x, gather(self.down_FD[...], (None, "embed"), self.rules, x.dtype), spec)
        return jnp.where((text > 0)[..., None], biased(x, self, "down_bias_D"), 0)


class CrossAttention(nnx.Module):
    """Grouped-query cross-attention to the states of an encoder.

    Keys and values depend on the states alone: decoding computes them once per request.
    """

    def __init__(self, config: Any, rules: Rules, rngs: nnx.Rngs | None):
        c = config
        self.config, self.rules = config, rules
        all_heads, H, K = c.cross_sizes
        group = all_heads // H
        self.norm = Norm(c)
        heads = ("heads", None, None)
        self.q_DHGK = normal(rngs, (c.width, H, group, K), ("embed", *heads), rules, c.width**-0.5)
        self.kv_DHCK = normal(rngs, (c.width, H, 2, K), ("embed", *heads), rules, c.width**-0.5)
        scale = (2 * c.layers * all_heads * K) ** -0.5
        self.out_HGKD = normal(rngs, (H, group, K, c.width), (*heads, "embed"), rules, scale)
        if c.bias != "none":
            self.q_bias_HGK = bias((H, group, K), heads, rules)
            self.kv_bias_HCK = bias((H, 2, K), heads, rules)
        if c.bias == "all":
            self.out_bias_D = bias((c.width,), (None,), rules)

    def keys_values(self, states_BED: jax.Array) -> dict[str, jax.Array]:
        """The keys and values of states."""
        kernel = gather(self.kv_DHCK[...], ("embed", "heads", None, None), self.rules, states_BED.dtype)
        spec = self.rules.spec("batch", None, "heads", None, None)
        kv = biased(product("BED,DHCK->BEHCK", states_BED, kernel, spec), self, "kv_bias_HCK")
        return {name: kv[..., c, :].swapaxes(1, 2) for c, name in enumerate(("cross_k", "cross_v"))}

    def __call__(self, x: jax.Array, cross: Cross) -> jax.Array:
        """x `[B, ..., D]` -> the residual update; of a row without a valid state the bias alone."""
        states, valid_BE = cross
        rows = row_axes(x.ndim - 1)
        kernel = gather(self.q_DHGK[...], ("embed", "heads", None, None), self.rules, x.dtype)
        spec = self.rules.spec(*rows, "heads", None, None)
        q = biased(product("...D,DHGK->...HGK", self.norm(x), kernel, spec), self, "q_bias_HGK")
        group = q.shape[-2]
        q = attention.two_rows(scaled(q, self.config))
        k, v = states["cross_k"], states["cross_v"]
        scores = jnp.einsum("B...HGK,BHEK->B...HGE", q.astype(k.dtype), k, preferred_element_type=jnp.float32)
        valid = valid_BE.reshape(len(valid_BE), *(1,) * x.ndim, -1)
        weights = jax.nn.softmax(jnp.where(valid, scores, MASKED), axis=-1)
        weights = jnp.where(valid, weights, 0).astype(v.dtype)
        heads = jnp.einsum("B...HGE,BHEK->B...HGK", weights, v)[..., :group, :].astype(x.dtype)
        kernel = gather(self.out_HGKD[...], ("heads", None, None, "embed"), self.rules, x.dtype)
        stream = self.rules.spec(*rows, None)
        return biased(product("...HGK,HGKD->...D", heads, kernel, stream), self, "out_bias_D")


class Block(nnx.Module):
    """x + attention(norm(x)), then + cross(x) if there is an encoder, then + feed-forward(norm(x)). One fused matrix
    for queries, keys and values (per key/value head: G queries, the key, the value) and one for gate and up."""

    def __init__(self, config: ModelConfig, rules: Rules, rngs: nnx.Rngs | None):
        c = config
        self.config, self.rules = config, rules
        group, parts = c.heads // c.kv_heads, 2 if c.mlp == "gated" else 1
        # The two matrices that write into the residual stream start smaller with depth (GPT-2, section 2.3).
        depth = (2 * c.layers) ** -0.5
        self.attention_norm = Norm(c)
        heads, scale = ("heads", None, None), depth * (c.heads * c.head_width) ** -0.5
        qkv_shape = (c.width, c.kv_heads, group + 2, c.head_width)
        self.qkv_DHAK = normal(rngs, qkv_shape, ("embed", *heads), rules, c.width**-0.5)
        self.out_HGKD = normal(rngs, (c.kv_heads, group, c.head_width, c.width), (*heads, "embed"), rules, scale)
        self.ffn_norm = Norm(c)
        self.up_DCF = normal(rngs, (c.width, parts, c.ffn), ("embed", None, "ffn"), rules, c.width**-0.5)
        self.down_FD = normal(rngs, (c.ffn, c.width), ("ffn", "embed"), rules, depth * c.ffn**-0.5)
        if c.cross_width:
            self.cross = CrossAttention(c, rules, rngs)
        if c.qk_norm:
            self.q_norm_K, self.k_norm_K = (nnx.Param(jnp.ones((c.head_width,))) for _ in range(2))
        if c.bias != "none":
            self.qkv_bias_HAK = bias(qkv_shape[1:], heads, rules)
        if c.bias == "all":
            self.out_bias_D = bias((c.width,), (None,), rules)
            self.up_bias_CF = bias((parts, c.ffn), (None, "ffn"), rules)
            self.down_bias_D = bias((c.width,), (None,), rules)

    def qkv(self, x: jax.Array, rope: tuple[jax.Array, jax.Array] | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x `[B, ..., D]` -> scaled q `[B, ..., H, G, K]`, k and v `[B, ..., H, K]`; rope (if any) rotates q and k."""
        weight = gather(self.qkv_DHAK[...], ("embed", "heads", None, None), self.rules, x.dtype)
        y = self.attention_norm(x)
        spec = self.rules.spec(*row_axes(x.ndim - 1), "heads", None, None)
        qkv = biased(product("...D,DHAK->...HAK", y, weight, spec), self, "qkv_bias_HAK")
        qk = heads_normed(qkv[..., :-1, :], self)
        if rope is not None:
            cos, sin = (table[..., None, None, :] for table in rope)
            # Queries and keys turn together: they are neighbours on axis A.
            qk = attention.rope(qk, cos, sin)
        return scaled(qk[..., :-1, :], self.config), qk[..., -1, :], qkv[..., -1, :]

    def finish(
        self, x: jax.Array, heads: jax.Array, key: jax.Array | None = None, cross: Cross | None = None
    ) -> jax.Array:
        """Residual x `[B, ..., D]` and attention output `[B, ..., H, G, K]` -> the block's output."""
        rows = row_axes(x.ndim - 1)
        stream = self.rules.spec(*rows, None)
        keys = (None,) * 3 if key is None else jax.random.split(key, 2 if cross is None else 3)
        weight = gather(self.out_HGKD[...], ("heads", None, None, "embed"), self.rules, x.dtype)
        read = product("...HGK,HGKD->...D", heads, weight, stream)
        x += self._drop(biased(read, self, "out_bias_D"), keys[0])
        if cross is not None:
            x += self._drop(self.cross(x, cross), keys[2])
        weight = gather(self.up_DCF[...], ("embed", None, "ffn"), self.rules, x.dtype)
        h = product("...D,DCF->...CF", self.ffn_norm(x), weight, self.rules.spec(*rows, None, "ffn"))
        h = activation(biased(h, self, "up_bias_CF"), self.config.mlp)
        weight = gather(self.down_FD[...], ("ffn", "embed"), self.rules, x.dtype)
        down = product("...F,FD->...D", h, weight, stream)
        return x + self._drop(biased(down, self, "down_bias_D"), keys[1])

    def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or self.config.dropout == 0:
            return x
        keep = 1 - self.config.dropout
        mask = jax.random.uniform(key, x.shape, out_sharding=jax.typeof(x).sharding) < keep
        return jnp.where(mask, x / keep, 0)

    def __call__(self, x_BLD, rope, sight, key=None, encoded: Encoded | None = None) -> jax.Array:
        q, k, v = self.qkv(x_BLD, rope)
        # Every query meets all keys of its row: they are gathered where positions are shared by devices.
        keys = self.rules.spec("batch", None, "heads", None)
        k, v = (jax.sharding.reshard(x, keys) for x in (k, v))
        cross = None if encoded is None else (self.cross.keys_values(encoded[0]), encoded[1])
        return self.finish(x_BLD, attention.attend(q, k, v, sight), key, cross)
