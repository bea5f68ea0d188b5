"""What `audiolm COMMAND --help` says, and what is said of a mistake; every example is parsed by the tests."""

import argparse
import difflib
from pathlib import Path

from audiolm_jax.errors import InputError

OVERRIDES = """
overrides:
  Any key of the configuration can be set after it: --config.section.key=value. The keys and their meaning are in
  configs/default.py. Tuples are written 1,2,3 or "(1, 2, 3)".
"""

HELP = {
    "prepare": """Turn audio and text into a data set of tokens.

examples:
  # the synthetic corpus that needs nothing but this package
  audiolm prepare --config default --data data/synthetic
  # your own recordings: wav, flac, ogg or mp3, each with a .txt of the same name, or with an LJSpeech metadata.csv,
  # or a .jsonl manifest; unusable files are named in data/mine/tokens/rejects.jsonl
  audiolm prepare --config default --data data/mine --config.corpus.name=folder --config.corpus.path=recordings
  # a prepared tensorflow-datasets set
  audiolm prepare --config default --data data/lj --config.corpus.name=tfds --config.corpus.tfds_name=my_set
  # for fine-tuning a published MusicGen, by its codec
  audiolm prepare --config finetune_musicgen --data data/mine --config.corpus.path=recordings
""",
    "train": """Train a model on prepared tokens. The workdir is the run: the same command again resumes it.

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
""",
    "generate": """Make speech from text, from an audio prompt, or from both.

examples:
  audiolm generate --workdir runs/delay --text "three one four" --out three.wav
  # from one file that `audiolm export` wrote
  audiolm generate --checkpoint delay.safetensors --text "three one four" --out three.wav
  # the voice of a recording (--text says what follows it, --prompt-text what is said in it)
  audiolm generate --workdir runs/delay --text "one five nine" --prompt voice.wav --prompt-text "two six" --out five.wav
  # music, with what `audiolm import` made
  audiolm generate --workdir runs/musicgen --text "slow jazz with a loud piano" --seconds 8 --out jazz.wav
  # with the melody of a recording, after `audiolm import facebook/musicgen-melody runs/melody`
  audiolm generate --workdir runs/melody --text "slow jazz" --melody hummed.wav --seconds 8 --out jazz.wav
  # decode while generating, and other sampling
  audiolm generate --workdir runs/delay --text "two six" --out two.wav --stream --config.sampling.temperature=0.8
""",
    "evaluate": """Measure a trained model: bits per second of audio on held-out speech, intelligibility, speed.

examples:
  audiolm evaluate --workdir runs/delay --data data/mine
  audiolm evaluate --workdir runs/delay --data data/mine --config.evaluation.split=unseen
""",
    "import": """Make a workdir of a published checkpoint of MusicGen: a folder, or a repository (at a revision).

The folder holds config.json, tokenizer.json and model.safetensors (or several, and their index). Whatever is missing in
the weights, too much or of a wrong shape is told by name; pickles are never read.

examples:
  audiolm import facebook/musicgen-small runs/musicgen
  # to fine-tune it: audiolm train --config finetune_musicgen --config.finetune.base=runs/musicgen ...
""",
    "export": """Write the weights of a trained run, and what it needs to be used, to one safetensors file.

examples:
  audiolm export --workdir runs/delay --out delay.safetensors
  # an imported checkpoint goes back to the layout that it came in, a folder
  audiolm export --workdir runs/musicgen --out musicgen
  # in Python: import audiolm_jax; audiolm_jax.load("delay.safetensors").generate(["one"])[0].waveform
""",
    "compare": """Train and measure several serialization strategies under equal conditions, and write one report.

One training run for each strategy, seed and size; what is equal between them is said before training. The stages are
kept in the workdir; the same command again goes on where it was stopped, and several at the same time, on one machine
or on many with one folder, share the runs.

examples:
  audiolm compare --config demo --workdir runs/demo        # `make demo`: ten minutes on two cores
  audiolm compare --config tiny --workdir runs/tiny        # a check that everything runs: well under a minute
  audiolm compare --config demo --workdir runs/two --config.compare.strategies=delay,masked
  # three seeds, whose spread is in the intervals; every strategy is shown the same audio
  audiolm compare --config demo --workdir runs/three --config.compare.seeds=0,1,2 --config.compare.equal=tokens
""",
    "plan": """Compile a run for chips that are not here: does it fit, what does it send, how long must a step take.

The train step and the programs of sampling are compiled ahead of time for a TPU slice (by libtpu, on this machine:
pip install 'audiolm-jax[tpu]'); GPUs are given by count. Times are floors: every part of a chip at its peak.

examples:
  audiolm plan --config size_300m --topology v5e:16x16
  audiolm plan --config size_7b --topology v5p-512 --programs train --config.training.accumulate=2
  audiolm plan --config size_1b5 --topology v6e-8 --programs sample --rows 64 --json
""",
    "codec": """Recordings to codes and back, with any codec; files of hours are taken piece by piece.

FILE.npz holds the codes [frames, codebooks], and what is needed to decode them.

examples:
  audiolm codec info
  audiolm codec encode --out codes one.wav two.flac
  audiolm codec decode --out heard codes/one.npz codes/two.npz
  # a published codec: a folder with config.json and model.safetensors, or a repository and its revision
  audiolm codec encode --codec mimi --path kyutai/mimi@main --codebooks 8 --out codes one.wav
""",
}


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake as one sentence and names the nearest flag."""

    def error(self, message: str) -> None:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Raises InputError for a flag that the chosen command does not have, then for whatever argparse refuses."""
        commands = next(action.choices for action in self._actions if action.choices)
        command = commands.get(arguments[0] if arguments else "", self)
        known = [flag for action in command._actions for flag in action.option_strings]
        for flag in (argument.partition("=")[0] for argument in arguments):
            if flag.startswith("--") and flag not in known:
                near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"see {command.prog} --help"
                raise InputError(f"{flag}: not a flag of {command.prog}; {hint}")
        found, rest = self.parse_known_args(arguments)
        if rest and "files" in found and not any(argument.startswith("-") for argument in rest):
            found.files += [Path(argument) for argument in rest]  # argparse stops looking for files at the first flag
        elif rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found
