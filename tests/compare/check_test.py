"""A comparison that cannot end does not begin."""

import numpy as np
import pytest
import soundfile

from audiolm_jax.cli import main


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["compare.strategies=delay,coarse_first", "serialization.delays=1,2,3"], "(1, 2, 3); it must be 3 non-decr"),
        (["serialization.delays=0,1"], "serialization.delays is (0, 1)"),
        (["serialization.iterations=4,1"], "serialization.iterations is (4, 1)"),
        (["compare.strategies=flat,delay", "serialization.iterations=4,1,1"], "none of the strategies flat, delay"),
        (["data.codebooks=4"], "data.codebooks = 4"),
        (["codec.codebooks=99"], "99"),
        (["evaluation.split=unsen"], "evaluation.split=unsen: the corpus has no such split; it has train, valid, test"),
        (["evaluation.also=nobody"], "evaluation.also=nobody: the corpus has no such split"),
        (["corpus.unseen=0"], "evaluation.also=unseen: the corpus has no such split; it has train, valid, test"),
        (["corpus.train=0"], "train"),
        (["data.template=to {speaker}"], "must name {text}"),
        (["data.batch_size=7", "training.accumulate=2"], "data.batch_size=7"),
        (["evaluation.recogniser=nothing.safetensors"], "nothing.safetensors"),
        (["corpus.name=folder", "corpus.path=SPEECH", "evaluation.split=dev"], "evaluation.split=dev"),
        (["model.kv_heads=3"], "kv_heads"),
    ],
)
def test_a_comparison_that_cannot_end_does_not_begin(more, expected, capsys, tmp_path):
    speech = np.sin(np.arange(16000) / 20) / 2
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", speech, 16000)
        (tmp_path / f"{number}.txt").write_text("one")
    changes = [f"--config.{change.replace('SPEECH', str(tmp_path))}" for change in more]
    assert main.main(["compare", "--config", "tiny", "--workdir", str(tmp_path / "run"), *changes]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()
