"""Attention: rotary positions, visibility, the dense reference, the choice of a kernel, and the cached step.

Axes: B batch, L query positions, M key positions, H key/value heads, G query heads per key/value head,
K head width. Scores and softmax are float32 whatever the compute dtype.

`sight` makes the visibility of a pass, once for all layers, in the form that the platform's kernel reads. `attend`
takes the kernel of the platform, or else `dense`, the reference:

    tpu.py   at least 128 queries: Pallas' splash attention, which skips blocks without a visible pair
    gpu.py   Ampere or newer, 16 bits, even lengths: cuDNN's fused kernel with a mask
    cpu.py   one device, more queries than a block: skips blocks without a visible pair

The choice is static: by the platform of the current mesh, shapes and types.
"""

import importlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import sharding

# Platform -> module with `takes` (q, k, visibility: whether it has a kernel for them) and `attend`; imported on use.
KERNELS = {name: f"audiolm_jax.model.kernels.{name}" for name in ("tpu", "gpu", "cpu")}

LANES = 128  # of a TPU: positions come in multiples of it

# Finite, so that a row without any visible key yields numbers instead of NaN; far enough below every real
# score that its exponential is exactly zero beside one.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


class Sight(NamedTuple):
    """Visibility as a TPU's kernel reads it: query l sees key m iff their segments are equal and first[l] <= m <=
    last[l]."""

    segments_BL: jax.Array
    segments_BM: jax.Array
    last_BL: jax.Array
    first_BL: jax.Array | None = None  # None: 0


Visibility = jax.Array | Sight  # bool [B, L, M], or the description of it


def rope_table(
    positions: jax.Array, width: int, base: float, scaling: Sequence[float] = ()
) -> tuple[jax.Array, jax.Array]:
    """cos and sin `[..., K/2]` float32 for int32 positions `[...]` (RoFormer, arXiv 2104.09864, eq. 34).

    scaling: factor, low, high and original length of `rescaled`; (): none.
    """
    frequency_K = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling:
        frequency_K = rescaled(frequency_K, *scaling)
    angle = positions.astype(jnp.float32)[..., None] * frequency_K
    return jnp.cos(angle), jnp.sin(angle)


def rescaled(frequency_K: jax.Array, factor: float, low: float, high: float, original: float) -> jax.Array:
    """The frequencies of Llama 3.1 (`apply_scaling` in meta-llama/llama-models, models/llama3/reference_impl/model.py).

    Channels that make at least `high` turns in `original` positions keep theirs, those that make at most `low` have
    theirs divided by `factor`, and in between the two are mixed linearly in the number of turns.
    """
    turns_K = original / (2 * math.pi) * frequency_K
    kept_K = jnp.clip((turns_K - low) / (high - low), 0, 1)
    return frequency_K * (kept_K + (1 - kept_K) / factor)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates `x [..., K]` by a table that broadcasts against its halves (GPT-NeoX pairing: i with i+K/2)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def sight(segments_BL: jax.Array, ahead_BL: jax.Array | None, window: int = 0) -> Visibility:
    """Query l sees key m iff both lie in one segment and l - window < m <= l + ahead[l] (ahead None: 0, causal;
    window 0: no first one).

    Padding is segment 0 and sees only padding, so that its softmax has something to normalise; its output is not used.
    """
    index_L = jnp.arange(segments_BL.shape[1], dtype=jnp.int32)
    last_BL = jnp.broadcast_to(index_L, segments_BL.shape) if ahead_BL is None else index_L + ahead_BL
    first_BL = jnp.broadcast_to(index_L + (1 - window), segments_BL.shape) if window else None
    return sight_between(segments_BL, segments_BL, last_BL, first_BL)


def sight_between(
    segments_BL: jax.Array, segments_BM: jax.Array, last_BL: jax.Array, first_BL: jax.Array | None = None
) -> Visibility:
    """Query l sees key m iff their segments are equal and first[l] <= m <= last[l] (first None: 0). Every query must
    see a key.

    Queries may be sharded; keys are replicated over the axis of the positions.
    """
    batch, length = jax.typeof(segments_BL).sharding.spec
    segments_BM = jax.sharding.reshard(segments_BM, P(batch, None))
    last_BL = jax.sharding.reshard(last_BL, P(batch, length))
    first_BL = None if first_BL is None else jax.sharding.reshard(first_BL, P(batch, length))
    if sharding.platform() == "tpu" and segments_BL.shape[1] >= LANES:
        return Sight(segments_BL, segments_BM, last_BL, first_BL)
    index_M = jnp.arange(segments_BM.shape[1], dtype=jnp.int32)
    same_BLM = segments_BL[:, :, None] == segments_BM[:, None, :]
    visible_BLM = same_BLM & (index_M[None, None, :] <= last_BL[:, :, None])
    return visible_BLM if first_BL is None else visible_BLM & (first_BL[:, :, None] <= index_M[None, None, :])


def attend(q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, sight: Visibility) -> jax.Array:
    """Grouped-query attention -> out_BLHGK, sharded like q, which is already scaled."""
    platform, implementation = sharding.platform(), dense
    if platform in KERNELS:
        kernel = importlib.import_module(KERNELS[platform])
        implementation = kernel.attend if kernel.takes(q_BLHGK, k_BMHK, sight) else dense
    return implementation(q_BLHGK, k_BMHK, v_BMHK, sight)


def dense(q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, visible_BLM: jax.Array) -> jax.Array:
    """`attend` with all scores in memory."""
    scores_BHGLM = jnp.einsum("BLHGK,BMHK->BHGLM", q_BLHGK, k_BMHK, preferred_element_type=jnp.float32)
    scores_BHGLM = jnp.where(visible_BLM[:, None, None], scores_BHGLM, MASKED)
    weights_BHGLM = jax.nn.softmax(scores_BHGLM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("BHGLM,BMHK->BLHGK", weights_BHGLM, v_BMHK)


def step_sight(prompt_valid_BP: jax.Array, i: jax.Array, slots: int, window: int) -> tuple[jax.Array, jax.Array]:
    """What the step after `i` generated positions sees, besides itself: (prompt positions [B, P], slots [M]).

    With a window the slots are a ring: position n is in slot n % slots, and window - 1 of them suffice.
    """
    index_M = jnp.arange(slots, dtype=jnp.int32)
    if not window:
        return prompt_valid_BP, index_M < i
    back_M = 1 + (i - 1 - index_M) % slots  # how many positions before the step's own
    back_BP = i + jnp.sum(prompt_valid_BP, axis=1, keepdims=True) - jnp.arange(prompt_valid_BP.shape[1])
    return prompt_valid_BP & (back_BP < window), back_M <= jnp.minimum(i, window - 1)


def attend_step(
    q_BHGK: jax.Array,
    k_BHK: jax.Array,
    v_BHK: jax.Array,
    prompt: dict,
    prompt_valid_BP: jax.Array,
    cache: dict,
    i: jax.Array,
    window: int = 0,
) -> jax.Array:
    """One query against prompt keys, the slots of the `i` positions generated before, and itself -> out_BHGK.

    The cache is only read here: the caller writes its slot afterwards. Reading the old buffer and adding
    the new token as its own term is what lets XLA update the buffer in place inside a loop. Keys and values are
    [B, H, M, K]: with any other order of axes XLA transposes the cache in every step. Their dtype may be wider than
    the query's (`model.cache_dtype`).
    """
    dtype = q_BHGK.dtype
    q_BHGK, k_BHK, v_BHK = (x.astype(cache["k"].dtype) for x in (q_BHGK, k_BHK, v_BHK))
    q_BHGK, group = two_rows(q_BHGK), q_BHGK.shape[2]

    def score(k_BHMK: jax.Array) -> jax.Array:
        return jnp.einsum("BHGK,BHMK->BHGM", q_BHGK, k_BHMK, preferred_element_type=jnp.float32)

    seen_BP, seen_M = step_sight(prompt_valid_BP, i, cache["k"].shape[2], window)
    prompt_BHGP = jnp.where(seen_BP[:, None, None], score(prompt["k"]), MASKED)
    old_BHGM = jnp.where(seen_M, score(cache["k"]), MASKED)
    self_BHG1 = jnp.einsum("BHGK,BHK->BHG", q_BHGK, k_BHK, preferred_element_type=jnp.float32)[..., None]
    weights = jax.nn.softmax(jnp.concatenate([prompt_BHGP, old_BHGM, self_BHG1], axis=-1), axis=-1)
    weights = weights.astype(v_BHK.dtype)
    width = prompt_BHGP.shape[-1]

    def read(weights_BHGM: jax.Array, v_BHMK: jax.Array) -> jax.Array:
        return jnp.einsum("BHGM,BHMK->BHGK", weights_BHGM, v_BHMK, preferred_element_type=jnp.float32)

    out_BHGK = read(weights[..., :width], prompt["v"]) + read(weights[..., width:-1], cache["v"])
    return (out_BHGK + weights[..., -1:] * v_BHK[:, :, None])[:, :, :group].astype(dtype)


def two_rows(q: jax.Array) -> jax.Array:
    """On a GPU, queries `[B, ..., 1, K]` of one head per key/value head padded to two with zeros.

    XLA computes the product of one row and a matrix as an elementwise product, which it rounds to 16 bits and may write
    to memory, and a sum. On an H100, with 1024 cached positions and the 24 layers of MusicGen-small, a step of 16
    rows takes 2.3 ms with two queries and 3.6 ms with one; with few rows, where there is little to read, 4 % more.
    """
    if sharding.platform() != "gpu" or q.shape[-2] > 1 or len(q) <= 2:
        return q
    return jnp.concatenate([q, jnp.zeros_like(q)], axis=-2)
