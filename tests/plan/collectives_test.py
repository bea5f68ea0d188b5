import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import sharding
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.plan import collectives


@pytest.fixture
def mesh():
    """These tests enter their own."""


def found(function, *shapes) -> list[collectives.Collective]:
    mesh = sharding.make_mesh(ShardingConfig("fsdp_tensor", tensor=2))
    with jax.set_mesh(mesh):
        local = jax.shard_map(function, in_specs=P(), out_specs=P(), check_vma=False)
        text = jax.jit(local).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile().as_text()
    return collectives.collectives(text)


def test_every_kind_has_its_group_and_its_bytes():
    def send(x):
        y = jax.lax.psum(x, "data")
        y = jax.lax.all_gather(jnp.sin(y), "tensor", axis=0, tiled=True)
        y = jax.lax.psum_scatter(jnp.cos(y), ("data", "tensor"), scatter_dimension=0, tiled=True)
        y = jax.lax.ppermute(jnp.sin(y), "data", [(0, 1), (1, 2), (2, 3), (3, 0)])
        return jnp.sum(y)

    by_kind = {c.kind: c for c in found(send, (8, 3))}
    assert {kind: (c.times, c.group, c.bytes) for kind, c in by_kind.items()} == {
        "all-reduce": (1, 4, 4 * 8 * 3),
        "all-gather": (1, 2, 4 * 16 * 3),
        "reduce-scatter": (1, 8, 4 * 16 * 3),
        "collective-permute": (1, 2, 4 * 2 * 3),
    }


def test_loops_count_as_often_as_they_run_inside_each_other_too():
    def inner(x, _):
        return jnp.sin(jax.lax.psum(x, "data")), None

    def outer(x, _):
        return jax.lax.scan(inner, jnp.cos(jax.lax.psum(x, "tensor")), length=3)[0], None

    counted = collectives.totals(found(lambda x: jax.lax.scan(outer, x, length=5)[0], (8, 3)))
    assert counted == {"all-reduce": {"count": 5 + 15, "bytes": 20 * 4 * 8 * 3}}


def test_a_loop_without_a_known_count_is_read_from_its_condition():
    """As TPU's compiler writes a loop and a fused reduce-scatter."""
    text = """HloModule jit_step, num_partitions=8

%all-reduce-scatter.1 (input.1: bf16[16,4]) -> bf16[2,4] {
  %input.1 = bf16[16,4]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = bf16[16,4]{1,0} all-reduce(%input.1), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[2,4]{1,0} dynamic-slice(%all-reduce.1, %partition-id.1), dynamic_slice_sizes={2,4}
}

%body.1 (param.1: (s32[], bf16[16,4])) -> (s32[], bf16[16,4]) {
  %fusion.1 = bf16[2,4]{1,0:T(8,128)} fusion(%get-tuple-element.1), kind=kCustom, calls=%all-reduce-scatter.1
  %all-gather.1 = bf16[16,4]{1,0} all-gather(%fusion.1), channel_id=2, replica_groups=[4,2]<=[8], chain_id="0"
  %all-gather.2 = bf16[16,4]{1,0} all-gather(%fusion.1), channel_id=2, replica_groups=[4,2]<=[8], chain_id="0"
}

%condition.1 (param.2: (s32[], bf16[16,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(7)
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.2, %constant.1), direction=LT
}

ENTRY %main.1 (x.1: bf16[16,4]) -> bf16[16,4] {
  %while.1 = (s32[]{:T(128)}, bf16[16,4]{1,0}) while(%tuple.1), condition=%condition.1, body=%body.1
}
"""
    assert [(c.kind, c.times, c.group, c.bytes) for c in collectives.collectives(text)] == [
        ("reduce-scatter", 7, 8, 128),
        ("all-gather", 7, 2, 128),
    ]
