"""The depth network: its variants, alone, in the loss and when it is sampled from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.model import losses
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.transformer import language_model
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers import sampling_reference as sampled
from tests.helpers.compiling import AS_USERS

SIZES = {"layers": 2, "width": 24, "heads": 4, "kv_heads": 2, "head_width": 6, "ffn": 20}
NETWORKS = {
    "default": {},
    "moshi": {
        "weights": "per_codebook",
        "positions": "none",
        "projection": "per_codebook",
        "final_norm": False,
        "norm_eps": 1e-8,
    },
    "moshi_schedule": {"weights": "per_codebook", "positions": "none", "schedule": (0, 1, 1)},
    "csm": {"join": "prefix", "positions": "rotary", "rope_base": 5e5, "embeddings": "backbone", "norm_eps": 1e-5},
    "qwen3": {
        "join": "prefix",
        "positions": "rotary",
        "embeddings": "backbone",
        "projection_bias": True,
        "qk_norm": True,
    },
    "qwen3_omni": {"join": "prefix", "positions": "rotary", "projection": "none", "width": 32},
    "layernorm": {"norm": "layernorm", "mlp": "plain", "bias": "all", "embeddings": "backbone"},
}
UNEVEN = Vocab(4, (5, 3, 4, 2), 40)


def config_of(name: str) -> DepthConfig:
    return DepthConfig(**{**SIZES, **NETWORKS[name]})


def model_of(name: str, vocab: Vocab = UNEVEN):
    config = ModelConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=32, depth=config_of(name))
    model = language_model(config, vocab, nnx.Rngs(0))
    rng = np.random.default_rng(0)  # biases and norms too: zeros and ones would hide them
    graph, state = nnx.split(model)
    random = jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.standard_normal(x.shape), x.dtype), state)
    return nnx.merge(graph, random)


def states_and_tokens(vocab: Vocab, rows: int = 7, seed: int = 0):
    rng = np.random.default_rng(seed)
    codes_NQ = rng.integers(0, vocab.codebook_sizes, (rows, vocab.codebooks))
    tokens_NQ = (vocab.code_offsets + codes_NQ).astype(np.int32)
    tokens_NQ[rng.random(tokens_NQ.shape) < 0.2] = 0  # silent streams
    return jnp.asarray(rng.standard_normal((rows, 32)), jnp.float32), jnp.asarray(tokens_NQ)


@pytest.mark.parametrize("name", NETWORKS)
def test_drawing_one_after_the_other_sees_what_all_at_once_sees(name):
    model, (state_ND, tokens_NQ) = model_of(name), states_and_tokens(UNEVEN)
    network = model.depth
    table_VD = model.embedding_VD[...]
    whole_NCK = jax.jit(lambda: network.logits(network(state_ND, tokens_NQ[:, :-1], table_VD)))()
    given_NQ = jnp.asarray(tokens_NQ)

    @jax.jit
    def drawn(cells):
        def pick(c, logits_MK, seen_NCK):
            logits_M1K = jax.sharding.reshard(logits_MK, jax.P())[:, None]
            seen_NCK = jax.lax.dynamic_update_slice_in_dim(seen_NCK, logits_M1K, c, axis=1)
            return jnp.take(given_NQ, c + 1, axis=1), seen_NCK

        empty_NCK = jnp.zeros((len(state_ND), 3, 5))
        return network.unstacked().draw(state_ND, given_NQ[:, 0], cells, pick, empty_NCK, table_VD)

    for cells in range(4):
        found_NCK = np.asarray(drawn(jnp.int32(cells)))
        np.testing.assert_allclose(found_NCK[:, :cells], whole_NCK[:, :cells], atol=2e-5)
        assert not found_NCK[:, cells:].any(), "no pass for cells that nobody needs"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cell_depends_on_the_state_and_the_streams_before_it_alone(name):
    model, (state_ND, tokens_NQ) = model_of(name), states_and_tokens(UNEVEN, 3, seed=1)
    tokens_NQ = UNEVEN.code_offsets + 1 + jnp.zeros((3, 4), jnp.int32)
    network, table_VD = model.depth, model.embedding_VD[...]
    logits = jax.jit(lambda state_ND, tokens_NQ: network.logits(network(state_ND, tokens_NQ[:, :-1], table_VD)))
    before_NCK = np.asarray(logits(state_ND, tokens_NQ))
    for stream in range(4):
        other_NCK = np.asarray(logits(state_ND, tokens_NQ.at[1, stream].add(-1)))
        changed_NC = (other_NCK != before_NCK).any(axis=-1)
        expected_NC = np.zeros((3, 3), bool)
        expected_NC[1, stream:] = True  # cell c is stream c + 1
        np.testing.assert_array_equal(changed_NC, expected_NC)
    changed_NC = (np.asarray(logits(state_ND.at[2].add(1.0), tokens_NQ)) != before_NCK).any(axis=-1)
    np.testing.assert_array_equal(changed_NC, np.arange(3)[:, None] == [2, 2, 2])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "default"])
def test_the_loop_samples_from_every_network(name):
    # Default: tests/sampling/causal_test.py.
    depth = config_of(name)
    grid = sampled.bind("depth", 4, (0, 1, 1, 2))
    requests = [sampled.request("abc", 0, 4, seed=1), sampled.request("", 3, 4, frames=5, seed=2, guidance=2.0)]
    sampled.assert_same(
        sampled.run(grid, requests, depth=depth), [sampled.reference(grid, one, depth) for one in requests]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_heads": 3}, "depth.kv_heads=3 must divide depth.heads=4"),
        ({"positions": "rotary", "head_width": 7}, "depth.head_width=7 must be even"),
        ({"projection": "per_codebook", "join": "prefix"}, "depth.projection=per_codebook needs depth.join=add"),
        ({"weights": "per_codebook", "join": "prefix"}, "depth.weights=per_codebook needs depth.join=add"),
        ({"schedule": (0, 1)}, r"depth.schedule=\(0, 1\) needs depth.weights=per_codebook"),
        ({"projection": "none", "projection_bias": True}, "depth.projection_bias needs a projection"),
        ({"rope_scaling": (8.0, 1.0, 4.0, 64.0)}, "depth.rope_scaling=.* needs depth.positions=rotary, not learned"),
        ({"rope_scaling": (8.0,), "positions": "rotary"}, "depth.rope_scaling=.* must be four numbers"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        DepthConfig(**SIZES | changes)


def test_choices_that_do_not_fit_the_model_are_refused():
    with pytest.raises(InputError, match=r"depth.projection=none needs equal widths; depth.width=24, model.width=256"):
        ModelConfig(depth=DepthConfig(**SIZES, projection="none"))
    depth = DepthConfig(**SIZES, weights="per_codebook", schedule=(0, 1))
    with pytest.raises(InputError, match=r"depth.schedule=\(0, 1\) must have 3 numbers"):
        language_model(ModelConfig(depth=depth), UNEVEN, nnx.Rngs(0))


LONG = Vocab(8, 64, 40)


def parts_of(model, vocab: Vocab, rows: int, length: int):
    """A batch of random codes in the layout of a causal row, and random states of the transformer."""
    rng = np.random.default_rng(0)
    targets_BLS = vocab.code_offsets + rng.integers(0, vocab.codebook_sizes, (rows, length, vocab.codebooks))
    heads_BLS = np.broadcast_to(3 + np.arange(vocab.codebooks), targets_BLS.shape)
    heads_BLS = np.where(rng.random(heads_BLS.shape) < 0.2, 0, heads_BLS)
    batch = {
        "targets_BLS": np.where(heads_BLS > 0, targets_BLS, 0).astype(np.int32),
        "heads_BLS": heads_BLS.astype(np.int32),
        "weights_BLS": rng.random(heads_BLS.shape).astype(np.float32) * (heads_BLS > 0),
    }
    hidden_BLD = rng.standard_normal((rows, length, model.config.width)).astype(np.float32)
    return jax.device_put(hidden_BLD, jax.P()), jax.device_put(batch, jax.P())


def test_a_fraction_of_the_positions_gives_the_loss_and_its_gradient_in_the_mean():
    """Over 200 draws of a quarter: within three standard errors of the whole, for every sum and along the gradient."""
    model = model_of("default")
    hidden_BLD, batch = parts_of(model, UNEVEN, 2, 30)
    graph, params = nnx.split(model)

    def loss(params, key, fraction):
        parts = losses.scored(nnx.merge(graph, params), hidden_BLD, batch, UNEVEN, key, fraction)
        total, sums = losses.loss_and_sums(parts, UNEVEN, z_loss=0.1)
        return total, sums

    whole, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, None, 1.0), has_aux=True))(params)
    rng = np.random.default_rng(1)
    along = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), gradient)

    def numbers(value, gradient):
        total, sums = value
        slope = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
        return jnp.concatenate([jnp.stack([total, slope]), sums["nll_X"], sums["count_X"]])

    one = jax.value_and_grad(lambda p, key: loss(p, key, 0.25), has_aux=True)
    draws = jax.jit(lambda keys: jax.lax.map(lambda key: numbers(*one(params, key)), keys))
    found = np.asarray(draws(jax.random.split(jax.random.key(0), 200)))
    expected = np.asarray(numbers(whole, gradient))
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert error[0] > 0 and error[1] > 0
    assert (np.abs(found.mean(axis=0) - expected) <= 3 * error + 1e-4 * np.abs(expected)).all()


def test_a_quarter_of_the_positions_takes_less_than_three_tenths_of_the_memory():
    config = DepthConfig(layers=3, width=64, heads=4, kv_heads=4, head_width=16, ffn=192)
    model = language_model(ModelConfig(layers=1, width=32, heads=1, kv_heads=1, depth=config), LONG, nnx.Rngs(0))
    hidden_BLD, batch = parts_of(model, LONG, 4, 256)
    graph, params = nnx.split(model)

    def temporary(fraction):
        def loss(params, key):
            parts = losses.scored(nnx.merge(graph, params), hidden_BLD, batch, LONG, key, fraction)
            return losses.loss_and_sums(parts[1:], LONG)[0]

        program = jax.jit(jax.grad(loss)).lower(params, jax.random.key(0)).compile(AS_USERS)
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(0.25) < 0.3 * temporary(1.0)
