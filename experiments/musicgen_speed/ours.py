"""The decoder of this package, as `sampling/causal.py` runs it: what `bench.py` measures."""

import re
import time
from pathlib import Path

import jax
import numpy as np

from audiolm_jax import serialization
from audiolm_jax.families import musicgen, table
from audiolm_jax.hub.weights import Weights
from audiolm_jax.model import sharding
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig, causal, performance
from audiolm_jax.sampling.requests import Request, place, steps_of
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.vocab import Vocab

GRID_DELAYS = SerializationConfig(strategy="delay")


def make(sizes: dict, tensors: dict[str, np.ndarray], frames: int, dtype: str) -> tuple[Transformer, Vocab]:
    """The model with the reference's weights, in the form that decoding takes."""
    config = ModelConfig(
        layers=sizes["num_hidden_layers"],
        width=sizes["hidden_size"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_attention_heads"],
        head_width=sizes["hidden_size"] // sizes["num_attention_heads"],
        ffn=sizes["ffn_dim"],
        norm="layernorm",
        norm_eps=1e-5,
        mlp="exact",
        positions="sinusoidal",
        cross_width=sizes["hidden_size"],  # states as the blocks read them: their projection is no part of a step
        dtype=dtype,
    )
    vocab = Vocab(sizes["num_codebooks"], sizes["vocab_size"], frames, sizes["num_codebooks"])
    weights = Weights(Path("random"), tensors, "reference")
    weights.ignore("embed_positions")
    model = table.fill(config, vocab, musicgen.table(config, vocab), weights)
    weights.finish()
    return performance.for_decoding(model, sharding.single_device_mesh(), vocab), vocab


class Decoder:
    """Rows that stand at a position, and the compiled chunk of steps from there on. A mesh is entered.

    states: of each row [E, D]. block: keys and values [slots, H, K] that every layer and row has after the position of
    the prompt. options: further ones of the compiler.
    """

    def __init__(self, model: Transformer, vocab: Vocab, states, block, rows, guidance, steps, options):
        self.model, self.vocab, self.steps = model, vocab, steps
        self.grid = serialization.bind(GRID_DELAYS, vocab.codebooks, "bare")
        sampling = SamplingConfig(top_k=(250,), guidance=guidance, chunk=steps)
        nothing = np.zeros((0, vocab.codebooks), np.int32)
        requests = [Request((), nothing, vocab.max_frames, seed, sampling, states[seed]) for seed in range(rows)]
        self.fixed, state = causal.start(model, self.grid, vocab, requests)
        made = len(block[0])
        # The size of the cache at that position of a piece of `max_frames`, in chunks as by default.
        chunk = SamplingConfig().chunk
        sizes = causal.cache_sizes(int(steps_of(vocab.max_frames, self.grid)), chunk)
        self.slots = sizes[(made + steps - 1) // chunk]
        codes_BFQ = np.array(state.codes_BFQ)
        codes_BFQ[:, :made] = np.random.default_rng(0).integers(0, vocab.codebook_size, codes_BFQ[:, :made].shape)
        t, q = np.arange(codes_BFQ.shape[1])[:, None], np.arange(vocab.codebooks)
        codes_BFQ = np.where(self.grid.order(t, q, vocab.max_frames) < made, codes_BFQ, -1)
        slot, step_B, codes_BFQ = place((np.int32(made), np.full(rows, made, np.int32), codes_BFQ))
        self.state = state._replace(slot=slot, step_B=step_B, codes_BFQ=codes_BFQ)
        # The cache: as `init_cache` lays it out, filled.
        empty = jax.eval_shape(lambda: model.init_cache(len(self.fixed.length_M), self.slots))[0]["k"]
        filled = [np.zeros(empty.shape, empty.dtype) for _ in block]
        for array, new in zip(filled, block, strict=True):
            array[:, :, :made] = new.swapaxes(0, 1)
        self.cache = tuple(
            {name: jax.device_put(array, empty.sharding.spec, may_alias=False) for name, array in zip("kv", filled)}
            for _ in range(model.config.layers)
        )
        began = time.perf_counter()
        lowered = causal.chunk_program().lower(model, self.grid, vocab, steps, self.fixed, self.state, self.cache)
        self.compiled = lowered.compile(compiler_options=options or None)
        self.compile_seconds = time.perf_counter() - began
        self.made = made

    def run(self) -> causal.State:
        """The chunk, always from the same position."""
        state, self.cache = self.compiled(self.model, self.fixed, self.state, self.cache)
        return jax.block_until_ready(state)

    def follow(self) -> tuple[np.ndarray, np.ndarray]:
        """(codes [B, N, Q] that the chunk drew, logits [M, Q, V] after them)."""
        state = self.run()
        codes_BFQ = np.asarray(state.codes_BFQ)
        step, q = np.arange(self.made, self.made + self.steps)[:, None], np.arange(self.vocab.codebooks)
        first = self.vocab.code_start
        logits_MV = jax.jit(lambda model, x: model.logits(x))(self.model, state.hidden_MD)
        count, size = self.vocab.codebooks, self.vocab.codebook_size
        logits_MQK = np.asarray(logits_MV)[:, first : first + count * size].reshape(-1, count, size)
        return codes_BFQ[:, step - q, q], logits_MQK

    def weight_bytes(self) -> int:
        """Of what a step reads of the model: all but the embedding (some rows), and what depends on states alone."""
        blocks = jax.tree.leaves_with_path(self.model.layers)
        read = [x.nbytes for path, x in blocks if "kv_" not in jax.tree_util.keystr(path)]
        output = self.model.output_DV()
        codes = self.vocab.codebooks * self.vocab.codebook_size
        return sum(read) + output.nbytes * codes // output.shape[1]

    def cache_bytes(self) -> int:
        """Of the keys and values that a step in the middle of the chunk has to read: filled ones, and the states'."""
        c, prompt = self.model.config, self.fixed.prompt_cache[0]
        rows, _, states, _ = prompt["cross_k"].shape
        positions = 1 + self.made + self.steps // 2 + states
        return 2 * c.layers * rows * positions * c.kv_heads * c.head_width * prompt["k"].dtype.itemsize


def cache_copies(decoder: Decoder) -> int:
    """Copies of something of the shape of a cache in the compiled program; there should be none."""
    _, heads, slots, width = decoder.cache[0]["k"].shape
    text = decoder.compiled.as_text()
    return len(re.findall(rf"= \w+\[{len(decoder.fixed.length_M)},{heads},{slots},{width}\]\S* copy\(", text))


def kernels(decoder: Decoder) -> int:
    """Fusions and calls of libraries in the compiled program, nearly all of them in the loop: on a GPU each is started
    in every step."""
    text = decoder.compiled.as_text()
    return text.count(" fusion(") + text.count(" custom-call(")


def piece(model: Transformer, vocab: Vocab, rows: int, guidance: float, frames: int, chunk: int):
    """A function that makes pieces of `frames` frames, as codes."""
    grid = serialization.bind(GRID_DELAYS, vocab.codebooks, "bare")
    sampling = SamplingConfig(top_k=(250,), guidance=guidance, chunk=chunk)
    states = np.random.default_rng(1).standard_normal((64, model.config.width)).astype(np.float32)
    nothing = np.zeros((0, vocab.codebooks), np.int32)
    requests = [Request((), nothing, frames, seed, sampling, states) for seed in range(rows)]

    def run() -> None:
        for _fixed, state in causal.generate(model, grid, vocab, requests):
            jax.block_until_ready(state)

    return run
