"""The comparison from end to end on a toy, killed at any moment; the other subcommands on what it made."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from flax import nnx

from audiolm_jax import cli, compare, config, report
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import recogniser
from audiolm_jax.serialization import STRATEGIES
from audiolm_jax.stages import Stages
from audiolm_jax.vocab import Vocab

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "--config.evaluation.sentences=2",
    "--config.evaluation.batch=2",
    "--config.evaluation.timed=1",
    "--config.evaluation.heard=1",
    "--config.evaluation.repeats=1",
    "--config.model.layers=1",
    "--config.training.steps=6",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recogniser that has learnt nothing (what it hears is nonsense, and always the same)."""
    folder = tmp_path_factory.mktemp("compare")
    sizes = recogniser.RecogniserConfig(layers=1, width=16)
    weights = recogniser.to_weights(nnx.split(recogniser.Network(sizes, rngs=nnx.Rngs(0)))[1])
    recogniser.save(folder / "deaf.safetensors", sizes, weights, {})
    return folder


def arguments(folder: Path, workdir: str, *strategies: str) -> list[str]:
    return [
        *("compare", "--config", "tiny", "--workdir", workdir, *SMALL),
        f"--config.evaluation.recogniser={folder / 'deaf.safetensors'}",
        f"--config.compare.strategies={','.join(strategies)}",
    ]


def start(folder: Path, cwd: Path, *strategies: str) -> subprocess.Popen:
    cwd.mkdir(exist_ok=True)
    variables = {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "audiolm_jax", *arguments(folder, "run", *strategies)],
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def numbers(workdir: Path) -> dict:
    """results.json without times and without what another commit of the same code may change."""
    results = json.loads((workdir / "results.json").read_text())
    report.validate(results)
    return {key: value for key, value in report.strip_times(results).items() if key != "commit"}


@pytest.fixture(scope="module")
def done(folder):
    """An undisturbed comparison of two strategies: its output and its workdir."""
    output = finish(start(folder, folder / "undisturbed", "delay", "masked"))
    return output, folder / "undisturbed" / "run"


def test_report_and_results(done):
    output, workdir = done
    assert f"report: {workdir / 'report.html'}" in output
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", (workdir / "report.html").read_text())
    results = numbers(workdir)
    assert [found["name"] for found in results["strategies"]] == ["delay", "masked"]
    delay, masked = results["strategies"]
    assert delay["parameters"] == masked["parameters"]
    assert delay["training_flops"] == masked["training_flops"]
    assert (delay["likelihood"], masked["likelihood"]) == ("exact", "bound")
    assert results["config"]["training"]["steps"] == delay["training_steps"] == 6
    for found in results["strategies"]:
        assert found["cost"]["predicted_passes"] == found["cost"]["measured_passes"]
        assert 0 < found["bits_per_second"] < 2 * results["baselines"]["uniform_bits_per_second"]
        for sample in found["samples"]:
            samples, rate = soundfile.read(workdir / sample["file"])
            assert rate == 16000
            assert len(samples) / rate == pytest.approx(sample["seconds"])


def test_the_same_command_again_does_nothing_twice(done, folder):
    output, workdir = done
    before, speed = numbers(workdir), (workdir / "stages" / "speed-delay.json").read_text()
    again = finish(start(folder, workdir.parent, "delay", "masked"))
    stages = re.findall(r"^-- (\S+): [\d.]+ s$|^-- (\S+)$", output, re.M)
    assert len(stages) == 12
    assert len(re.findall(r"^-- \S+: done before$", again, re.M)) == 12
    assert not re.findall(r"^-- \S+$", again, re.M)
    assert numbers(workdir) == before
    assert (workdir / "stages" / "speed-delay.json").read_text() == speed


def test_a_workdir_of_another_configuration_is_refused(done, folder, capsys):
    _, workdir = done
    before = (workdir / "results.json").read_bytes()
    assert cli.main([*arguments(folder, str(workdir), "delay"), "--config.model.ffn=64"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is the run of another config" in err
    assert "model.ffn is 128 there and 64 here" in err
    assert (workdir / "results.json").read_bytes() == before


def test_generate_speaks(done, capsys, tmp_path):
    _, workdir = done
    run, out = str(workdir / "runs" / "delay"), tmp_path / "out.wav"
    common = ["generate", "--workdir", run, "--text", "one two"]
    assert cli.main([*common, "--out", str(out), "--frames", "20"]) == 0
    assert "0.80 s of audio" in capsys.readouterr().out
    whole, rate = soundfile.read(out)
    assert (len(whole), rate) == (20 * 640, 16000)
    streamed = tmp_path / "streamed.wav"
    assert cli.main([*common, "--out", str(streamed), "--seconds", "0.8", "--stream"]) == 0
    np.testing.assert_array_equal(soundfile.read(streamed)[0], whole)
    prompt = workdir / "speech" / "real" / "0.wav"
    assert cli.main([*common, "--out", str(out), "--prompt", str(prompt), "--prompt-text", "six"]) == 0
    assert sorted(tmp_path.iterdir()) == [out, streamed]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--text", "one", "--frames", "0"], "0 frames"),
        (["--text", "one", "--seconds", "nan"], "nan seconds"),
        (["--text", "one", "--frames", "100000"], "100000 frames"),
        (["--text", ""], "the text is empty"),
        (["--text", "one " * 300], "the context of this model"),
        (["--text", "one", "--prompt", "nothing.wav"], "nothing.wav: the file does not exist"),
        (["--text", "one", "--prompt", __file__], "not readable as audio"),
        (["--text", "one", "--config.sampling.top_p=2"], "sampling.top_p"),
        (["--text", "one", "--config.sampling.temperature=1,1"], "sampling.temperature"),
        (["--text", "one", "--config.model.layers=3"], "keeps its configuration"),
    ],
)
def test_generate_refuses_in_one_sentence(done, more, expected, capsys, tmp_path):
    _, workdir = done
    out = tmp_path / "out.wav"
    assert cli.main(["generate", "--workdir", str(workdir / "runs" / "delay"), "--out", str(out), *more]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_evaluate_agrees_with_the_comparison(done, folder, capsys):
    _, workdir = done
    options = [f"--config.evaluation.recogniser={folder / 'deaf.safetensors'}", *SMALL[:5]]
    run = workdir / "runs" / "delay"
    assert cli.main(["evaluate", "--workdir", str(run), "--data", str(workdir / "data"), *options]) == 0
    assert "bits per second of audio" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    expected = numbers(workdir)["strategies"][0]
    assert found["bits_per_second"] == pytest.approx(expected["bits_per_second"], rel=1e-4)
    assert found["cer"] == expected["cer"]


def test_train_refuses_what_is_not_its_own(done, capsys, tmp_path):
    _, workdir = done
    train = ["train", "--config", "tiny", "--data", str(workdir / "data")]
    run = str(workdir / "runs" / "delay")
    assert cli.main([*train, "--workdir", run, "--config.serialization.strategy=flat"]) == 2
    assert "serialization.strategy" in capsys.readouterr().err
    assert cli.main([*train, "--workdir", str(tmp_path / "new"), "--config.codec.name=default"]) == 2
    assert "fingerprint" in capsys.readouterr().err


def test_a_full_disk_ends_with_one_sentence(done, folder):
    """No file may grow beyond 64 kB: what a full disk is to a writer. (The checkpoint library complains first.)"""
    _, workdir = done
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from audiolm_jax import cli; cli.run()"
    )
    command = [*("train", "--config", "tiny", "--data", str(workdir / "data")), *SMALL[5:]]
    ended = subprocess.run(
        [sys.executable, "-c", code, *command, "--workdir", str(folder / "full")],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert re.match(r"audiolm: .*(File too large|No space left).* what was finished is kept", last), ended.stderr
    assert "audiolm_jax/" not in ended.stderr, "a traceback of this package"


def kill_when(process: subprocess.Popen, stage: str, seconds: float) -> None:
    """Waits until `stage` begins, then so many seconds more, and kills everything."""
    for line in process.stdout:
        if line.startswith(f"-- {stage}"):
            break
    else:
        raise AssertionError(f"{stage} did not begin")
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_killed_at_any_moment_ends_with_the_same_results(folder):
    strategies = ("flat", "delay", "hierarchical", "masked")
    finish(start(folder, folder / "straight", *strategies))
    moments = [
        *(("corpus", 0.0), ("corpus", 0.5), ("tokens", 0.2), ("train-flat", 0.5), ("train-flat", 6.0)),
        *(("train-delay", 4.0), ("train-masked", 3.0), ("likelihood-flat", 0.5), ("speech-delay", 1.0)),
        *(("speed-hierarchical", 0.5), ("speech-masked", 0.0)),
    ]
    for stage, seconds in moments:
        kill_when(start(folder, folder / "killed", *strategies), stage, seconds)
    finish(start(folder, folder / "killed", *strategies))
    assert numbers(folder / "killed" / "run") == numbers(folder / "straight" / "run")
    for wav in sorted((folder / "straight" / "run" / "speech").rglob("*.wav")):
        other = folder / "killed" / wav.relative_to(folder / "straight")
        assert other.read_bytes() == wav.read_bytes(), wav


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(done, folder, number, code):
    run, data = folder / f"signal-{code}", done[1] / "data"
    command = ["train", "--config", "tiny", "--data", str(data), "--workdir", str(run), "--config.model.layers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "audiolm_jax", *command, "--config.training.steps=5000"],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "audiolm: stopped; the last step is saved, and the same command again goes on from there"
    )
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()]


def test_every_strategy_has_an_equal_share():
    tiny = config.load("tiny", [f"compare.strategies={','.join(STRATEGIES)}"])
    shares = compare.equal_shares(tiny, Vocab(3, 16, 128), 25.0)
    assert list(shares) == list(STRATEGIES)
    assert len({share["parameters"] for share in shares.values()}) == 1
    assert len({share["training_flops"] for share in shares.values()}) == 1
    assert shares["flat"]["positions_per_second"] == pytest.approx(75, rel=0.01)
    assert shares["parallel"]["positions_per_second"] == pytest.approx(25, rel=0.01)
    budget = shares["flat"]["training_flops"] * 5
    more = config.load("tiny", ["compare.strategies=flat,delay", f"compare.flops={budget}"])
    assert compare.equal_shares(more, Vocab(3, 16, 128), 25.0)["delay"]["training_steps"] == 60


def test_options_go_to_the_strategies_that_have_them():
    tiny = config.load("tiny", ["compare.strategies=flat,delay,masked", "serialization.delays=0,2,4"])
    found = compare.variants(tiny, 3)
    assert found["delay"].serialization.delays == (0, 2, 4)
    assert found["flat"].serialization.delays == found["masked"].serialization.delays == ()
    with pytest.raises(InputError, match="delays"):
        compare.variants(config.load("tiny", ["compare.strategies=flat", "serialization.delays=0,2,4"]), 3)
    with pytest.raises(InputError, match="delays"):
        compare.variants(config.load("tiny", ["compare.strategies=flat,delay", "serialization.delays=2,1,0"]), 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("strategies=delay,zigzag", "zigzag"), ("strategies=()", "empty"), ("strategies=delay,delay", "once")],
)
def test_compare_refuses(text, expected):
    with pytest.raises(InputError, match=expected):
        config.check(config.load("tiny", [f"compare.{text}"]))


def test_a_stage_is_made_again_when_its_inputs_or_an_earlier_stage_change(tmp_path, capsys):
    made = []

    def go(first: int, second: int) -> Stages:
        stages = Stages(tmp_path)
        stages.run("first", lambda: made.append("first") or {"value": first}, first)
        stages.run("second", lambda: made.append("second") or (1, 2), second, after=["first"])
        return stages

    go(1, 1)
    assert made == ["first", "second"]
    assert go(1, 1).kept["second"]["result"] == [1, 2]
    assert made == ["first", "second"]
    go(1, 2)
    assert made == ["first", "second", "second"]
    go(2, 2)
    assert made == ["first", "second", "second", "first", "second"]
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path).run("third", lambda: 1 / 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "second.json"]
    capsys.readouterr()
