"""Tensors of a file by name: weight normalisation folded, defects named, nothing that is no weight taken."""

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.hub import layers
from audiolm_jax.hub.weights import Weights, fold
from audiolm_jax.model import versions


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def linear() -> nnx.Module:
    return nnx.eval_shape(lambda: layers.Linear(3, 4, bias=True))


GOOD = {"weight": normal(4, 3), "bias": normal(4)}


def refused(tensors: dict, module=linear) -> str:
    weights = Weights("a.safetensors", tensors, "--from")
    with pytest.raises(InputError, match=r"^--from: a.safetensors does not fit its configuration: ") as caught:
        weights.fill(module())
        weights.finish()
    return str(caught.value)


ORIGINALS = ("parametrizations.weight.original0", "parametrizations.weight.original1")


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), ORIGINALS])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("shape", [(5, 4, 3), (1, 4, 3), (5, 1, 1), (5, 1, 3)])
def test_weight_norm_is_folded_over_the_axes_where_the_gain_has_size_one(names, dim, shape):
    torch = pytest.importorskip("torch", reason="pip install 'audiolm-jax[parity]'")
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(shape[1], shape[0], shape[2]), dim=dim)
    gain, direction = (getattr(theirs.parametrizations.weight, f"original{n}") for n in "01")
    with torch.no_grad():
        gain.copy_(torch.from_numpy(np.asarray(1 + normal(*gain.shape) ** 2)))
        direction.copy_(torch.from_numpy(normal(*shape)))
    pair = {f"up.{name}": x.detach().numpy() for name, x in zip(names, (gain, direction), strict=True)}
    [(name, weight)] = fold(pair).items()
    assert name == "up.weight"
    np.testing.assert_allclose(weight, theirs.weight.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_a_gain_of_other_shape_is_left_to_be_named():
    pair = {"up.weight_g": normal(2, 1, 1), "up.weight_v": normal(4, 3, 3)}
    assert fold(pair).keys() == pair.keys()


def test_integers_and_float8_are_no_weights(tmp_path):
    assert "weight holds numbers of type int8" in refused({**GOOD, "weight": np.ones((4, 3), np.int8)})
    assert "bias holds numbers of type uint8" in refused({**GOOD, "bias": np.ones(4, np.uint8)})
    assert "bias holds numbers of type bool" in refused({**GOOD, "bias": np.ones(4, bool)})
    pair = {"weight_g": np.ones((4, 1), np.int8), "weight_v": normal(4, 3)}
    folded = Weights("a.safetensors", {f"up.{name}": x for name, x in pair.items()})
    folded.take("up.weight", (4, 1))
    assert "int8" in folded.problems[0]
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float64):
        weights = Weights("a.safetensors", {name: x.astype(dtype) for name, x in GOOD.items()})
        filled = weights.fill(linear())
        weights.finish()
        np.testing.assert_array_equal(filled.bias[...], GOOD["bias"].astype(dtype).astype(np.float32))
    path = tmp_path / "x.safetensors"
    save_file({**GOOD, "one": GOOD["weight"].astype(ml_dtypes.float8_e4m3fn), "two": np.ones(2, np.int8)}, path)
    with pytest.raises(InputError, match=rf"^--from: {path}: one is of type F8_E4M3; quantised weights are not read"):
        files.read_safetensors(path, "--from")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_forward_module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_dropped_when_all_names_have_it(prefix):
    weights = Weights("a.safetensors", {prefix + name: x for name, x in GOOD.items()})
    np.testing.assert_array_equal(weights.fill(linear()).weight[...], GOOD["weight"].T)
    weights.finish()
    said = refused({prefix + "weight": GOOD["weight"], "bias": GOOD["bias"]})
    assert f"names begin with {prefix!r} that should begin after it" in said


def test_any_other_prefix_is_named_first():
    said = refused({f"model.{name}": x for name, x in GOOD.items()})
    assert "configuration: names begin with 'model.' that should begin after it; weight is missing" in said.replace(
        "bias is missing; weight", "weight"
    )


def test_long_lists_show_both_kinds():
    class Many(nnx.Module):
        def __init__(self):
            self.layers = versions.List([layers.Linear(2, 2) for _ in range(40)])

    tensors = {f"blocks.{n}.weight": np.zeros((2, 2), np.float32) for n in range(30)}
    said = refused(tensors, lambda: nnx.eval_shape(Many))
    assert "layers.0.weight is missing" in said and "and 34 more" in said
    assert "blocks.0.weight is unexpected" in said and "and 24 more" in said
    assert len(said) < 1000


def test_sizes_are_compared_with_the_file_before_anything_is_made_of_them():
    weights = Weights("a.safetensors", GOOD, "--from")
    weights.check_layers(layers=2)
    for count in (3, 10**9, 10**400, -1):
        with pytest.raises(InputError, match=r"^--from: a.safetensors does not fit its configuration: layers=-?\d"):
            weights.check_layers(layers=count)
    with pytest.raises(InputError, match="is missing") as caught:
        weights.take("table", (10**12, 10**6))
    assert "table is missing" in str(caught.value)
