"""A workdir belongs to one run: that of the configuration in its config.json."""

import json
from pathlib import Path
from typing import Any

import jax

from audiolm_jax import config as configs
from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.model import spec

# Keys that a resumed run may change: they do not change what is computed (sharding: up to rounding).
MAY_CHANGE = ("sharding.", "training.checkpoint_every", "training.keep", "training.probe_every", "training.peak_tflops")


def claim(workdir: Path, config: dict[str, Any]) -> None:
    """Makes `workdir` the folder of the run of `config`, or checks that it already is. Keys added since the run started
    count as defaults.

    Raises InputError naming every key that differs (but those of MAY_CHANGE), or that it cannot be written.
    """
    config = json.loads(json.dumps(config))
    path = workdir / "config.json"
    if path.exists():
        ours, defaults = configs.flat(config), configs.flat(json.loads(json.dumps(configs.defaults().to_dict())))
        theirs = {key: value for key, value in defaults.items() if key in ours}
        earlier = json.loads(path.read_text(encoding="utf-8"))
        theirs |= configs.flat(spec.upgrade(earlier, path))
        different = [
            f"{key} is {theirs.get(key, 'absent')!r} there and {ours.get(key, 'absent')!r} here"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key, "absent") != theirs.get(key, "absent") and not key.startswith(MAY_CHANGE)
        ]
        if different:
            raise InputError(f"{workdir} is the run of another config: {'; '.join(different)}; name another folder")
        return
    if jax.process_index() == 0:
        with files.writing(workdir):
            files.write_json(path, config)
