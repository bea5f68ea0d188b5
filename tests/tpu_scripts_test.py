"""What tpu/*.sh would run, for every generation and kind of capacity; nothing is run but bash."""

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

TPU = Path(__file__).resolve().parent.parent / "tpu"
SCRIPTS = sorted(path.name for path in TPU.glob("*.sh") if path.name != "env.sh")
WHERE = ["--project", "p", "--zone", "z"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "n", *WHERE]
IMAGES = {
    "v4-32": "tpu-ubuntu2204-base",
    "v5litepod-256": "v2-alpha-tpuv5-lite",
    "v5p-512": "v2-alpha-tpuv5",
    "v6e-256": "v2-alpha-tpuv6e",
}
CAPACITY = {"on-demand": [], "spot": ["--spot"], "reserved": ["--reserved"]}


def bash(script: str, *arguments: str, path: str | None = None, **settings: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PROJECT": "p", "ZONE": "z", "NAME": "n", "TMPDIR": "/t", "POLL": "0", **settings}
    if path:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(["bash", TPU / script, *arguments], capture_output=True, text=True, env=environment)


def commands(script: str, *arguments: str, **settings: str) -> list[list[str]]:
    """The words of each command that a dry run prints."""
    done = bash(script, "--dry-run", *arguments, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("capacity", CAPACITY)
@pytest.mark.parametrize("accelerator", IMAGES)
def test_create(accelerator, capacity):
    """Every flag is a word of its own, which is where an appended list goes wrong."""
    wanted = ["gcloud", "compute", "tpus", "queued-resources", "create", "n", *WHERE, "--node-id", "n"]
    wanted += ["--accelerator-type", accelerator, "--runtime-version", IMAGES[accelerator], *CAPACITY[capacity]]
    assert commands("create.sh", TYPE=accelerator, CAPACITY=capacity) == [wanted]


def test_v5e_is_also_known_by_its_short_name():
    [command] = commands("create.sh", TYPE="v5e-16")
    assert command[command.index("--accelerator-type") + 1] == "v5litepod-16"


@pytest.mark.parametrize(("setting", "value"), [("TYPE", "v9-8"), ("CAPACITY", "free")])
def test_unknown_settings_are_one_sentence(setting, value):
    done = bash("create.sh", "--dry-run", **{setting: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"create.sh: {setting}={value} is unknown; it is ")
    assert len(done.stderr.splitlines()) == 1


def test_setup():
    archive, copy, install = commands("setup.sh", BUCKET="gs://b/c")
    assert archive[0] == "git" and archive[-3:] == ["--prefix=audiolm_jax/", "--output=/t/audiolm_jax.tar.gz", "HEAD"]
    assert copy[3:7] == ["tpu-vm", "scp", "/t/audiolm_jax.tar.gz", "n:audiolm_jax.tar.gz"]
    assert copy[-2:] == ["--worker", "all"]
    install_command = "tar -xzf audiolm_jax.tar.gz && bash audiolm_jax/tpu/worker.sh gs://b/c"
    assert install == [*SSH, "--worker", "all", "--command", install_command]
    for bucket in ("gs://b/it's; mine", ""):
        words = shlex.split(commands("setup.sh", BUCKET=bucket)[2][-1])
        assert words[-2:] == ["audiolm_jax/tpu/worker.sh", bucket]


def job(command: list[str]) -> list[str]:
    """The words that the started shell would run, out of the four shells around them."""
    assert command[:-2] == [*SSH, "--worker", "all"] and command[-2] == "--command"
    words = shlex.split(command[-1])
    assert words[:6] == ["setsid", "nohup", "flock", "--nonblock", "audiolm.lock", "bash"]
    first, second, third = words[7].split("; ")
    assert (first, third) == ("rm -f audiolm.exit", "echo $? >audiolm.exit")
    return shlex.split(second)


def test_run_hands_every_word_through_all_shells():
    [command] = commands("run.sh", "train", "--config", "size_300m", "--workdir", "bucket/it's mine")
    wanted = ["audiolm_jax/.venv/bin/audiolm", "train", "--config", "size_300m", "--workdir", "bucket/it's mine"]
    assert job(command) == [*wanted, "--processes", "tpu", ">>audiolm.log", "2>&1"]
    [command] = commands("run.sh", "evaluate", "--workdir", "bucket/mine")
    assert job(command)[1:6] == ["evaluate", "--workdir", "bucket/mine", "--processes", "tpu"]
    [command] = commands("run.sh", "codec", "info")
    assert job(command)[1:3] == ["codec", "info"] and "--processes" not in job(command)


def test_logs_and_delete():
    assert commands("logs.sh") == [[*SSH, "--worker", "0", "--command", "tail -n 100 -F audiolm.log"]]
    assert commands("logs.sh", "3")[0][-3] == "3"
    [command] = commands("delete.sh")
    assert command == ["gcloud", "compute", "tpus", "queued-resources", "delete", "n", *WHERE, "--force", "--quiet"]


def test_watch_begins_again_with_a_new_slice():
    given = ("train", "--workdir", "bucket/a b")
    parts = [commands("delete.sh"), commands("create.sh", CAPACITY="spot"), commands("setup.sh")]
    wanted = [command for part in parts for command in part] + commands("run.sh", *given)
    assert commands("watch.sh", *given, CAPACITY="spot") == wanted


GCLOUD = """#!/usr/bin/env bash
# Plays Google: answers `describe` and the look at the run from a list, one line for each, and notes everything.
echo "$*" >>{log}
answer() {{ head -n 1 "$1"; sed -i 1d "$1"; }}
case "$*" in
    *describe*) answer {states} ;;
    *audiolm.exit\\ 2*) answer {exits} ;;
esac
"""


def test_watch_goes_through_a_preemption_to_the_end(tmp_path):
    """Against a gcloud that plays the cloud: running, taken away, asked for again, started again, done."""
    log, states, exits = (tmp_path / name for name in ("log", "states", "exits"))
    log.touch()
    # Looks of watch.sh and, after NONE, of the create.sh that it calls.
    states.write_text("ACTIVE\nSUSPENDED\nNONE\nPROVISIONING\nACTIVE\nACTIVE\nACTIVE\nACTIVE\n")
    exits.write_text("runs\nruns\n143\n0\n")
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(GCLOUD.format(log=log, states=states, exits=exits))
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IXUSR)
    done = bash("watch.sh", "train", "--config", "tiny", path=str(tmp_path), TMPDIR=str(tmp_path), CAPACITY="spot")
    assert done.returncode == 0, done.stderr
    verbs = [word for line in log.read_text().splitlines() for word in line.split()[2:5] if word in WORDS]
    begin = ["create", "describe", "describe", "scp", "ssh", "ssh"]  # asked for, waited for, set up, started
    again = ["scp", "ssh", "ssh"]  # the run was stopped with 143, the slice is still there
    looks = ["describe", "ssh"]
    assert verbs == [*looks, "describe", "delete", "describe", *begin, *looks, *looks, *again, *looks]
    assert states.read_text() == exits.read_text() == ""


WORDS = ("create", "describe", "delete", "scp", "ssh")


def test_watch_ends_with_a_run_that_cannot_go_on(tmp_path):
    log, states, exits = (tmp_path / name for name in ("log", "states", "exits"))
    states.write_text("ACTIVE\n")
    exits.write_text("2\n")
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(GCLOUD.format(log=log, states=states, exits=exits))
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IXUSR)
    assert bash("watch.sh", "train", path=str(tmp_path), TMPDIR=str(tmp_path)).returncode == 2


def failing(folder, message):
    """A gcloud that fails with a message and counts how often it was called."""
    gcloud = folder / "gcloud"
    gcloud.write_text(f'#!/usr/bin/env bash\necho "$*" >>{folder}/calls\necho "{message}" >&2\nexit 1\n')
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IXUSR)


def test_watch_gives_up_when_google_cannot_be_asked(tmp_path):
    """No login is not "no slice": nothing is created, and nobody is asked for ever."""
    failing(tmp_path, "ERROR: (gcloud) PERMISSION_DENIED: no active account")
    done = bash("watch.sh", "train", path=str(tmp_path), TMPDIR=str(tmp_path), TRIES="4")
    assert done.returncode == 3
    assert "PERMISSION_DENIED" in done.stderr and "gave up after 4 failures in a row" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4 and all("describe" in call for call in calls)


def test_watch_gives_up_on_a_slice_that_is_refused(tmp_path):
    failing(tmp_path, "ERROR: NOT_FOUND: there is none; creating one is refused, too")
    done = bash("watch.sh", "train", path=str(tmp_path), TMPDIR=str(tmp_path), TRIES="3")
    assert done.returncode == 3 and "the last one with n NONE" in done.stderr
    assert sum(" create " in call for call in (tmp_path / "calls").read_text().splitlines()) == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_strict_short_and_has_a_dry_run(script):
    text = (TPU / script).read_text()
    assert "set -euo pipefail" in text and text.startswith("#!/usr/bin/env bash\n#")
    assert len(text.splitlines()) <= 60
    assert os.access(TPU / script, os.X_OK)
    assert "--dry-run" in text or "env.sh" in text
    assert subprocess.run(["bash", "-n", TPU / script]).returncode == 0
