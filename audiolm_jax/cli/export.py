"""`audiolm export`."""

import argparse

from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local
from audiolm_jax.errors import InputError

HELP = """
examples:
  audiolm export --workdir runs/delay --out delay.safetensors
  # an imported checkpoint goes back to the layout that it came in, a folder
  audiolm export --workdir runs/musicgen --out musicgen
  # in Python: import audiolm_jax; audiolm_jax.load("delay.safetensors").generate(["one"])[0].waveform
"""


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_workdir(parser)
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    parser.add_argument("--out", type=local, required=True, metavar="FILE", help="a .safetensors file, or a folder")
    kinds = ("float32", "float16")
    parser.add_argument("--dtype", choices=kinds, default="float32", help="of the weights in a .safetensors file")


def run(options: argparse.Namespace) -> None:
    arguments.no_overrides(options, "a trained run keeps its configuration")
    out = options.out
    if out.suffix not in ("", ".safetensors"):
        raise InputError(f"--out={out}: the name must end in .safetensors, or be a folder's")
    arguments.trained_run(options.workdir)
    from audiolm_jax.families import published
    from audiolm_jax.model import checkpoints

    if not out.suffix:
        if options.dtype != "float32":
            raise InputError(f"--dtype={options.dtype} needs --out=FILE.safetensors; the published layout is float32")
        published.export_run(options.workdir, out, options.step)
        print(f"{out}: config.json, model.safetensors and what goes with them")
        return
    arguments.writable(out.parent, "--out")
    checkpoints.export_safetensors(options.workdir, out, options.step, options.dtype)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; next: audiolm generate --checkpoint {out}")
