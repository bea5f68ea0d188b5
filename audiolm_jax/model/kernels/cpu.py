"""Attention for one CPU device: loops over blocks of queries and keys that skip blocks without a visible pair.

XLA on a CPU computes all scores, masked ones too, and moves them through memory. Here a block of queries reads only the
blocks of keys between its first and last visible one (packed documents are a few blocks wide, whatever the length of
the row). Loop bounds depend on the data, so gradients are written by hand; shapes are static and everything compiles
once.

Axes: I and J blocks of C queries and keys; the others as in `attention.py`. The algorithm is FlashAttention-2's (arXiv
2307.08691), forward and backward.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import sharding
from audiolm_jax.model.attention import MASKED

QUERIES = 128  # of a block


def takes(q_BLHGK: jax.Array, k_BMHK: jax.Array, visible_BLM: jax.Array) -> bool:
    """Whether there are several blocks, and as many keys as queries, on one device."""
    length = q_BLHGK.shape[1]
    return sharding.on_one_cpu() and length > QUERIES and length == k_BMHK.shape[1]


def attend(q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, visible_BLM: jax.Array) -> jax.Array:
    """`attention.attend`: grouped-query attention -> out_BLHGK. Every query must see at least one key."""
    spec = jax.typeof(q_BLHGK).sharding.spec
    q_BLHGK, k_BMHK, v_BMHK, visible_BLM = map(unsharded, (q_BLHGK, k_BMHK, v_BMHK, visible_BLM))
    b, length, h, g, k = q_BLHGK.shape
    c = min(QUERIES, length)
    blocks = -(-length // c)
    pad = blocks * c - length

    def keys(x_BMHK: jax.Array) -> jax.Array:
        x = jnp.pad(x_BMHK, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(b, blocks, c, h, k)
        return x.transpose(0, 1, 3, 2, 4)

    q = jnp.pad(q_BLHGK, ((0, 0), (0, pad), (0, 0), (0, 0), (0, 0))).reshape(b, blocks, c, h, g, k)
    q_BIHRK = q.transpose(0, 1, 3, 4, 2, 5).reshape(b, blocks, h, g * c, k)
    visible = jnp.pad(visible_BLM, ((0, 0), (0, pad), (0, pad))).reshape(b, blocks, c, blocks, c)
    visible_BIJCC = visible.transpose(0, 1, 3, 2, 4)
    any_BIJ = jnp.any(visible_BIJCC, axis=(-2, -1))
    first_BI = jnp.argmax(any_BIJ, axis=-1).astype(jnp.int32)
    last_BI = (blocks - jnp.argmax(any_BIJ[..., ::-1], axis=-1)).astype(jnp.int32)
    out_BIHRK = _attend(q_BIHRK, keys(k_BMHK), keys(v_BMHK), visible_BIJCC, first_BI, last_BI)
    out = out_BIHRK.reshape(b, blocks, h, g, c, k).transpose(0, 1, 4, 2, 3, 5)
    return jax.sharding.reshard(out.reshape(b, blocks * c, h, g, k)[:, :length], spec)


def unsharded(x: jax.Array) -> jax.Array:
    """On one device a layout is only a type; without one, every indexing below is unambiguous."""
    return jax.sharding.reshard(x, P())


def _scores(q_HRK: jax.Array, k_HCK: jax.Array, visible_CC: jax.Array) -> jax.Array:
    scores = jnp.einsum("HRK,HCK->HRC", q_HRK, k_HCK, preferred_element_type=jnp.float32)
    h, r, c = scores.shape
    grouped = jnp.where(visible_CC, scores.reshape(h, r // c, c, c), MASKED)
    return grouped.reshape(h, r, c)


@jax.custom_vjp
def _attend(q, k, v, visible, first, last):
    return _attend_forward(q, k, v, visible, first, last)[0]


def _attend_forward(q, k, v, visible, first, last):
    def row(xs):
        q_IHRK, k_JHCK, v_JHCK, visible_IJCC, first_I, last_I = xs

        def query_block(xs):
            q_HRK, visible_JCC, first, last = xs

            def key_block(j, carry):
                out, top, total = carry
                scores = _scores(q_HRK, k_JHCK[j], visible_JCC[j])
                higher = jnp.maximum(top, jnp.max(scores, axis=-1))
                shrink = jnp.exp(top - higher)
                p = jnp.exp(scores - higher[..., None])
                out = out * shrink[..., None] + jnp.einsum("HRC,HCK->HRK", p.astype(v.dtype), v_JHCK[j])
                return out, higher, total * shrink + jnp.sum(p, axis=-1)

            start = (jnp.zeros(q_HRK.shape), jnp.full(q_HRK.shape[:2], MASKED), jnp.zeros(q_HRK.shape[:2]))
            out, top, total = lax.fori_loop(first, last, key_block, start)
            total = jnp.maximum(total, 1e-37)  # queries that only fill up a block
            return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

        return lax.map(query_block, (q_IHRK, visible_IJCC, first_I, last_I))

    out, lse = lax.map(row, (q, k, v, visible, first, last))
    return out, (q, k, v, visible, first, last, out, lse)


def _attend_backward(saved, g):
    q, k, v, visible, first, last, out, lse = saved
    delta = jnp.sum(g.astype(jnp.float32) * out, axis=-1)

    def row(xs):
        q_IHRK, k_JHCK, v_JHCK, visible_IJCC, first_I, last_I, g_IHRK, lse_IHR, delta_IHR = xs

        def query_block(carry, xs):
            q_HRK, visible_JCC, first, last, g_HRK, lse_HR, delta_HR = xs

            def key_block(j, carry):
                dq, dk, dv = carry
                p = jnp.exp(_scores(q_HRK, k_JHCK[j], visible_JCC[j]) - lse_HR[..., None])
                dp = jnp.einsum("HRK,HCK->HRC", g_HRK, v_JHCK[j], preferred_element_type=jnp.float32)
                ds = (p * (dp - delta_HR[..., None])).astype(q.dtype)
                dv = dv.at[j].add(jnp.einsum("HRC,HRK->HCK", p.astype(g.dtype), g_HRK))
                dk = dk.at[j].add(jnp.einsum("HRC,HRK->HCK", ds, q_HRK))
                return dq + jnp.einsum("HRC,HCK->HRK", ds, k_JHCK[j]), dk, dv

            dq, dk, dv = lax.fori_loop(first, last, key_block, (jnp.zeros_like(q_HRK), *carry))
            return (dk, dv), dq

        zeros = (jnp.zeros_like(k_JHCK), jnp.zeros_like(v_JHCK))
        xs = (q_IHRK, visible_IJCC, first_I, last_I, g_IHRK, lse_IHR, delta_IHR)
        (dk, dv), dq = lax.scan(query_block, zeros, xs)
        return dq, dk, dv

    dq, dk, dv = lax.map(row, (q, k, v, visible, first, last, g, lse, delta))
    return dq, dk, dv, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
