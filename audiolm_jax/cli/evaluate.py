"""`audiolm evaluate`."""

import argparse

from audiolm_jax import files
from audiolm_jax.cli import arguments
from audiolm_jax.config import section

HELP = """
examples:
  audiolm evaluate --workdir runs/delay --data data/mine
  audiolm evaluate --workdir runs/delay --data data/mine --config.evaluation.split=unseen
"""


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_workdir(parser)
    arguments.add_data(parser)


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options, only=("evaluation", "sampling"))
    arguments.trained_run(options.workdir)
    from audiolm_jax.evaluation import evaluate

    sections = [section(config, name) for name in ("evaluation", "sampling")]
    result = evaluate.evaluate(options.workdir, arguments.data_folder(options), *sections)
    path = options.workdir / "evaluation.json"
    files.write_json(path, result)
    bound = "at most " if result["likelihood"] == "bound" else ""
    print(f"bits per second of audio   {bound}{result['bits_per_second']:.1f} +- {result['bits_per_second_se']:.1f}")
    print(f"  of unigram codes         {result['unigram_bits_per_second']:.1f}")
    if "cer" not in result:  # a music model has only the likelihood
        print(f"all numbers: {path}")
        return
    cer = result["cer"]
    print(f"character error rate       {cer['value']:.3f} ({cer['low']:.3f} .. {cer['high']:.3f})")
    print(f"real-time factor           {result['speed']['rtf']:.3f}")
    print(f"first audio after          {result['speed']['first_audio_seconds']:.3f} s")
    print(f"all numbers: {path}; what was spoken: {options.workdir / 'speech'}")
