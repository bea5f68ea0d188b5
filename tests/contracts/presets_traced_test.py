"""Every configuration x strategy x sharding preset is traced on a mesh of devices that this machine does not have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax import config as configs
from audiolm_jax import serialization
from audiolm_jax.model.sharding import AXES, PRESETS
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training.step import init_state, program, train_step

CONFIGS = sorted(path.stem for path in configs.folder().glob("*.py"))
CONTEXT, TENSOR = 2, 2


@pytest.fixture
def mesh():
    """Instead of the suite's mesh of one real device."""
    mesh = AbstractMesh((4, CONTEXT, TENSOR), AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@functools.cache
def start(name: str, codebooks: int, preset: str, depth: bool):
    """(configuration, settings, program of a train step, state that it begins with)"""
    config = configs.load(name)
    model = configs.section(config, "model")
    if preset == "fsdp_tensor" and model.kv_heads % TENSOR:
        model = dataclasses.replace(model, heads=model.heads * TENSOR, kv_heads=model.kv_heads * TENSOR)
    if depth:  # with as many heads as a tensor axis takes, like the configurations
        model = dataclasses.replace(model, depth=configs.section(config, "depth"))
    vocab = Vocab(codebooks, 1024, config.data.max_frames)
    settings = dataclasses.replace(configs.section(config, "training"), ema=0.99, accumulate=2, depth_fraction=0.3)
    parts = program(model, vocab, PRESETS[preset], configs.section(config, "optimizer"), settings)
    return config, settings, parts, jax.eval_shape(lambda: init_state(parts, jax.random.key(0)))


@functools.cache  # of a strategy, a training step sees its streams and whether there is a depth network
def trace(name: str, streams: int, codebooks: int, preset: str, depth: bool):
    """(state before, state after, metrics) of a train step, as shapes with shardings."""
    config, settings, parts, state = start(name, codebooks, preset, depth)
    rows, length, rules = 8, config.data.sequence_length, PRESETS[preset]

    def array(dtype, *shape):
        spec = P(None, rules.batch, rules.length, *(None,) * (len(shape) - 2))
        sharding = NamedSharding(jax.sharding.get_abstract_mesh(), spec)
        return jax.ShapeDtypeStruct((settings.accumulate, *shape), dtype, sharding=sharding)

    batch = {
        **{f"{key}_BLS": array(jnp.int32, rows, length, streams) for key in ("tokens", "targets", "heads")},
        **{f"{key}_BL": array(jnp.int32, rows, length) for key in ("positions", "segments", "ahead")},
        "weights_BLS": array(jnp.float32, rows, length, streams),
    }
    return state, *jax.eval_shape(functools.partial(train_step, frozen={}, program=parts), state, batch)


def layout(x: jax.ShapeDtypeStruct) -> tuple:
    spec = () if x.sharding is None else x.sharding.spec
    return x.shape, x.dtype, (*spec, *(None,) * len(x.shape))[: len(x.shape)]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("strategy", serialization.STRATEGIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_train_step_keeps_its_shardings(name, strategy, preset, mesh):
    config = configs.load(name)
    codebooks = config.data.codebooks or config.codec.codebooks or 8
    grid = serialization.bind(serialization.SerializationConfig(strategy), codebooks)
    before, after, metrics = trace(name, grid.streams, codebooks, preset, grid.depth)
    assert metrics["loss"].shape == ()
    assert [layout(x) for x in jax.tree.leaves(before)] == [layout(x) for x in jax.tree.leaves(after)]
    axes = {axis for x in jax.tree.leaves(after.params) for part in layout(x)[2] for axis in np.atleast_1d(part)}
    used = {axis for name in ("embed", "heads", "ffn", "vocab") for axis in PRESETS[preset].axes(name)}
    assert axes - {None} == used
