"""The subcommand `audiolm plan`."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

PROGRAMS = ("train", "sample")


def arguments(parser: argparse.ArgumentParser, config_help: str) -> None:
    parser.add_argument("--config", default="default", help=config_help)
    parser.add_argument(
        "--topology", required=True, metavar="SLICE", help="v5e:16x16, v5e-256, v5p-512, v6e-8, v4-32, ... or h100:8"
    )
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="which: train, sample (default: %(default)s)")
    parser.add_argument("--rows", type=int, metavar="N", help="requests sampled at once (default: one per batch shard)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def plan(
    config: ConfigDict,
    name: str,
    topology: str,
    programs: tuple[str, ...] = PROGRAMS,
    rows: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The plan of a checked configuration, as plain JSON values; `tell` gets a line before and after every program.

    Raises InputError for a slice that does not exist, a missing libtpu, a mesh or batch that does not divide.
    """
    from audiolm_jax import sharding
    from audiolm_jax.errors import InputError
    from audiolm_jax.planning import chips

    unknown = set(programs) - set(PROGRAMS)
    if unknown or not programs:
        raise InputError(f"--programs={','.join(programs)}: choose of {', '.join(PROGRAMS)}")
    target = chips.parse(topology)
    devices = chips.devices(target)
    import jax

    from audiolm_jax.planning import estimate, show
    from audiolm_jax.planning import programs as building

    task = building.task(config)
    mesh = sharding.make_mesh(task.section("sharding"), devices)
    made = {
        "config": name,
        "topology": target.name,
        "accelerator_type": target.sold_as,
        "chips": target.chips,
        "processes": target.hosts,
        "mesh": dict(mesh.shape),
        "preset": config.sharding.preset,
        "strategy": config.serialization.strategy,
        "jax": jax.__version__,
        "programs": [],
    }
    with jax.set_mesh(mesh):
        made["parameters"] = building.parameters(task)
        tell(show.header(made))
        making = []
        if "train" in programs:
            making.append(building.train(task, mesh, target.hosts))
        if "sample" in programs:
            making.append(building.sample(task, mesh, rows or mesh.shape["data"]))
        for program in (program for series in making for program in series):
            tell(f"compiling the {program.name} ...")
            found = estimate.of_program(program, target)
            found["advice"] = estimate.advice(found, task, target)
            made["programs"].append(found)
            tell(show.program(found))
    made["fits"] = all(found["memory"]["fits"] for found in made["programs"])
    return made


def run(options: argparse.Namespace, config: ConfigDict) -> None:
    """Prints the plan; with --json only the object goes to stdout, progress to stderr."""

    def tell(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    programs = tuple(part.strip() for part in options.programs.split(",") if part.strip())
    made = plan(config, options.config, options.topology, programs, options.rows, tell)
    if options.json:
        print(json.dumps(made, indent=2))
    else:
        print("everything fits" if made["fits"] else "NOT everything fits: see `change` above")
