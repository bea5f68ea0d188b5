import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model import sharding
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.model.sharding import AXES, Rules


@pytest.fixture
def mesh():
    """No mesh: these tests enter their own, of more devices than the suite's."""


@pytest.mark.parametrize(
    ("kind", "named", "platform"),
    [("TPU v5 lite", "tpu", "tpu"), ("Tesla T4", "cuda", "gpu"), ("NVIDIA L4", "gpu", "gpu"), ("cpu", "cpu", "cpu")],
)
def test_the_platform_of_a_described_device(kind, named, platform):
    about = {"device_kind": kind, "num_cores": None, "platform": named}  # JAX 0.7 has no platform there
    device = AbstractDevice(**{key: about[key] for key in AbstractDevice.__dataclass_fields__})
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        assert sharding.platform() == platform


def test_two_axes_on_one_mesh_axis_are_refused():
    rules = Rules(embed="data", vocab="data")
    assert rules.spec("embed", None) == P("data", None)
    with pytest.raises(InputError, match="one mesh axis"):
        rules.spec("embed", "vocab")


@pytest.mark.parametrize("preset", sharding.PRESETS)
def test_presets_give_every_pair_of_weight_axes_a_place(preset):
    rules = sharding.PRESETS[preset]
    for pair in (("embed", "heads"), ("embed", "ffn"), ("embed", "vocab"), ("batch", "heads"), ("batch", "vocab")):
        rules.spec(*pair)


@pytest.mark.parametrize(
    "bad", [{"preset": "none"}, {"tensor": 0}, {"preset": "fsdp", "tensor": 2}, {"preset": "data", "tensor": 2}]
)
def test_bad_values_are_named(bad):
    with pytest.raises(InputError, match=r"sharding\."):
        ShardingConfig(**bad)


def test_the_mesh_must_divide():
    assert dict(sharding.make_mesh(ShardingConfig("fsdp_tensor", 4)).shape) == {"data": 2, "context": 1, "tensor": 4}
    assert dict(sharding.make_mesh(ShardingConfig("fsdp_context", context=2)).shape) == {
        "data": 4,
        "context": 2,
        "tensor": 1,
    }
    with pytest.raises(InputError, match="does not divide the 8 devices"):
        sharding.make_mesh(ShardingConfig("fsdp_tensor", 3))


def test_gather_only_undoes_the_sharding_of_embed_and_its_gradient_is_stored_like_the_weight():
    rules = sharding.PRESETS["fsdp_tensor"]
    mesh = AbstractMesh((64, 1, 4), AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        stored = NamedSharding(mesh, rules.spec("embed", "ffn"))
        weight = jax.ShapeDtypeStruct((128, 16), jnp.float32, sharding=stored)

        def use(weight):
            used = sharding.gather(weight, ("embed", "ffn"), rules, jnp.bfloat16)
            assert jax.typeof(used).sharding.spec == P(None, "tensor") and used.dtype == jnp.bfloat16
            return jnp.sum(used.astype(jnp.float32))

        gradient = jax.eval_shape(jax.grad(use), weight)
    assert gradient.sharding.spec == P("data", "tensor")


def test_rows_are_spread_over_the_batch_axis():
    mesh = sharding.make_mesh()
    batch = {"x": np.arange(48).reshape(2, 8, 3)}
    whole = sharding.shard_batch(batch, mesh, sharding.PRESETS["data"], leading=1)["x"]
    assert whole.addressable_shards[0].data.shape == (2, 1, 3)
    np.testing.assert_array_equal(whole, batch["x"])
