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

Sizes = tuple[int, int, int]  # of an attention: query heads, key/value heads, head width K


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of the Transformer and the tensors that it holds.

    path: in the tree of parameters, joined by "/"; those below "layers" have a leading axis of layers. names: of the
    tensors, `{}` being the layer. shapes: of each of them. pack: list of tensors -> the parameter (of one layer).
    unpack: the inverse.
    """

    path: str
    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    pack: Callable[[list[np.ndarray]], np.ndarray]
    unpack: Callable[[np.ndarray], list[np.ndarray]]

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading axis of layers."""
        return "layers" in self.path.split("/")


def plain(path: str, name: str, *shape: int) -> Entry:
    """A vector as it is, or a matrix transposed. shape: in the file."""
    return Entry(path, [name], [shape], lambda x: x[0].T, lambda x: [x.T])


def layernorm(path: str, name: str, width: int) -> list[Entry]:
    pairs = (("scale", "weight"), ("bias", "bias"))
    return [plain(f"{path}/{ours}", f"{name}.{theirs}", width) for ours, theirs in pairs]


def rmsnorm(path: str, name: str, width: int) -> Entry:
    return plain(f"{path}/scale", f"{name}.weight", width)


def into_heads(path: str, names: Sequence[str], parts: str, sizes: Sizes, *inputs: int) -> Entry:
    """Matrices [heads * K, D] side by side as [D, H, A, K] or, without inputs, biases [heads * K] as [H, A, K]: A is
    the G queries of each key/value head, its key, its value. parts: which of "qkv" each name is."""
    heads, kv_heads, K = sizes
    counts = [heads if part == "q" else kv_heads for part in parts]
    ends = np.cumsum(counts)[:-1] // kv_heads
    return Entry(
        path,
        names,
        [(count * K, *inputs) for count in counts],
        lambda tensors: np.concatenate([x.T.reshape(*inputs, kv_heads, -1, K) for x in tensors], axis=-2),
        lambda x: [part.reshape(*inputs, -1).T for part in np.split(x, ends, axis=-2)],
    )


def out_of_heads(path: str, name: str, sizes: Sizes, width: int) -> Entry:
    """A matrix [D, heads * K] as [H, G, K, D]."""
    heads, kv_heads, K = sizes
    return Entry(
        path,
        [name],
        [(width, heads * K)],
        lambda x: x[0].T.reshape(kv_heads, -1, K, width),
        lambda x: [x.reshape(-1, width).T],
    )


def into_ffn(path: str, names: Sequence[str], parts: int, width: int, ffn: int) -> Entry:
    """The matrices into a feed-forward part, [F, D] each or all in one [parts * F, D], as [D, parts, F]; of a gated one
    the gate stands first."""
    return Entry(
        path,
        names,
        [(parts * ffn // len(names), width)] * len(names),
        lambda x: np.concatenate(x).T.reshape(width, parts, ffn),
        lambda x: np.split(x.reshape(width, parts * ffn).T, len(names)),
    )


def llama_block(path: str, name: str, c: ModelConfig) -> list[Entry]:
    """Every parameter of the layers of a Llama, Qwen2 or Qwen3 (whichever biases and norms `c` has) as `transformers`
    names them, which has the halves of rotary heads where model/ has them.

    path: of the layers, such as "layers". name: of one of them, such as "model.layers.{}". c: of a depth network, its
    `block`.
    """
    D, sizes = c.width, (c.heads, c.kv_heads, c.head_width)
    attention = f"{name}.self_attn"
    entries = [
        rmsnorm(f"{path}/attention_norm", f"{name}.input_layernorm", D),
        into_heads(f"{path}/qkv_DHAK", [f"{attention}.{x}_proj.weight" for x in "qkv"], "qkv", sizes, D),
        out_of_heads(f"{path}/out_HGKD", f"{attention}.o_proj.weight", sizes, D),
        rmsnorm(f"{path}/ffn_norm", f"{name}.post_attention_layernorm", D),
        into_ffn(f"{path}/up_DCF", [f"{name}.mlp.{x}_proj.weight" for x in ("gate", "up")], 2, D, c.ffn),
        plain(f"{path}/down_FD", f"{name}.mlp.down_proj.weight", D, c.ffn),
    ]
    if c.bias == "qkv":
        entries.append(into_heads(f"{path}/qkv_bias_HAK", [f"{attention}.{x}_proj.bias" for x in "qkv"], "qkv", sizes))
    if c.qk_norm:
        entries += [plain(f"{path}/{x}_norm_K", f"{attention}.{x}_norm.weight", c.head_width) for x in "qk"]
    return entries


def packed(table: Sequence[Entry], weights: Weights, shapes: dict) -> dict:
    """The parameters of a table as a tree. shapes: that of the model, leaves with a shape and a sharding."""
    params: dict = {}
    for row in table:
        node, like = params, shapes
        *parents, leaf = row.path.split("/")
        for part in parents:
            node, like = node.setdefault(part, {}), like[part]
        layers = range(like[leaf].shape[0]) if row.stacked else (None,)
        pairs = list(zip(row.names, row.shapes, strict=True))
        each = [row.pack([weights.take(name.format(n), shape) for name, shape in pairs]) for n in layers]
        value = np.stack(each) if row.stacked else each[0]
        # One by one, so that a large checkpoint is in memory once and not twice.
        node[leaf] = jax.device_put(value, like[leaf].sharding)
    return params


def fill(config: ModelConfig, vocab: Vocab, table: Sequence[Entry], weights: Weights) -> Transformer:
    """The Transformer that the tensors of a file make; `weights` collects what is wrong with them."""
    mesh = sharding.single_device_mesh()
    with jax.set_mesh(mesh):
        graph, abstract = nnx.split(checkpoints.abstract_model(config, vocab))
        return nnx.merge(graph, packed(table, weights, sharding.on_mesh(nnx.to_pure_dict(abstract), mesh)))


def tensors_of(model: Transformer, table: Sequence[Entry]) -> dict[str, np.ndarray]:
    """The parameters under their published names, float32."""
    params, tensors = checkpoints.params_of(model), {}
    for row in table:
        value = params
        for part in row.path.split("/"):
            value = value[part]
        value = np.asarray(value, np.float32)
        for n, x in enumerate(value) if row.stacked else [(0, value)]:
            for name, tensor in zip(row.names, row.unpack(x), strict=True):
                tensors[name.format(n)] = np.ascontiguousarray(tensor)
    return tensors
