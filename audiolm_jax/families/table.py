"""Weight tables: which tensors of a published file are which parameter of the Transformer, read in two directions.

`fill` makes a model of a file's tensors, `tensors_of` the tensors of a model. A family lists an `Entry` for each
parameter; the functions that make entries cover what most families have. torch stores matrices with outputs first.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx

from audiolm_jax.hub.weights import Weights
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.serialization.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of the Transformer and the tensors that it holds.

    path: in the tree of parameters, joined by "/"; those of "layers" have a leading axis of layers. names: of the
    tensors, `{}` being the layer. shape: of each of them. pack: list of tensors -> the parameter (of one layer).
    unpack: the inverse.
    """

    path: str
    names: Sequence[str]
    shape: tuple[int, ...]
    pack: Callable[[list[np.ndarray]], np.ndarray]
    unpack: Callable[[np.ndarray], list[np.ndarray]]


def plain(path: str, name: str, *shape: int) -> Entry:
    """A vector as it is, or a matrix transposed. shape: in the file."""
    return Entry(path, [name], shape, lambda x: x[0].T, lambda x: [x.T])


def layernorm(path: str, name: str, width: int) -> list[Entry]:
    pairs = (("scale", "weight"), ("bias", "bias"))
    return [plain(f"{path}/{ours}", f"{name}.{theirs}", width) for ours, theirs in pairs]


def into_heads(path: str, names: Sequence[str], c: ModelConfig) -> Entry:
    """Matrices [H*K, D] side by side as [D, H, parts, K]."""
    D, H, K = c.width, c.heads, c.head_width
    return Entry(
        path,
        names,
        (H * K, D),
        lambda parts: np.stack([x.T.reshape(D, H, K) for x in parts], axis=2),
        lambda x: [x[:, :, n].reshape(D, H * K).T for n in range(len(names))],
    )


def out_of_heads(path: str, name: str, c: ModelConfig) -> Entry:
    """A matrix [D, H*K] as [H, 1, K, D]."""
    D, H, K = c.width, c.heads, c.head_width
    return Entry(path, [name], (D, H * K), lambda x: x[0].T.reshape(H, 1, K, D), lambda x: [x.reshape(H * K, D).T])


def fill(config: ModelConfig, vocab: Vocab, table: Sequence[Entry], weights: Weights) -> Transformer:
    """The Transformer that the tensors of a file make; `weights` collects what is wrong with them."""
    mesh, params = sharding.single_device_mesh(), {}
    with jax.set_mesh(mesh):
        graph, abstract = nnx.split(checkpoints.abstract_model(config, vocab))
        shapes = sharding.on_mesh(nnx.to_pure_dict(abstract), mesh)
        for row in table:
            node, like = params, shapes
            *parents, leaf = row.path.split("/")
            for part in parents:
                node, like = node.setdefault(part, {}), like[part]
            layers = range(config.layers) if parents[:1] == ["layers"] else (None,)
            packed = [row.pack([weights.take(name.format(n), row.shape) for name in row.names]) for n in layers]
            value = packed[0] if layers == (None,) else np.stack(packed)
            # One by one, so that a large checkpoint is in memory once and not twice.
            node[leaf] = jax.device_put(value, like[leaf].sharding)
        return nnx.merge(graph, params)


def tensors_of(model: Transformer, table: Sequence[Entry]) -> dict[str, np.ndarray]:
    """The parameters under their published names, float32."""
    params, tensors = checkpoints.params_of(model), {}
    for row in table:
        value = params
        for part in row.path.split("/"):
            value = value[part]
        value = np.asarray(value, np.float32)
        layers = enumerate(value) if row.path.startswith("layers/") else [(0, value)]
        for n, x in layers:
            for name, tensor in zip(row.names, row.unpack(x), strict=True):
                tensors[name.format(n)] = np.ascontiguousarray(tensor)
    return tensors
