"""`audiolm prepare`."""

import argparse

from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local

HELP = """
examples:
  # the synthetic corpus that needs nothing but this package
  audiolm prepare --config default --data data/synthetic
  # your own recordings: what libsndfile reads, each with a .txt of the same name, or with a metadata.csv, or a .jsonl
  # manifest; unusable files are named in data/mine/tokens/rejects.jsonl
  audiolm prepare --config default --data data/mine --config.corpus.name=folder --config.corpus.path=recordings
  # a prepared tensorflow-datasets set
  audiolm prepare --config default --data data/lj --config.corpus.name=tfds --config.corpus.tfds_name=my_set
  # for fine-tuning a published MusicGen, by its codec
  audiolm prepare --config finetune_musicgen --data data/mine --config.corpus.path=recordings
"""


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_config(parser)
    parser.add_argument("--data", type=local, required=True, metavar="DIR", help="where to write corpus and tokens")
    arguments.add_processes(parser)


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options)
    from audiolm_jax.data import prepare
    from audiolm_jax.evaluation import intervals
    from audiolm_jax.families.config import configured

    config = configured(config)  # a run that training starts from decides codec and sample rate
    directory = arguments.writable(options.data, "--data")
    with arguments.processes(options) as primary:
        metadata = prepare.prepare(config, directory, progress=primary)
    if not primary:
        return
    for name, split in metadata["splits"].items():
        print(f"{name:8s} {split['utterances']:6d} utterances, {split['seconds'] / 3600:.3f} hours")
    if "test" not in metadata["splits"]:
        print("there is no split test: `audiolm evaluate` needs one, or --config.evaluation.split=NAME of another")
    elif lacking := intervals.lacking(metadata["splits"]["test"]["utterances"]):
        print(f"numbers of the split test will have no interval: {lacking}, {intervals.UTTERANCES} are needed")
    if metadata["rejects"]:
        print(f"{metadata['rejects']} recordings were left out: see {options.data / 'tokens' / 'rejects.jsonl'}")
    print(f"tokens: {options.data / 'tokens'}")
