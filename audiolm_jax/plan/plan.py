"""The subcommand `audiolm plan`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

PROGRAMS = ("train", "sample")


def plan(
    config: ConfigDict,
    name: str,
    topology: str,
    programs: tuple[str, ...] = PROGRAMS,
    rows: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
    known: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The plan of a checked configuration, as plain JSON values; `tell` gets a line before and after every program.

    known: programs of earlier plans by fingerprint, which are not compiled again.

    Raises InputError for a slice that does not exist, a missing libtpu, a mesh or batch that does not divide.
    """
    from audiolm_jax.errors import InputError
    from audiolm_jax.model import sharding
    from audiolm_jax.plan import chips

    unknown = set(programs) - set(PROGRAMS)
    if unknown or not programs:
        raise InputError(f"--programs={','.join(programs)}: choose of {', '.join(PROGRAMS)}")
    if rows is not None and rows < 1:
        raise InputError(f"--rows={rows}: at least one request is sampled")
    import jax

    target = chips.parse(topology)
    jax.config.update("jax_platforms", "cpu")  # whatever accelerator this machine has is left alone
    devices = chips.devices(target)
    from audiolm_jax.plan import estimate, gpus, table
    from audiolm_jax.plan import programs as building

    task = building.task(config)
    mesh = sharding.make_mesh(task.section("sharding"), devices)
    made = {
        "config": name,
        "topology": target.name,
        "accelerator_type": target.sold_as,
        "chips": target.chips,
        "processes": len({device.process_index for device in devices}),
        "mesh": dict(mesh.shape),
        "preset": config.sharding.preset,
        "strategy": config.serialization.strategy,
        "jax": jax.__version__,
        "note": gpus.NOTE if target.is_gpu else "",
        "programs": [],
        "speed": {},
    }
    with jax.set_mesh(mesh), without_cache():
        made["parameters"] = building.parameters(task)
        tell(table.header(made))
        if made["note"]:
            tell(made["note"])
        for kind in (kind for kind in PROGRAMS if kind in programs):
            if kind == "train":
                series = building.train(task, mesh)
            else:
                series = building.sample(task, mesh, rows or mesh.shape["data"] * mesh.shape["context"])
            found = []
            for program in series:
                tell(f"compiling the {program.name} ...")
                found.append(estimate.of_program(program, target, known))
                found[-1]["advice"] = estimate.advice(found[-1], task, target)
                tell(table.program(found[-1]))
            made["programs"] += found
            if reached := estimate.speed(found):
                made["speed"][kind] = reached
    made["fits"] = all(found["memory"]["fits"] for found in made["programs"])
    return made


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """jax's cache of executables on disk cannot hold those of chips that are not here.

    Whether it is used is decided once, by the first compilation: `reset_cache` lets it be decided again.
    """
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()
