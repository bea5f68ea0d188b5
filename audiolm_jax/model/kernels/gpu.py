"""Attention on a GPU: cuDNN's fused kernel, by `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


def takes(q_BLHGK: jax.Array, k_BMHK: jax.Array, visible_BLM: jax.Array) -> bool:
    """Whether cuDNN has a kernel for arrays of these shapes and dtype, on the GPUs of this process."""
    length, width = q_BLHGK.shape[1], q_BLHGK.shape[-1]
    sixteen_bits = q_BLHGK.dtype in (jnp.bfloat16, jnp.float16)
    # With a mask, gradients need even lengths. Turing and older GPUs have no such kernel.
    even = length % 2 == 0 and k_BMHK.shape[1] % 2 == 0
    return sixteen_bits and even and width % 8 == 0 and width <= 128 and _capability() >= 8


def _capability() -> float:
    """Compute capability of the GPUs of this process; 0 without any: JAX compiles the kernel only where one is."""
    try:
        return min(float(device.compute_capability) for device in jax.local_devices(backend="gpu"))
    except RuntimeError:
        return 0.0


def attend(q_BLHGK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, visible_BLM: jax.Array) -> jax.Array:
    """`attention.attend` -> out_BLHGK; queries, rows and heads may be sharded, keys over rows and heads alone."""
    batch, length, heads, *_ = jax.typeof(q_BLHGK).sharding.spec
    queries, keys = P(batch, length, heads, None, None), P(batch, None, heads, None)

    def local(q_BLHGK, k_BMHK, v_BMHK, visible_BLM):
        q = q_BLHGK.reshape(*q_BLHGK.shape[:2], -1, q_BLHGK.shape[-1])
        out = jax.nn.dot_product_attention(
            q, k_BMHK, v_BMHK, mask=visible_BLM[:, None], scale=1.0, implementation="cudnn"
        )
        return out.reshape(q_BLHGK.shape)

    specs = (queries, keys, keys, P(batch, length, None))
    mapped = jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)
    return mapped(q_BLHGK, k_BMHK, v_BMHK, visible_BLM)
