"""Real processes share real work: nothing is done twice, and what a killed one had begun is taken over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audiolm_jax import locks

ROOT = Path(__file__).resolve().parent.parent
# Every task takes a while, notes begin and end, and leaves a file: done before is not done again.
WORKER = """
import os, sys, time
from pathlib import Path
from audiolm_jax import locks
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
def note(text):
    with (folder / "log").open("a") as log:
        log.write(f"{text} {os.getpid()}\\n")
def work(name):
    if not (folder / f"{name}.done").exists():
        note(f"begin {name}")
        time.sleep(seconds)
        (folder / f"{name}.done").write_text("")
        note(f"end {name}")
locks.share({name: folder / name / "lock" for name in "abcdef"}, work, pause=0.02)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(folder), str(seconds)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def log(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "log").read_text().splitlines()] if (folder / "log").exists() else []


def test_two_processes_do_every_task_once(tmp_path):
    both = [start(tmp_path, 1.0), start(tmp_path, 0.1)]  # the fast one waits at the end
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(name for event, name, _ in log(tmp_path) if event == "begin") == list("abcdef")
    assert len({process for *_, process in log(tmp_path)}) == 2, "one process did everything"
    assert all(locks.holder(tmp_path / name / "lock") == "nobody" for name in "abcdef")
    assert sum("waiting for" in output for output in outputs) >= 1


def test_what_a_killed_process_had_begun_is_taken_over(tmp_path):
    killed = start(tmp_path, 60)
    while not log(tmp_path):
        time.sleep(0.02)
        assert killed.poll() is None
    other = start(tmp_path, 0.01)
    while len(list(tmp_path.glob("*.done"))) < 5:
        time.sleep(0.02)
        assert other.poll() is None
    assert locks.holder(tmp_path / "a" / "lock").endswith(f"process {killed.pid}")
    time.sleep(0.2)
    assert other.poll() is None, "did not wait for what another process holds"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    assert f"process {killed.pid})" in output and output.count("waiting for") == 1, output
    ended = [(name, int(process)) for event, name, process in log(tmp_path) if event == "end"]
    assert sorted(ended) == [(name, other.pid) for name in "abcdef"]


def test_a_claim_is_exclusive_and_ends_with_an_error(tmp_path):
    path = tmp_path / "lock"
    with locks.claim(path) as held, locks.claim(path) as again:
        assert (held, again) == (True, False)
        assert locks.holder(path).endswith(f"process {os.getpid()}")
    with pytest.raises(ZeroDivisionError):
        locks.share({"x": path}, lambda name: 1 / 0)
    with locks.claim(path) as held:
        assert held


def test_tasks_are_done_in_order(tmp_path):
    done = []
    locks.share({name: tmp_path / name for name in "cab"}, done.append)
    assert done == list("cab")
