"""Stages of a long computation, each kept on disk: started again, what is done is not done again.

A stage is a name, the inputs that decide its result, and a function. Its result, plain JSON values, is written to
`<name>.json` by a rename at the very end; whatever else it makes (a data set, checkpoints, audio) must be finished by
then and must itself survive being killed.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audiolm_jax import files


def digest(values: Any) -> str:
    """Sha256 of plain JSON values (tuples count as lists)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Stages:
    """The stages of one folder: `kept[name]` holds {"name", "inputs", "digest", "seconds", "result"} of each.

    prefix: before their names where they are told.
    """

    def __init__(self, directory: Path, prefix: str = ""):
        self.directory = Path(directory)
        self.prefix = prefix
        self.kept: dict[str, dict] = {}

    def run(self, name: str, make: Callable[[], Any], *inputs: Any, after: Sequence[str] = ()) -> Any:
        """`make()`, or what it gave when it was run before with equal `inputs` after the same earlier stages."""
        path = self.directory / f"{name}.json"
        wanted = digest([inputs, [self.kept[earlier]["digest"] for earlier in after]])
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["inputs"] == wanted:
                print(f"-- {self.prefix}{name}: done before", flush=True)
                self.kept[name] = kept
                return kept["result"]
        print(f"-- {self.prefix}{name}", flush=True)
        start = time.monotonic()
        result = json.loads(json.dumps(make()))
        kept = {"name": name, "inputs": wanted, "digest": digest([wanted, name])}
        self.kept[name] = kept | {"seconds": round(time.monotonic() - start, 2), "result": result}
        files.write_json(path, self.kept[name])
        return result

    def seconds(self) -> dict[str, float]:
        """Of every stage, those done before in an earlier start included."""
        return {name: kept["seconds"] for name, kept in self.kept.items()}


def timetable(seconds: dict[str, float]) -> str:
    """What took how long, and all of it, as lines of text."""
    rows = {**seconds, "all stages": sum(seconds.values())}
    return "\n".join(f"   {name:24s} {taken:8.1f} s" for name, taken in rows.items())
