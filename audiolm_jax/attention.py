"""Attention: rotary positions, who sees whom, the dense reference and the cached step.

Axes: B batch, L query positions, M key positions, H key/value heads, G query heads per key/value head,
K head width. Scores and softmax are float32 whatever the compute dtype.
"""

import jax
import jax.numpy as jnp

from audiolm_jax import blocks
from audiolm_jax.blocks import MASKED


def rope_table(positions: jax.Array, width: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin `[..., K/2]` float32 for int32 positions `[...]` (RoFormer, arXiv 2104.09864, eq. 34)."""
    frequency_K = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions.astype(jnp.float32)[..., None] * frequency_K
    return jnp.cos(angle), jnp.sin(angle)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates `x [..., K]` by a table that broadcasts against its halves (GPT-NeoX pairing: i with i+K/2)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def visible(segments_BL: jax.Array, ahead_BL: jax.Array | None) -> jax.Array:
    """visible_BLM: query l sees key m iff both lie in one segment and m <= l + ahead[l].

    Padding is segment 0 and sees only padding, so that its softmax has something to normalise; nothing
    reads what it computes.
    """
    index_L = jnp.arange(segments_BL.shape[1], dtype=jnp.int32)
    last_BL = jnp.broadcast_to(index_L, segments_BL.shape) if ahead_BL is None else index_L + ahead_BL
    same_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
    return same_BLM & (index_L[None, None, :] <= last_BL[:, :, None])


def attend(q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, visible_BLM: jax.Array) -> jax.Array:
    """Grouped-query attention -> out_BLHGK; q already scaled by 1/sqrt(K). Dense, but in blocks on one CPU if L = M."""
    if blocks.applies() and q_BLHGK.shape[1] > blocks.QUERIES and q_BLHGK.shape[1] == k_BMHK.shape[1]:
        return blocks.attend(q_BLHGK, k_BMHK, v_BMHK, visible_BLM)
    scores_BHGLM = jnp.einsum("BLHGK,BMHK->BHGLM", q_BLHGK, k_BMHK, preferred_element_type=jnp.float32)
    scores_BHGLM = jnp.where(visible_BLM[:, None, None], scores_BHGLM, MASKED)
    weights_BHGLM = jax.nn.softmax(scores_BHGLM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("BHGLM,BMHK->BLHGK", weights_BHGLM, v_BMHK)


def attend_step(
    q_BHGK: jax.Array, k_BHK: jax.Array, v_BHK: jax.Array, prompt: dict, prompt_valid_BP: jax.Array, cache: dict, i
) -> jax.Array:
    """One query against prompt keys, the generated slots before `i`, and itself -> out_BHGK.

    The cache is only read here: the caller writes slot `i` afterwards. Reading the old buffer and adding
    the new token as its own term is what lets XLA update the buffer in place inside a loop.
    """

    def score(k_BMHK: jax.Array) -> jax.Array:
        return jnp.einsum("BHGK,BMHK->BHGM", q_BHGK, k_BMHK, preferred_element_type=jnp.float32)

    prompt_BHGP = jnp.where(prompt_valid_BP[:, None, None], score(prompt["k"]), MASKED)
    slots = cache["k"].shape[1]
    old_BHGM = jnp.where(jnp.arange(slots, dtype=jnp.int32) < i, score(cache["k"]), MASKED)
    self_BHG1 = jnp.einsum("BHGK,BHK->BHG", q_BHGK, k_BHK, preferred_element_type=jnp.float32)[..., None]
    weights = jax.nn.softmax(jnp.concatenate([prompt_BHGP, old_BHGM, self_BHG1], axis=-1), axis=-1)
    weights = weights.astype(v_BHK.dtype)
    width = prompt_BHGP.shape[-1]
    out_BHGK = jnp.einsum("BHGP,BPHK->BHGK", weights[..., :width], prompt["v"])
    out_BHGK += jnp.einsum("BHGM,BMHK->BHGK", weights[..., width:-1], cache["v"])
    return out_BHGK + weights[..., -1:] * v_BHK[:, :, None]
