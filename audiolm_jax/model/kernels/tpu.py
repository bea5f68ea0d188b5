"""Attention on a TPU: JAX's Pallas splash kernel, with visibility computed in the kernel instead of read from a square.

The kernel masks by a function of a number per query and the key's position, by segments, and by a table of blocks to
skip. The causal mask gives it the query's own position as that number; with `last`, the last key that a query sees,
the same kernel computes our visibility exactly, whatever mixture of causal and bidirectional documents is packed into a
row. With a window the number holds the first key too, in its upper 16 bits. The tables of blocks are made from the data
of each row, so blocks of two different documents, or outside of a window, are skipped. Segments of a row are
contiguous, padding (0) at the end, as `data/batches.py` packs them; in any other order more blocks would be computed,
with the same result.

Axes: I and J blocks of C queries and keys; the others as in `attention.py`. The kernel sees one row and local arrays,
hence `jax.shard_map` over the mesh and `lax.map` over rows.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask_info
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model.attention import LANES, Sight, Visibility

BLOCKS = (512, 384, 256, 128)  # positions of a block, the largest that divides
MOST = 1 << 16  # keys of a row with a window


def takes(q_BLHGK: jax.Array, k_BMHK: jax.Array, sight: Visibility) -> bool:
    """Whether the visibility is the description that the kernel reads: there are at least LANES queries."""
    return isinstance(sight, Sight)


def attend(
    q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, sight: Sight, interpret: bool = False
) -> jax.Array:
    """`attention.attend` -> out_BLHGK; queries, rows and heads may be sharded, keys over rows and heads alone.

    interpret: run by Pallas' interpreter, on any device. Raises InputError for more than MOST keys with a window.
    """
    if sight.first_BL is not None and k_BMHK.shape[1] > MOST:
        raise InputError(
            f"model.window needs rows of at most {MOST} positions on a TPU, not {k_BMHK.shape[1]}; shorten "
            f"data.sequence_length, or set model.window=0"
        )
    batch, length, heads, *_ = jax.typeof(q_BLHGK).sharding.spec
    queries, keys = P(batch, length, heads, None, None), P(batch, None, heads, None)

    def local(q_BLHGK, k_BMHK, v_BMHK, sight):
        return lax.map(lambda row: _row(*row, interpret), (q_BLHGK, k_BMHK, v_BMHK, sight))

    row = P(batch, length)
    specs = Sight(row, P(batch, None), row, None if sight.first_BL is None else row)
    sight = jax.tree.map(jax.sharding.reshard, sight, specs)
    # Unchecked: the kernel does not state over which axes its result varies.
    mapped = jax.shard_map(local, in_specs=(queries, keys, keys, specs), out_specs=queries, check_vma=False)
    return mapped(q_BLHGK, k_BMHK, v_BMHK, sight)


def _row(q_LHGK: jax.Array, k_MHK: jax.Array, v_MHK: jax.Array, sight: Sight, interpret: bool) -> jax.Array:
    length, h, g, width = q_LHGK.shape
    pad = -length % LANES, -len(k_MHK) % LANES
    # Queries that fill up see what the last one sees; keys that fill up are of no segment.
    segments_L, last_L = (jnp.pad(x, (0, pad[0]), mode="edge") for x in (sight.segments_BL, sight.last_BL))
    segments_M = jnp.pad(sight.segments_BM, (0, pad[1]), constant_values=-1)
    q_AHLK = jnp.pad(q_LHGK, ((0, pad[0]), *((0, 0),) * 3)).reshape(-1, h * g, width).transpose(1, 0, 2)
    k_HMK, v_HMK = (jnp.pad(x, ((0, pad[1]), (0, 0), (0, 0))).transpose(1, 0, 2) for x in (k_MHK, v_MHK))
    queries, keys = (next(c for c in BLOCKS if n % c == 0) for n in (length + pad[0], len(k_MHK) + pad[1]))
    number_L, mask_function, first_L = last_L, _not_after, None
    if sight.first_BL is not None:
        first_L = jnp.pad(jnp.maximum(sight.first_BL, 0), (0, pad[0]), mode="edge")
        number_L, mask_function = first_L << 16 | jnp.minimum(last_L, MOST - 1), _between
    computed_IJ = _computed(segments_L, segments_M, last_L, first_L, queries, keys)
    kernel = splash_attention_kernel.SplashAttentionKernel(
        _info(computed_IJ, number_L, axis=1),
        _info(computed_IJ, number_L, axis=1),
        _info(computed_IJ, number_L, axis=0),
        is_mqa=False,
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_q_dq=queries,
            block_kv_dq=keys,
        ),
        save_residuals=False,
        mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=mask_function,
        interpret=interpret,
    )
    out = kernel(q_AHLK, k_HMK, v_HMK, splash_attention_kernel.SegmentIds(segments_L, segments_M))
    return out.transpose(1, 0, 2).reshape(-1, h, g, width)[:length]


def _not_after(last: jax.Array, key: jax.Array) -> jax.Array:
    return key <= last


def _between(number: jax.Array, key: jax.Array) -> jax.Array:
    return (lax.shift_right_logical(number, jnp.full_like(number, 16)) <= key) & (key <= (number & (MOST - 1)))


def _computed(segments_L, segments_M, last_L, first_L, queries: int, keys: int) -> jax.Array:
    """computed_IJ: whether any query of block I may see any key of block J, by the range of segments in a block."""

    def ends(segments: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        # Padding comes last: as the highest segment, it does not widen the range of the blocks it is in.
        ordered = jnp.where(segments > 0, segments, jnp.iinfo(jnp.int32).max + jnp.minimum(segments, 0))
        blocks = ordered.reshape(-1, size)
        return blocks.min(axis=1), blocks.max(axis=1)

    (first_I, final_I), (first_J, final_J) = ends(segments_L, queries), ends(segments_M, keys)
    start_J = keys * jnp.arange(len(first_J), dtype=jnp.int32)
    reached_IJ = start_J <= last_L.reshape(-1, queries).max(axis=1)[:, None]
    if first_L is not None:
        reached_IJ &= start_J + keys > first_L.reshape(-1, queries).min(axis=1)[:, None]
    return reached_IJ & (first_I[:, None] <= final_J) & (first_J <= final_I[:, None])


def _info(computed_IJ: jax.Array, number_L: jax.Array, axis: int) -> splash_attention_mask_info.MaskInfo:
    """The kernel's table: which blocks are computed, and the block along `axis` to load at each; at a skipped one the
    next that is computed or, after the last, that one again."""
    count = computed_IJ.shape[axis]
    index = jnp.arange(count, dtype=jnp.int32)[:, None] if axis == 0 else jnp.arange(count, dtype=jnp.int32)
    first = jnp.argmax(computed_IJ, axis=axis, keepdims=True).astype(jnp.int32)
    final = count - 1 - jnp.argmax(jnp.flip(computed_IJ, axis), axis=axis, keepdims=True).astype(jnp.int32)
    loaded_IJ = jnp.clip(index, first, jnp.maximum(first, final))
    return splash_attention_mask_info.MaskInfo(
        data_next=loaded_IJ[None],
        mask_next=None,
        block_mask=computed_IJ[None].astype(jnp.int32),
        partial_mask_blocks=None,
        q_sequence=number_L,
    )
