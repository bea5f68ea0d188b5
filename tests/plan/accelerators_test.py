"""Training steps compiled for eight TPU chips that are not here: kernels and collectives are those of theory."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from audiolm_jax.model import losses, sharding
from audiolm_jax.model.config import ModelConfig, ShardingConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.plan import collectives
from audiolm_jax.serialization.vocab import Vocab

pytestmark = pytest.mark.slow  # TPU's compiler takes half a minute for each

VOCAB = Vocab(codebooks=2, codebook_size=128, max_frames=100)
MODEL = ModelConfig(layers=3, width=128, heads=4, kv_heads=4, head_width=64, ffn=256)
ROWS, LENGTH, D, LAYERS = 16, 512, MODEL.width, MODEL.layers
# Bytes in bfloat16 of the matrices of one layer.
MATRICES = 2 * D * (MODEL.head_width * (2 * MODEL.heads + 2 * MODEL.kv_heads) + 3 * MODEL.ffn)


@pytest.fixture
def mesh():
    """These tests describe their own."""


@pytest.fixture(scope="module")
def chips():
    pytest.importorskip("libtpu", reason="libtpu, TPU's compiler, is not installed: pip install 'audiolm-jax[tpu]'")
    from jax.experimental import topologies

    # Nothing here is a TPU machine to ask, and other processes may compile as well.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    # Programs for chips that are not here cannot be read back from the cache on disk.
    jax.config.update("jax_enable_compilation_cache", False)
    yield topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    jax.config.update("jax_enable_compilation_cache", True)


def compiled(config: ShardingConfig, chips) -> str:
    """The text of loss and gradient of a batch."""
    mesh = sharding.make_mesh(config, chips)

    def array(spec, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))

    def loss(params: dict, graph: nnx.GraphDef, rows: dict) -> jax.Array:
        network = nnx.merge(graph, params)
        hidden = network(rows["tokens_BLS"], rows["positions_BL"], rows["segments_BL"], rows["ahead_BL"])
        return losses.loss_and_sums(losses.scored(network, hidden, rows, VOCAB), VOCAB)[0]

    with jax.set_mesh(mesh):
        graph, params = nnx.split(jax.eval_shape(lambda: Transformer(MODEL, VOCAB.size, nnx.Rngs(0), config.rules)))
        params = jax.tree.map(lambda x: array(x.sharding.spec, x.shape, x.dtype), nnx.to_pure_dict(params))
        rows = {
            f"{n}_BL": array(config.rules.spec("batch", "length"), (ROWS, LENGTH), jnp.int32)
            for n in ("positions", "segments", "ahead")
        }
        stream = config.rules.spec("batch", "length", None)
        rows |= {f"{n}_BLS": array(stream, (ROWS, LENGTH, 2), jnp.int32) for n in ("tokens", "targets", "heads")}
        rows["weights_BLS"] = array(stream, (ROWS, LENGTH, 2), jnp.float32)
        return jax.jit(jax.grad(loss), static_argnums=1).lower(params, graph, rows).compile().as_text()


def in_layers(text: str, kinds: tuple[str, ...], group: int) -> list[int]:
    """Bytes of each matrix that groups of so many chips exchange in the loop over layers, forward or backward."""
    found = [c for c in collectives.collectives(text) if c.kind in kinds and c.group == group and c.times == LAYERS]
    each = [dataclasses.replace(c, arrays=(array,)) for c in found for array in c.arrays if len(array[1]) > 1]
    return [c.bytes for c in each]


REDUCED = ("all-reduce", "reduce-scatter")


def test_data(chips):
    text = compiled(ShardingConfig("data"), chips)
    assert text.count("tpu_custom_call") >= 3  # the kernel, and two of its gradients
    assert sum(in_layers(text, ("all-reduce",), 8)) == MATRICES
    assert not in_layers(text, ("all-gather",), 8)


def test_fsdp(chips):
    text = compiled(ShardingConfig("fsdp"), chips)
    assert sum(in_layers(text, ("all-gather",), 8)) == 2 * MATRICES
    assert sum(in_layers(text, REDUCED, 8)) == MATRICES
    assert sum(in_layers(text, ("reduce-scatter",), 8)) > MATRICES / 2  # some the compiler reduces and cuts apart


def test_fsdp_tensor(chips):
    text = compiled(ShardingConfig("fsdp_tensor", tensor=2), chips)
    assert sum(in_layers(text, ("all-gather",), 4)) == 2 * MATRICES // 2
    assert sum(in_layers(text, REDUCED, 4)) == MATRICES // 2
    activations = 2 * ROWS // 4 * LENGTH * D
    assert in_layers(text, ("all-reduce",), 2) == [activations] * 4


def test_fsdp_context(chips):
    text = compiled(ShardingConfig("fsdp_context", context=4), chips)
    keys = 2 * ROWS // 2 * LENGTH * MODEL.kv_heads * MODEL.head_width
    assert sum(in_layers(text, ("all-gather",), 8)) == 2 * MATRICES
    assert sum(in_layers(text, REDUCED, 8)) == MATRICES
    assert in_layers(text, ("all-gather",), 4) == [keys] * 2  # keys and values, which the kernel keeps for its gradient
    assert in_layers(text, REDUCED, 4) == [keys] * 2
