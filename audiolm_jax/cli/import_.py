"""`audiolm import`."""

import argparse

from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local

HELP = """
The folder holds config.json, tokenizer.json and model.safetensors (or several, and their index). Weights that are
missing, unexpected or of a wrong shape are named; pickles are never read.

examples:
  audiolm import facebook/musicgen-small runs/musicgen
  # to fine-tune it: audiolm train --config finetune_musicgen --config.finetune.base=runs/musicgen ...
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a folder, or a repository owner/name[@revision]")
    parser.add_argument("workdir", type=local, metavar="WORKDIR", help="folder of the run that it becomes")


def run(options: argparse.Namespace) -> None:
    arguments.no_overrides(options, "a published checkpoint has its own configuration")
    from audiolm_jax.families import published

    # Not the folder itself if it is new: an import that fails leaves none.
    existing = next(folder for folder in (options.workdir, *options.workdir.absolute().parents) if folder.exists())
    arguments.writable(existing, "WORKDIR")
    source = published.import_run(options.source, options.workdir)
    print(
        f"imported {source}: {options.workdir}; next: audiolm generate --workdir {options.workdir} --text ... "
        "--seconds 8 --out out.wav"
    )
