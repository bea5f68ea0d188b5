"""Cross-attention, positions and biases of the backbone. That the defaults are as before: transformer_test.py."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import config as configs
from audiolm_jax import runs
from audiolm_jax.errors import InputError
from audiolm_jax.model import layers, sharding, transformer
from audiolm_jax.model.config import ModelConfig, ShardingConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import performance
from audiolm_jax.training import optimizer
from tests.helpers.compiling import AS_USERS

V, P, G, E = 50, 5, 6, 7
MUSIC = ModelConfig(
    layers=2,
    width=18,
    heads=4,
    kv_heads=4,
    head_width=6,
    ffn=20,
    norm="layernorm",
    norm_eps=1e-5,
    mlp="exact",
    positions="sinusoidal",
    cross_width=10,
)
OTHER = dataclasses.replace(
    MUSIC,
    layers=1,
    width=16,
    kv_heads=2,
    bias="all",
    positions="learned",
    max_positions=16,
    cross_width=16,
    cross_heads=6,
    cross_kv_heads=2,
    cross_head_width=10,
    norm="rmsnorm",
    qk_norm=True,
)
SOFT = dataclasses.replace(MUSIC, cross_width=0, state_widths=(7, 18))  # the second is not projected
LENGTHS = np.array([5, 2, 4, 1])
STATES = np.array([7, 0, 3, 1])  # the second row has nothing to attend to


def make(config, rules=sharding.PRESETS["data"]) -> Transformer:
    """Random weights, biases too: what is zero at birth would hide that it is not used."""

    def noisy(key):
        graph, state = nnx.split(Transformer(config, V, nnx.Rngs(params=key), rules))
        keys = iter(jax.random.split(key, len(jax.tree.leaves(state))))
        return nnx.merge(graph, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), state))

    return jax.jit(noisy)(jax.random.key(1))


def encoded(config):
    states = np.random.default_rng(3).standard_normal((4, E, config.cross_width)).astype(np.float32)
    return states, np.arange(E) < STATES[:, None]


def rows():
    rng = np.random.default_rng(1)
    prompt, generated = rng.integers(1, V, (4, P, 2)), rng.integers(1, V, (4, G, 2))
    whole = np.zeros((4, P + G, 2), int)
    for b, n in enumerate(LENGTHS):
        whole[b, : n + G] = np.concatenate([prompt[b, :n], generated[b]])
    used = (np.arange(P + G) < LENGTHS[:, None] + G).astype(int)
    return prompt, generated, (whole, np.tile(np.arange(P + G), (4, 1)), used)


def decode(network, prompt_cache, cache, generated, valid_BE):
    valid = np.arange(P) < LENGTHS[:, None]

    def body(cache, i):
        tokens = jax.lax.dynamic_index_in_dim(generated, i, axis=1, keepdims=False)
        hidden, cache = network.step(tokens, LENGTHS + i, i, prompt_cache, valid, cache, valid_BE)
        return cache, hidden

    return jax.lax.scan(body, cache, jnp.arange(G))


# The first one also in families/musicgen_test.py, against the reference.
@pytest.mark.parametrize("config", [pytest.param(MUSIC, marks=pytest.mark.slow), OTHER])
def test_prefill_and_steps_equal_one_forward_pass(config):
    network, states = make(config), encoded(config)
    prompt, generated, whole = rows()
    expected = np.asarray(jax.jit(lambda n, e: n(*whole, encoded=e))(network, states))
    without = expected if config.bias == "all" else np.asarray(jax.jit(lambda n: n(*whole))(network))
    network = transformer.unstack(network)
    segments, positions = (np.arange(P) < LENGTHS[:, None]).astype(int), np.tile(np.arange(P), (4, 1))
    hidden, prompt_cache = jax.jit(lambda n, e: n.prefill(prompt, positions, segments, encoded=e))(network, states)
    _, steps = jax.jit(decode)(network, prompt_cache, network.init_cache(4, G), generated, states[1])
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(hidden[b, :n], expected[b, :n], atol=1e-5)
        np.testing.assert_allclose(np.asarray(steps)[:, b], expected[b, n : n + G], atol=1e-5)
        same = np.allclose(expected[b, : n + G], without[b, : n + G])
        assert config.bias == "all" or same == (STATES[b] == 0)


def test_the_keys_of_the_states_are_computed_once_and_no_cache_is_copied():
    network = transformer.unstack(make(MUSIC))
    prompt, generated, _ = rows()
    states = encoded(MUSIC)
    positions = np.tile(np.arange(P), (4, 1))
    _, prompt_cache = jax.eval_shape(lambda n: n.prefill(prompt, positions, positions * 0 + 1, encoded=states), network)
    lowered = jax.jit(decode, donate_argnums=2).lower(
        network, prompt_cache, network.init_cache(4, G), jnp.asarray(generated), states[1]
    )
    text = lowered.compile(performance.compiler_options() | AS_USERS).as_text()
    for slots in (G, E):
        shape = re.escape(f"f32[4,{MUSIC.kv_heads},{slots},{MUSIC.head_width}]")
        assert re.search(shape, text) and not re.findall(rf"= {shape}\S* copy\(", text)
    assert "kv_DHCK" not in text


@pytest.mark.slow
def test_the_gradient_of_states_that_are_not_valid_is_zero():
    network, (states, valid) = make(MUSIC), encoded(MUSIC)
    _, _, whole = rows()
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(network(*whole, encoded=(s, valid)) ** 3)))(states)
    assert (np.asarray(gradient != 0).any(-1) == valid).all()


@pytest.mark.parametrize("width", [6, 9])
def test_sinusoids_are_all_cosines_then_all_sines(width):
    got = layers.sinusoids(jnp.arange(300).reshape(2, 150), width)
    half = width // 2
    for n in range(300):
        angles = n * 10000.0 ** -(np.arange(half) / (half - 1))
        row = np.concatenate([np.cos(angles), np.sin(angles), np.zeros(width % 2)])
        np.testing.assert_allclose(got[n // 150, n % 150], row, atol=2e-5)


def test_biases_and_positions_do_not_decay():
    decayed = optimizer.decayed(nnx.to_pure_dict(nnx.state(make(OTHER))))
    names = {jax.tree_util.keystr(p[-1:], simple=True): x for p, x in jax.tree_util.tree_leaves_with_path(decayed)}
    assert {name for name, x in names.items() if not x} == {
        *("scale", "embedding_VD", "positions_PD", "qkv_bias_HAK", "out_bias_D", "up_bias_CF", "down_bias_D"),
        *("q_bias_HGK", "kv_bias_HCK", "q_norm_K", "k_norm_K"),
    }


def test_states_are_inputs_like_rows_of_the_table():
    """At positions without a token; rows of zeros add nothing, not even the bias of the projection."""
    network = make(SOFT)
    _, _, (tokens, positions, used) = rows()
    plain = jax.jit(lambda n: n(tokens, positions, used))(network)
    states = np.zeros((*tokens.shape[:2], 7 + 18), np.float32)
    states[:, :2, 7:] = np.asarray(network.embed(tokens[:, :2]))
    without = tokens.copy()
    without[:, :2] = 0
    run = jax.jit(lambda n, s: n(without, positions, used, states_BLW=s))
    np.testing.assert_allclose(run(network, states), plain, atol=1e-5)
    # Row 1 of the matrix and the bias, where the first encoder has a one there.
    states[:, :2, 1] = 1
    row_D = network.states0_WD[1] + network.states0_bias_D[...]
    states[:, :2, 7:] -= np.asarray(row_D)
    np.testing.assert_allclose(run(network, states), plain, atol=1e-5)
    assert not hasattr(network, "states1_WD") and np.abs(run(network, None) - plain).max() > 0.1
    with pytest.raises(InputError, match="states of width 24 were given"):
        run(network, states[..., :24])


@pytest.mark.parametrize("preset", list(sharding.PRESETS))
@pytest.mark.parametrize("config", [MUSIC, OTHER, SOFT])
def test_every_layout_is_traced(config, preset):
    rules = sharding.PRESETS[preset]
    mesh = sharding.make_mesh(ShardingConfig("fsdp_tensor", 2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        network = sharding.on_mesh(jax.eval_shape(lambda: Transformer(config, V, nnx.Rngs(0), rules)), mesh)
        _, _, whole = rows()
        states = encoded(config) if config.cross_width else None
        soft = np.ones((*whole[0].shape[:2], sum(config.state_widths)), np.float32) if config.state_widths else None

        def loss(network):
            return jnp.sum(network(*whole, encoded=states, states_BLW=soft).astype(jnp.float32))

        gradient = sharding.on_mesh(jax.eval_shape(jax.grad(loss, allow_int=True), network), mesh)
        for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(gradient), strict=True):
            assert a.shape == b.shape and a.sharding.is_equivalent_to(b.sharding, a.ndim)
        decoding = rules.for_decoding()
        network = jax.eval_shape(lambda: Transformer(config, V, nnx.Rngs(0), decoding))
        _, cache = jax.eval_shape(lambda n: n.prefill(*whole, encoded=states, states_BPW=soft), network)
        assert cache[0]["k" if states is None else "cross_k"].sharding.spec == decoding.spec(
            "batch", "heads", None, None
        )


@pytest.mark.parametrize(("key", "value"), [("cross_width", "8"), ("state_widths", "12,8")])
def test_training_on_tokens_has_no_states_of_encoders(key, value, tmp_path):
    with pytest.raises(InputError, match=f"model.{key}="):
        runs.train(configs.load("tiny", [f"model.{key}={value}"]), tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    "bad",
    [
        *({"norm_eps": 0.0}, {"positions": "absolute"}, {"positions": "learned"}, {"max_positions": 9}),
        *({"cross_width": -1}, {"state_widths": (12, 0)}),
    ],
)
def test_bad_values_are_named(bad):
    name = "max_positions" if bad == {"positions": "learned"} else next(iter(bad))
    with pytest.raises(InputError, match=f"model.{name}"):
        ModelConfig(**bad)
