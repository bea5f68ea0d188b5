"""Every strategy under every sharding preset: loss, gradients and samples equal those of one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import codecs, generate, losses, serialization, sharding
from audiolm_jax.errors import InputError
from audiolm_jax.model import ModelConfig, Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.serialization import SerializationConfig, documents
from audiolm_jax.sharding import PRESETS, ShardingConfig
from audiolm_jax.vocab import Vocab

VOCAB = Vocab(codebooks=2, codebook_size=16, max_frames=12)
MODEL = ModelConfig(layers=2, width=16, heads=4, kv_heads=2, head_width=8, ffn=32)
SHARDINGS = {
    "data": ShardingConfig("data"),
    "fsdp": ShardingConfig("fsdp"),
    "fsdp_tensor": ShardingConfig("fsdp_tensor", tensor=2),
    "fsdp_context": ShardingConfig("fsdp_context", context=4),
}
ROWS, LENGTH = 8, 64
# Of a strategy, a training step sees the number of streams and nothing else: those of one number share a program.
STRATEGIES = [pytest.param(s, marks=pytest.mark.slow) if s == "flat" else s for s in serialization.STRATEGIES]


def test_every_preset_is_here():
    assert set(SHARDINGS) == set(PRESETS)


@pytest.fixture
def mesh():
    """These tests enter their own."""


def batch(strategy: str) -> dict[str, np.ndarray]:
    """Packed training views of random documents."""
    grid = serialization.bind(SerializationConfig(strategy), VOCAB.codebooks)
    rng = np.random.default_rng(0)
    packed = {name: [] for name in ("tokens", "targets", "heads", "weights", "positions", "ahead", "segments")}
    for _ in range(ROWS):
        parts, used = [], 0
        while True:
            codes_TQ = rng.integers(0, VOCAB.codebook_size, (rng.integers(3, VOCAB.max_frames), VOCAB.codebooks))
            text = rng.integers(97, 120, 4).astype(np.int32) + 10
            row = documents.training_row((("text", text), ("audio", codes_TQ)), grid, VOCAB, rng, text_weight=0.5)
            used += len(row["positions"])
            if used > LENGTH:
                break
            parts.append(row | {"segments": np.full(len(row["positions"]), len(parts) + 1, np.int32)})
        for name, rows in packed.items():
            x = np.concatenate([part[name] for part in parts])
            rows.append(np.pad(x, ((0, LENGTH - len(x)), *((0, 0),) * (x.ndim - 1))))
    streams = ("tokens", "targets", "heads", "weights")
    return {f"{name}_{'BLS' if name in streams else 'BL'}": np.stack(rows) for name, rows in packed.items()}


@functools.cache
def programs(preset: str):
    """(mesh, model, jitted loss and gradient) of a preset; "one": a single device."""
    config = SHARDINGS.get(preset, ShardingConfig())
    mesh = sharding.make_mesh(config, None if preset in SHARDINGS else jax.devices()[:1])
    with jax.set_mesh(mesh):
        network = jax.jit(lambda key: Transformer(MODEL, VOCAB.size, nnx.Rngs(params=key), config.rules))(
            jax.random.key(0)
        )

    def loss(network: Transformer, rows: dict) -> jax.Array:
        hidden = network(rows["tokens_BLS"], rows["positions_BL"], rows["segments_BL"], rows["ahead_BL"])
        total, sums = losses.loss_and_sums(hidden, network.output_DV(), rows, VOCAB, network.rules, z_loss=0.01)
        return total / sums["weight"], sums

    return mesh, network, jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))


@functools.cache
def result(preset: str, strategy: str):
    mesh, network, compute = programs(preset)
    with jax.set_mesh(mesh):
        found = compute(network, sharding.shard_batch(batch(strategy), mesh, network.rules))
        for stored, gradient in zip(jax.tree.leaves(network), jax.tree.leaves(found[1]), strict=True):
            assert gradient.sharding == stored.sharding
        return jax.device_get(found)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loss_and_gradients_equal_those_of_one_device(strategy, preset):
    expected, found = result("one", strategy), result(preset, strategy)
    assert 1 < expected[0][0] < 10 and expected[0][1]["count_X"].sum() > 100
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "sizes", "message"),
    [
        ("data", {"batch": ("data.batch_size", 12)}, "data.batch_size=12 cannot be shared by the 8 devices along data"),
        ("fsdp", {"embed": ("model.width", 20)}, "model.width=20 cannot be shared by the 8 devices along data"),
        ("fsdp_tensor", {"heads": ("model.kv_heads", 3)}, "model.kv_heads=3 .* by the 2 devices along tensor"),
        ("fsdp_context", {"length": ("data.sequence_length", 30)}, "=30 .* 4 devices along context .* multiple of 4"),
        ("fsdp_context", {"embed": ("model.width", 12)}, "8 devices along data and context"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(preset, sizes, message):
    config = SHARDINGS[preset]
    with pytest.raises(InputError, match=message):
        sharding.check_sizes(sharding.make_mesh(config), config.rules, sizes)


CODEC = codecs.load("tiny")
SPOKEN = Vocab(CODEC.codebooks, CODEC.codebook_size, 60)


@functools.cache
def codes(preset: str, strategy: str) -> list[np.ndarray]:
    """What three sentences come out as, one of them with a prompt and one guided."""
    config = SHARDINGS.get(preset, ShardingConfig())
    mesh = sharding.make_mesh(config, None if preset in SHARDINGS else jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = dataclasses.replace(MODEL, layers=1)
        network = jax.jit(lambda key: Transformer(model, SPOKEN.size, nnx.Rngs(params=key), config.rules))(
            jax.random.key(1)
        )
    grid = serialization.bind(SerializationConfig(strategy), SPOKEN.codebooks)
    sampling = SamplingConfig(chunk=8, max_frames=20)
    generator = generate.Generator(network, grid, SPOKEN, CODEC, sampling=sampling, mesh=mesh)
    weights = jax.tree.leaves(nnx.state(generator.model))
    assert all(set(x.sharding.spec) <= {None, "tensor"} for x in weights)
    guided = SamplingConfig(chunk=8, max_frames=20, guidance=2.0)
    prompt_TQ = np.random.default_rng(0).integers(0, SPOKEN.codebook_size, (3, SPOKEN.codebooks))
    requests = generator.requests(
        ["one", "two three", "four"], prompts=[None, prompt_TQ, None], frames=12, sampling=[sampling, guided, sampling]
    )
    *_, last = generator.progress(requests)
    return [last.codes_BFQ[b, :n] for b, n in enumerate(last.frames_B)]


@pytest.mark.parametrize("preset", [pytest.param("data", marks=pytest.mark.slow), "fsdp_tensor", "fsdp_context"])
@pytest.mark.parametrize(
    "strategy",
    [s if s == "hierarchical" else pytest.param(s, marks=pytest.mark.slow) for s in serialization.STRATEGIES],
)
def test_samples_equal_those_of_one_device(strategy, preset):
    for one, other in zip(codes("one", strategy), codes(preset, strategy), strict=True):
        assert one.shape == (12, SPOKEN.codebooks) and one.min() >= 0
        np.testing.assert_array_equal(one, other)
