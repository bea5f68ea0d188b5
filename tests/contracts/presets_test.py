"""Every strategy under every sharding preset: loss, gradients and samples equal those of one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import codecs, serialization
from audiolm_jax.errors import InputError
from audiolm_jax.model import losses, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig, ShardingConfig, table_rows
from audiolm_jax.model.sharding import PRESETS
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.plan import collectives
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import SerializationConfig, documents
from audiolm_jax.serialization.vocab import Vocab

VOCAB = Vocab(codebooks=2, codebook_size=16, max_frames=12)
MODEL = ModelConfig(layers=2, width=16, heads=4, kv_heads=2, head_width=8, ffn=32)
DEPTH = DepthConfig(layers=2, width=8, heads=2, kv_heads=2, head_width=8, ffn=16, weights="per_codebook")
SHARDINGS = {
    "data": ShardingConfig("data"),
    "fsdp": ShardingConfig("fsdp"),
    "fsdp_tensor": ShardingConfig("fsdp_tensor", tensor=2),
    "fsdp_context": ShardingConfig("fsdp_context", context=4),
}
ROWS, LENGTH = 8, 64
# Of a strategy, a training step sees its streams and whether there is a depth network: those alike share a program.
STRATEGIES = [pytest.param(s, marks=pytest.mark.slow) if s == "flat" else s for s in serialization.STRATEGIES]
# The quick run leaves out what the other presets contain.
SOME = [pytest.param(p, marks=pytest.mark.slow) if p == "data" else p for p in PRESETS]


def test_every_preset_is_here():
    assert set(SHARDINGS) == set(PRESETS)


@pytest.fixture
def mesh():
    """These tests enter their own. Their programs are not kept for the next session: of one that XLA read back from the
    cache, eight CPU devices begin independent collectives in different orders and wait for each other (jax 0.10.2)."""
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


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


def with_depth(model: ModelConfig, strategy: str, codebooks: int) -> ModelConfig:
    grid = serialization.bind(SerializationConfig(strategy), codebooks)
    return dataclasses.replace(model, depth=DEPTH if grid.depth else None)


@functools.cache
def program(preset: str, streams: int, depth: bool):
    """(mesh, model, compiled loss and gradient) of a preset; "one": a single device."""
    config = SHARDINGS.get(preset, ShardingConfig())
    mesh = sharding.make_mesh(config, None if preset in SHARDINGS else jax.devices()[:1])

    def loss(network: Transformer, rows: dict) -> jax.Array:
        hidden = network(rows["tokens_BLS"], rows["positions_BL"], rows["segments_BL"], rows["ahead_BL"])
        total, sums = losses.loss_and_sums(losses.scored(network, hidden, rows, VOCAB), VOCAB, z_loss=0.01)
        return total / sums["weight"], sums

    with jax.set_mesh(mesh):
        strategy = "depth" if depth else "flat" if streams == 1 else "delay"
        model = with_depth(MODEL, strategy, VOCAB.codebooks)
        build = jax.jit(lambda key: language_model(model, VOCAB, nnx.Rngs(params=key), config.rules))
        network, rows = build(jax.random.key(0)), sharding.shard_batch(batch(strategy), mesh, config.rules)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))
        return mesh, network, gradient.lower(network, rows).compile()


@functools.cache
def result(preset: str, strategy: str):
    rows = batch(strategy)
    mesh, network, compute = program(preset, rows["tokens_BLS"].shape[-1], strategy == "depth")
    with jax.set_mesh(mesh):
        found = compute(network, sharding.shard_batch(rows, mesh, network.rules))
        for stored, gradient in zip(jax.tree.leaves(network), jax.tree.leaves(found[1]), strict=True):
            assert gradient.sharding == stored.sharding
        return jax.device_get(found)


@pytest.mark.parametrize("preset", SOME)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loss_and_gradients_equal_those_of_one_device(strategy, preset):
    expected, found = result("one", strategy), result(preset, strategy)
    assert 1 < expected[0][0] < 10 and expected[0][1]["count_X"].sum() > 100
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@functools.cache
def sent(preset: str) -> list[collectives.Collective]:
    """What the program of a preset sends, one entry for each array."""
    found = collectives.collectives(program(preset, VOCAB.codebooks, False)[2].as_text())
    return [dataclasses.replace(c, arrays=(array,)) for c in found for array in c.arrays]


def total(preset: str, kind: str, group: int, least: int = 2) -> int:
    """Bytes of the arrays of `least` axes or more that groups of so many devices exchange."""
    chosen = [c for c in sent(preset) if c.kind == kind and c.group == group and len(c.arrays[0][1]) >= least]
    return sum(c.times * c.bytes for c in chosen)


# Bytes of float32 parameters: the matrices of all layers, the table, the columns of the output matrix that are read.
D, LAYERS = MODEL.width, MODEL.layers
MATRICES = 4 * LAYERS * D * (MODEL.head_width * (2 * MODEL.heads + 2 * MODEL.kv_heads) + 3 * MODEL.ffn)
TABLE, HEAD = 4 * D * table_rows(VOCAB.size), 4 * D * VOCAB.size


@pytest.mark.slow
def test_data_reduces_every_gradient_once():
    assert total("data", "all-reduce", 8) == MATRICES + TABLE + HEAD
    # With the scales of the norms, all there is but the sums of the loss.
    scales = 4 * D * (2 * LAYERS + 1)
    assert 0 <= total("data", "all-reduce", 8, least=1) - (MATRICES + TABLE + HEAD + scales) <= 2 * 4 * 4
    assert not [c for c in sent("data") if c.kind != "all-reduce"]


def test_fsdp_gathers_layers_twice_and_the_rest_once_and_reduces_every_gradient_once():
    assert total("fsdp", "all-gather", 8) == 2 * MATRICES + TABLE + HEAD
    # XLA writes a reduce-scatter on a CPU as an all-reduce and a slice; on a TPU it is one (plan/accelerators_test.py).
    assert total("fsdp", "all-reduce", 8) + total("fsdp", "reduce-scatter", 8) == MATRICES + TABLE + HEAD


def test_fsdp_tensor_reduces_activations_twice_a_layer_forward_and_backward():
    parts = SHARDINGS["fsdp_tensor"].tensor
    stream = (ROWS // 4, LENGTH, D)
    reduced = [c for c in sent("fsdp_tensor") if c.kind == "all-reduce" and c.arrays[0][1] == stream]
    # Once more in all, where the sharded vocabulary meets the last hidden states.
    assert {c.group for c in reduced} == {parts}
    assert sum(c.times for c in reduced) == 4 * LAYERS + 1
    # Of the matrices a device gathers, over data, the parts that its place along tensor has.
    matrices = [c for c in sent("fsdp_tensor") if c.kind == "all-gather" and c.group == 4 and c.times == LAYERS]
    assert sum(c.times * c.bytes for c in matrices) == 2 * MATRICES // parts


def test_fsdp_context_gathers_keys_and_values_and_reduces_their_gradients():
    parts = SHARDINGS["fsdp_context"].context
    keys = 4 * (ROWS // 2) * LENGTH * MODEL.kv_heads * MODEL.head_width
    gathered = [c for c in sent("fsdp_context") if c.kind == "all-gather" and c.group == parts and c.times == LAYERS]
    assert sum(c.times * c.bytes for c in gathered) == 2 * 2 * LAYERS * keys  # keys and values, forward and backward
    reduced = [c for c in sent("fsdp_context") if c.kind in ("all-reduce", "reduce-scatter") and c.bytes == keys]
    assert {c.group for c in reduced} == {parts} and sum(c.times for c in reduced) == 2 * LAYERS
    assert total("fsdp_context", "all-gather", 8) == 2 * MATRICES + TABLE + HEAD


@pytest.mark.parametrize(
    ("preset", "size", "message"),
    [
        ("data", ("batch", "data.batch_size", 12), "data.batch_size=12 cannot be shared by the 8 devices along data"),
        ("fsdp", ("embed", "model.width", 20), "model.width=20 cannot be shared by the 8 devices along data"),
        ("fsdp_tensor", ("heads", "model.kv_heads", 3), "model.kv_heads=3 .* by the 2 devices along tensor"),
        ("fsdp_context", ("length", "data.sequence_length", 30), "=30 .* 4 devices along context .* multiple of 4"),
        ("fsdp_context", ("embed", "model.width", 12), "8 devices along data and context"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(preset, size, message):
    config = SHARDINGS[preset]
    with pytest.raises(InputError, match=message):
        sharding.check_sizes(sharding.make_mesh(config), config.rules, [size])


CODEC = codecs.load("tiny")
SPOKEN = Vocab(CODEC.codebooks, CODEC.codebook_size, 60)


@functools.cache
def codes(preset: str, strategy: str) -> list[np.ndarray]:
    """What three sentences come out as, one of them with a prompt and one guided."""
    config = SHARDINGS.get(preset, ShardingConfig())
    mesh = sharding.make_mesh(config, None if preset in SHARDINGS else jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = with_depth(dataclasses.replace(MODEL, layers=1), strategy, SPOKEN.codebooks)
        build = jax.jit(lambda key: language_model(model, SPOKEN, nnx.Rngs(params=key), config.rules))
        network = build(jax.random.key(1))
    spec = Spec(model, SPOKEN, SerializationConfig(strategy))
    sampling = SamplingConfig(chunk=8, max_frames=20)
    generator = Generator(network, spec, CODEC, sampling, mesh=mesh)
    weights = jax.tree.leaves(nnx.state(generator.model))
    assert all(set(x.sharding.spec) <= {None, "tensor"} for x in weights)
    guided = SamplingConfig(chunk=8, max_frames=20, guidance=2.0)
    prompt_TQ = np.random.default_rng(0).integers(0, SPOKEN.codebook_size, (3, SPOKEN.codebooks))
    requests = generator.requests(
        ["one", "two three", "four"], prompts=[None, prompt_TQ, None], frames=12, sampling=[sampling, guided, sampling]
    )
    *_, last = generator.progress(requests)
    return [last.codes_BFQ[b, :n] for b, n in enumerate(last.frames_B)]


@pytest.mark.parametrize(
    "preset", [p if p == "fsdp_tensor" else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS]
)
@pytest.mark.parametrize(
    "strategy",
    [s if s == "hierarchical" else pytest.param(s, marks=pytest.mark.slow) for s in serialization.STRATEGIES],
)
def test_samples_equal_those_of_one_device(strategy, preset):
    for one, other in zip(codes("one", strategy), codes(preset, strategy), strict=True):
        assert one.shape == (12, SPOKEN.codebooks) and one.min() >= 0
        np.testing.assert_array_equal(one, other)
