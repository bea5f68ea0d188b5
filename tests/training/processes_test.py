"""Real processes on this machine, two devices each, as a person starts them: one run, equal to that of one process;
killed, told to stop, resumed, on other numbers of processes."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from audiolm_jax import config as configs
from audiolm_jax import files, runs
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import evaluate
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.training import processes
from audiolm_jax.training.processes import LOST

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["corpus.train=24", "corpus.valid=2", "corpus.test=2", "corpus.unseen=1", "data.sequence_length=256"]
SIZES += ["model.layers=1", "model.width=32", "model.head_width=16", "model.ffn=64"]
RUN = ["training.log_every=1", "training.steps=20", "training.checkpoint_every=5", "model.dropout=0.1"]
RUN += ["training.peak_tflops=1"]  # which need not be measured
EVALUATED = "training.evaluate_every=1"


OLD = not hasattr(jax.config, "jax_enable_preemption_service")  # JAX 0.7
several = pytest.mark.skipif(OLD, reason="this JAX is too old for several processes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    runs.prepare(configs.load("tiny", SIZES), directory, progress=False)
    return directory


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """`audiolm COMMAND` in `count` processes with two devices each; they are killed at the end of the block."""

    def __init__(self, count: int, command: list[str], folder: Path, *overrides: str, devices: int = 2):
        self.errors = [folder / f"stderr-{number}" for number in range(count)]
        port = free_port()
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        self.all = []
        for number, path in enumerate(self.errors):
            how = ["--processes", f"127.0.0.1:{port},{count},{number}"] if count > 1 else []
            settings = [f"--config.{override}" for override in overrides]
            with path.open("w") as errors:
                arguments = [sys.executable, "-m", "audiolm_jax", *command, *how, *settings]
                self.all.append(subprocess.Popen(arguments, env=environment, stdout=errors, stderr=errors))

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_) -> None:
        for process in self.all:
            process.kill()
            process.wait()

    def codes(self, seconds: float = 500) -> list[int]:
        end = time.monotonic() + seconds
        return [process.wait(max(1, end - time.monotonic())) for process in self.all]


def start(count: int, data: Path, workdir: Path, *overrides: str, **options) -> Processes:
    workdir.parent.mkdir(exist_ok=True)
    command = ["train", "--config", "tiny", "--data", str(data), "--workdir", str(workdir)]
    return Processes(count, command, workdir.parent, *SIZES, *RUN, *overrides, **options)


def finish(*arguments, **options) -> None:
    with start(*arguments, **options) as processes:
        assert set(processes.codes()) == {0}, [path.read_text()[-3000:] for path in processes.errors]


def losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def held_out(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["valid_bits_per_second"] for line in lines if "valid_bits_per_second" in line}


def wait_for_step(workdir: Path, step: int, processes: Processes) -> None:
    path = workdir / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert all(process.poll() is None for process in processes.all), [p.read_text() for p in processes.errors]
        time.sleep(0.05)


def parameters(workdir: Path) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(checkpoints.params_of(checkpoints.restore_params(workdir)[0]))]


def same(a: Path, b: Path) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(parameters(a), parameters(b), strict=True))


def in_this_process(data: Path, workdir: Path, *overrides: str) -> None:
    """One process with eight devices, without the time to start it."""
    config = configs.load("tiny", [*SIZES, *RUN, *overrides])
    runs.train(config, data, workdir, progress=False)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run of this process, evaluated after every step."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    in_this_process(data, workdir, EVALUATED)
    return workdir


@several
def test_two_processes_are_one_run_stop_together_and_go_on_as_one(data, straight, tmp_path):
    """SIGTERM to one of two; what they saved is resumed by one process with other devices, in the same order. Held-out
    bits are those of one process, too, and the first one speaks into TensorBoard. Every step is evaluated, so that the
    signal is noticed at such a step, which must then be saved."""
    workdir = tmp_path / "two" / "run"
    others = "training.probe_every=2", "sampling.max_frames=8", "training.checkpoint_every=100"
    with start(2, data, workdir, EVALUATED, *others) as processes:
        wait_for_step(workdir, 3, processes)
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.codes(120) == [143, 143]
    stopped = len(losses(workdir))
    assert 3 <= stopped < 20
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(stopped)]
    assert 2 in held_out(workdir)
    [events] = (workdir / "tensorboard").iterdir()
    assert b"speech/1" in events.read_bytes()
    in_this_process(data, workdir, EVALUATED)
    assert len(losses(workdir)) == 20
    np.testing.assert_allclose(losses(workdir), losses(straight), atol=1e-5)
    one, two = held_out(straight), held_out(workdir)
    assert list(two) == list(one) == list(range(1, 21))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


@several
def test_two_processes_evaluate_as_one_does(data, straight, tmp_path):
    """The same codes, sounds and transcripts. Bits differ by rounding: this process has other devices, and so other
    batches. The first process alone writes and prints."""
    one, two = tmp_path / "one", tmp_path / "two"
    for copy in (one, two):
        shutil.copytree(straight, copy)
    overrides = ["evaluation.sentences=2", "evaluation.batch=1", "evaluation.timed=1", "evaluation.repeats=1"]
    overrides += ["sampling.max_frames=8"]
    command = ["evaluate", "--workdir", str(two), "--data", str(data)]
    with Processes(2, command, tmp_path, *overrides) as processes:
        config = configs.load("tiny", overrides)
        sections = [configs.section(config, name) for name in ("evaluation", "sampling")]
        alone = evaluate.evaluate(one, data, *sections)
        assert processes.codes(120) == [0, 0], [path.read_text() for path in processes.errors]
        first, second = (path.read_text() for path in processes.errors)
    shared = json.loads((two / "evaluation.json").read_text())
    del shared["speed"], alone["speed"]
    assert shared.keys() == alone.keys()
    for name, value in alone.items():
        rounded = "bits" in name and value is not None
        assert shared[name] == (pytest.approx(value, rel=1e-6) if rounded else value), name
    sounds = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.wav")}
    assert len(sounds) == 6
    assert sounds == {path.relative_to(two): path.read_bytes() for path in two.rglob("*.wav")}
    assert "bits per second of audio" in first and "bits per second of audio" not in second


@several
@pytest.mark.slow
def test_ctrl_c_of_one_ends_both(data, straight, tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite itself may run in the background
    with Processes(2, ["evaluate", "--workdir", str(straight), "--data", str(data)], tmp_path) as processes:
        while "[Gloo]" not in processes.errors[1].read_text():  # both have met
            assert processes.all[1].poll() is None, processes.errors[1].read_text()
            time.sleep(0.1)
        processes.all[1].send_signal(signal.SIGINT)
        assert processes.codes(60) == [LOST, 130]
        assert "audiolm: process 1 of 2 stops: it was interrupted" in processes.errors[1].read_text()


@several
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_with_one_line(data, tmp_path, victim):
    workdir = tmp_path / "run"
    with start(2, data, workdir, "training.steps=100000") as processes:
        # A checkpoint is written while the run goes on; that of step 5 is complete when that of step 10 begins.
        wait_for_step(workdir, 11, processes)
        processes.all[victim].kill()
        codes = processes.codes(60)
        assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, LOST)
        said = re.split(r"[\r\n]", processes.errors[1 - victim].read_text())
        # Gloo's threads write lines that other threads tear apart; the others are of the progress bar.
        said = [line for line in said if line and not re.search(r"\[Gloo\]|peer ranks|/100000 \[", line)]
        assert len(said) == 1
        assert said[0].startswith(f"audiolm: process {1 - victim} of 2 stops: another process of the run died")
    with checkpoints.manager(workdir) as manager:
        assert manager.latest_step() >= 5


@several
@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 4])
def test_four_processes_compute_what_one_does(data, tmp_path, lanes):
    overrides = f"data.lanes={lanes}", "training.accumulate=2", "data.batch_size=16"
    finish(1, data, tmp_path / "one" / "run", *overrides, devices=1)
    finish(4, data, tmp_path / "four" / "run", *overrides, "sharding.preset=fsdp")
    np.testing.assert_allclose(losses(tmp_path / "four" / "run"), losses(tmp_path / "one" / "run"), atol=1e-5)


@several
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_killed_five_times_equals_undisturbed(data, tmp_path, count):
    """They save every other step; each time one of them is killed at a random moment of training. The run is so long
    that five kills do not reach its end: in a run that is done, or before all have met, there is nobody to notice."""
    overrides = "data.lanes=4", "training.checkpoint_every=2", "sharding.preset=fsdp", "training.steps=100"
    finish(count, data, tmp_path / "straight" / "run", *overrides)
    workdir, chance, seen = tmp_path / "killed" / "run", random.Random(0), 0
    for _ in range(5):
        with start(count, data, workdir, *overrides) as processes:
            wait_for_step(workdir, seen + chance.randint(1, 4), processes)
            time.sleep(chance.uniform(0, 0.2))
            victim = chance.randrange(count)
            processes.all[victim].kill()
            codes = processes.codes(60)
            assert codes.pop(victim) == -signal.SIGKILL and set(codes) == {LOST}
        seen = len((workdir / "metrics.jsonl").read_text().splitlines())
    finish(count, data, workdir, *overrides)
    assert same(workdir, tmp_path / "straight" / "run")
    assert losses(workdir) == losses(tmp_path / "straight" / "run")


@several
@pytest.mark.slow
def test_eight_devices_to_one_and_back(data, tmp_path):
    """Four processes write a checkpoint, one process with one device reads and writes it, four read that and write it.

    A learning rate that is 0 in float32 leaves the parameters as they are; what each of the three wrote is compared.
    """
    workdir, found = tmp_path / "run" / "run", []
    still = ["sharding.preset=fsdp", "optimizer.learning_rate=1e-46", "optimizer.schedule=constant"]
    for number, count in enumerate((4, 1, 4)):
        with start(
            count, data, workdir, "training.checkpoint_every=1", *still, devices=2 if count > 1 else 1
        ) as processes:
            wait_for_step(workdir, 3 * number + 2, processes)
            processes.all[-1].send_signal(signal.SIGTERM)
            assert set(processes.codes()) == {143}
        model, _ = checkpoints.restore_params(workdir)  # the one line
        assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(checkpoints.params_of(model)))
        found.append(parameters(workdir))
    assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(*found, strict=True))


@several
@pytest.mark.slow
def test_two_processes_prepare_are_killed_and_go_on(data, tmp_path):
    """The tokens are those of one process, byte for byte."""
    directory, shards = tmp_path / "data", [*SIZES, "tokens.shard_utterances=2"]
    command = ["prepare", "--config", "tiny", "--data", str(directory)]
    notes = directory / "tokens" / "audio_tokens" / "1.0.0.progress"
    with Processes(2, command, tmp_path, *shards) as processes:
        while len(list(notes.glob("*array_record*"))) < 3:
            assert all(process.poll() is None for process in processes.all), [p.read_text() for p in processes.errors]
            time.sleep(0.01)
        processes.all[1].kill()
        codes = processes.codes(100)
        assert codes[1] == -signal.SIGKILL and codes[0] in (0, LOST)
    with Processes(2, command, tmp_path, *shards) as processes:
        assert processes.codes() == [0, 0], [path.read_text() for path in processes.errors]
    runs.prepare(configs.load("tiny", shards), tmp_path / "one", progress=False)

    def content(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in (root / "tokens").rglob("*") if p.is_file()}

    found, expected = content(directory), content(tmp_path / "one")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    "bad, sentence",
    [
        ("yes", "must be none, tpu, slurm or HOST:PORT,COUNT,ID"),
        ("127.0.0.1:5000,2,2", "ID must be"),
        ("127.0.0.1:500000,2,0", "PORT 1..65535"),
        ("slurm", "SLURM_JOB_ID is not set here"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_sentence(bad, sentence, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match=re.escape(sentence)):
        processes.start(bad)


@pytest.mark.skipif(not OLD, reason="this JAX is not too old")
def test_a_jax_that_is_too_old_for_several_processes_is_one_sentence():
    with pytest.raises(InputError, match=r"JAX 0\.7.* is too old for several processes; give 'none'"):
        processes.start(f"127.0.0.1:{free_port()},2,0")


def test_a_coordinator_that_is_not_there_is_one_sentence():
    port = free_port()
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port} cannot be reached within 1 s"):
        processes.start(f"127.0.0.1:{port},2,1", timeout=1)


@several
def test_others_that_do_not_come_are_one_sentence():
    setting = f"127.0.0.1:{free_port()},2,0"
    code = f"from audiolm_jax.training import processes; processes.start({setting!r}, timeout=2)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == LOST
    assert (
        found.stderr.strip() == f"audiolm: --processes={setting}: not all processes came to {setting[:-4]} within 2 s"
    )


def test_a_process_that_dies_while_a_checkpoint_is_read_does_not_make_it_a_damaged_one(monkeypatch, capsys):
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(InputError) as caught, files.reading("params", "the parameters of a model"):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    with pytest.raises(SystemExit) as left:
        processes.leave(caught.value)
    assert left.value.code == LOST
    assert "another process of the run died (UNKNOWN: Gloo AllGather failed" in capsys.readouterr().err


def test_columns():
    rules = sharding.PRESETS["fsdp_tensor"]
    mesh = sharding.make_mesh(ShardingConfig("fsdp_tensor", 2))
    np.testing.assert_array_equal(processes.columns(mesh, rules, 16, 2), np.arange(8))
    assert processes.shards_here(mesh, rules) == 4
    with pytest.raises(InputError, match=r"data\.batch_size=12 .* over 4 devices .* choose a multiple of 8"):
        processes.columns(mesh, rules, 12, 2)
    with pytest.raises(InputError, match=r"data\.lanes=3; choose a multiple of 24"):
        processes.columns(mesh, rules, 16, 2, lanes=3)
