"""`audiolm evaluate`."""

import argparse

from audiolm_jax import files
from audiolm_jax.cli import arguments
from audiolm_jax.config import section

HELP = """
examples:
  audiolm evaluate --workdir runs/delay --data data/mine
  audiolm evaluate --workdir runs/delay --data data/mine --config.evaluation.split=unseen
  # on every host of a TPU slice: they share the utterances and the sentences, and the first one writes and prints
  audiolm evaluate --workdir runs/delay --data data/mine --processes tpu
"""


def add(parser: argparse.ArgumentParser) -> None:
    arguments.add_workdir(parser)
    arguments.add_data(parser)
    arguments.add_processes(parser)


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options, only=("evaluation", "sampling"))
    arguments.trained_run(options.workdir)
    from audiolm_jax.evaluation import evaluate, intervals

    sections = [section(config, name) for name in ("evaluation", "sampling")]
    data, path = arguments.data_folder(options), options.workdir / "evaluation.json"
    with arguments.processes(options) as primary:
        result = evaluate.evaluate(options.workdir, data, *sections)
        if primary:
            files.write_json(path, result)
    if not primary:
        return
    bound = "at most " if result["likelihood"] == "bound" else ""
    ends = intervals.Interval(*(result[f"bits_per_second{end}"] for end in ("", "_low", "_high")))
    interval = intervals.text(ends, "{:.1f}", len(result["utterance_bits"]))
    print(f"bits per second of audio   {bound}{ends.value:.1f} {interval}")
    print(f"  of unigram codes         {result['unigram_bits_per_second']:.1f}")
    print(f"  of uniform codes         {result['uniform_bits_per_second']:.1f}")
    if result["cer"] is None:
        print(f"no error rate              {result['no_cer']}")
        print(f"all numbers: {path}")
        return
    if result["cer_means_nothing"]:
        print(f"no error rate              {result['cer_means_nothing']}")
    else:
        print(f"character error rate       {_rate(result['cer'])}")
        for name, title in (("real", "of the recordings"), ("codec", "of these after the codec")):
            rate = result["ceilings"][name]
            print(f"  {title:24s} {_rate(rate) if rate else 'the recordings are not there any more'}")
    print(f"real-time factor           {result['speed']['rtf']:.3f}")
    print(f"first audio after          {result['speed']['first_audio_seconds']:.3f} s")
    print(f"all numbers: {path}; what was spoken: {options.workdir / 'speech'}")


def _rate(cer: dict) -> str:
    from audiolm_jax.evaluation import intervals

    interval = intervals.Interval(*(cer[key] for key in ("value", "low", "high")))
    return f"{cer['value']:.3f} {intervals.text(interval, '{:.3f}', cer['utterances'])}"
