"""A run of an earlier version still opens, speaks and continues.

old_runs/delay.zip was made at commit 3dc1eb5 (November 2026), with the moving average on; checkpoint 3 of 6 and the two
splits that training reads are kept:

    audiolm prepare --data tokens/.. --config tiny, speakers=1 train=6 valid=1 test=1 unseen=0
    audiolm train --data tokens/.. --workdir run --config tiny, and what `CHANGES` says
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import audiolm_jax

HERE = Path(__file__).resolve().parent
CHANGES = """
model.layers=1 model.width=8 model.heads=1 model.head_width=8 model.ffn=16 model.tied=True data.sequence_length=160
data.batch_size=2 data.max_frames=64 training.steps=6 training.checkpoint_every=3 training.keep=2 training.log_every=1
training.ema=0.5 optimizer.learning_rate=0.02
""".split()
CODES = """
8,12,10 8,13,8 15,8,8 1,5,14 1,2,14 3,5,7 1,3,2 3,5,1 3,2,13 1,8,11 1,8,11 9,8,1 9,8,10 1,8,15 8,8,12 1,8,12 1,8,11
9,8,11 6,8,5 9,8,9
"""
SUM_OF_THE_SECOND = 26346  # of code times its number, 1, 2, ... along frames and codebooks
LOSSES = [1.561966061592102, 1.4330406188964844, 1.3399251699447632]  # of steps 4, 5 and 6


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(HERE / "old_runs" / "delay.zip") as archive:
        archive.extractall(folder)
    return folder


def test_it_opens_and_speaks_the_same_codes(old):
    generator = audiolm_jax.load(old / "run", step=3)
    first, second = generator.generate(["one two", "nine"], frames=[20, None], seeds=[3, 4])
    assert [",".join(map(str, frame)) for frame in first.codes_TQ.tolist()] == CODES.split()
    assert second.codes_TQ.shape == (26, 3) and second.ended
    number_TQ = np.arange(1, second.codes_TQ.size + 1).reshape(second.codes_TQ.shape)
    assert (second.codes_TQ * number_TQ).sum() == SUM_OF_THE_SECOND
    assert first.waveform.shape == (20 * 640,) and np.abs(first.waveform).max() == pytest.approx(0.339224, abs=1e-4)


def test_it_continues(old):
    command = [sys.executable, "-m", "audiolm_jax", "train", "--config", "tiny", "--data", str(old)]
    command += ["--workdir", str(old / "run"), *(f"--config.{change}" for change in CHANGES)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (old / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([line["loss"] for line in lines[3:]], LOSSES, rtol=1e-5)
    assert audiolm_jax.load(old / "run").generate("one two", frames=4).codes_TQ.shape == (4, 3)
