"""The dense attention and loss again, as loops over blocks that skip what no one sees or predicts: for one CPU.

XLA on a CPU computes masked squares and illegal logits in full and moves them through memory. Here a block of queries
meets only the blocks of keys between its first and last visible one (packed documents are a few blocks wide, whatever
the row), and predictions are grouped by legal set, each multiplied with its own rows of the output matrix only. Loop
bounds depend on the data, so gradients are written by hand; shapes are static and everything compiles once.

Axes: I and J blocks of C queries and keys, R predictions of a block, X legal sets, W ids of a legal set; the others as
in `attention.py`. The attention is FlashAttention-2's (arXiv 2307.08691), forward and backward.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import sharding

QUERIES = 128  # per block of attention
PREDICTIONS = 128  # per block of the loss

# Finite, so that a row without any visible key yields numbers instead of NaN; far enough below every real
# score that its exponential is exactly zero beside one.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def applies() -> bool:
    """Whether the mesh that is entered is one CPU device."""
    return jax.sharding.get_abstract_mesh().size == 1 and sharding.platform() == "cpu"


def attend(q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, visible_BLM: jax.Array) -> jax.Array:
    """`attention.attend`: grouped-query attention -> out_BLHGK. Every query must see at least one key."""
    spec = jax.typeof(q_BLHGK).sharding.spec
    q_BLHGK, k_BMHK, v_BMHK, visible_BLM = map(_plain, (q_BLHGK, k_BMHK, v_BMHK, visible_BLM))
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


def _plain(x: jax.Array) -> jax.Array:
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


def normalisers(
    hidden_ND: jax.Array, weight_XWD: jax.Array, legal_XW: jax.Array, set_NS: jax.Array, target_NS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-normaliser and target logit of every prediction -> two [N, S] float32, 0 where there is none.

    set: which of the X legal sets, -1 for no prediction; target: index inside the set, -1 for none of it.
    legal: False where a set has fewer than W ids.
    """
    return _normalisers(*map(_plain, (hidden_ND, weight_XWD, legal_XW, set_NS, target_NS)))


def _layout(set_NS: jax.Array, sets: int) -> dict[str, jax.Array]:
    """Predictions sorted by legal set, each set filled up to whole blocks of R slots."""
    set_P = set_NS.reshape(-1)
    count = set_P.shape[0]
    member_PX = (set_P[:, None] == jnp.arange(sets)).astype(jnp.int32)
    rank_PX = jnp.cumsum(member_PX, axis=0)
    blocks_X = -(-rank_PX[-1] // PREDICTIONS)
    after_X = jnp.cumsum(blocks_X)
    first_X = after_X - blocks_X
    total = -(-count // PREDICTIONS) + sets  # an upper bound: the bounds of the loops are what is used
    slot_P = jnp.sum(member_PX * (first_X * PREDICTIONS + rank_PX - 1), axis=-1)
    slot_P = jnp.where(set_P >= 0, slot_P, total * PREDICTIONS)
    prediction = jnp.full(total * PREDICTIONS, count, jnp.int32)
    prediction = prediction.at[slot_P].set(jnp.arange(count, dtype=jnp.int32), mode="drop")
    return {
        "first_X": first_X,
        "after_X": after_X,
        "slot_NS": slot_P.reshape(set_NS.shape),
        "prediction_IR": prediction.reshape(total, PREDICTIONS),
    }


def _logits(hidden_ND, weight_WD, legal_W, target_NS, prediction_R):
    """One block: its hidden rows [R, D], logits [R, W], and where its target is [R, W]."""
    streams = target_NS.shape[1]
    h_RD = hidden_ND.at[prediction_R // streams].get(mode="clip")
    logits_RW = jnp.einsum("RD,WD->RW", h_RD, weight_WD, preferred_element_type=jnp.float32)
    logits_RW = jnp.where(legal_W, logits_RW, MASKED)
    target_R = target_NS.reshape(-1).at[prediction_R].get(mode="clip")
    return h_RD, logits_RW, target_R[:, None] == jnp.arange(weight_WD.shape[0])


@jax.custom_vjp
def _normalisers(hidden, weight, legal, sets, target):
    return _normalisers_forward(hidden, weight, legal, sets, target)[0]


def _normalisers_forward(hidden, weight, legal, sets, target):
    layout = _layout(sets, weight.shape[0])

    def legal_set(x, found):
        weight_WD, legal_W = weight[x], legal[x]

        def block(i, found):
            _, logits, hit = _logits(hidden, weight_WD, legal_W, target, layout["prediction_IR"][i])
            top = jnp.max(logits, axis=-1)
            lse = top + jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1))
            return found.at[i].set(jnp.stack([lse, jnp.sum(jnp.where(hit, logits, 0), axis=-1)]))

        return lax.fori_loop(layout["first_X"][x], layout["after_X"][x], block, found)

    slots = layout["prediction_IR"].shape
    found = lax.fori_loop(0, weight.shape[0], legal_set, jnp.zeros((slots[0], 2, slots[1])))
    lse, logit = (found[:, n].reshape(-1).at[layout["slot_NS"]].get(mode="fill", fill_value=0) for n in range(2))
    return (lse, logit), (hidden, weight, legal, target, layout, found[:, 0])


def _normalisers_backward(saved, g):
    hidden, weight, legal, target, layout, lse_IR = saved
    g_lse, g_logit = (x.reshape(-1) for x in g)

    def legal_set(dh, x):
        weight_WD, legal_W = weight[x], legal[x]

        def block(i, carry):
            dh, dw_WD = carry
            prediction_R = layout["prediction_IR"][i]
            h_RD, logits, hit = _logits(hidden, weight_WD, legal_W, target, prediction_R)
            of_lse, of_logit = (x.at[prediction_R].get(mode="fill", fill_value=0)[:, None] for x in (g_lse, g_logit))
            d_RW = of_lse * jnp.exp(logits - lse_IR[i][:, None]) + jnp.where(hit, of_logit, 0)
            d_RW = d_RW.astype(hidden.dtype)
            dw_WD += jnp.einsum("RW,RD->WD", d_RW, h_RD, preferred_element_type=jnp.float32)
            return dh.at[i].set(jnp.einsum("RW,WD->RD", d_RW, weight_WD)), dw_WD

        start = (dh, jnp.zeros(weight_WD.shape))
        return lax.fori_loop(layout["first_X"][x], layout["after_X"][x], block, start)

    slots = layout["prediction_IR"].shape
    dh = jnp.zeros((*slots, hidden.shape[1]), hidden.dtype)
    dh, dw = lax.scan(legal_set, dh, jnp.arange(weight.shape[0]))
    dh_NSD = dh.reshape(-1, hidden.shape[1]).at[layout["slot_NS"]].get(mode="fill", fill_value=0)
    return jnp.sum(dh_NSD, axis=1), dw.astype(weight.dtype), None, None, None


_normalisers.defvjp(_normalisers_forward, _normalisers_backward)
