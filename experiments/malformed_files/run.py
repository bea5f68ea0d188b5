"""Thousands of damaged files through every reader of the package: an InputError or a usable result, in bounded time.

    python -m experiments.malformed_files.run [--inputs 5700] [--seed 0] [--kinds tokens,export]

Every kind of file (artefacts.py) is read in a process of its own, one damaged copy (mutations.py) after another. A
reader that takes longer than LIMIT seconds is ended with its process, and the next one goes on behind it.
"""

import argparse
import collections
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from audiolm_jax.errors import InputError, disk_error
from experiments.malformed_files import artefacts, mutations

LIMIT = 60.0  # seconds for one input; the slowest reader takes one or two
RESULTS = Path(__file__).parent / "results.json"


def one(name: str, seed: int, number: int, folder: Path, right: bytes) -> tuple[str, str]:
    """(outcome, what was said) of one damaged copy of `folder`."""
    rng = random.Random(f"{name} {seed} {number}")
    copy = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    path = rng.choice(sorted(file for file in copy.rglob("*") if file.is_file()))
    mutation = rng.choice(mutations.MUTATIONS)
    where = f"{name} {seed} {number}: {mutation.__name__} {path.relative_to(copy)}"
    mutation(path, copy, rng)
    try:
        outcome = "same" if artefacts.KINDS[name].read(copy) == right else "other"
        return outcome, f"{where}: {outcome}"
    except InputError as error:
        return "refused", f"{where}: {error}"
    except BaseException as error:
        if isinstance(error, OSError) and disk_error(error):
            return "refused", f"{where}: {error}"
        place = [frame for frame in traceback.extract_tb(error.__traceback__) if "audiolm_jax" in frame.filename][-1:]
        said = " ".join(str(error).split())[:150]
        at = "".join(f"{frame.filename.rpartition('audiolm_jax/')[2]}:{frame.lineno}" for frame in place)
        return "traceback", f"{where}: {type(error).__name__} at {at}: {said}"


def work(name: str, seed: int, numbers: range, root: Path, lines: multiprocessing.SimpleQueue) -> None:
    folder = root / name
    right = artefacts.KINDS[name].read(folder.with_name(f"{name}.whole"))
    lines.put((-1, None, "ready"))
    for number in numbers:
        lines.put((number, None, ""))
        lines.put((number, *one(name, seed, number, folder, right)))


def campaign(name: str, count: int, seed: int, root: Path) -> tuple[collections.Counter, list[str], list[str]]:
    """(number of inputs by outcome, the tracebacks and endless ones, all refusals)."""
    folder = root / name
    folder.mkdir()
    artefacts.KINDS[name].make(folder)
    shutil.copytree(folder, root / f"{name}.whole")  # some readers write beside what they read
    outcomes, wrong, said, next_one = collections.Counter(), [], [], 0
    while next_one < count:
        context = multiprocessing.get_context("spawn")
        lines = context.SimpleQueue()
        worker = context.Process(target=work, args=(name, seed, range(next_one, count), root, lines), daemon=True)
        worker.start()
        began, limit, ready = time.monotonic(), 300.0, False  # the first result waits for imports
        while next_one < count and (worker.is_alive() or not lines.empty()):
            if lines.empty():
                if time.monotonic() - began > limit:
                    break
                time.sleep(0.005)
                continue
            number, outcome, what = lines.get()
            began, limit, ready = time.monotonic(), LIMIT, True
            if outcome is not None:
                outcomes[outcome] += 1
                next_one = number + 1
                (wrong if outcome == "traceback" else said).append(what)
        if not ready:
            raise RuntimeError(f"{name}: what was not damaged cannot be read")
        if next_one < count:
            kind = "endless" if worker.is_alive() else "crash"
            worker.kill()
            outcomes[kind] += 1
            wrong.append(f"{name} {seed} {next_one}: {kind}")
            next_one += 1
        worker.join(5)
    return outcomes, wrong, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, help="in all (default: those of artefacts.KINDS)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(artefacts.KINDS))
    parser.add_argument("--save", action="store_true", help="write results.json")
    parser.add_argument("--say", type=Path, help="write every sentence to this file")
    options = parser.parse_args()
    names = options.kinds.split(",")
    share = 1 if options.inputs is None else options.inputs / sum(artefacts.KINDS[name].inputs for name in names)
    results, every, start = {}, [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="malformed-") as root:
        artefacts.make_base(Path(root) / "made")
        for name in names:
            began = time.monotonic()
            count = max(1, round(share * artefacts.KINDS[name].inputs))
            outcomes, wrong, said = campaign(name, count, options.seed, Path(root))
            every += said
            results[name] = {"inputs": count, **outcomes, "seconds": round(time.monotonic() - began)}
            print(name, results[name], flush=True)
            for line in wrong:
                print("  WRONG", line, flush=True)
    total = {"inputs": sum(row["inputs"] for row in results.values())}
    for outcome in ("refused", "same", "other", "traceback", "crash", "endless"):
        total[outcome] = sum(row.get(outcome, 0) for row in results.values())
    total["seconds"] = round(time.monotonic() - start)
    print("all", total)
    if options.say:
        options.say.write_text("\n".join(every), encoding="utf-8", errors="backslashreplace")
    if options.save:
        RESULTS.write_text(json.dumps({"seed": options.seed, "kinds": results, "all": total}, indent=1) + "\n")
    return bool(total["traceback"] + total["crash"] + total["endless"])


if __name__ == "__main__":
    sys.exit(main())
