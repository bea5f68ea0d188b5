"""The comparison from end to end on a toy, killed at any moment; the other subcommands on what it made."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from audiolm_jax import config, loading
from audiolm_jax.cli import main
from audiolm_jax.compare import budget, cells, report
from audiolm_jax.compare.stages import Stages
from audiolm_jax.data import examples, tokens
from audiolm_jax.data.batches import training_batches
from audiolm_jax.encoders import recogniser
from audiolm_jax.evaluation import evaluate
from audiolm_jax.hub.weights import named
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.serialization import STRATEGIES, bind
from experiments.recogniser import train as training

ROOT = Path(__file__).resolve().parents[2]
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
    weights = named(recogniser.Network(sizes, rngs=nnx.Rngs(0)))
    training.save(folder / "deaf.safetensors", sizes, weights, {})
    return folder


def arguments(folder: Path, workdir: str, *strategies: str, more: Sequence[str] = ()) -> list[str]:
    return [
        *("compare", "--config", "tiny", "--workdir", workdir, *SMALL),
        f"--config.evaluation.recogniser={folder / 'deaf.safetensors'}",
        f"--config.compare.strategies={','.join(strategies)}",
        *more,
    ]


def start(folder: Path, cwd: Path, *strategies: str, more: Sequence[str] = (), **variables: str) -> subprocess.Popen:
    cwd.mkdir(exist_ok=True)
    return launch(cwd, *arguments(folder, "run", *strategies, more=more), **variables)


def launch(cwd: Path, *command: str, **variables: str) -> subprocess.Popen:
    variables = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "audiolm_jax", *command],
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def own_cache(folder: Path) -> dict[str, str]:
    """Compiled programs of its own for a process that may leave half of one: a copy of those that all tests share."""
    shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], folder / "compiled", dirs_exist_ok=True)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def strip_times(value: Any) -> Any:
    """JSON values without anything below the keys of wall-clock times, `config` excepted."""
    times = ("speed", "training_seconds", "created", "hardware")
    if isinstance(value, dict):
        return {key: item if key == "config" else strip_times(item) for key, item in value.items() if key not in times}
    return [strip_times(item) for item in value] if isinstance(value, list) else value


def numbers(workdir: Path) -> dict:
    """results.json without times and without what another commit of the same code may change."""
    results = json.loads((workdir / "results.json").read_text())
    report.validate(results)
    return {key: value for key, value in strip_times(results).items() if key != "commit"}


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
    assert [strategy["name"] for strategy in results["strategies"]] == ["delay", "masked"]
    delay, masked = results["strategies"]
    assert delay["parameters"] == masked["parameters"]
    assert delay["training_flops"] == masked["training_flops"]
    assert (delay["likelihood"], masked["likelihood"]) == ("exact", "bound")
    assert results["config"]["training"]["steps"] == delay["training_steps"] == 6
    unseen = results["baselines"]["also_unigram_bits_per_second"]["unseen"]
    assert 0 < unseen != results["baselines"]["unigram_bits_per_second"]
    told = output[: output.index("/train")]  # before training
    assert "no interval of bits per second: 4 utterances; 20 utterances are needed" in told
    assert "no interval of character errors: 2 utterances" in told and "no verdict on the strategies" in told
    assert "the recogniser mishears" in output[output.index("through codec") :], "it is deaf"
    for strategy in results["strategies"]:
        assert strategy["also"]["unseen"]["bits_per_second"] > 0 and strategy["also"]["unseen"]["low"] is None
        assert strategy["cost"]["predicted_passes"] == strategy["cost"]["measured_passes"]
        assert 0 < strategy["bits_per_second"] < 2 * results["baselines"]["uniform_bits_per_second"]
        for sample in strategy["samples"]:
            samples, rate = soundfile.read(workdir / sample["file"])
            assert rate == 16000
            assert len(samples) / rate == pytest.approx(sample["seconds"])


def test_the_same_command_again_does_nothing_twice(done, folder):
    output, workdir = done
    before, speed = numbers(workdir), (workdir / "runs" / "delay" / "stages" / "speed.json").read_text()
    again = finish(start(folder, workdir.parent, "delay", "masked"))
    stages = re.findall(r"^-- (\S+): [\d.]+ s$|^-- (\S+)$", output, re.M)
    assert len(stages) == 14
    assert len(re.findall(r"^-- \S+: done before$", again, re.M)) == 14
    assert not re.findall(r"^-- \S+$", again, re.M)
    assert numbers(workdir) == before
    assert (workdir / "runs" / "delay" / "stages" / "speed.json").read_text() == speed


def test_a_workdir_of_another_configuration_is_refused(done, folder, capsys):
    _, workdir = done
    before = (workdir / "results.json").read_bytes()
    assert main.main([*arguments(folder, str(workdir), "delay"), "--config.model.ffn=64"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is the run of another config" in err
    assert "model.ffn is 128 there and 64 here" in err
    assert (workdir / "results.json").read_bytes() == before


def test_generate_speaks(done, capsys, tmp_path):
    _, workdir = done
    run, out = str(workdir / "runs" / "delay"), tmp_path / "out.wav"
    common = ["generate", "--workdir", run, "--text", "one two"]
    assert main.main([*common, "--out", str(out), "--frames", "20"]) == 0
    assert "0.80 s of audio" in capsys.readouterr().out
    samples, rate = soundfile.read(out)
    assert (len(samples), rate) == (20 * 640, 16000)
    streamed = tmp_path / "streamed.wav"
    assert main.main([*common, "--out", str(streamed), "--seconds", "0.8", "--stream"]) == 0
    np.testing.assert_array_equal(soundfile.read(streamed)[0], samples)
    assert main.main([*common, "--out", str(streamed), "--frames", "20", "--seed", "1"]) == 0
    assert not np.array_equal(soundfile.read(streamed)[0], samples)
    prompt = workdir / "speech" / "real" / "0.wav"
    assert main.main([*common, "--out", str(out), "--prompt", str(prompt), "--prompt-text", "six"]) == 0
    assert sorted(tmp_path.iterdir()) == [out, streamed]


def test_an_exported_file_speaks_like_its_run(done, capsys, tmp_path):
    run, file = str(done[1] / "runs" / "delay"), tmp_path / "delay.safetensors"
    assert main.main(["export", "--workdir", run, "--out", str(file)]) == 0
    assert f"--checkpoint {file}" in capsys.readouterr().out
    for source, out in (("--workdir", "a.wav"), ("--checkpoint", "b.wav")):
        path = {"--workdir": run, "--checkpoint": str(file)}[source]
        assert (
            main.main(["generate", source, path, "--text", "one", "--frames", "9", "--out", str(tmp_path / out)]) == 0
        )
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    [result] = loading.load(file).generate(["one"], frames=9)
    assert len(result.codes_TQ) == 9
    assert "--speaker" not in capsys.readouterr().err
    with safe_open(file, "numpy") as opened:
        about = json.loads(opened.metadata()["about"])
    about["data"]["template"] = "{speaker}: {text}"
    save_file(load_file(file), file, metadata={"about": json.dumps(about)})
    speak = ["generate", "--checkpoint", str(file), "--text", "one", "--frames", "9", "--out", str(tmp_path / "a.wav")]
    assert main.main(speak) == 0 and "--speaker names a voice" in capsys.readouterr().err
    assert main.main([*speak, "--speaker", "m1"]) == 0 and not capsys.readouterr().err


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
    assert main.main(["generate", "--workdir", str(workdir / "runs" / "delay"), "--out", str(out), *more]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_evaluate_agrees_with_the_comparison(done, folder, capsys):
    _, workdir = done
    options = [f"--config.evaluation.recogniser={folder / 'deaf.safetensors'}", *SMALL[:5]]
    run = workdir / "runs" / "delay"
    assert main.main(["evaluate", "--workdir", str(run), "--data", str(workdir / "data"), *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"bits per second of audio   [\d.]+ \(no interval: 4 utterances\)\n", printed)
    assert re.search(r"of unigram codes  +[\d.]+\n  of uniform codes  +300.0\n", printed)
    assert "no error rate              the recogniser mishears" in printed and "character error" not in printed
    evaluation = json.loads((run / "evaluation.json").read_text())
    expected = numbers(workdir)["strategies"][0]
    assert evaluation["bits_per_second"] == pytest.approx(expected["bits_per_second"], rel=1e-4)
    assert evaluation["cer"] == expected["cer"]
    ceilings = numbers(workdir)["ceilings"]
    assert evaluation["ceilings"] == {name: ceilings[name]["cer"] for name in ("real", "codec")}
    assert evaluation["cer_means_nothing"] and evaluation["bits_per_second_se"] is None


def test_an_error_rate_stands_beside_that_of_the_recordings(done, capsys, tmp_path):
    """With a recogniser that hears; and again when the recordings are gone."""
    _, workdir = done
    command = ["evaluate", "--workdir", str(workdir / "runs" / "delay"), "--data", str(workdir / "data"), *SMALL[:5]]
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    rates = re.findall(r"(character error rate|of the recordings|of these after the codec) +([\d.]+) \(no", printed)
    assert [name for name, _ in rates] == ["character error rate", "of the recordings", "of these after the codec"]
    assert float(rates[1][1]) < 0.2 < float(rates[2][1]), "the codec is a toy"
    (workdir / "data" / "corpus").rename(tmp_path / "corpus")
    try:
        assert main.main(command) == 0
    finally:
        (tmp_path / "corpus").rename(workdir / "data" / "corpus")
    printed = capsys.readouterr().out
    assert "mishears" in printed and "of the recordings after the codec (above 20%)" in printed
    evaluation = json.loads((workdir / "runs" / "delay" / "evaluation.json").read_text())
    assert evaluation["ceilings"]["real"] is None and evaluation["ceilings"]["codec"]["value"] > 0.2


def test_train_refuses_what_is_not_its_own(done, capsys, tmp_path):
    _, workdir = done
    train = ["train", "--config", "tiny", "--data", str(workdir / "data")]
    run = str(workdir / "runs" / "delay")
    assert main.main([*train, "--workdir", run, "--config.serialization.strategy=flat"]) == 2
    assert "serialization.strategy" in capsys.readouterr().err
    assert main.main([*train, "--workdir", str(tmp_path / "new"), "--config.codec.name=default"]) == 2
    assert "fingerprint" in capsys.readouterr().err


def test_a_full_disk_ends_with_one_sentence(done, folder):
    """No file may grow beyond 64 kB: what a full disk is to a writer. (The checkpoint library complains first.)"""
    _, workdir = done
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from audiolm_jax.cli import main; main.run()"
    )
    command = [*("train", "--config", "tiny", "--data", str(workdir / "data")), *SMALL[5:]]
    ended = subprocess.run(
        [sys.executable, "-c", code, *command, "--workdir", str(folder / "full")],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | own_cache(folder),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert re.match(r"audiolm: .*(File too large|No space left).* what was finished is kept", last), ended.stderr
    assert "Traceback" not in ended.stderr


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
        *(("corpus", 0.0), ("corpus", 0.5), ("tokens", 0.2), ("flat/train", 0.5), ("flat/train", 6.0)),
        *(("flat/likelihood", 0.5), ("delay/train", 4.0), ("delay/speech", 1.0), ("hierarchical/speed", 0.5)),
        *(("masked/train", 3.0), ("masked/speech", 0.0)),
    ]
    for stage, seconds in moments:
        kill_when(start(folder, folder / "killed", *strategies, **own_cache(folder)), stage, seconds)
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
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
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
    assert err.splitlines()[-1] == ("audiolm: stopped; the last step is saved, and the same command again resumes")
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()]


def stages_run(*outputs: str) -> list[str]:
    """The stages that processes made, not those that they found done."""
    return sorted(stage for output in outputs for stage in re.findall(r"^-- (\S+)$", output, re.M))


GRID = ("--config.compare.seeds=0,1", "--config.compare.equal=tokens")
CELLS = ("delay-0", "masked-0", "delay-1", "masked-1")
STAGES = sorted(
    ["corpus", "tokens", "baselines", "ceilings"]
    + [f"{cell}/{stage}" for cell in CELLS for stage in ("train", "likelihood", "speech", "speed")]
)


@pytest.fixture(scope="module")
def grid(folder):
    """Two processes that made a grid together: their outputs, and its workdir."""
    both = [start(folder, folder / "grid", "delay", "masked", more=GRID) for _ in range(2)]
    return [finish(process) for process in both], folder / "grid" / "run"


@pytest.mark.slow
def test_two_processes_make_every_cell_once(grid):
    outputs, workdir = grid
    assert stages_run(*outputs) == STAGES
    assert all(any(stage.endswith("/train") for stage in stages_run(output)) for output in outputs), (
        "one made everything"
    )
    assert sorted(path.name for path in (workdir / "runs").iterdir()) == sorted(CELLS)
    assert all(f"report: {workdir / 'report.html'}" in output for output in outputs)
    results = numbers(workdir)
    assert [strategy["name"] for strategy in results["strategies"]] == ["delay", "masked"]
    for strategy in results["strategies"]:
        assert [seed["seed"] for seed in strategy["seeds"]] == [0, 1]
        assert strategy["bits_per_second"] == pytest.approx(
            np.mean([seed["bits_per_second"] for seed in strategy["seeds"]])
        )
        assert strategy["bits_per_second_low"] is None, "neither four utterances nor two seeds have an interval"
        assert strategy["seeds"][0]["utterance_bits"] != strategy["seeds"][1]["utterance_bits"]
    frames = [seed["training_frames"] for strategy in results["strategies"] for seed in strategy["seeds"]]
    assert max(frames) < 1.08 * min(frames)


@pytest.mark.slow
def test_the_cell_of_a_killed_process_is_taken_over(grid, folder):
    other, killed = (
        start(folder, folder / "taken", "delay", "masked", more=GRID, **own_cache(folder)) for _ in range(2)
    )
    kill_when(killed, "", 0)  # whatever it begins with, the corpus or a wait for it, it gets no further
    third = start(folder, folder / "taken", "delay", "masked", more=GRID, **own_cache(folder))
    for line in third.stdout:
        if match := re.match(r"-- (\S+)/train$", line):
            break
    time.sleep(2)
    os.killpg(third.pid, signal.SIGKILL)
    third.wait()
    third.stdout.close()
    output = finish(other)
    assert f"{match[1]}/train" in stages_run(output), "nobody took over what the killed process had begun"
    assert numbers(folder / "taken" / "run") == numbers(grid[1])


def test_two_runs_of_a_cell_from_one_seed_are_bit_identical(done, folder):
    cell, data_folder, again = done[1] / "runs" / "delay", done[1] / "data", folder / "again"
    command = ["train", "--config", "tiny", "--data", str(data_folder), "--workdir", str(again), *SMALL]
    ended = launch(folder, *command, "--config.serialization.strategy=delay")
    finish(ended)
    (first, second) = (checkpoints.restore_params(run)[0] for run in (cell, again))
    leaves = jax.tree.leaves(nnx.state(first)), jax.tree.leaves(nnx.state(second))
    assert len(leaves[0]) > 5
    assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    evaluation = config.section(config.load("tiny"), "evaluation")
    results = [evaluate.bits(run, data_folder, evaluation, sharding.ShardingConfig()) for run in (cell, again)]
    assert results[0] == results[1]
    assert results[0]["bits_per_second"] == pytest.approx(
        numbers(done[1])["strategies"][0]["bits_per_second"], rel=1e-5
    )


@pytest.mark.slow
def test_frames_of_a_step_are_those_that_batches_hold(done):
    """The budget "tokens" is counted by packing lengths alone; real batches hold what it says."""
    source = tokens.open_split(done[1] / "data" / "tokens", "train")
    tiny = config.load(
        "tiny", [f"compare.strategies={','.join(STRATEGIES)}", "compare.equal=tokens", "training.steps=200"]
    )
    vocab = examples.make_vocab(source.metadata, config.section(tiny, "data"))
    parts = cells.variants(tiny, vocab.codebooks)
    seen = budget.documents(source, config.section(tiny, "data"), vocab)
    assert seen[:, 1].tolist() == [source.head(n)["frames"] for n in range(len(source))]
    shares = budget.equal_shares(tiny, parts, vocab, 25.0, seen)
    for cell in cells.schedule(tiny, parts, shares):
        data_config, order = (config.section(cell.config, name) for name in ("data", "serialization"))
        grid = bind(order, vocab.codebooks)
        with contextlib.closing(training_batches(source, data_config, grid, vocab, 0)) as batches:
            frames = np.mean([int(next(batches)["frames"]) for _ in range(16)])
        predicted = shares["", cell.strategy]["training_frames_predicted"] / cell.config.training.steps
        assert frames == pytest.approx(predicted, rel=0.06), cell.strategy


def test_a_stage_is_made_again_when_its_inputs_or_an_earlier_stage_change(tmp_path, capsys):
    calls = []

    def go(first: int, second: int) -> Stages:
        stages = Stages(tmp_path)
        stages.run("first", lambda: calls.append("first") or {"value": first}, first)
        stages.run("second", lambda: calls.append("second") or (1, 2), second, after=["first"])
        return stages

    go(1, 1)
    assert calls == ["first", "second"]
    assert go(1, 1).done["second"]["result"] == [1, 2]
    assert calls == ["first", "second"]
    go(1, 2)
    assert calls == ["first", "second", "second"]
    go(2, 2)
    assert calls == ["first", "second", "second", "first", "second"]
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path).run("third", lambda: 1 / 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "second.json"]
    capsys.readouterr()
