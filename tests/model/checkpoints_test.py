import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints
from audiolm_jax.model.config import DepthConfig, ModelConfig, ShardingConfig
from audiolm_jax.model.sharding import PRESETS, make_mesh, on_mesh
from audiolm_jax.model.spec import CodecSpec, Spec
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.vocab import Vocab

VOCAB = Vocab(codebooks=2, codebook_size=16, max_frames=8)
CONFIG = ModelConfig(layers=2, width=16, heads=2, kv_heads=1, head_width=8, ffn=24)
SPEC = Spec(CONFIG, VOCAB, SerializationConfig("delay", delays=(0, 2)), codec=CodecSpec("tiny", fingerprint="abc"))
STATE = {"step": np.array(3, np.int32), "moment": np.arange(4.0, dtype=np.float32)}


def fresh(seed: int = 0, config: ModelConfig = CONFIG) -> dict:
    """Parameters of the model's shapes, cheap to make."""
    rng = np.random.default_rng(seed)
    like = checkpoints.params_of(jax.eval_shape(lambda: Transformer(config, VOCAB.size, nnx.Rngs(0))))
    return jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), like)


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture
def workdir(tmp_path):
    with checkpoints.manager(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            checkpoints.save(manager, step, fresh(step), STATE, {"seconds": step / 2}, SPEC)
    return tmp_path


def test_what_was_saved_comes_back_and_only_the_last_are_kept(workdir):
    with checkpoints.manager(workdir) as manager:
        assert manager.all_steps() == [2, 3]
        params, state, position = checkpoints.restore(manager, 3, fresh(), STATE)
    assert same(params, fresh(3)) and same(state, STATE) and position == {"seconds": 1.5}


def exported(path, spec: dict | None = None, **tensors) -> str:
    """What is said of a safetensors file of the model with other tensors, or a changed description."""
    flat = {key: np.asarray(x) for key, x in flatten_dict(fresh(), sep="/").items()} | tensors
    about = {**SPEC.to_json(), **(spec or {})}
    save_file(flat, path, {"about": json.dumps(about)})
    try:
        return dataclasses.asdict(checkpoints.load_safetensors(path)[1]) == dataclasses.asdict(SPEC)
    except InputError as error:
        return str(error)


def test_integers_are_no_parameters(tmp_path, workdir):
    path = tmp_path / "model.safetensors"
    assert exported(path) is True
    name = "layers/down_FD"
    assert f"{name} holds int8 where floats are needed" in exported(path, **{name: np.ones((2, 24, 16), np.int8)})
    assert exported(path, **{name: np.ones((2, 24, 16), np.float16)}) is True
    whole = jax.tree.map(lambda x: np.ones(x.shape, np.int32), fresh())
    with checkpoints.manager(tmp_path / "whole") as manager:
        checkpoints.save(manager, 1, whole, STATE, {}, SPEC)
    with pytest.raises(InputError, match="layers/down_FD holds int32 where floats are needed"):
        checkpoints.restore_params(tmp_path / "whole")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("model", {"layers": 10**9}, "model.layers=1000000000, but there are"),
        ("model", {"layers": "2"}, "model.layers=2 must be an integer"),
        ("model", {"ffn": 10**40}, "model.ffn=1000"),
        ("model", {"later": 1}, "model.later does not exist"),
        ("vocab", {"text_size": 2**30}, "vocab.text_size=1073741824, but there are"),
        ("vocab", {"codebooks": 10**12}, "1000000000000"),
        ("vocab", {"codebooks": 10**6}, "vocab.codebooks=1000000, but there are"),
        ("vocab", {"codebook_size": 2.5}, "2.5"),
        ("vocab", {"max_frames": True}, "True"),
        ("codec", {"fingerprint": 3}, "codec.fingerprint=3 must be text"),
        ("source", {"lora": [1]}, "description of the model cannot be used"),
        ("source", {"lora": {"rank": 1, "more": 2}}, "source.lora.more"),
    ],
)
def test_a_description_that_does_not_fit_its_weights(tmp_path, part, change, words):
    said = exported(tmp_path / "a.safetensors", {part: {**SPEC.to_json()[part], **change}})
    assert said.startswith(f"{tmp_path}/a.safetensors: ") and words in said


def test_descriptions_of_a_newer_version_and_damaged_ones(tmp_path):
    path = tmp_path / "a.safetensors"
    assert SPEC.to_json()["format"] == 1
    assert "is of format 2, which a newer version of audiolm_jax wrote" in exported(path, {"format": 2})
    assert "cannot be used" in exported(path, {"of_the_future": 2})
    assert "framing=round must be one of markers" in exported(path, {"framing": "round"})
    for about in ("", "[1]", "null", "[" * 10**5):
        save_file({"a": np.zeros(1)}, path, {"about": about})
        with pytest.raises(InputError, match=rf"^{path} cannot be read as JSON"):
            checkpoints.load_safetensors(path)


@pytest.mark.parametrize(
    "file", ["about/metadata", "params/_METADATA", "params/manifest.ocdbt", "_CHECKPOINT_METADATA"]
)
# Writes of tensorstore that fail while the rest is given up print what `errors.hide_closed_event_loop` hides.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xff", b'{"a": 1}', None])
def test_a_damaged_checkpoint_is_one_sentence(workdir, file, content):
    path = workdir / "checkpoints" / "3" / file
    assert path.is_file()
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    try:
        model, _ = checkpoints.restore_params(workdir)
        assert same(checkpoints.params_of(model), fresh(3))
    except InputError as error:
        assert str(error).startswith(f"{workdir}/checkpoints") and "\n" not in str(error)


def test_a_checkpoint_of_another_model_is_refused_naming_every_difference(workdir):
    other = dataclasses.replace(CONFIG, ffn=32, norm="layernorm", tied=True)
    with checkpoints.manager(workdir) as manager, pytest.raises(InputError) as refused:
        checkpoints.restore(manager, 3, fresh(config=other), STATE)
    message = str(refused.value)
    for part in (
        "layers/down_FD is (2, 24, 16) where (2, 32, 16) is needed",
        "layers/up_DCF is",
        "norm/bias is missing",
        "unembedding_DV is unexpected",
    ):
        assert part in message


def test_a_model_for_inference_in_one_line(workdir):
    model, spec = checkpoints.restore_params(workdir)
    assert spec == SPEC and model.config == CONFIG
    assert same(checkpoints.params_of(model), fresh(3))
    assert model(np.ones((1, 4, 1), int), np.arange(4)[None], np.ones((1, 4), int)).shape == (1, 4, 16)
    earlier, _ = checkpoints.restore_params(workdir, step=2, dtype="bfloat16")
    assert earlier.config.dtype == "bfloat16" and same(checkpoints.params_of(earlier), fresh(2))


def test_weights_trained_on_many_devices_come_back_on_one(tmp_path):
    config = ShardingConfig("fsdp_tensor", 2)
    mesh = make_mesh(config)
    with jax.set_mesh(mesh), checkpoints.manager(tmp_path) as manager:
        like = jax.eval_shape(lambda: Transformer(CONFIG_8, VOCAB.size, nnx.Rngs(0), PRESETS["fsdp_tensor"]))
        params = jax.tree.map(
            lambda x, like: jax.device_put(np.asarray(x), like.sharding),
            fresh(5, CONFIG_8),
            on_mesh(checkpoints.params_of(like), mesh),
        )
        checkpoints.save(manager, 1, params, STATE, {}, dataclasses.replace(SPEC, model=CONFIG_8))
    model, _ = checkpoints.restore_params(tmp_path)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(checkpoints.params_of(model)))
    assert same(checkpoints.params_of(model), fresh(5, CONFIG_8))


@pytest.mark.parametrize("preset, tensor", [("fsdp", 1), ("fsdp_tensor", 2)])
def test_eight_devices_to_one_and_back_is_bit_equal(tmp_path, preset, tensor):
    """A whole state: written from eight devices, read and written by one, read by eight again."""
    rules, eight = PRESETS[preset], make_mesh(ShardingConfig(preset, tensor))
    one = make_mesh(devices=jax.devices()[:1])

    def abstract(mesh, rules):
        with jax.set_mesh(mesh):
            return on_mesh(checkpoints.params_of(checkpoints.abstract_model(CONFIG_8, VOCAB, rules)), mesh)

    trees = [(eight, abstract(eight, rules)), (one, abstract(one, PRESETS["data"])), (eight, abstract(eight, rules))]
    params = jax.tree.map(lambda x, like: jax.device_put(np.asarray(x), like.sharding), fresh(7, CONFIG_8), trees[0][1])
    for number, (mesh, like) in enumerate(trees):
        with jax.set_mesh(mesh), checkpoints.manager(tmp_path / str(number)) as manager:
            if number:
                with checkpoints.manager(tmp_path / str(number - 1)) as before:
                    params, _, _ = checkpoints.restore(before, 1, like, STATE)
            checkpoints.save(manager, 1, params, STATE, {}, dataclasses.replace(SPEC, model=CONFIG_8))
        assert {len(x.sharding.device_set) for x in jax.tree.leaves(params)} == {mesh.size}
        assert same(params, fresh(7, CONFIG_8))


CONFIG_8 = dataclasses.replace(CONFIG, heads=4, kv_heads=2)
EVERYTHING = dataclasses.replace(
    CONFIG_8,
    bias="all",
    norm="layernorm",
    positions="learned",
    max_positions=9,
    qk_norm=True,
    cross_width=12,
    tied=False,
)
KINDS = {
    "plain": CONFIG_8,
    "everything": dataclasses.replace(EVERYTHING, state_widths=(3, 5)),
    "depth": dataclasses.replace(CONFIG_8, depth=DepthConfig(weights="per_codebook", positions="learned", join="add")),
}


@pytest.mark.parametrize("preset", ["data", "fsdp", "fsdp_tensor"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_abstract_model_is_the_shapes_of_a_real_one(kind, preset):
    """It is made of zeros, whose tracing is quick: paths, shapes, types and shardings are those of random weights."""
    config, rules = KINDS[kind], PRESETS[preset]
    with jax.set_mesh(make_mesh(ShardingConfig(preset, 2 if preset == "fsdp_tensor" else 1))):
        real = jax.eval_shape(lambda: language_model(config, VOCAB, nnx.Rngs(0), rules))
        shapes = checkpoints.abstract_model(config, VOCAB, rules)
    assert nnx.split(real)[0] == nnx.split(shapes)[0]
    pairs = zip(jax.tree.leaves_with_path(real), jax.tree.leaves_with_path(shapes), strict=True)
    for (path, x), (other, y) in pairs:
        assert (path, x.shape, x.dtype, x.sharding) == (other, y.shape, y.dtype, y.sharding)


def test_safetensors_out_and_in(workdir, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.export_safetensors(workdir, path)
    assert "layers/qkv_DHAK" in load_file(path)
    model, spec = checkpoints.load_safetensors(path)
    assert spec == SPEC and same(checkpoints.params_of(model), fresh(3))
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_safetensors_of_half_precision_are_rounded_and_computed_with_in_float32(workdir, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.export_safetensors(workdir, path, dtype="float16")
    assert {x.dtype for x in load_file(path).values()} == {np.dtype(np.float16)}
    model, spec = checkpoints.load_safetensors(path)
    rounded = jax.tree.map(lambda x: np.float32(np.float16(x)), fresh(3))
    assert spec == SPEC and same(checkpoints.params_of(model), rounded)


def test_foreign_files_and_folders_are_one_sentence(workdir, tmp_path):
    with pytest.raises(InputError, match="not the folder of a training run"):
        checkpoints.restore_params(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no checkpoint of step 7; found: \[2, 3\]"):
        checkpoints.restore_params(workdir, step=7)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"RIFF")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        checkpoints.load_safetensors(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(InputError, match="no description"):
        checkpoints.load_safetensors(path)
    with pytest.raises(InputError, match="cannot be written"):
        checkpoints.export_safetensors(workdir, tmp_path / "missing" / "x.safetensors")


def test_projections_of_states_open_under_the_names_that_they_had(tmp_path):
    """given0_WD of a melody-conditioned model that was imported or exported until November 2026."""
    config = dataclasses.replace(CONFIG, state_widths=(3, 5))
    spec, params = dataclasses.replace(SPEC, model=config), fresh(1, config)
    earlier = {name.replace("states0", "given0").replace("states1", "given1"): x for name, x in params.items()}
    assert {"given0_WD", "given1_bias_D"} < earlier.keys()
    checkpoints.save_weights(tmp_path, earlier, spec)
    tensors = {"/".join(path): np.asarray(x) for path, x in flatten_dict(earlier).items()}
    save_file(tensors, tmp_path / "earlier.safetensors", {"about": json.dumps(spec.to_json())})
    for load, path in ((checkpoints.restore_params, "."), (checkpoints.load_safetensors, "earlier.safetensors")):
        model, _ = load(tmp_path / path)
        assert same(checkpoints.params_of(model), params)


@pytest.mark.parametrize("state", [{"next_index": 4, "inner": [1, None]}, b"\x00\xff"])
def test_positions_of_any_iterator_survive_as_text(state):
    assert checkpoints.unpack_position(checkpoints.pack_position(state)) == state
