"""LoRA (arXiv 2106.09685, section 4.1): a matrix W becomes W + alpha / rank * A B, and only A and B are trained.

All of it is arithmetic on the tree of parameters; the model only names its attributes that are stacks of layers
(`Transformer.STACKS`). A is random at first and B zero, so that training starts at W, bit for bit. A weight of several
axes counts as a matrix [inputs, outputs], so the queries, keys and values of a block, which are one matrix here, share
one A. Every layer has its own A and B.

A step computes `merged` once per microbatch, and the gradients of the chosen matrices on the way to those of A and B:
what LoRA saves is the optimizer's state of these matrices and the all-reduce of their gradients.
"""

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


def chosen(config: LoraConfig, params: dict) -> dict[tuple[str, ...], int]:
    """Path of every chosen parameter in the tree -> number of its axes, after that of layers, that are inputs."""
    parts = [MATRICES[name] for name in MATRICES if name in config.matrices]
    stacks = [stack for stack in Transformer.STACKS if stack in params]
    return {(stack, *path): inputs for stack in stacks for part in parts for path, inputs in part.items()}


def check(config: LoraConfig, params: dict) -> None:
    """Raises InputError for a rank above that of a chosen matrix. params: anything with shapes."""
    flat = flatten_dict(params)
    for path, inputs in chosen(config, params).items():
        shape = flat[path].shape
        largest = min(math.prod(shape[1 : 1 + inputs]), math.prod(shape[1 + inputs :]))
        if config.rank > largest:
            name = "/".join(path)
            raise InputError(f"lora.rank={config.rank} must be at most {largest}, the largest rank of {name}")


def init(config: LoraConfig, params: dict, key: jax.Array) -> dict:
    """A and B of every chosen matrix, {"a": [N, inputs ..., rank], "b": [N, rank, outputs ...]} at its path, sharded
    like its inputs and outputs. A is normal, of variance one over the number of inputs; B is zero."""
    flat, adapters = flatten_dict(params), {}
    for number, (path, inputs) in enumerate(chosen(config, params).items()):
        shape, cut = flat[path].shape, 1 + inputs
        spec = (*jax.typeof(flat[path]).sharding.spec, *(None,) * len(shape))[: len(shape)]
        a = jax.random.normal(
            jax.random.fold_in(key, number), (*shape[:cut], config.rank), out_sharding=P(*spec[:cut], None)
        )
        b = jnp.zeros((shape[0], config.rank, *shape[cut:]), out_sharding=P(spec[0], None, *spec[cut:]))
        adapters[path] = {"a": a * math.prod(shape[1:cut]) ** -0.5, "b": b}
    return unflatten_dict(adapters)


def merged(config: LoraConfig, params: dict, adapters: dict) -> dict:
    """The parameters of the model: W + alpha / rank * A B where there is a pair."""
    flat, pairs = dict(flatten_dict(params)), flatten_dict(adapters)
    for path in chosen(config, params):
        a, b = pairs[*path, "a"], pairs[*path, "b"]
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST))(a, b)
        flat[path] = flat[path] + (config.alpha / config.rank) * product
    return unflatten_dict(flat)
