import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import optimizer
from audiolm_jax.training.config import OptimizerConfig

PARAMS = {"layers": {"up_DCF": np.full((2, 3), 2.0), "norm": {"scale": np.ones((2, 3))}}, "embedding_VD": np.ones(4)}


def rates(**changes) -> np.ndarray:
    schedule = optimizer.schedule(OptimizerConfig(learning_rate=1.0, warmup=4, final=0.1, **changes), 20)
    return np.array([schedule(n) for n in range(20)])


def test_every_schedule_warms_up_to_the_peak_and_first_moves_at_once():
    for name in ("cosine", "constant", "wsd"):
        np.testing.assert_allclose(rates(schedule=name)[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-5)


def test_schedules_after_the_warmup():
    assert np.all(rates(schedule="constant")[4:] == 1)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(16) / 16))
    np.testing.assert_allclose(rates(schedule="cosine")[4:], cosine, rtol=1e-5)
    wsd = rates(schedule="wsd", decay_fraction=0.5)
    assert np.all(wsd[4:10] == 1)
    np.testing.assert_allclose(wsd[10:], 1 - 0.9 * np.arange(10) / 10, rtol=1e-5)


def test_a_run_shorter_than_its_warmup_still_has_a_learning_rate():
    for steps in (1, 2, 3):
        schedule = optimizer.schedule(OptimizerConfig(warmup=100), steps)
        assert all(schedule(n) > 0 for n in range(steps))


def test_only_matrices_decay():
    assert optimizer.decayed(PARAMS) == {
        "layers": {"up_DCF": True, "norm": {"scale": False}},
        "embedding_VD": False,
    }


def test_of_a_depth_network_the_matrices_decay():
    depth = DepthConfig(layers=1, width=6, heads=1, kv_heads=1, head_width=6, ffn=4, projection_bias=True)
    config = ModelConfig(layers=1, width=8, heads=1, kv_heads=1, head_width=8, ffn=4, depth=depth)
    with jax.set_mesh(sharding.single_device_mesh()):
        params = nnx.to_pure_dict(nnx.split(checkpoints.abstract_model(config, Vocab(3, 5, 4)))[1])
    decays = flatten_dict(optimizer.decayed(params["depth"]))
    matrices = {"qkv_DHAK", "out_HGKD", "up_DCF", "down_FD", "project_PDd", "output_CdK"}
    assert {path[-1] for path, decay in decays.items() if decay} == matrices
    assert {path[-1] for path, decay in decays.items() if not decay} >= {"embedding_Rd", "positions_nd", "scale"}


def test_an_update_equals_adamw_written_out():
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.3, clip=1.0)
    tx = optimizer.make_optimizer(config, 10)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    expected = jax.tree.map(np.array, PARAMS)
    decay = optimizer.decayed(PARAMS)
    first, second = (jax.tree.map(np.zeros_like, PARAMS) for _ in range(2))
    for n in (1, 2):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape), PARAMS)
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
        assert norm > 1
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
        grads = jax.tree.map(lambda g, norm=norm: g / norm, grads)
        first = jax.tree.map(lambda m, g: config.b1 * m + (1 - config.b1) * g, first, grads)
        second = jax.tree.map(lambda v, g: config.b2 * v + (1 - config.b2) * g**2, second, grads)

        def move(p, m, v, decays, n=n):
            step = m / (1 - config.b1**n) / (np.sqrt(v / (1 - config.b2**n)) + config.eps)
            return p - 0.1 * (step + 0.3 * decays * p)

        expected = jax.tree.map(move, expected, first, second, decay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, expected)


@pytest.mark.parametrize("bad", [{"schedule": "linear"}, {"b2": 1.5}, {"learning_rate": 0.0}, {"clip": -1.0}])
def test_bad_values_are_named(bad):
    with pytest.raises(InputError, match=f"optimizer.{next(iter(bad))}"):
        OptimizerConfig(**bad)
