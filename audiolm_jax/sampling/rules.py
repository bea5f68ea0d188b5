"""Rules on logits: pure functions, elementwise over every leading axis.

Every argument may be an array that broadcasts against `logits[..., 0]`: one value per row, per codebook, or both.
A filter that is switched off is None, so that the compiled program has no trace of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from audiolm_jax.model import sharding


class LogitRules(NamedTuple):
    """temperature: 0 is greedy. top_k: int, None is off. top_p: float, None is off. Shapes as above."""

    temperature: jax.Array
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None

    def at(self, index: jax.Array) -> "LogitRules":
        """The rules [B, Q] of codebooks `index` [B, C] -> rules [B, C]."""
        return LogitRules(*(x if x is None else jnp.take_along_axis(x, index, axis=-1) for x in self))


def guide(conditional: jax.Array, unconditional: jax.Array, guidance: jax.Array) -> jax.Array:
    """u + g (c - u): classifier-free guidance (arXiv 2207.12598; AudioGen, arXiv 2209.15352, section 3.3).

    On raw logits, before any id is made illegal: an infinite logit on both sides would give NaN. A coefficient of 1
    gives c exactly, so that a row without guidance does not depend on the other rows.
    """
    guidance = jnp.asarray(guidance)[..., None]
    return jnp.where(guidance == 1, conditional, unconditional + guidance * (conditional - unconditional))


def top(logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None) -> jax.Array:
    """logits [..., V] with -inf outside the k most likely and, of those renormalised, the smallest set that holds
    probability p (nucleus sampling, arXiv 1904.09751). k of 0 and p of 1 keep all. Equal logits stay together.
    """
    if top_k is not None:
        needed = jnp.where(top_k > 0, top_k, logits.shape[-1])
        logits = _keep(logits, jnp.ones_like(logits), needed)
    if top_p is not None:
        nucleus = _keep(logits, jax.nn.softmax(logits, axis=-1), top_p)
        # Rounding may leave the sum of all below a p of 1.
        logits = jnp.where(jnp.asarray(top_p)[..., None] < 1, nucleus, logits)
    return logits


def _keep(logits: jax.Array, mass: jax.Array, needed: jax.Array, width: int | None = None) -> jax.Array:
    """The fewest of the highest logits whose `mass` sums to `needed`; -inf elsewhere.

    Their lowest value is computed `width` bits at a time, in the integers that order like floats: a few sums instead of
    a sort, which on a CPU takes ten times as long as a step of a small model. The default is by platform: the least
    work on a CPU, few kernels without a loop on an accelerator.
    """
    width = width or (1 if sharding.platform() == "cpu" else 4)
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    top_bit = jnp.uint32(1 << 31)
    key = jnp.where(bits & top_bit, ~bits, bits | top_bit)
    digits = jnp.arange(1, 1 << width, dtype=jnp.uint32)

    def search(i: jax.Array, lowest: jax.Array) -> jax.Array:
        """`lowest` with its next digit: the number of higher digits that would still keep enough."""
        shift = (32 - width * (i + 1)).astype(jnp.uint32)
        higher = lowest[..., None] | (digits << shift)
        kept = jnp.sum(jnp.where(key[..., None, :] >= higher[..., None], mass[..., None, :], 0), axis=-1)
        digit = jnp.sum(kept >= jnp.asarray(needed)[..., None], axis=-1).astype(jnp.uint32)
        return lowest | (digit << shift)

    lowest = jnp.zeros(logits.shape[:-1], jnp.uint32)
    lowest = jax.lax.fori_loop(0, 32 // width, search, lowest, unroll=width > 1)
    return jnp.where(key >= lowest[..., None], logits, -jnp.inf)


def choose(logits: jax.Array, rules: LogitRules, gumbel: jax.Array) -> jax.Array:
    """Ids [...] from logits [..., V] (-inf: illegal): drawn by the Gumbel-max trick; at temperature 0 the most likely.

    gumbel: standard Gumbel noise [..., V], from keys by row.
    """
    temperature = jnp.asarray(rules.temperature)[..., None]
    scaled = top(logits / jnp.where(temperature > 0, temperature, 1.0), rules.top_k, rules.top_p)
    return jnp.argmax(jnp.where(temperature > 0, scaled + gumbel, logits), axis=-1).astype(jnp.int32)
