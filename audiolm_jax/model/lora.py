"""LoRA (arXiv 2106.09685, section 4.1): a matrix W becomes W + alpha / rank * A B, and only A and B are trained.

All of it is arithmetic on the tree of parameters; the model only names its attributes that are stacks of layers
(`Transformer.STACKS`), and the layers of a depth network take part too. A is random at first and B zero, so that
training starts at W, bit for bit. A weight of several axes counts as a matrix [inputs, outputs], so the queries, keys
and values of a block, which are one matrix here, share one A. Every layer has its own A and B, and so has every set of
matrices where a depth network has one per codebook.

A step computes `merged` once per microbatch, and the gradients of the chosen matrices on the way to those of A and B:
what LoRA saves is the optimizer's state of these matrices and the all-reduce of their gradients.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model.config import LoraConfig
from audiolm_jax.model.transformer import Transformer

# What `lora.matrices` may name: the parameters of a layer, and how many of their axes are inputs.
MATRICES = {
    "attention": {("qkv_DHAK",): 1, ("out_HGKD",): 3},
    "cross": {("cross", "q_DHGK"): 1, ("cross", "kv_DHCK"): 1, ("cross", "out_HGKD"): 3},
    "ffn": {("up_DCF",): 1, ("down_FD",): 1},
}


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A chosen parameter: its axes are `stacked` ones of layers (and sets of matrices), then `inputs`, then outputs."""

    stacked: int
    inputs: int

    @property
    def cut(self) -> int:
        """Where the outputs begin."""
        return self.stacked + self.inputs


def chosen(config: LoraConfig, params: dict) -> dict[tuple[str, ...], Matrix]:
    """Path of every chosen parameter in the tree -> its axes. params: anything with shapes."""
    flat = flatten_dict(params)
    stacks = [(stack,) for stack in Transformer.STACKS if stack in params] + [("depth", "layers")]
    found = {}
    for stack in stacks:
        for part in (MATRICES[name] for name in MATRICES if name in config.matrices):
            for path, inputs in part.items():
                if (*stack, *path) in flat:
                    letters = len(path[-1].rpartition("_")[2])  # of the axes of one layer
                    found[*stack, *path] = Matrix(len(flat[*stack, *path].shape) - letters, inputs)
    return found


def check(config: LoraConfig, params: dict) -> None:
    """Raises InputError for a rank above that of a chosen matrix, and if the model has none of the chosen ones. params:
    anything with shapes."""
    flat = flatten_dict(params)
    if not chosen(config, params):
        raise InputError(f"lora.matrices={config.matrices}: this model has none of these; attention and ffn it has")
    for path, matrix in chosen(config, params).items():
        shape = flat[path].shape
        largest = min(math.prod(shape[matrix.stacked : matrix.cut]), math.prod(shape[matrix.cut :]))
        if config.rank > largest:
            name = "/".join(path)
            raise InputError(f"lora.rank={config.rank} must be at most {largest}, the largest rank of {name}")


def init(config: LoraConfig, params: dict, key: jax.Array) -> dict:
    """A and B of every chosen matrix, {"a": [N, inputs ..., rank], "b": [N, rank, outputs ...]} at its path, sharded
    like its inputs and outputs. A is normal, of variance one over the number of inputs; B is zero."""
    flat, adapters = flatten_dict(params), {}
    for number, (path, matrix) in enumerate(chosen(config, params).items()):
        shape, stacked, cut = flat[path].shape, matrix.stacked, matrix.cut
        spec = (*jax.typeof(flat[path]).sharding.spec, *(None,) * len(shape))[: len(shape)]
        a = jax.random.normal(
            jax.random.fold_in(key, number), (*shape[:cut], config.rank), out_sharding=P(*spec[:cut], None)
        )
        b_shape = (*shape[:stacked], config.rank, *shape[cut:])
        b = jnp.zeros(b_shape, out_sharding=P(*spec[:stacked], None, *spec[cut:]))
        adapters[path] = {"a": a * math.prod(shape[stacked:cut]) ** -0.5, "b": b}
    return unflatten_dict(adapters)


def merged(config: LoraConfig, params: dict, adapters: dict) -> dict:
    """The parameters of the model: W + alpha / rank * A B where there is a pair."""
    flat, pairs = dict(flatten_dict(params)), flatten_dict(adapters)
    for path, matrix in chosen(config, params).items():

        def product(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)

        for _ in range(matrix.stacked):
            product = jax.vmap(product)
        flat[path] = flat[path] + (config.alpha / config.rank) * product(pairs[*path, "a"], pairs[*path, "b"])
    return unflatten_dict(flat)
