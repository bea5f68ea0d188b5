"""Kills `prepare`, `train` and `compare` at random moments, again and again until they end; nothing may differ.

python -m experiments.kills.run --kills 100
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = [
    "corpus.train=40",
    "corpus.valid=4",
    "corpus.test=24",
    "corpus.unseen=1",
    "model.layers=1",
    "tokens.shard_utterances=8",
]
TRAIN = ["training.steps=40", "training.checkpoint_every=3", "training.log_every=2", "training.ema=0.9"]
COMPARE = ["compare.strategies=delay,masked", "evaluation.sentences=2", "evaluation.timed=1", "evaluation.repeats=1"]
TIMES = {"seconds", "steps_per_second", "audio_seconds_per_second", "mfu"}  # of metrics.jsonl
TIMES |= {"created", "commit", "command", "hardware", "speed", "training_seconds"}  # of results.json


def command(task: str, folder: Path, data: Path) -> list[str]:
    where = {
        "prepare": ["--data", folder],
        "train": ["--data", data, "--workdir", folder],
        "compare": ["--workdir", folder],
    }
    keys = SIZES + (TRAIN if task != "prepare" else []) + (COMPARE if task == "compare" else [])
    words = [sys.executable, "-m", "audiolm_jax", task, "--config", "tiny", *where[task]]
    return [str(word) for word in words] + [f"--config.{key}" for key in keys]


def run(words: list[str], kill_after: float | None) -> bool:
    """Whether the command ended by itself. Raises RuntimeError if it failed."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        said, _ = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said.decode()[-2000:]}")
    return True


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: timeless(x) for key, x in value.items() if key not in TIMES}
    return [timeless(x) for x in value] if isinstance(value, list) else value


def made(task: str, folder: Path) -> dict[str, str]:
    """{name: digest} of what the task leaves, without times."""
    if task == "prepare":
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
        files = [path for path in files if ".locks" not in str(path) and ".progress" not in str(path)]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    if task == "compare":
        results = timeless(json.loads((folder / "results.json").read_text()))
        return {key: json.dumps(value, sort_keys=True) for key, value in results.items()}
    import jax
    import numpy as np

    from audiolm_jax.model import checkpoints

    lines = [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    params = checkpoints.params_of(checkpoints.restore_params(folder)[0])
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digests = {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for path, x in leaves}
    return digests | {"metrics": json.dumps(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, differences, total = random.Random(options.seed), 0, 0
    share = {"prepare": 0.3, "train": 0.4, "compare": 0.3}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        takes: dict[str, float] = {}  # seconds of the quickest whole command: the first one has most to compile
        for task in share:
            begin = time.monotonic()
            run(command(task, root / f"{task}-straight", root / "prepare-straight"), None)
            takes[task] = time.monotonic() - begin
        for task, part in share.items():
            expected, kills, number = made(task, root / f"{task}-straight"), 0, 0
            while kills < round(part * options.kills):
                folder, number = root / f"{task}-{number}", number + 1
                words = command(task, folder, root / "prepare-straight")
                whole = True
                while kills < round(part * options.kills):
                    begin = time.monotonic()
                    if run(words, rng.uniform(1.0, 1.1 * takes[task])):
                        takes[task] = min(takes[task], time.monotonic() - begin) if whole else takes[task]
                        break
                    kills, whole = kills + 1, False
                run(words, None)
                found = made(task, folder)
                wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
                differences += bool(wrong)
                print(f"{task}: {kills} kills, {number} runs, differences: {wrong}", flush=True)
            total += kills
    print(f"{total} kills, {differences} runs with a difference")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
