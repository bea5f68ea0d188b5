"""The first change of a configuration with which its programs fit into the memory of the chips."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from audiolm_jax import config as configs
from audiolm_jax.model import sharding
from audiolm_jax.plan import estimate, programs
from audiolm_jax.plan.chips import Slice

Change = tuple[dict[str, Any], int | None]  # keys of the configuration with their values, --rows


def series(config: ConfigDict, kind: str, rows: int | None, devices: list) -> Iterator[programs.Program]:
    """The programs of a kind (`plan.PROGRAMS`), each traced on the mesh that the configuration asks for."""
    spec, run = programs.describe(config)
    mesh = sharding.make_mesh(run.sharding, devices)
    with jax.set_mesh(mesh):
        if kind == "train":
            yield from programs.train(spec, run, mesh)
        else:
            shards = mesh.shape["data"] * mesh.shape["context"]
            yield from programs.sample(spec, run, configs.section(config, "sampling"), mesh, rows or shards)


def changes(config: ConfigDict, kind: str, rows: int | None, target: Slice) -> Iterator[Change]:
    """Changes that need less memory, each added to those before it: remat and FSDP, then fewer rows at once."""
    keys: dict[str, Any] = {}
    preset, tensor = config.sharding.preset, config.sharding.tensor
    shards = target.chips // (tensor * config.sharding.context)
    if kind == "train":
        if not config.model.remat:
            keys["model.remat"] = True
            yield dict(keys), rows
        if preset == "data":
            keys["sharding.preset"] = "fsdp"
            yield dict(keys), rows
        parts = 2 * config.training.accumulate
        while config.data.batch_size % (parts * shards) == 0:
            yield keys | {"training.accumulate": parts}, rows
            parts *= 2
        return
    while rows and rows % 2 == 0 and rows // 2 >= shards:
        rows //= 2
        yield {}, rows
    while config.model.kv_heads % (2 * tensor) == 0 and target.chips % (2 * tensor * config.sharding.context) == 0:
        tensor *= 2
        yield {"sharding.preset": "fsdp_tensor", "sharding.tensor": tensor}, rows


def first(
    config: ConfigDict,
    kind: str,
    rows: int | None,
    target: Slice,
    devices: list,
    refused: float,
    log: Callable[[str], None],
) -> str:
    """The flags of the first of `changes` that fits, found by compiling; "" if none does.

    refused: bytes per chip of the configuration as it is. Memory falls linearly with the rows at once: candidates with
    fewer rows that two refused ones say are far too large are passed over.
    """
    sizes = [refused]  # each with half the rows of the one before
    for keys, fewer in changes(config, kind, rows, target):
        flags = " ".join([f"--config.{key}={value}" for key, value in keys.items()] + [f"--rows={fewer}"] * bool(fewer))
        halved = "training.accumulate" in keys or (fewer != rows and not keys)
        if halved and len(sizes) > 2:
            expected = sizes[-1] - (sizes[-2] - sizes[-1]) / 2
            if expected > 1.1 * target.chip.memory:
                sizes.append(expected)
                continue
        log(f"trying {flags} ...")
        changed = config.copy_and_resolve_references().unlock()
        with changed.ignore_type():
            changed.update_from_flattened_dict(keys)
        largest = 0.0
        for program in series(changed.lock(), kind, fewer, devices):
            memory = estimate.of_program(program, target)["memory"]
            largest = max(largest, memory["total"])
            if not memory["fits"]:
                break
        else:
            return flags
        sizes = [*sizes, largest] if halved else [largest]
    return ""
