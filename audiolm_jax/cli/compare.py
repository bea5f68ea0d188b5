"""`audiolm compare`."""

import argparse
import shlex

from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local

HELP = """
One training run for each strategy, seed and size; what is equal between them is printed before training. The stages are
kept in the workdir: the same command again resumes, and several at the same time, on one machine or on many with one
folder, share the runs.

examples:
  audiolm compare --config demo --workdir runs/demo        # `make demo`: ten minutes on two cores
  audiolm compare --config tiny --workdir runs/tiny        # a check that everything runs: well under a minute
  audiolm compare --config demo --workdir runs/two --config.compare.strategies=delay,masked
  # three seeds, whose spread is in the intervals; every strategy is shown the same audio
  audiolm compare --config demo --workdir runs/three --config.compare.seeds=0,1,2 --config.compare.equal=tokens
"""


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_config(parser, "demo")
    parser.add_argument("--workdir", type=local, required=True, metavar="DIR", help="folder of the comparison")


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options)
    from audiolm_jax.compare import compare

    compare.check(config)
    workdir = arguments.writable(options.workdir, "--workdir")
    compare.run(config, workdir, " ".join(["audiolm", *map(shlex.quote, options.arguments)]))
