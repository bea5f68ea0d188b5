"""The plan of a configuration on a slice: every program compiled, its memory, traffic and least time."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from ml_collections import ConfigDict

from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.plan import chips, estimate, fitting, gpus, programs, table

PROGRAMS = ("train", "sample")


def plan(
    config: ConfigDict,
    name: str,
    topology: str,
    kinds: tuple[str, ...] = PROGRAMS,
    rows: int | None = None,
    log: Callable[[str], None] = lambda line: None,
    known: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The plan of a checked configuration, as plain JSON values.

    Args:
      name: of the configuration, for the plan.
      topology: a slice, see `chips.parse`.
      kinds: which of PROGRAMS.
      rows: requests sampled at once (None: one per batch shard).
      log: called with a line before and after every program.
      known: fingerprint -> program of an earlier plan, which is not compiled again.

    Raises InputError for a slice that does not exist, a missing libtpu, a mesh or batch that does not divide.
    """
    if not kinds or set(kinds) - set(PROGRAMS):
        raise InputError(f"--programs={','.join(kinds)}: choose of {', '.join(PROGRAMS)}")
    if rows is not None and rows < 1:
        raise InputError(f"--rows={rows}: at least one request is sampled")
    target = chips.parse(topology)
    jax.config.update("jax_platforms", "cpu")  # whatever accelerator this machine has is left alone
    devices = chips.devices(target)
    spec, run = programs.describe(config)
    mesh = sharding.make_mesh(run.sharding, devices)
    result = {
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
        "change": {},  # of the kinds that do not fit: the flags of the first change that does, "" if none does
    }
    with jax.set_mesh(mesh), without_cache():
        result["parameters"] = checkpoints.count_parameters(spec.model, spec.vocab)
        log(table.header(result))
        if result["note"]:
            log(result["note"])
        for kind in (kind for kind in PROGRAMS if kind in kinds):
            estimates = []
            for program in fitting.series(config, kind, rows, devices):
                log(f"compiling the {program.name} ...")
                estimates.append(estimate.of_program(program, target, known))
                log(table.program(estimates[-1]))
            result["programs"] += estimates
            refused = [one["memory"]["total"] for one in estimates if not one["memory"]["fits"]]
            if refused:
                change = fitting.first(config, kind, rows, target, devices, max(refused), log)
                result["change"][kind] = change
                log(f"{kind}: fits with {change}" if change else f"{kind}: no change fits; a larger slice is needed")
            if speed := estimate.speed(estimates):
                result["speed"][kind] = speed
    result["fits"] = all(program["memory"]["fits"] for program in result["programs"])
    return result


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Turns off jax's cache of executables on disk, which cannot read those for other chips.

    The first compilation decides whether the cache is used: `reset_cache` makes the next one decide again.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()
