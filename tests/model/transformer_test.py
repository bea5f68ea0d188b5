import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.model import losses, sharding, transformer
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import performance
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers.compiling import AS_USERS

TINY = ModelConfig(layers=2, width=16, heads=4, kv_heads=2, head_width=8, ffn=24)
OTHER = dataclasses.replace(TINY, kv_heads=4, norm="layernorm", mlp="plain")
WINDOW = dataclasses.replace(
    TINY, layers=1, window=3, qk_norm=True, bias="qkv", rope_scaling=(4.0, 1.0, 4.0, 16.0), attention_scale=0.5
)
V = 100


def make(config: ModelConfig = TINY, vocab_size: int = V, rules=sharding.PRESETS["data"]) -> Transformer:
    return jax.jit(lambda key: Transformer(config, vocab_size, nnx.Rngs(params=key), rules))(jax.random.key(0))


@jax.jit
def forward(network: Transformer, *args) -> jax.Array:
    return network(*args)


def packed_rows() -> dict[str, np.ndarray]:
    """A causal row of two documents, a bidirectional row, and a row of both kinds; the last positions are padding."""
    length = 12
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 10 + [0] * 2, [1] * 4 + [2] * 7 + [0]])
    positions = np.zeros((3, length), int)
    ahead = np.zeros((3, length), int)
    for b, row in enumerate(segments):
        for number in (1, 2):
            where = np.flatnonzero(row == number)
            positions[b, where] = np.arange(len(where))
    ahead[1, 2:10] = 9 - np.arange(2, 10)  # two positions of text, then frames that see the whole segment
    ahead[2, 6:11] = 10 - np.arange(6, 11)
    return {"positions": positions, "segments": segments, "ahead": ahead}


@pytest.mark.parametrize("config", [OTHER, WINDOW, pytest.param(TINY, marks=pytest.mark.slow)])
def test_the_gradient_is_zero_exactly_where_a_query_must_not_see(config):
    rows = packed_rows()
    b, length = rows["segments"].shape
    network = make(config)
    tokens = 1 + np.arange(b * length).reshape(b, length, 1)  # every position reads a row of its own

    def probe(table_VD):
        changed = nnx.clone(network)
        changed.embedding_VD = nnx.Param(table_VD)
        hidden = changed(tokens, rows["positions"], rows["segments"], rows["ahead"])
        return jax.sharding.reshard(hidden @ jnp.linspace(1, 2, config.width) ** 3, jax.P())

    @jax.jit
    def jacobian_of(table_VD, cotangents):
        # One by one, as training: XLA 0.10.2 on a CPU (its YNN fusions) miscompiles the batched ones of `jax.jacrev`
        # where queries are normed.
        return jax.lax.map(lambda cotangent: jax.vjp(probe, table_VD)[1](cotangent)[0], cotangents)

    one_each = np.eye(b * length, dtype=np.float32).reshape(-1, b, length)
    jacobian = jacobian_of(network.embedding_VD[...], one_each).reshape(b, length, -1, config.width)
    touched = np.asarray(jnp.any(jacobian[:, :, 1 : 1 + b * length] != 0, -1)).reshape(b, length, b, length)
    for i in range(b):
        for query in range(length):
            if not rows["segments"][i, query]:
                continue
            for j in range(b):
                for key in range(length):
                    sees = (
                        i == j
                        and rows["segments"][i, query] == rows["segments"][i, key]
                        and key <= query + rows["ahead"][i, query]
                        and (not config.window or key > query - config.window)
                    )
                    assert touched[i, query, j, key] == sees, (i, query, j, key)


def test_packed_documents_equal_separate_rows():
    rows = packed_rows()
    network = make()
    tokens = np.random.default_rng(0).integers(1, V, (3, 12, 2))
    together = np.asarray(forward(network, tokens, rows["positions"], rows["segments"], rows["ahead"]))
    for b in range(3):
        for number in range(1, rows["segments"][b].max() + 1):
            where = np.flatnonzero(rows["segments"][b] == number)
            n = len(where)
            alone = {"tokens": np.zeros((3, 12, 2), int), "positions": np.zeros((3, 12), int)}
            segments, ahead = np.zeros((3, 12), int), np.zeros((3, 12), int)
            alone["tokens"][0, :n] = tokens[b, where]
            alone["positions"][0, :n] = np.arange(n)
            segments[0, :n], ahead[0, :n] = 1, rows["ahead"][b, where]
            got = forward(network, alone["tokens"], alone["positions"], segments, ahead)
            np.testing.assert_allclose(got[0, :n], together[b, where], atol=1e-5)


def test_a_silent_stream_counts_as_zero():
    network = make()
    rows = (np.arange(4)[None], np.ones((1, 4), int))
    one = np.arange(1, 5).reshape(1, 4, 1)
    padded = np.concatenate([one, np.zeros_like(one)], axis=-1)
    np.testing.assert_array_equal(forward(network, one, *rows), forward(network, padded, *rows))


P, G, S = 6, 5, 2
LENGTHS = np.array([6, 3, 1])


def decode_rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(1, V, (3, P, S)), rng.integers(1, V, (3, G, S))


def decode(network, prompt_cache, cache, generated):
    """G steps as a loop of static length, as sampling runs them."""
    valid = np.arange(P) < LENGTHS[:, None]

    def body(cache, i):
        tokens = jax.lax.dynamic_index_in_dim(generated, i, axis=1, keepdims=False)
        hidden, cache = network.step(tokens, LENGTHS + i, i, prompt_cache, valid, cache)
        return cache, hidden

    return jax.lax.scan(body, cache, jnp.arange(G))


# With more slots than the window sees; with no more of them, in published_blocks_test.py.
@pytest.mark.parametrize(
    "config",
    [TINY, OTHER, WINDOW, pytest.param(dataclasses.replace(TINY, tied=True, kv_heads=1), marks=pytest.mark.slow)],
)
def test_prefill_and_steps_equal_one_forward_pass(config):
    network = transformer.unstack(make(config))
    prompt, generated = decode_rows()
    segments = (np.arange(P) < LENGTHS[:, None]).astype(int)
    positions = np.tile(np.arange(P), (3, 1))
    hidden, prompt_cache = jax.jit(lambda n, *a: n.prefill(*a))(network, prompt, positions, segments)
    _, steps = jax.jit(decode)(network, prompt_cache, network.init_cache(3, G), jnp.asarray(generated))
    steps = np.moveaxis(np.asarray(network.logits(steps)), 0, 1)
    whole = np.zeros((3, P + G, S), int)
    for b, n in enumerate(LENGTHS):
        whole[b, : n + G] = np.concatenate([prompt[b, :n], generated[b]])
    used = (np.arange(P + G) < LENGTHS[:, None] + G).astype(int)
    expected = np.asarray(network.logits(forward(network, whole, np.tile(np.arange(P + G), (3, 1)), used)))
    before = np.asarray(network.logits(hidden))
    assert steps.shape[-1] == V
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(before[b, :n], expected[b, :n], atol=1e-5)
        np.testing.assert_allclose(steps[b], expected[b, n : n + G], atol=1e-5)


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, window=G + 1)])
def test_the_decode_loop_copies_no_cache(config):
    network = transformer.unstack(make(config))
    prompt, generated = decode_rows()
    prompt_cache = jax.eval_shape(lambda n: n.prefill(prompt, np.zeros((3, P), int), np.ones((3, P), int))[1], network)
    cache = network.init_cache(3, G)
    lowered = jax.jit(decode, donate_argnums=2).lower(network, prompt_cache, cache, jnp.asarray(generated))
    text = lowered.compile(performance.compiler_options() | AS_USERS).as_text()
    shape = re.escape(f"f32[3,{config.kv_heads},{G},{config.head_width}]")
    assert "known_trip_count" in text
    assert re.search(shape, text)
    assert not re.findall(rf"= {shape}\S* copy\(", text)
    assert len(re.findall(rf"ROOT \S+ = {shape}\S* dynamic-update-slice\(", text)) == 2 * config.layers
    plain = lowered.compile(AS_USERS).as_text()
    assert re.findall(rf"= {shape}\S* copy\(", plain), "the compiler option is not needed any more"


def loss(network: Transformer, batch: dict, vocab: Vocab) -> jax.Array:
    hidden = network(batch["tokens_BLS"], batch["positions_BL"], batch["segments_BL"], batch["ahead_BL"])
    total, sums = losses.loss_and_sums(losses.scored(network, hidden, batch, vocab), vocab)
    return total / sums["weight"]


def mixed_batch(vocab: Vocab, rows: int = 8, length: int = 10, streams: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    heads = rng.integers(0, vocab.heads, (rows, length, streams)).astype(np.int32)
    targets = np.zeros_like(heads)
    for index in np.ndindex(*heads.shape):
        if heads[index]:
            targets[index] = rng.choice(np.flatnonzero(vocab.legal_HV[heads[index]]))
    segments = np.tile(np.repeat(np.array([1, 2, 0], np.int32), [4, 4, 2]), (rows, 1))
    ahead = np.where((np.arange(rows) % 2)[:, None], np.tile([3, 2, 1, 0, 3, 2, 1, 0, 0, 0], (rows, 1)), 0)
    return {
        "tokens_BLS": rng.integers(0, vocab.size, (rows, length, streams)).astype(np.int32),
        "targets_BLS": targets,
        "heads_BLS": heads,
        "weights_BLS": (heads > 0) * rng.uniform(0.5, 1, heads.shape).astype(np.float32),
        "positions_BL": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments_BL": segments,
        "ahead_BL": ahead.astype(np.int32),
    }


@pytest.mark.slow
def test_options_change_what_they_say():
    """Recomputation, unstacking and dropout without a key change nothing; a key, and tying, do."""
    vocab = Vocab(codebooks=2, codebook_size=16, max_frames=8)
    batch = mixed_batch(vocab)
    rows = [batch[name] for name in ("tokens_BLS", "positions_BL", "segments_BL", "ahead_BL")]
    plain = make(vocab_size=vocab.size)
    hidden = forward(plain, *rows)
    dropped = make(dataclasses.replace(TINY, dropout=0.5), vocab.size)
    np.testing.assert_array_equal(forward(dropped, *rows), hidden)
    keys = [jax.random.key(n) for n in (1, 2)]
    a, b = (forward(dropped, *rows, key) for key in keys)
    assert not np.allclose(a, hidden) and not np.allclose(a, b)
    np.testing.assert_allclose(forward(transformer.unstack(plain), *rows), hidden, atol=1e-5)
    tied = make(dataclasses.replace(TINY, tied=True), vocab.size)
    assert not hasattr(tied, "unembedding_DV")
    np.testing.assert_array_equal(tied.output_DV(), tied.embedding_VD[...].T)
    remat = make(dataclasses.replace(TINY, remat=True), vocab.size)
    gradient = jax.grad(lambda network: loss(network, batch, vocab), allow_int=True)
    traced = {x: str(jax.make_jaxpr(lambda n: n(*rows))(n)) for x, n in (("remat", remat), ("plain", plain))}
    assert "policy=None" in traced["remat"] and "policy=None" not in traced["plain"]
    for a, b in zip(jax.tree.leaves(jax.jit(gradient)(remat)), jax.tree.leaves(jax.jit(gradient)(plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_half_precision_keeps_parameters_logits_and_softmax_in_float32():
    network = transformer.unstack(make(dataclasses.replace(TINY, dtype="bfloat16")))
    prompt, _ = decode_rows()
    rows = (np.tile(np.arange(P), (3, 1)), np.ones((3, P), int))
    hidden = forward(network, prompt, *rows)
    assert hidden.dtype == jnp.bfloat16 and network.logits(hidden).dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(hidden.astype(np.float32), forward(make(), prompt, *rows), atol=0.15)


@pytest.mark.parametrize(
    "bad",
    [
        *({"kv_heads": 3}, {"head_width": 7}, {"norm": "batch"}, {"mlp": "wide"}, {"layers": 0}, {"dropout": 1.0}),
        *({"bias": True}, {"bias": "q"}, {"qk_norm": "yes"}, {"window": -1}, {"attention_scale": -1.0}),
        *({"rope_scaling": (8.0, 1.0, 4.0)}, {"rope_scaling": (8.0, 4.0, 4.0, 64.0)}, {"rope_scaling": (8.0, 0.0)}),
        {"rope_scaling": (8.0, 1.0, 4.0, 64.0), "positions": "sinusoidal"},
        *({"cross_heads": 4}, {"cross_kv_heads": 2}, {"cross_head_width": 16}),
        *({"cross_kv_heads": 3, "cross_width": 8}, {"cross_kv_heads": 2, "cross_heads": 3, "cross_width": 8}),
    ],
)
def test_bad_values_are_named(bad):
    with pytest.raises(InputError, match=f"model.{next(iter(bad))}"):
        ModelConfig(**bad)
