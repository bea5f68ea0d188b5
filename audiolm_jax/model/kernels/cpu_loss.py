"""The normalisers of the loss for one CPU device: loops over blocks of predictions that share a legal set.

XLA on a CPU computes illegal logits in full. Here predictions are grouped by legal set and multiplied with the rows of
the output matrix of that set alone. As in `cpu.py` loop bounds depend on the data and gradients are written by hand.

Axes: I blocks of R predictions, N positions, S streams, P = N * S, X legal sets, W ids of a legal set, D model width.
"""

import jax
import jax.numpy as jnp
from jax import lax

from audiolm_jax.model.attention import MASKED
from audiolm_jax.model.kernels.cpu import unsharded

PREDICTIONS = 128  # of a block


def normalisers(
    hidden_ND: jax.Array, weight_XWD: jax.Array, legal_XW: jax.Array, set_NS: jax.Array, target_NS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-normaliser and target logit of every prediction -> two [N, S] float32, 0 where there is none.

    set: which of the X legal sets, -1 for no prediction; target: index inside the set, -1 for none of it.
    legal: False where a set has fewer than W ids.
    """
    return _normalisers(*map(unsharded, (hidden_ND, weight_XWD, legal_XW, set_NS, target_NS)))


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

    def legal_set(x, results):
        weight_WD, legal_W = weight[x], legal[x]

        def block(i, results):
            _, logits, hit = _logits(hidden, weight_WD, legal_W, target, layout["prediction_IR"][i])
            top = jnp.max(logits, axis=-1)
            lse = top + jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1))
            return results.at[i].set(jnp.stack([lse, jnp.sum(jnp.where(hit, logits, 0), axis=-1)]))

        return lax.fori_loop(layout["first_X"][x], layout["after_X"][x], block, results)

    slots = layout["prediction_IR"].shape
    results = lax.fori_loop(0, weight.shape[0], legal_set, jnp.zeros((slots[0], 2, slots[1])))
    lse, logit = (results[:, n].reshape(-1).at[layout["slot_NS"]].get(mode="fill", fill_value=0) for n in range(2))
    return (lse, logit), (hidden, weight, legal, target, layout, results[:, 0])


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
