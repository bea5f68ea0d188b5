"""The GPU's attention against the dense reference. It needs a GPU:

AUDIOLM_TEST_PLATFORMS=cuda,cpu python -m pytest tests/model/kernels_gpu_test.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.model import attention, sharding
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.kernels import gpu
from audiolm_jax.model.transformer import Transformer
from tests.model.kernels_tpu_test import packed

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="cuDNN's attention needs a GPU, and AUDIOLM_TEST_PLATFORMS=cuda,cpu"
)


@pytest.mark.parametrize(
    ("length", "heads", "group", "window"), [(256, 4, 1, 0), (1500, 2, 3, 0), (150, 1, 2, 0), (1500, 2, 3, 100)]
)
def test_it_and_its_gradients_are_as_near_to_float32_as_the_dense_reference(length, heads, group, window):
    """Causal, bidirectional and packed rows with padding, with and without a window, in bfloat16."""
    rng = np.random.default_rng(0)
    segments, ahead = map(jnp.asarray, packed(length))
    # Padding attends to padding; nothing reads it.
    real_BL111 = np.asarray(segments > 0)[:, :, None, None, None]
    q, weight = (rng.normal(size=(2, length, heads, group, 64)).astype(np.float32) for _ in range(2))
    q, weight = q / 8, np.where(real_BL111, weight, 0)
    k, v = (rng.normal(size=(2, length, heads, 64)).astype(np.float32) for _ in range(2))
    visible = attention.sight(segments, ahead, window)

    def run(attend, dtype) -> list[np.ndarray]:
        def loss(q, k, v):
            out = attend(q, k, v, visible).astype(jnp.float32)
            return jnp.sum(out * weight), out * real_BL111

        inputs = [jnp.asarray(x, dtype) for x in (q, k, v)]
        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    assert gpu.takes(jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16), visible)
    with jax.default_matmul_precision("highest"):
        expected = run(attention.dense, jnp.float32)
    found, dense = run(gpu.attend, jnp.bfloat16), run(attention.dense, jnp.bfloat16)
    for true, ours, plain in zip(expected, found, dense, strict=True):
        scale = np.abs(true).max()
        assert np.abs(ours - true).max() <= max(2 * np.abs(plain - true).max(), 4e-3 * scale)


def test_the_model_takes_it_in_16_bits_and_for_even_lengths():
    rows = [np.ones((2, 64, 1), np.int32) * 9, np.tile(np.arange(64, dtype=np.int32), (2, 1)), np.ones((2, 64), int)]

    def text(dtype: str, length: int) -> str:
        config = ModelConfig(layers=1, width=64, heads=2, kv_heads=2, head_width=32, ffn=64, dtype=dtype)
        network = Transformer(config, 100, nnx.Rngs(0))
        return jax.jit(network).lower(*(x[:, :length] for x in rows)).as_text()

    assert sharding.platform() == "gpu"
    assert "cudnn" in text("auto", 64)
    assert "cudnn" not in text("auto", 63)
    assert "cudnn" not in text("float32", 64)
