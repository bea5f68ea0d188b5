"""Checkpoints of MusicGen that cannot be used: one message each, that lists every problem. Needs no torch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import audiolm_jax
from audiolm_jax import codecs
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
