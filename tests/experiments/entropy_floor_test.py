"""The floor experiment on one strategy: right, it ends with 0; with a mistake built in, it says which kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "entropy_floor" / "run.py"


def run(*arguments, cwd):
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--steps", "1000"), 0, "0 of 6 likelihoods are not where they must be; 0 tests of samples fail"),
        (("--steps", "200", "--break", "leak"), 1, "LEAK"),
        (("--steps", "400", "--break", "tail"), 1, "NOT REACHED"),
    ],
)
def test_what_is_right_passes_and_what_is_wrong_is_named(arguments, code, said, tmp_path):
    done = run("--workdir", "floor", "--strategies", "delay", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr[-2000:]
    assert said in done.stdout


def test_an_unknown_strategy_is_one_sentence(tmp_path):
    done = run("--strategies", "delya", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("--strategies=delya: there is no 'delya'; known are flat, ")
    assert len(done.stderr.strip().splitlines()) == 1
