"""The depth network: the codes of a position one after the other, given the transformer's state there.

The transformer predicts the first stream of a position, this network the others, its C cells: cell c is stream c + 1,
and is given the tokens of all streams before it. `DepthConfig` chooses among the networks in use:

    add     C positions; c reads project_c(state) + embedding(token of stream c)              Moshi (arXiv 2410.00037)
    prefix  1 + C positions; 0 reads project(state), 1 + c the embedding, which is projected   CSM, Qwen3-TTS
            too if it is the transformer's

It knows the streams of one position, no order and no time: its rows are frames of whichever documents. `logprobs`
scores them, `draw` makes them. A set of matrices per codebook is a leading axis of every matrix of a layer; norms are
shared.

Axes: N frames, C cells, n its positions (C or 1 + C), d its width, D that of the transformer, R rows of its own table,
W sets of matrices, K codes of the largest codebook, M rows of the model. Others as in `transformer.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model import attention, versions
from audiolm_jax.model.config import DepthConfig, ModelConfig, Rules
from audiolm_jax.model.layers import Block, Norm, bias, biased, normal, product, stacked
from audiolm_jax.model.sharding import PRESETS, gather
from audiolm_jax.serialization.vocab import Vocab

# Largest number of float32 activations in memory at once, per device.
CHUNK_VALUES = 1 << 26

# (cell, its logits [M, K], what was drawn so far) -> (tokens [M] of the cell, what was drawn so far)
Pick = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]


class Depth(nnx.Module):
    """The network of `config.depth` beside the transformer of `config`."""

    def __init__(self, config: ModelConfig, vocab: Vocab, rngs: nnx.Rngs | None, rules: Rules = PRESETS["data"]):
        c, D, cells = config.depth, config.width, vocab.codebooks - 1
        if c.schedule and len(c.schedule) != cells:
            raise InputError(
                f"depth.schedule={c.schedule} must have {cells} numbers, one for each codebook but the first"
            )
        self.config, self.transformer, self.rules, self.cells = c, config, rules, cells
        self.ids = range(vocab.code_start, int(vocab.code_offsets[-1]))  # that a cell can be given
        if c.projection != "none":
            sets = cells if c.projection == "per_codebook" else 1
            self.project_PDd = normal(rngs, (sets, D, c.width), (None, None, "embed"), rules, D**-0.5)
            if c.projection_bias:
                self.project_bias_d = bias((c.width,), (None,), rules)
        if c.embeddings == "own":
            self.embedding_Rd = normal(rngs, (len(self.ids), c.width), (None, "embed"), rules, c.width**-0.5)
        if c.positions == "learned":
            self.positions_nd = normal(rngs, (self.positions, c.width), (None, None), rules, c.width**-0.5)
        self.layers = _layers(c, self.sets, rngs, rules)
        if c.final_norm:
            self.norm = Norm(c)
        shape = (cells, c.width, vocab.largest_codebook)
        self.output_CdK = normal(rngs, shape, (None, "embed", None), rules, 0.5 * c.width**-0.5)

    @property
    def positions(self) -> int:
        """n"""
        return self.cells + (self.config.join == "prefix")

    @property
    def dtype(self) -> jnp.dtype:
        return self.transformer.compute_dtype

    @property
    def sets(self) -> tuple[int, ...]:
        """The set of matrices of each cell; () if all share one."""
        if self.config.weights == "shared":
            return ()
        return self.config.schedule or tuple(range(self.cells))

    def __call__(self, state_ND: jax.Array, tokens_NC: jax.Array, table_VD: jax.Array | None = None) -> jax.Array:
        """Frames with all their tokens -> states_NCd of the cells, after the last norm.

        tokens: of the streams before each cell, as in the next position's input. table: the transformer's embedding, if
        `config.embeddings` says so.
        """
        x_Nnd = self._inputs(state_ND, tokens_NC, table_VD)
        index_n = jnp.arange(self.positions, dtype=jnp.int32)
        rope, visible_1nn = self._rope(index_n), (index_n[:, None] >= index_n)[None]
        sets = np.array(self.sets, np.int32)

        def layer(x_Nnd: jax.Array, block: Block) -> tuple[jax.Array, None]:
            if not self.sets:
                q, k, v = block.qkv(x_Nnd, rope)
                return block.finish(x_Nnd, attention.dense(q, k, v, visible_1nn)), None
            matrices, with_matrices = _matrices(block)
            matrices = [w[sets] for w in matrices]
            each = functools.partial(jax.vmap, in_axes=(0, 1, 0), out_axes=1)
            q, k, v = each(lambda ws, x_Nd, rope: with_matrices(ws).qkv(x_Nd, rope))(matrices, x_Nnd, rope)
            heads = attention.dense(q, k, v, visible_1nn)
            finish = jax.vmap(lambda ws, x, h: with_matrices(ws).finish(x, h), in_axes=(0, 1, 1), out_axes=1)
            return finish(matrices, x_Nnd, heads), None

        x_Nnd, _ = jax.lax.scan(layer, x_Nnd, self.layers)
        return self._normed(x_Nnd[:, -self.cells :])

    def _inputs(self, state_ND: jax.Array, tokens_NC: jax.Array, table_VD: jax.Array | None) -> jax.Array:
        embedded_NCd = self.embed(tokens_NC, table_VD)
        if self.config.join == "prefix":
            x_Nnd = jnp.concatenate([self.project(state_ND)[:, None], embedded_NCd], axis=1)
        elif self.config.projection == "per_codebook":
            x_Nnd = jnp.stack([self.project(state_ND, c) for c in range(self.cells)], axis=1) + embedded_NCd
        else:
            x_Nnd = self.project(state_ND)[:, None] + embedded_NCd
        return x_Nnd + self._learned(slice(None)).astype(x_Nnd.dtype)

    def embed(self, tokens: jax.Array, table_VD: jax.Array | None = None) -> jax.Array:
        """Tokens `[M, ...]` -> `[M, ..., d]`, zero for what is no code that a cell can be given."""
        own, spec = self.config.embeddings == "own", self.rules.spec("batch", *(None,) * tokens.ndim)
        tokens = jax.sharding.reshard(tokens, P(*spec[:-1]))
        table = gather(self.embedding_Rd[...] if own else table_VD, (None, "embed"), self.rules)
        row = tokens - self.ids.start
        rows = table.at[row if own else tokens].get(out_sharding=spec, mode="clip").astype(self.dtype)
        rows = jnp.where(((row >= 0) & (row < len(self.ids)))[..., None], rows, 0)
        return rows if own else self.project(rows)

    def project(self, x: jax.Array, c: Any = 0) -> jax.Array:
        """Vectors `[M, ..., D]` -> `[M, ..., d]`, by the matrix of cell c if there is one for each."""
        spec = self.rules.spec("batch", *(None,) * (x.ndim - 1))
        x = jax.sharding.reshard(x.astype(self.dtype), spec)
        if self.config.projection == "none":
            return x
        weight_Dd = gather(self.project_PDd[c], (None, "embed"), self.rules, x.dtype)
        return biased(product("...D,Dd->...d", x, weight_Dd, spec), self, "project_bias_d")

    def _learned(self, at: Any) -> jax.Array:
        """Learned positions `[..., d]`, or 0."""
        return self.positions_nd[at] if self.config.positions == "learned" else jnp.zeros(())

    def _rope(self, index: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        c = self.config
        return (
            attention.rope_table(index, c.head_width, c.rope_base, c.rope_scaling) if c.positions == "rotary" else None
        )

    def _normed(self, x: jax.Array) -> jax.Array:
        return self.norm(x) if self.config.final_norm else x

    def logits(self, state_NCd: jax.Array) -> jax.Array:
        """States of all cells -> float32 logits `[N, C, K]`."""
        weight_CdK = gather(self.output_CdK[...], (None, "embed", None), self.rules, state_NCd.dtype)
        spec = self.rules.spec("batch", None, None)
        return product("NCd,CdK->NCK", state_NCd, weight_CdK, spec, jnp.dtype("float32"))

    def draw(
        self, state_MD: jax.Array, token_M: jax.Array, cells: jax.Array, pick: Pick, drawn: Any, table_VD: Any = None
    ) -> Any:
        """The first `cells` (int32, traced) cells of a position, one after the other -> `drawn` as `pick` leaves it.

        token: of the first stream. No pass is made for cells that nobody needs. `unstacked` first.
        """
        prefix, each = self.config.join == "prefix", self.config.projection == "per_codebook"
        once_Md = None if each else self.project(state_MD)

        def cell(c: Any, carry: tuple) -> tuple:
            cache, token_M, drawn = carry
            at = c + prefix
            x_Mpd = self.embed(token_M[:, None], table_VD) + self._learned(at).astype(self.dtype)
            if not prefix:
                x_Mpd += (self.project(state_MD, c) if each else once_Md)[:, None]
            elif isinstance(c, int) and c == 0:  # both positions in one pass
                x_Mpd = jnp.concatenate([(once_Md + self._learned(0).astype(self.dtype))[:, None], x_Mpd], axis=1)
                at = 0
            y_Mpd, cache = self._pass(x_Mpd, at, c, cache)
            weight_dK = gather(self.output_CdK[c], ("embed", None), self.rules, self.dtype)
            spec = self.rules.spec("batch", None)
            logits_MK = product("...d,dK->...K", y_Mpd[:, -1], weight_dK, spec, jnp.dtype("float32"))
            return cache, *pick(c, logits_MK, drawn)

        def one_after_the_other(drawn: Any) -> Any:
            carry = cell(0, (self._empty(len(state_MD)), token_M, drawn))
            if not self.sets:
                return jax.lax.fori_loop(1, cells, cell, carry)[2]
            for c in range(1, self.cells):
                carry = jax.lax.cond(c < cells, functools.partial(cell, c), lambda carry: carry, carry)
            return carry[2]

        return jax.lax.cond(cells > 0, one_after_the_other, lambda drawn: drawn, drawn)

    def _empty(self, rows: int) -> list[dict[str, jax.Array]]:
        """Keys and values of one position of the sequence, per layer [M, n, H, K]."""
        c, spec = self.config, self.rules.spec("batch", None, "heads", None)
        shape = (rows, self.positions, c.kv_heads, c.head_width)
        return [{name: jnp.zeros(shape, self.dtype, out_sharding=spec) for name in "kv"} for _ in range(c.layers)]

    def _pass(self, x_Mpd: jax.Array, at: Any, c: Any, cache: list) -> tuple[jax.Array, list]:
        """p positions from `at` on, by the matrices of cell c."""
        index_p = at + jnp.arange(x_Mpd.shape[1], dtype=jnp.int32)
        rope = self._rope(index_p)
        visible_1pn = (index_p[:, None] >= jnp.arange(self.positions, dtype=jnp.int32))[None]
        written = []
        for blocks, old in zip(self.layers, cache, strict=True):
            block = blocks[self.sets[c]] if self.sets else blocks
            q, *new = block.qkv(x_Mpd, rope)
            new = dict(zip("kv", new, strict=True))
            new = {x: jax.lax.dynamic_update_slice_in_dim(old[x], new[x].astype(old[x].dtype), at, 1) for x in "kv"}
            x_Mpd = block.finish(x_Mpd, attention.dense(q, new["k"], new["v"], visible_1pn))
            written.append(new)
        return self._normed(x_Mpd), written

    def unstacked(self) -> "Depth":
        """The same network with one Block per layer, or per layer and set of matrices, for `draw`."""
        if not isinstance(self.layers, Block):
            return self
        network = nnx.clone(self)
        layers = [jax.tree.map(lambda x, n=n: x[n], self.layers) for n in range(self.config.layers)]
        if self.sets:
            layers = [versions.List(_of_set(block, n) for n in range(max(self.sets) + 1)) for block in layers]
        network.layers = versions.List(layers)
        return network

    def with_rules(self, rules: Rules) -> "Depth":
        """A shallow copy with other sharding rules, here and in its layers."""
        network = jax.tree.map(lambda x: x, self)
        parts = jax.tree.leaves(network.layers, is_leaf=lambda part: isinstance(part, Block))
        for part in (network, *parts):
            part.rules = rules
        return network


def _layers(config: DepthConfig, sets: tuple[int, ...], rngs: nnx.Rngs | None, rules: Rules) -> Block:
    """Stacked blocks; with sets of matrices these have one more leading axis, W."""

    def block(rngs: nnx.Rngs | None) -> Block:
        return Block(config.block, rules, rngs)

    if not sets:
        return stacked(block, config.layers, rngs)
    stack = stacked(lambda rngs: stacked(block, max(sets) + 1, rngs), config.layers, rngs)
    return jax.tree_util.tree_map_with_path(lambda path, x: x[:, 0] if _is_norm(path) else x, stack)


def _is_norm(path: Any) -> bool:
    return "norm" in jax.tree_util.keystr(path)


def _of_set(block: Block, n: int) -> Block:
    return jax.tree_util.tree_map_with_path(lambda path, x: x if _is_norm(path) else x[n], block)


def _matrices(block: Block) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Block]]:
    """The matrices of a block with an axis of sets, and the block with others in their place."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(block)
    places = [n for n, (path, _) in enumerate(leaves) if not _is_norm(path)]

    def rebuilt(matrices: list[jax.Array]) -> Block:
        values = [x for _, x in leaves]
        for n, x in zip(places, matrices, strict=True):
            values[n] = x
        return jax.tree.unflatten(tree, values)

    return [leaves[n][1] for n in places], rebuilt


def logprobs(
    network: Depth,
    table_VD: jax.Array,
    hidden_BLD: jax.Array,
    targets_BLS: jax.Array,
    heads_BLS: jax.Array,
    vocab: Vocab,
) -> dict[str, jax.Array]:
    """log p of the targets of every stream but the first, in nats, float32: {"logprob_BLS", "lse_BLS"}, S = C.

    0 where the head is 0. Frames are computed in pieces, which the backward pass computes again. table: the
    transformer's embedding.
    """
    rules = network.rules
    own = rules.for_decoding()
    inside = Rules(heads=own.heads, ffn=own.ffn)
    kept = {axis for logical in ("heads", "ffn") for axis in own.axes(logical)}

    def whole(x: jax.Array) -> jax.Array:  # gathered once, not in every piece
        return jax.sharding.reshard(x, P(*(axis if axis in kept else None for axis in jax.typeof(x).sharding.spec)))

    weights = jax.tree.map(whole, network).with_rules(inside)
    table_VD = None if network.config.embeddings == "own" else whole(table_VD)
    stream = rules.spec("batch", "length", None)
    args = [jax.sharding.reshard(x, stream) for x in (hidden_BLD, targets_BLS, heads_BLS)]
    mapped = {*rules.axes("batch"), *rules.axes("length")}
    compute = functools.partial(_in_pieces, vocab=vocab)
    if mapped:
        compute = jax.shard_map(
            compute, in_specs=(P(), P(), stream, stream, stream), out_specs=stream, axis_names=mapped
        )
    return compute(weights, table_VD, *args)


def _in_pieces(network: Depth, table_VD, hidden_BLD, targets_BLS, heads_BLS, vocab: Vocab) -> dict[str, jax.Array]:
    """`_frames` of this device's rows, some frames at a time."""
    rows, length, c = *hidden_BLD.shape[:2], network.config
    each = network.positions * (vocab.largest_codebook + c.layers * (6 * c.width + 3 * c.ffn))
    count = -(-rows * length // max(1, CHUNK_VALUES // each))
    size = -(-rows * length // count)

    def pieces(x_BLX: jax.Array) -> jax.Array:
        x_NX = x_BLX.reshape(rows * length, x_BLX.shape[-1])
        return jnp.pad(x_NX, ((0, count * size - len(x_NX)), (0, 0))).reshape(count, size, -1)

    compute = jax.checkpoint(lambda xs: _frames(network, table_VD, *xs, vocab), prevent_cse=count == 1)
    args = tuple(map(pieces, (hidden_BLD, targets_BLS, heads_BLS)))
    out = jax.lax.map(compute, args) if count > 1 else jax.tree.map(lambda x: x[None], compute([x[0] for x in args]))
    return jax.tree.map(lambda x: x.reshape(count * size, -1)[: rows * length].reshape(rows, length, -1), out)


def _frames(network: Depth, table_VD, hidden_ND, targets_NS, heads_NS, vocab: Vocab) -> dict[str, jax.Array]:
    logits_NCK = network.logits(network(hidden_ND, targets_NS[:, :-1], table_VD))
    code_K = jnp.arange(vocab.largest_codebook, dtype=jnp.int32)
    not_end_NCK = (heads_NS[:, 1:, None] == vocab.head_not_end) & (code_K == 0)
    logits_NCK = jnp.where(vocab.legal_QK[1:] & ~not_end_NCK, logits_NCK, -jnp.inf)
    lse_NC = jax.nn.logsumexp(logits_NCK, axis=-1)
    codes_NC = targets_NS[:, 1:] - vocab.code_offsets[1:]
    hit_NCK = codes_NC[..., None] == code_K
    target_NC = jnp.sum(jnp.where(hit_NCK, logits_NCK, 0), axis=-1)
    predicted_NC = heads_NS[:, 1:] > 0
    return {
        "logprob_BLS": jnp.where(predicted_NC, target_NC - lse_NC, 0),
        "lse_BLS": jnp.where(predicted_NC, lse_NC, 0),
    }
