"""A codec and a corpus from outside of the package, named by their modules."""

import subprocess
import sys

import numpy as np
import pytest

from audiolm_jax import codecs
from audiolm_jax.cli import main
from audiolm_jax.data import tokens
from audiolm_jax.errors import InputError

CODEC = """
from audiolm_jax.codecs import tiny


def load(path=None, codebooks=None):
    return tiny.load(path, codebooks)
"""
CORPUS = """
import numpy as np

from audiolm_jax.data.corpora import Utterance


def tone(hertz, rate):
    return np.sin(np.arange(rate) * 2 * np.pi * hertz / rate).astype(np.float32) / 2, rate


def utterances(config, directory, progress):
    import functools

    names = [("train", 200), ("train", 300), ("valid", 400)]
    return [
        Utterance(str(hertz), split, "sine", f"{hertz} hertz", (), functools.partial(tone, hertz, config.sample_rate))
        for split, hertz in names
    ]
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Arguments that name modules of a package in the current directory."""
    (tmp_path / "parts_of_mine").mkdir()
    (tmp_path / "parts_of_mine" / "codec.py").write_text(CODEC)
    (tmp_path / "parts_of_mine" / "corpus.py").write_text(CORPUS)
    (tmp_path / "parts_of_mine" / "empty.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # also forgets directories that the import system has cached
    return ["--config.codec.name=parts_of_mine.codec", "--config.corpus.name=parts_of_mine.corpus"]


def test_tokens_of_a_corpus_by_a_codec_from_outside(outside, tmp_path, capsys):
    assert main.main(["prepare", "--config", "tiny", "--data", "data", *outside]) == 0
    assert "train         2 utterances" in capsys.readouterr().out
    codec = codecs.load("parts_of_mine.codec", codebooks=3)
    split = tokens.open_split(tmp_path / "data" / "tokens", "train", codec.fingerprint)
    [low] = [split[index] for index in range(len(split)) if split[index]["key"] == "200"]
    wave = np.sin(np.arange(16000) * 2 * np.pi * 200 / 16000).astype(np.float32) / 2
    np.testing.assert_array_equal(low["codes"], codec.encode(wave))


def test_preparing_data_loads_nothing_that_trains_or_measures(outside):
    """Not even JAX, which is for the codec to import."""
    program = (
        "import sys; from audiolm_jax.cli import main; main.main(sys.argv[1:]); unused = ('jax', 'grain', "
        "'audiolm_jax.training.loop', 'audiolm_jax.families.finetune', 'audiolm_jax.compare.compare'); "
        "print([name for name in unused if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "prepare", "--config", "tiny", "--data", "data", *outside]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["tokens: data/tokens", "[]"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("codec", "codec.name=parts_of_mine.empty: the module must have a function load"),
        ("corpus", "corpus.name=parts_of_mine.empty: the module must have a function utterances"),
    ],
)
def test_a_module_without_the_function_of_its_contract_is_named(outside, key, expected, capsys):
    changes = [*outside, f"--config.{key}.name=parts_of_mine.empty"]
    assert main.main(["prepare", "--config", "tiny", "--data", "data", *changes]) == 2
    assert expected in capsys.readouterr().err


def test_a_module_that_is_missing_is_named_before_anything_is_written(outside, tmp_path, capsys):
    assert main.main(["prepare", "--config", "tiny", "--data", "data", "--config.codec.name=parts_of_mine.gone"]) == 2
    assert "codec.name=parts_of_mine.gone cannot be imported: ModuleNotFoundError" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    with pytest.raises(InputError, match=r"codec.name=parts_of_mine.gone cannot be imported"):
        codecs.load("parts_of_mine.gone")
