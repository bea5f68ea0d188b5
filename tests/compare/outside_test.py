"""A strategy from outside the package, a module below the current directory: trained, compared, pictured, heard."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiolm_jax import config, loading
from audiolm_jax.cli import main
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import STRATEGIES, SerializationConfig, bind, cost, label, layout, picture
from tests.compare.compare_test import ROOT, SMALL, numbers

PAIRS = '''"""Pairs: two codebooks at a time."""


def order(t, q, T, grid):
    return t + q // 2


def streams(grid):
    return grid.codebooks
'''


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_orders").mkdir()
    (tmp_path / "my_orders" / "__init__.py").touch()
    (tmp_path / "my_orders" / "pairs.py").write_text(PAIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a module of the current directory is looked for there
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_orders"]:
        del sys.modules[name]


def test_it_is_bound_counted_and_drawn_like_any_other(package):
    grid = bind(SerializationConfig("my_orders.pairs"), 4)
    np.testing.assert_array_equal(layout.order_TQ(grid, 2), [[0, 0, 1, 1], [1, 1, 2, 2]])
    assert (cost.causal_positions(grid, 10), cost.look_ahead(grid, 10)) == (11, 1)
    assert "<title>pairs</title>" in picture.svg(grid)
    assert label("my_orders.pairs", ("flat", "my_orders.pairs")) == "pairs"
    assert label("my_orders.pairs", ("your_orders.pairs", "my_orders.pairs")) == "my_orders.pairs"
    settings = config.load("tiny", ["serialization.strategy=my_orders.pairs"])
    config.check(settings)


def test_it_is_trained_compared_pictured_and_heard(package):
    command = [*("compare", "--config", "tiny", "--workdir", "run"), *SMALL]
    command += ["--config.compare.strategies=my_orders.pairs,delay", "--config.corpus.train=12"]
    variables = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "audiolm_jax", *command], env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pairs, delay = numbers(Path("run"))["strategies"]
    assert (pairs["name"], pairs["strategy"], delay["name"]) == ("pairs", "my_orders.pairs", "delay")
    assert pairs["likelihood"] == "exact" and pairs["bits_per_second"] > 0
    assert pairs["cost"]["predicted_passes"] == pairs["cost"]["measured_passes"] < delay["cost"]["measured_passes"]
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "<title>pairs</title>" in page and all(Path("run", sample["file"]).is_file() for sample in pairs["samples"])

    speak = ["generate", "--workdir", "run/runs/pairs", "--text", "one", "--frames", "9", "--out", "one.wav"]
    assert main.main(speak) == 0
    [result] = loading.load("run/runs/pairs").generate(["one"], frames=9)
    assert result.codes_TQ.shape == (9, 3)


def test_a_module_that_breaks_the_contract_ends_in_one_sentence(package, capsys):
    (package / "my_orders" / "half.py").write_text("def order(t, q, T, grid):\n    return t\n")
    (package / "my_orders" / "flat.py").write_text(PAIRS.replace("return grid.codebooks", "return 1"))
    for name, sentence in {
        "my_orders.half": "serialization.strategy=my_orders.half: the module must have a function streams",
        "my_orders.none": "serialization.strategy=my_orders.none cannot be imported",
        "my_orders.flat": r"my_orders.flat: cells \(0, 0\) and \(0, 1\) of 1 frames both stand at position 0",
        "pairs": f"serialization.strategy=pairs must be one of {', '.join(STRATEGIES)}",
    }.items():
        with pytest.raises(InputError, match=sentence):
            bind(SerializationConfig(name), 2)
    override = "--config.serialization.strategy=my_orders.none"
    assert main.main(["train", "--config", "tiny", "--data", "data", override]) == 2
    assert capsys.readouterr().err.count("\n") <= 2
