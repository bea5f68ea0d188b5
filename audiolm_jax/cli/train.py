"""`audiolm train`."""

import argparse

from audiolm_jax.cli import arguments

HELP = """
examples:
  audiolm train --config default --data data/mine --workdir runs/delay
  audiolm train --config default --data data/mine --workdir runs/flat --config.serialization.strategy=flat
  tensorboard --logdir runs
  # from the weights of a published MusicGen (audiolm import), on recordings with captions
  audiolm train --config finetune_musicgen --data data/mine --workdir runs/tuned --config.finetune.base=runs/base
  # several processes are one run: on every host of a TPU slice (data.batch_size is that of all of them)
  audiolm train --config default --data data/mine --workdir runs/delay --processes tpu
  # process 1 of 2; a process that dies ends the others with exit code 75, and the same commands again resume the run
  audiolm train --config default --data data/mine --workdir runs/delay --processes 10.0.0.1:5000,2,1
"""


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_config(parser)
    arguments.add_data(parser)
    arguments.add_workdir(parser, "folder of the run, or gs://...")
    arguments.add_processes(parser)


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options)
    from audiolm_jax import runs

    data = arguments.data_folder(options)
    workdir = arguments.writable(options.workdir, "--workdir")
    with arguments.processes(options) as primary:
        runs.train(config, data, workdir, progress=primary)
    if primary:
        length = " --seconds 8" if config.finetune.base else ""
        print(f"trained: {workdir}; next: audiolm generate --workdir {workdir} --text ...{length} --out out.wav")
