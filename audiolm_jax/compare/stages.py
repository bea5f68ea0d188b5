"""Stages of a long computation with their results on disk: after a restart, finished stages are skipped.

A stage is a name, the inputs that decide its result, and a function. Its result, plain JSON values, is written to
`<name>.json` atomically at the very end; whatever else it makes (a data set, checkpoints, audio) must be finished by
then and must be resumable itself.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audiolm_jax import files
from audiolm_jax.errors import InputError


class Stages:
    """The stages of one folder: `done[name]` holds {"name", "inputs", "digest", "seconds", "result"} of each.

    prefix: printed before their names.
    """

    def __init__(self, directory: Path, prefix: str = ""):
        self.directory = Path(directory)
        self.prefix = prefix
        self.done: dict[str, dict] = {}

    def run(self, name: str, make: Callable[[], Any], *inputs: Any, after: Sequence[str] = ()) -> Any:
        """The result of `make()`, or that of an earlier run with equal `inputs` after the same earlier stages."""
        path = self.directory / f"{name}.json"
        key = files.digest([inputs, [self.done[earlier]["digest"] for earlier in after]])
        if path.exists():
            stored = files.read_json(path)
            if not {"inputs", "digest", "seconds", "result"} <= stored.keys():
                raise InputError(f"{path} is not the result of a stage; delete it, and the stage runs again")
            if stored["inputs"] == key:
                print(f"-- {self.prefix}{name}: done before", flush=True)
                self.done[name] = stored
                return stored["result"]
        print(f"-- {self.prefix}{name}", flush=True)
        start = time.monotonic()
        result = json.loads(json.dumps(make()))
        self.done[name] = {
            "name": name,
            "inputs": key,
            "digest": files.digest([key, name]),
            "seconds": round(time.monotonic() - start, 2),
            "result": result,
        }
        files.write_json(path, self.done[name])
        return result

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, also of those that an earlier process ran."""
        return {name: stage["seconds"] for name, stage in self.done.items()}


def timetable(seconds: dict[str, float]) -> str:
    """Seconds of every stage and their sum, as lines of text."""
    rows = {**seconds, "all stages": sum(seconds.values())}
    return "\n".join(f"   {name:24s} {duration:8.1f} s" for name, duration in rows.items())
