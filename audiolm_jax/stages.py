"""Stages of a long computation, each kept on disk: started again, what is done is not done again.

A stage is a name, the inputs that decide its result, and a function. Its result, plain JSON values, is written to
`<name>.json` by a rename at the very end; whatever else it makes (a data set, checkpoints, audio) must be finished by
then and must itself survive being killed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def digest(values: Any) -> str:
    """Sha256 of plain JSON values (tuples count as lists)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def run(directory: Path, name: str, inputs: Any, make: Callable[[], dict]) -> dict:
    """`make()`, or what it gave when it was run before with the same inputs.

    Returns {"name", "inputs": their digest, "digest": of inputs and result, "seconds": of the run, "result"}; later
    stages put the digest among their inputs, so that they are made again when this one is.
    """
    path = directory / f"{name}.json"
    wanted = digest(inputs)
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["inputs"] == wanted:
            print(f"-- {name}: done before", flush=True)
            return kept
    print(f"-- {name}", flush=True)
    start = time.monotonic()
    result = json.loads(json.dumps(make()))
    seconds = time.monotonic() - start
    print(f"-- {name}: {seconds:.1f} s", flush=True)
    kept = {"name": name, "inputs": wanted, "seconds": round(seconds, 2), "result": result}
    kept["digest"] = digest([wanted, name])
    write_json(path, kept)
    return kept


def write_json(path: Path, value: Any) -> None:
    """Writes a whole file or nothing: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
