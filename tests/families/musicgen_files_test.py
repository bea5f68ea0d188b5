"""Checkpoints of MusicGen that cannot be used: one message each, that lists every problem. Needs no torch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import audiolm_jax
from audiolm_jax import codecs, files
from audiolm_jax.cli import main
from audiolm_jax.encoders import t5
from audiolm_jax.errors import InputError
from audiolm_jax.families import musicgen, published
from audiolm_jax.model import checkpoints
from experiments.colab import random_musicgen
from experiments.colab.random_musicgen import small_decoder, tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """(config, tensors) of a checkpoint that can be used, written here."""
    folder = tmp_path_factory.mktemp("good")
    random_musicgen.write(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path, good):
    """That checkpoint, to be spoilt."""
    (tmp_path / "config.json").write_text(json.dumps(good[0]))
    save_file(good[1], tmp_path / "model.safetensors")
    tokenizer(tmp_path / "tokenizer.json")
    return tmp_path


def refused(folder):
    with pytest.raises(InputError) as error:
        audiolm_jax.load(folder)
    return str(error.value)


def test_a_good_one_is_opened(folder):
    musicgen.read(folder)


def test_every_problem_is_named_at_once(folder, good):
    tensors = dict(good[1])
    del (
        tensors["decoder.model.decoder.layers.1.encoder_attn.v_proj.weight"],
        tensors["audio_encoder.encoder.layers.0.conv.bias"],
    )
    tensors["decoder.lm_heads.9.weight"] = np.zeros((2, 2), np.float32)
    tensors["decoder.lm_heads.1.weight"] = tensors["decoder.lm_heads.1.weight"][:-1].copy()
    tensors["text_encoder.encoder.final_layer_norm.weight"] = (
        tensors["text_encoder.encoder.final_layer_norm.weight"] * np.nan
    )
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    said = refused(folder)
    for problem in (
        "decoder.model.decoder.layers.1.encoder_attn.v_proj.weight is missing",
        "audio_encoder.encoder.layers.0.conv.bias is missing",
        "decoder.lm_heads.9.weight is unexpected",
        "decoder.lm_heads.1.weight is (31, 20) where (32, 20) is needed",
        "text_encoder.encoder.final_layer_norm.weight holds NaN",
        "the file tokenizer.json is missing",
    ):
        assert problem in said
    assert said.count(";") == 6  # five of the six, and what to do


def test_a_table_of_positions_in_an_older_file_is_no_problem(folder, good):
    positions = {"decoder.model.decoder.embed_positions.weights": np.zeros((64, 20), np.float32)}
    save_file(good[1] | positions, folder / "model.safetensors")
    musicgen.read(folder)


def test_a_pickle_is_never_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "pytorch_model.bin is a pickle, which is never read" in refused(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    said = refused(folder)
    assert "model.safetensors cannot be read as safetensors" in said and "another format" in said


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The cache of huggingface_hub, an empty one, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_repository_that_cannot_be_reached(offline, monkeypatch, capsys, tmp_path):
    said = refused("nobody/musicgen-small@main")
    assert "config.json of nobody/musicgen-small@main could not be downloaded" in said and "folder" in said
    said = refused("nobody/musicgen-small")
    assert said.startswith("there is no folder nobody/musicgen-small, and as a repository: ") and "@main could" in said
    assert main.main(["import", "nobody/musicgen-small", str(tmp_path / "run")]) == 2
    assert "there is no folder nobody/musicgen-small" in capsys.readouterr().err
    assert "is not the folder of a training run" in refused(tmp_path / "nothing")
    # A folder that is here is no owner: what is missing in it is a run.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "runs/small is not the folder of a training run" in refused("runs/small")
    assert main.main(["import", "runs/small", str(tmp_path / "run")]) == 2
    assert "there is no folder runs/small" in capsys.readouterr().err


def test_a_repository_without_a_revision_is_its_latest_commit(offline, folder, tmp_path, capsys, monkeypatch):
    """In the library's cache, as it lies there after a download."""
    monkeypatch.chdir(tmp_path)
    commit, cached = "0123456789abcdef0123456789abcdef01234567", offline / "models--somebody--music"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).rename(cached / "snapshots" / commit / name)
    pinned = f"somebody/music@{commit}"
    read, configs = files.read_json, []
    monkeypatch.setattr(files, "read_json", lambda *file: configs.append(file) or read(*file))
    published.read(pinned)
    assert len(configs) == 1
    assert [published.read(f"somebody/music{at}").spec.source.repository for at in ("", "@main", f"@{commit}")] == [
        pinned
    ] * 3
    assert main.main(["import", "somebody/music", "run"]) == 0
    assert f"imported {pinned}: run" in capsys.readouterr().out
    assert checkpoints.restore_params("run")[1].source.repository == pinned
    assert audiolm_jax.load("somebody/music").vocab == audiolm_jax.load("run").vocab


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "describes a model of type 'bert'"),
        ({"decoder": {"vocab_size": 32}}, "lacks decoder.num_hidden_layers"),
        ({"decoder": small_decoder(activation_function="relu2")}, "activation_function='relu2'"),
        (
            {"decoder": small_decoder(num_codebooks=3)},
            "3 codebooks of 32 codes, its audio encoder 4",
        ),
        ({"decoder": small_decoder(num_attention_heads=3)}, "no multiple of num_attention_heads"),
        ({"text_encoder": {"feed_forward_proj": "gated-silu"}}, "feed_forward_proj='gated-silu'"),
    ],
)
def test_a_configuration_that_does_not_fit(change, said, folder, good):
    (folder / "config.json").write_text(json.dumps({**good[0], **change}))
    assert said in refused(folder)


def test_files_that_are_not_what_they_should_be(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be read as a tokenizer" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "is not the folder of a training run" in refused(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"model_type": "musicgen"}')
    (folder / "model.safetensors.index.json").write_text('{"weights": {}}')
    assert "cannot be read as an index of weights" in refused(folder)


def test_the_parts_of_a_workdir_are_models_by_themselves(tmp_path, folder):
    published.import_run(folder, tmp_path / "run")
    assert t5.load(tmp_path / "run" / "text_encoder").config.d_model == 12
    assert codecs.load("encodec", tmp_path / "run" / "codec").codebooks == 4
    model, _ = checkpoints.restore_params(tmp_path / "run")
    with (
        checkpoints.manager(tmp_path / "run") as opened,
        pytest.raises(InputError, match="holds weights alone"),
    ):
        checkpoints.restore(opened, 0, checkpoints.params_of(model), {"step": np.zeros(())})


def test_truncation_and_padding_that_a_training_saved_never_cut_a_caption(folder):
    caption = "slow jazz with a loud piano and drums"
    path = folder / "tokenizer.json"
    whole = t5.token_ids(t5.read_tokenizer(path), 16, caption)
    assert len(whole) == 9
    saved = json.loads(path.read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fixed = {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    saved["padding"] = fixed | {"pad_type_id": 0, "pad_token": "<pad>"}
    path.write_text(json.dumps(saved))
    assert t5.token_ids(t5.read_tokenizer(path), 16, caption) == whole
    assert audiolm_jax.load(folder).conditioning.text_encoder([caption])[0].shape == (9, 12)


def test_an_import_that_fails_leaves_nothing(folder, tmp_path_factory, capsys, monkeypatch):
    root = tmp_path_factory.mktemp("imports")
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{")
    assert main.main(["import", str(folder), str(root / "new" / "run")]) == 2
    assert "tokenizer.json cannot be read as a tokenizer" in capsys.readouterr().err
    assert list(root.iterdir()) == []
    (folder / "tokenizer.json").write_text(whole)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_weights", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert main.main(["import", str(folder), str(root / "run")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(root.iterdir()) == []
    (root / "run").mkdir()
    assert main.main(["import", str(folder), str(root / "run")]) == 0
    assert sorted(path.name for path in (root / "run").iterdir()) == [
        "checkpoints",
        "codec",
        "published.json",
        "text_encoder",
    ]
    assert main.main(["import", str(folder), str(root / "run")]) == 2


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_weights_of_a_wrapped_module_are_opened(folder, good, prefix):
    plain = musicgen.read(folder)
    save_file({prefix + name: x for name, x in good[1].items()}, folder / "model.safetensors")
    assert checkpoints.digest(checkpoints.params_of(musicgen.read(folder).model)) == checkpoints.digest(
        checkpoints.params_of(plain.model)
    )


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("decoder", {"num_hidden_layers": 10**9}),
        ("decoder", {"hidden_size": 10**9, "num_attention_heads": 1}),
        ("decoder", {"num_attention_heads": 0}),
        ("decoder", {"ffn_dim": True}),
        ("decoder", {"activation_function": ["gelu"]}),
        ("text_encoder", {"num_layers": 10**9}),
        ("text_encoder", {"vocab_size": 10**12}),
        ("text_encoder", {"d_model": -4}),
        ("text_encoder", {"layer_norm_epsilon": float("nan")}),
        ("audio_encoder", {"num_lstm_layers": 10**9}),
        ("audio_encoder", {"upsampling_ratios": [0, 2]}),
        ("audio_encoder", {"upsampling_ratios": [1] * 10**5}),
        ("audio_encoder", {"target_bandwidths": [1e300]}),
        ("audio_encoder", {"hidden_size": 10**12}),
        ("audio_encoder", {"codebook_size": 1}),
        ("audio_encoder", {"sampling_rate": "600"}),
        ("audio_encoder", {"dilation_growth_rate": 10**6, "num_residual_layers": 3}),
        ("decoder", None),
    ],
)
def test_sizes_that_the_weights_do_not_have(folder, good, part, changes):
    changed = [1] if changes is None else {**good[0][part], **changes}
    (folder / "config.json").write_text(json.dumps({**good[0], part: changed}))
    said = refused(folder)
    assert said.startswith(("MusicGen: ", "codec config: ")) and len(said) < 2100
