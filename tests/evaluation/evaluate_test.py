"""`audiolm evaluate` of what has no text to speak."""

import json
import re

import numpy as np
import soundfile

from audiolm_jax.cli import main
from tests.compare.compare_test import SMALL


def test_speech_without_text_has_bits_and_no_error_rate(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        hum = np.sin(np.arange(16000) * (0.05 + 0.01 * number)) * (0.3 + 0.1 * rng.random(16000))
        soundfile.write(tmp_path / f"{number}.wav", hum, 16000)
    common, data = ["--config", "tiny"], ["--data", str(tmp_path / "data")]
    folder = [f"--config.corpus.{key}" for key in ("name=folder", f"path={tmp_path}", "require_text=False")]
    folder += ["--config.corpus.test_fraction=0.4", *SMALL[5:6]]
    assert main.main(["prepare", *common, *data, *folder]) == 0
    assert re.search(r"split test will have no interval: \d utterances?, 20 are needed", capsys.readouterr().out)
    run = ["--workdir", str(tmp_path / "run")]
    assert main.main(["train", *common, *data, *run, SMALL[5], "--config.training.steps=1"]) == 0
    capsys.readouterr()
    assert main.main(["evaluate", *run, *data]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"bits per second of audio   [\d.]+ \(no interval: \d utterances?\)", printed)
    assert "no error rate              the recordings have no text" in printed
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["cer"] is None and evaluation["bits_per_second"] > 0 and "speed" not in evaluation
