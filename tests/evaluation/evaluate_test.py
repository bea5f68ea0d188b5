"""`audiolm evaluate` of what has no text to speak."""

import json
import re
import resource
import sys

import numpy as np
import pytest
import soundfile

from audiolm_jax.cli import main
from audiolm_jax.encoders import recogniser
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import evaluate, intelligibility
from audiolm_jax.evaluation.config import EvaluationConfig
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


def test_curves_are_read_from_the_log(tmp_path):
    """Held-out bits stand in lines of their own, or beside those of training."""
    bits = {"codebook_0": 2.0, "codebook_1": 3.0}
    lines = [
        {"step": 2, "bits": bits},
        {"step": 2, "valid_bits_per_second": 140.0},
        {"step": 4, "bits": {"codebook_0": 1.0}},  # masked: no row of the interval trained the other
        {"step": 6, "bits": bits, "valid_bits_per_second": 130.5},
        {"step": 8, "bits": bits, "valid_bits_per_second": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluate.training_curve(tmp_path, 25.0) == [[2, 125.0], [6, 125.0], [8, 125.0]]
    assert evaluate.validation_curve(tmp_path) == [[2, 140.0], [6, 130.5]]


def test_a_judge_is_judged_on_recordings_and_else_on_them_after_the_codec():
    assert intelligibility.meaningless(0.2, 0.9) == ""
    assert "21% of the characters of the recordings (above 20%)" in intelligibility.meaningless(0.21, 0.0)
    assert intelligibility.meaningless(None, 0.1) == ""
    assert "of the recordings after the codec" in intelligibility.meaningless(None, 0.5)


def test_normalised_text_has_no_upper_case_and_is_normalised_already():
    """Of every character there is: letters whose compatibility form is a capital, too."""
    for code in (code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000):
        text = intelligibility.normalise(chr(code))
        assert text == text.lower() == intelligibility.normalise(text), hex(code)
    assert intelligibility.normalise("\U0001d400\uff21\u212c A\u2019b") == "aab a'b"


def test_stereo_speech_is_as_long_as_it_is_and_heard_as_its_mean(tmp_path):
    rng = np.random.default_rng(0)
    left, right = (0.3 * rng.standard_normal(12000).astype(np.float32) for _ in range(2))
    judge, examples = recogniser.load(), [{"text": "one", "key": "a"}]
    stereo, mono = (
        evaluate.listen([x], examples, 16000, judge, EvaluationConfig(), tmp_path / name / "test")
        for name, x in (("stereo", np.stack([left, right])), ("mono", (left + right) / 2))
    )
    assert stereo["samples"][0]["seconds"] == mono["samples"][0]["seconds"] == 0.75
    assert stereo["samples"][0]["transcript"] == mono["samples"][0]["transcript"]
    assert soundfile.info(tmp_path / "stereo" / "test" / "0.wav").channels == 2


def test_a_full_disk_ends_listening_with_one_sentence(tmp_path):
    """No file may grow beyond 4 kB: what a full disk is to libsndfile, whose error is no OSError."""
    examples, limits = [{"text": "one", "key": "a"}], resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"0\.wav: cannot be written .*what was finished is kept"):
            evaluate.listen(
                [np.zeros(32000, np.float32)], examples, 16000, recogniser.load(), EvaluationConfig(), tmp_path / "test"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "test").iterdir())
