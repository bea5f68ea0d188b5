"""Fast decoding: sharding of the weights, compiler options, number of rows in a batch.

`attention.attend_step`, `attention.two_rows` and `sampling.rules` also choose by platform.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import losses, sharding
from audiolm_jax.model.transformer import Transformer, unstack
from audiolm_jax.sampling.requests import Request, guidance
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class _OnHost:
    """A weight as a numpy array with its sharding, for `unstack` and `_decoded` as they are: no program is compiled."""

    array: np.ndarray
    spec: P

    ndim = property(lambda self: self.array.ndim)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, n: int) -> "_OnHost":
        return _OnHost(self.array[n], P(*self.spec[1:]))

    def astype(self, dtype: jnp.dtype) -> "_OnHost":
        return _OnHost(self.array.astype(dtype, copy=False), self.spec)


def for_decoding(model: Transformer, mesh: jax.sharding.Mesh, vocab: Vocab) -> Transformer:
    """A copy of the model on `mesh`, as `decoding_form` makes it.

    On one CPU device numpy slices and casts: jax would compile a program for every shape of a weight.
    """

    def spec(x: jax.Array) -> P:
        stored = tuple(x.sharding.spec) if isinstance(x.sharding, NamedSharding) else ()
        return _gathered(P(*stored, *(None,) * (x.ndim - len(stored))), model)

    def move(x: jax.Array) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, spec(x)), may_alias=False)

    with jax.set_mesh(mesh):
        if not (sharding.on_one_cpu() and all(x.is_fully_addressable for x in jax.tree.leaves(model))):
            return decoding_form(jax.tree.map(move, model), vocab)
        model = _without_text(model, vocab)
        model = _decoded(jax.tree.map(lambda x: _OnHost(np.asarray(x), spec(x)), model))
        # A copy of numpy's: `device_put` may keep the memory of an array that it is given.
        return jax.tree.map(lambda x: jax.device_put(np.array(x.array), NamedSharding(mesh, x.spec)), model)


def decoding_form(model: Transformer, vocab: Vocab) -> Transformer:
    """The model with a Block per layer and matrices in the compute dtype, sharded by `Rules.for_decoding`: casts and
    all-gathers happen once, not in every step. Its outputs are those of `vocab.without_text`. A mesh must be entered.
    """
    model = jax.tree.map(lambda x: jax.sharding.reshard(x, _gathered(jax.typeof(x).sharding.spec, model)), model)
    return _decoded(_without_text(model, vocab))


def _without_text(model: Transformer, vocab: Vocab) -> Transformer:
    """The model with an output matrix for audio alone, if text is apart; a tied one gets a matrix of its own."""
    predicted = vocab if model.depth is None else vocab.first
    if not predicted.text_apart:
        return model
    model = nnx.clone(model)
    kept_DV = losses.without_text(jax.sharding.reshard(model.output_DV(), P()), predicted)
    spec = P(None, *_gathered(model.rules.spec("vocab"), model))
    model.unembedding_DV = nnx.Param(jax.sharding.reshard(kept_DV, spec))
    model.config = dataclasses.replace(model.config, tied=False)
    model.outputs -= predicted.text_size - predicted.without_text.text_size
    return model


def _decoded(model: Transformer) -> Transformer:
    rules, dtype = model.rules.for_decoding(), model.config.compute_dtype

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if x.ndim > 1 else x

    model = unstack(model)
    if model.depth is not None:
        model.depth = jax.tree.map(cast, model.depth).with_rules(rules)
    blocks = [block for stack in model.STACKS for block in getattr(model, stack)]
    for part in (model, *blocks, *(block.cross for block in blocks if hasattr(block, "cross"))):
        part.rules = rules
    for stack in model.STACKS:
        setattr(model, stack, jax.tree.map(cast, getattr(model, stack)))
    if not model.config.tied:
        model.unembedding_DV = jax.tree.map(cast, model.unembedding_DV)
    return model


def _gathered(spec: P, model: Transformer) -> P:
    """Sharding of a weight during decoding: the FSDP axis gathered."""
    split = {axis for logical in ("heads", "ffn", "vocab") for axis in model.rules.for_decoding().axes(logical)}
    return P(*(axis if axis in split else None for axis in spec))


def compiler_options() -> dict[str, bool | int]:
    """XLA's `compiler_options` for an executable that loops over `step` on the current mesh.

    On a CPU XLA copies each cache buffer once per iteration unless copy insertion analyses live regions. On a GPU it
    computes the scores of the prompt's keys and of the cache in one product, for which it copies both into one array.
    """
    return {
        "cpu": {"xla_cpu_copy_insertion_use_region_analysis": True},
        "gpu": {"xla_gpu_dot_merger_threshold_mb": 0},
    }.get(sharding.platform(), {})


def missing_rows(requests: Sequence[Request], model: Transformer, grid: Grid, mesh: jax.sharding.Mesh) -> int:
    """Number of rows to add to a batch: every device has the same number, and a single row is slow on a GPU.

    A step of MusicGen-small without its cross-attention takes 1.30 ms with two rows and 1.66 ms with one on an H100;
    see `attention.two_rows`. With guidance a row counts as two.
    """
    with jax.set_mesh(mesh):
        on_gpu = sharding.platform() == "gpu"
    causal = grid.causal_levels == grid.codebooks
    if len(requests) == 1 and on_gpu and causal and guidance(requests) is None:
        return max(1, model.rules.parts("batch", mesh) - 1)
    return -len(requests) % model.rules.parts("batch", mesh)
