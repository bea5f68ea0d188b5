"""The TPU's attention, run by Pallas' interpreter, against the dense reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from audiolm_jax.errors import InputError
from audiolm_jax.model import attention, sharding
from audiolm_jax.model.config import ModelConfig, ShardingConfig
from audiolm_jax.model.kernels import tpu
from audiolm_jax.model.sharding import AXES, PRESETS
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import performance


@pytest.fixture
def mesh():
    """These tests enter their own."""


def packed(length: int) -> tuple[np.ndarray, np.ndarray]:
    """(segments, ahead) of a row of causal and bidirectional documents and padding, and a row of one document."""
    cuts = np.array([0.3, 0.55, 0.6, 0.9]) * length
    segments = np.stack([np.searchsorted(cuts, np.arange(length), side="right") + 1, np.ones(length, int)])
    segments[0, segments[0] == 5] = 0
    ahead = np.zeros_like(segments)
    for row, start in ((0, int(0.4 * length)), (1, length // 8)):
        end = np.flatnonzero(segments[row] == segments[row, start]).max()
        ahead[row, start : end + 1] = end - np.arange(start, end + 1)
    return segments.astype(np.int32), ahead.astype(np.int32)


@pytest.mark.parametrize(
    ("config", "devices", "length", "window"),
    [
        (ShardingConfig("fsdp_context", context=2), 4, 256, 0),
        (ShardingConfig("fsdp_context", context=2), 4, 256, 40),
        (ShardingConfig(), 1, 150, 0),
    ],
)
def test_it_and_its_gradients_equal_the_dense_reference(config, devices, length, window):
    """Positions over two devices, with and without a window; and a length that is no multiple of a block."""
    rng = np.random.default_rng(0)
    h, g, k = 2, 2, 8
    segments, ahead = packed(length)
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    rows = config.rules.spec("batch", "length")
    queries, keys = config.rules.spec("batch", "length", None, None, None), config.rules.spec("batch", None, None, None)

    def place(spec, *shape):
        return jax.device_put(rng.normal(size=shape).astype(np.float32), jax.NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        q, weight = (place(queries, 2, length, h, g, k) for _ in range(2))
        kv = [place(keys, 2, length, h, k) for _ in range(2)]
        segments, ahead = (jax.device_put(x, jax.NamedSharding(mesh, rows)) for x in (segments, ahead))
        whole = jax.sharding.reshard(segments, jax.P(rows[0], None))
        square = attention.sight(segments, ahead, window)
        index_BL = jnp.arange(length, dtype=jnp.int32) + 0 * ahead
        sight = attention.Sight(segments, whole, index_BL + ahead, index_BL - window + 1 if window else None)
        assert not isinstance(square, attention.Sight)

        def run(attend):
            return jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(attend(q, k, v) * weight), (0, 1, 2)))(q, *kv)

        found = run(lambda q, k, v: tpu.attend(q, k, v, sight, interpret=True))
        expected = run(lambda q, k, v: attention.dense(q, k, v, square))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("window", [0, 70])
def test_blocks_that_nobody_sees_are_skipped_and_no_others(window):
    length, size = 512, 64
    segments, ahead = packed(length)
    with jax.set_mesh(sharding.single_device_mesh()):
        square = np.asarray(attention.sight(jnp.array(segments), jnp.array(ahead), window))
    for row in range(2):
        last = np.arange(length, dtype=np.int32) + ahead[row]
        first = np.arange(length, dtype=np.int32) - window + 1 if window else None
        computed = np.asarray(tpu._computed(segments[row], segments[row], last, first, size, size))
        seen = square[row].reshape(8, size, 8, size).any(axis=(1, 3))
        assert (computed >= seen).all()
        assert computed.sum() <= seen.sum() + 2  # neighbours that share a block
        assert seen.sum() < 64
        for axis in (0, 1):
            loaded = np.asarray(tpu._info(jnp.array(computed), last, axis).data_next)[0]
            np.testing.assert_array_equal(loaded[computed], np.indices((8, 8))[axis][computed])


def test_a_row_with_a_window_that_is_too_long_for_its_kernel():
    row = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    q, k = (jax.ShapeDtypeStruct((1, n, 1, *group, 8), jnp.float32) for n, group in ((128, (1,)), (tpu.MOST + 1, ())))
    with jax.set_mesh(sharding.single_device_mesh()), pytest.raises(InputError, match=r"at most 65536 .*, not 65537"):
        jax.eval_shape(tpu.attend, q, k, k, attention.Sight(row, row, row, row))


@pytest.mark.parametrize(("platform", "kernel", "dtype"), [("tpu", True, "bfloat16"), ("cpu", False, "float32")])
def test_a_described_platform_is_what_decides(platform, kernel, dtype):
    """Without such a device: a program compiled ahead of time is the one that will run."""
    about = {"device_kind": platform, "num_cores": 1, "platform": platform}  # JAX 0.7 has no platform there
    device = AbstractDevice(**{key: about[key] for key in AbstractDevice.__dataclass_fields__})
    described = AbstractMesh((2, 2, 1), AXES, axis_types=(AxisType.Explicit,) * 3, abstract_device=device)
    config = ModelConfig(layers=1, width=16, heads=2, kv_heads=1, head_width=8, ffn=16)

    def hidden(tokens, segments):
        network = Transformer(config, 100, nnx.Rngs(0), PRESETS["fsdp_context"])
        return network(tokens, segments, segments, segments)

    rows = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, 256, 1), (2, 256))]
    with jax.sharding.use_abstract_mesh(described):
        assert sharding.platform() == platform
        assert bool(performance.compiler_options()) == (platform == "cpu")
        traced = jax.make_jaxpr(hidden)(*rows)
    assert traced.out_avals[0].dtype == dtype
    assert ("pallas_call" in str(traced)) == kernel
