"""The transformer, a function of tokens, positions and visibility, for every serialization strategy.

Axes: B batch, L positions, S streams, V vocabulary, D model width, H key/value heads, G query heads per
key/value head, K head width, F feed-forward width, N layers, P prompt positions, E states of an encoder. Pre-norm
blocks, one embedding table whose rows are summed over the streams of a position, one output matrix. `ModelConfig`
chooses the positions (rotary or others), biases and cross-attention to an encoder's states; layers.py has the block.

- Training: `Transformer.__call__`, layers stacked on a leading axis and scanned.
- Decoding: `unstack` once, then `prefill` and `step`. The keys and values of the prompt (rows of any length)
  and of the encoder's states are computed once and only read; those of generated positions are in a second cache
  whose slot index all rows share, a leaf per layer, read first and written last.

A mesh must be entered (`jax.set_mesh`), also on one device; see `sharding.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.model import attention, layers, sharding, versions
from audiolm_jax.model.config import ModelConfig, table_rows
from audiolm_jax.model.layers import Block, Encoded, Norm, normal, product, row_axes, stacked
from audiolm_jax.model.sharding import PRESETS, Rules, gather
from audiolm_jax.serialization.vocab import Vocab

# Per layer {"k": [B, H, slots, K], "v": same}, keys already rotated; that of a prompt may hold "cross_k" and "cross_v".
Cache = tuple[dict[str, jax.Array], ...]


class Transformer(nnx.Module):
    """Tokens of any number of streams -> hidden states -> logits over the unified vocabulary.

    The rows of the table beyond `vocab_size` (to a multiple of 128) are padding, so that a mesh divides them.
    """

    STACKS = ("layers",)  # attributes that are stacks of blocks, each weight with a leading axis of layers
    depth = None  # the network of depth.py, if it predicts the streams after the first (`language_model`)

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        rngs: nnx.Rngs | None,
        rules: Rules = PRESETS["data"],
        outputs: int | None = None,
    ):
        """rngs: as in `layers.normal`. outputs: the ids that are predicted, from 0 up (None: all)."""
        self.config, self.rules, self.outputs = config, rules, outputs or vocab_size
        rows = table_rows(vocab_size)
        self.embedding_VD = normal(rngs, (rows, config.width), (None, "embed"), rules, config.width**-0.5)
        self.layers = stacked(lambda rngs: Block(config, rules, rngs), config.layers, rngs)
        self.norm = Norm(config)
        if not config.tied:
            shape = (config.width, table_rows(self.outputs))
            self.unembedding_DV = normal(rngs, shape, ("embed", "vocab"), rules, 0.5 * config.width**-0.5)
        if config.positions == "learned":
            shape = (config.max_positions, config.width)
            self.positions_PD = normal(rngs, shape, (None, "embed"), rules, config.width**-0.5)
        if config.text_rows:
            self.text = layers.TextTable(config, rules, rngs)
        if config.cross_width:
            layers.add_projection(self, "states", config.cross_width, rngs)
        for n, width in enumerate(config.state_widths):
            layers.add_projection(self, f"states{n}", width, rngs)

    def embed(self, tokens: jax.Array, states_BLW: jax.Array | None = None) -> jax.Array:
        """Rows of tokens `[B, ..., S]`, summed over streams -> `[B, ..., D]`; id 0 (PAD) is zero.

        With model.text_rows one more token follows those of the streams, of the text beside them (`layers.TextTable`).
        states: of encoders, at positions of their own (`layers.with_states`); zeros elsewhere.
        """
        tokens, text = (tokens[..., :-1], tokens[..., -1]) if self.config.text_rows else (tokens, None)
        tokens = jax.sharding.reshard(tokens, self.rules.spec(*row_axes(tokens.ndim - 1), None))
        table_VD = gather(self.embedding_VD[...], (None, "embed"), self.rules)
        spec = self.rules.spec(*row_axes(tokens.ndim - 1), None, None)
        rows = table_VD.at[tokens].get(out_sharding=spec, mode="clip")
        summed = jnp.sum(jnp.where((tokens > 0)[..., None], rows, 0), axis=-2)
        summed = summed if text is None else summed + self.text(text)
        summed = summed if states_BLW is None else layers.with_states(summed, states_BLW, self)
        return summed.astype(self.config.compute_dtype)

    def rows(self, x: jax.Array | None) -> jax.Array | None:
        """An input `[B]` or `[B, L]` resharded by `rules`."""
        return None if x is None else jax.sharding.reshard(x, self.rules.spec(*row_axes(jnp.ndim(x))))

    def add_positions(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """x `[B, ..., D]` at positions `[B, ...]` -> (x plus its position embedding, rotary tables or None)."""
        c, positions = self.config, self.rows(positions)
        if c.positions == "rotary":
            return x, attention.rope_table(positions, c.head_width, c.rope_base, c.rope_scaling)
        if c.positions == "sinusoidal":
            return x + layers.sinusoids(positions, c.width).astype(x.dtype), None
        table_PD = gather(self.positions_PD[...], (None, "embed"), self.rules)
        return x + table_PD.at[positions].get(out_sharding=jax.typeof(x).sharding, mode="clip").astype(x.dtype), None

    def encoder_rows(self, x: jax.Array) -> jax.Array:
        """States of an encoder, or which of them are valid, sharded over the batch axis alone."""
        return jax.sharding.reshard(x, self.rules.spec("batch", *(None,) * (jnp.ndim(x) - 1)))

    def project(self, encoded: Encoded | None) -> Encoded | None:
        """States of an encoder projected to the width of the model, in the compute dtype, not sharded over E."""
        if encoded is None:
            return None
        states, valid_BE = map(self.encoder_rows, encoded)
        return layers.projected(states.astype(self.config.compute_dtype), self, "states", ("batch", None)), valid_BE

    def __call__(
        self,
        tokens_BLS: jax.Array,
        positions_BL: jax.Array,
        segments_BL: jax.Array,
        ahead_BL: jax.Array | None = None,
        key: jax.Array | None = None,
        encoded: Encoded | None = None,
        states_BLW: jax.Array | None = None,
    ) -> jax.Array:
        """hidden_BLD after the last norm, in the compute dtype.

        positions: inside the document. segments: number of the packed document, 0 for padding. ahead: number of later
        positions that a query also sees (None or 0: causal). key: of dropout; None: no dropout. encoded: states for the
        cross-attention (model.cross_width). states: as in `embed`.
        """
        x_BLD, rope = self.add_positions(self.embed(tokens_BLS, states_BLW), positions_BL)
        encoded = self.project(encoded)
        sight = attention.sight(self.rows(segments_BL), self.rows(ahead_BL), self.config.window)
        keys_N = None if key is None or self.config.dropout == 0 else jax.random.split(key, self.config.layers)

        def layer(x_BLD: jax.Array, block_and_key: tuple) -> tuple[jax.Array, None]:
            block, key = block_and_key
            return block(x_BLD, rope, sight, key, encoded), None

        stacked = isinstance(self.layers, Block)
        if self.config.remat:
            layer = jax.checkpoint(layer, prevent_cse=not stacked)
        elif self.rules.embed is not None:
            # The backward pass gathers the weights again: saved, they would take the memory of the whole model.
            layer = jax.checkpoint(layer, policy=sharding.save_all_but_gathers, prevent_cse=not stacked)
        if stacked:
            x_BLD, _ = jax.lax.scan(layer, x_BLD, (self.layers, keys_N))
        else:
            for n, block in enumerate(self.layers):
                x_BLD, _ = layer(x_BLD, (block, None if keys_N is None else keys_N[n]))
        return self.norm(x_BLD)

    def output_DV(self) -> jax.Array:
        """The output matrix as stored, float32, with its padding columns."""
        return self.embedding_VD[...].T if self.config.tied else self.unembedding_DV[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden `[B, ..., D]` -> logits `[B, ..., outputs]` float32, not sharded over the vocabulary."""
        rows = ("batch", *(None,) * (hidden.ndim - 2))
        weight_DV = gather(self.output_DV(), ("embed", "vocab"), self.rules, hidden.dtype)
        spec = self.rules.spec(*rows, "vocab")
        logits = product("...D,DV->...V", hidden, weight_DV, spec, jnp.dtype("float32"))
        # The logits are gathered, which are few, not the output matrix in every step.
        return jax.sharding.reshard(logits, self.rules.spec(*rows, None))[..., : self.outputs]

    def _blocks(self) -> list[Block]:
        """One Block per layer. Slicing stacked weights inside a decode loop copies all of them: `unstack` first."""
        return _unstacked(self.layers) if isinstance(self.layers, Block) else list(self.layers)

    def prefill(
        self,
        tokens_BPS: jax.Array,
        positions_BP: jax.Array,
        segments_BP: jax.Array,
        ahead_BP: jax.Array | None = None,
        encoded: Encoded | None = None,
        states_BPW: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The prompt in one pass -> (hidden_BPD, prompt cache with the keys and values of `encoded`, only read later).

        Rows are left aligned and of any length: segments 1 where a row has a token, 0 after its end.
        """
        x_BPD, rope = self.add_positions(self.embed(tokens_BPS, states_BPW), positions_BP)
        encoded = self.project(encoded)
        sight = attention.sight(self.rows(segments_BP), self.rows(ahead_BP), self.config.window)
        cache = []
        for block in self._blocks():
            q, k, v = block.qkv(x_BPD, rope)
            states = {} if encoded is None else block.cross.keys_values(encoded[0])
            cross = None if encoded is None else (states, encoded[1])
            x_BPD = block.finish(x_BPD, attention.attend(q, k, v, sight), cross=cross)
            entries = {"k": k.swapaxes(1, 2), "v": v.swapaxes(1, 2), **states}
            cache.append({name: x.astype(self.config.cache_dtype) for name, x in entries.items()})
        return self.norm(x_BPD), tuple(cache)

    def init_cache(self, batch: int, slots: int) -> Cache:
        """An empty cache for `slots` generated positions; with a window, for the last `slots` of any number."""
        c = self.config
        spec = self.rules.spec("batch", "heads", None, None)

        def zeros() -> jax.Array:
            return jnp.zeros((batch, c.kv_heads, slots, c.head_width), c.cache_dtype, out_sharding=spec)

        return tuple({"k": zeros(), "v": zeros()} for _ in range(c.layers))

    def step(
        self,
        tokens_BS: jax.Array,
        positions_B: jax.Array,
        i: jax.Array,
        prompt_cache: Cache,
        prompt_valid_BP: jax.Array,
        cache: Cache,
        encoded_valid_BE: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """One more position for every row -> (hidden_BD, cache with its slot written).

        i: int32, positions generated before, in all rows; its slot is `i`, with a window `i` modulo the number of slots
        (`attention.step_sight`). prompt_valid: True where a row's prompt has a token.
        encoded_valid: which states of `prefill`'s `encoded` are valid. Donate the cache, carry it through
        `lax.scan`/`fori_loop` with a static trip count, and compile with `sampling.performance.compiler_options()`.
        """
        x_BD, rope = self.add_positions(self.embed(tokens_BS), positions_B)
        prompt_valid_BP = self.rows(prompt_valid_BP)
        encoded_valid_BE = None if encoded_valid_BE is None else self.encoder_rows(encoded_valid_BE)
        window, written = self.config.window, []
        slot = i % cache[0]["k"].shape[2] if window else i
        for block, prompt, old in zip(self._blocks(), prompt_cache, cache, strict=True):
            q, k, v = block.qkv(x_BD, rope)
            heads = attention.attend_step(q, k, v, prompt, prompt_valid_BP, old, i, window)
            x_BD = block.finish(x_BD, heads, cross=None if encoded_valid_BE is None else (prompt, encoded_valid_BE))
            new = {name: x[:, :, None].astype(old[name].dtype) for name, x in (("k", k), ("v", v))}
            written.append({x: jax.lax.dynamic_update_slice_in_dim(old[x], new[x], slot, axis=2) for x in new})
        return self.norm(x_BD), tuple(written)


def language_model(
    config: ModelConfig, vocab: Vocab, rngs: nnx.Rngs | None, rules: Rules = PRESETS["data"]
) -> Transformer:
    """The transformer of a vocabulary, with a depth network if `config.depth` describes one: its output matrix then
    ends after the ids that the first stream predicts. rngs: as in `layers.normal`."""
    if config.depth is None:
        return Transformer(config, vocab.size, rngs, rules)
    from audiolm_jax.model.depth import Depth  # late: most models have none

    model = Transformer(config, vocab.size, rngs, rules, outputs=vocab.first.size)
    model.depth = Depth(config, vocab, rngs, rules)
    return model


def unstack(model: Transformer) -> Transformer:
    """The same model with one Block per layer instead of stacked weights, for decode loops."""
    if not isinstance(model.layers, Block):
        return model
    unstacked = nnx.clone(model)
    for stack in model.STACKS:
        setattr(unstacked, stack, versions.List(_unstacked(getattr(model, stack))))
    if model.depth is not None:
        unstacked.depth = model.depth.unstacked()
    return unstacked


def _unstacked(stack: nnx.Module) -> list[nnx.Module]:
    return [jax.tree.map(lambda x, n=n: x[n], stack) for n in range(len(jax.tree.leaves(stack)[0]))]
