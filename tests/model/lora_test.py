"""LoRA on a tree of parameters."""

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from audiolm_jax.errors import InputError
from audiolm_jax.model import lora, sharding
from audiolm_jax.model.config import DepthConfig, LoraConfig, ModelConfig
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.serialization.vocab import Vocab

SHAPES = {
    "qkv_DHAK": (3, 6, 2, 3, 4),
    "out_HGKD": (3, 2, 1, 4, 6),
    "cross": {"q_DHGK": (3, 6, 2, 1, 4), "kv_DHCK": (3, 6, 2, 2, 4), "out_HGKD": (3, 2, 1, 4, 6)},
    "up_DCF": (3, 6, 1, 8),
    "down_FD": (3, 8, 6),
    "norm": (3, 6),
}
ALL = LoraConfig(rank=2, alpha=5.0, matrices=("attention", "cross", "ffn"))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes, tree = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    layers = tree.unflatten([jax.numpy.asarray(rng.standard_normal(shape), "float32") for shape in shapes])
    return {"layers": layers, "embedding_VD": jax.numpy.ones((5, 6))}


def test_it_begins_at_the_base_bit_for_bit(params):
    adapters = lora.init(ALL, params, jax.random.key(0))
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(lora.merged(ALL, params, adapters)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(pair["a"].std() > 0.1 for pair in (adapters["layers"]["up_DCF"], adapters["layers"]["cross"]["q_DHGK"]))


def test_what_is_added_is_alpha_over_rank_a_b_of_every_chosen_matrix(params):
    adapters = lora.init(ALL, params, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.5, adapters)
    made = lora.merged(ALL, params, adapters)["layers"]
    for path, inputs in {"qkv_DHAK": 6, "out_HGKD": 8, "up_DCF": 6, "down_FD": 8}.items():
        pair, old = adapters["layers"][path], params["layers"][path]
        for n in range(3):
            a, b = np.asarray(pair["a"][n]).reshape(inputs, 2), np.asarray(pair["b"][n]).reshape(2, -1)
            expected = np.asarray(old[n]).reshape(inputs, -1) + 5.0 / 2 * a @ b
            np.testing.assert_allclose(np.asarray(made[path][n]).reshape(inputs, -1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made["norm"], params["layers"]["norm"])
    assert (made["cross"]["kv_DHCK"] != params["layers"]["cross"]["kv_DHCK"]).all()


def test_only_what_is_chosen_has_an_a_and_a_b(params):
    adapters = lora.init(LoraConfig(rank=1, matrices=("cross",)), params, jax.random.key(0))["layers"]
    assert set(adapters) == {"cross"} and set(adapters["cross"]) == {"q_DHGK", "kv_DHCK", "out_HGKD"}
    assert adapters["cross"]["out_HGKD"]["a"].shape == (3, 2, 1, 4, 1)
    assert adapters["cross"]["out_HGKD"]["b"].shape == (3, 1, 6)


def test_every_matrix_of_a_layer_but_no_norm_and_no_bias_can_be_chosen():
    config = ModelConfig(
        layers=1,
        width=12,
        heads=4,
        kv_heads=2,
        head_width=6,
        ffn=8,
        bias="qkv",
        qk_norm=True,
        cross_width=5,
        cross_heads=3,
        cross_kv_heads=3,
        cross_head_width=7,
    )
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Transformer(config, 10, nnx.Rngs(0)))))
    matrices = {path for path, x in flatten_dict(params["layers"]).items() if "bias" not in path[-1] and x.ndim > 2}
    assert {path[1:] for path in lora.chosen(ALL, params)} == matrices
    assert all(matrix.stacked == 1 for matrix in lora.chosen(ALL, params).values())
    adapters = jax.eval_shape(lambda: lora.init(ALL, params, jax.random.key(0)))["layers"]["cross"]
    assert adapters["q_DHGK"]["b"].shape == (1, 2, 3, 1, 7) and adapters["out_HGKD"]["a"].shape == (1, 3, 1, 7, 2)


def test_a_rank_that_a_matrix_cannot_have(params):
    lora.check(LoraConfig(rank=6), params)
    with pytest.raises(InputError, match=r"lora\.rank=7 must be at most 6, the largest rank of layers/qkv_DHAK"):
        lora.check(LoraConfig(rank=7), params)
    without = {"layers": {name: x for name, x in params["layers"].items() if name != "cross"}}
    with pytest.raises(InputError, match=r"lora\.matrices=\('cross',\): this model has none of these"):
        lora.check(LoraConfig(rank=1, matrices=("cross",)), without)


@pytest.mark.parametrize("bad", [{"rank": -1}, {"alpha": 0.0}, {"matrices": ()}, {"matrices": ("heads",)}])
def test_bad_values_are_named(bad):
    with pytest.raises(InputError, match=f"lora.{next(iter(bad))}"):
        LoraConfig(**bad)


def test_every_stack_of_layers_that_the_model_names_takes_part(params, monkeypatch):
    alone = lora.init(ALL, params, jax.random.key(0))
    monkeypatch.setattr(Transformer, "STACKS", ("layers", "depth_layers"))
    both = {**params, "depth_layers": params["layers"]}
    adapters = lora.init(ALL, both, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, adapters["layers"], alone["layers"])
    assert (adapters["depth_layers"]["up_DCF"]["a"] != alone["layers"]["up_DCF"]["a"]).any()
    merged = lora.merged(ALL, both, jax.tree.map(lambda x: x + 0.5, adapters))
    assert (merged["depth_layers"]["up_DCF"] != params["layers"]["up_DCF"]).all()


@pytest.mark.parametrize("weights", ["shared", "per_codebook"])
def test_a_depth_network_adapts_too(weights):
    depth = DepthConfig(layers=2, width=8, heads=2, kv_heads=1, head_width=4, ffn=6, weights=weights)
    config = ModelConfig(layers=1, width=12, heads=2, kv_heads=1, head_width=6, ffn=8, depth=depth)
    with jax.set_mesh(sharding.single_device_mesh()):
        made = nnx.to_pure_dict(nnx.state(language_model(config, Vocab(4, 5, 3), nnx.Rngs(0))))
        adapters = lora.init(ALL, made, jax.random.key(0))
        after = lora.merged(ALL, made, jax.tree.map(lambda x: x + 0.5, adapters))
    network = {path: x for path, x in flatten_dict(made["depth"]).items() if path[0] == "layers"}
    matrices = {path for path, x in network.items() if "norm" not in path[1]}
    assert {path[1:] for path in lora.chosen(ALL, made) if path[0] == "depth"} == matrices
    pair, sets = adapters["depth"]["layers"]["down_FD"], (3,) * (weights == "per_codebook")
    assert pair["a"].shape == (2, *sets, 6, 2) and pair["b"].shape == (2, *sets, 2, 8)
    for path, x in network.items():
        changed = np.any(np.asarray(x) != np.asarray(flatten_dict(after["depth"])[path]))
        assert changed == (path in matrices), path
    n = (1, *(s - 1 for s in sets))
    added = 2.5 * (np.asarray(pair["a"])[n] + 0.5) @ np.full((2, 8), 0.5)
    np.testing.assert_allclose(
        after["depth"]["layers"]["down_FD"][n], network["layers", "down_FD"][n] + added, rtol=1e-5
    )
