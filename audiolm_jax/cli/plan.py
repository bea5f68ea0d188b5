"""`audiolm plan`."""

import argparse
import json
import sys

from audiolm_jax.cli import arguments

HELP = """
The train step and the programs of sampling are compiled ahead of time for a TPU slice (by libtpu, on this machine:
pip install 'audiolm-jax[tpu]'); GPUs are given by count. Times are lower bounds: every part of a chip at its peak.
Where a program does not fit, the first change of the configuration with which it does is searched for and printed.
Exit code 3: no change was found either.

examples:
  audiolm plan --config size_300m --topology v5e:16x16
  audiolm plan --config size_7b --topology v5p-512 --programs train --config.training.accumulate=2
  audiolm plan --config size_1b5 --topology v6e-8 --programs sample --rows 64 --json
"""


NOTHING_FITS = 3  # exit code


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_config(parser)
    parser.add_argument("--topology", required=True, metavar="SLICE", help="v5e:16x16, v5e-256, v5p-512, ... or h100:8")
    parser.add_argument("--programs", default="train,sample", help="train, sample or both (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="requests sampled at once (default: one per batch shard)")
    parser.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")


def run(options: argparse.Namespace) -> int:
    """Compiles and prints the plan; returns the exit code. With --json progress goes to stderr."""
    config = arguments.config(options)
    from audiolm_jax.plan import plan, table

    def log(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    programs = tuple(part.strip() for part in options.programs.split(",") if part.strip())
    result = plan.plan(config, options.config, options.topology, programs, options.rows, log)
    changes = list(result["change"].values())
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(*table.speeds(result), sep="\n")
        print("everything fits" if result["fits"] else verdict(changes))
    return 0 if all(changes) else NOTHING_FITS


def verdict(changes: list[str]) -> str:
    """changes: `change` of a plan, for the kinds that do not fit."""
    if all(changes):
        return f"NOT everything fits as it is; it does with {' '.join(changes)}"
    return "NOT everything fits, nor with other rows, remat or sharding: take a larger slice or a smaller model"
