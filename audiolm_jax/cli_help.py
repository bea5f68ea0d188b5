"""What `audiolm COMMAND --help` says; every example is parsed by the tests."""

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
""",
    "train": """Train a model on prepared tokens. The workdir is the run: the same command again resumes it.

examples:
  audiolm train --config default --data data/mine --workdir runs/delay
  audiolm train --config default --data data/mine --workdir runs/flat --config.serialization.strategy=flat
  tensorboard --logdir runs
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
  # decode while generating, and other sampling
  audiolm generate --workdir runs/delay --text "two six" --out two.wav --stream --config.sampling.temperature=0.8
""",
    "evaluate": """Measure a trained model: bits per second of audio on held-out speech, intelligibility, speed.

examples:
  audiolm evaluate --workdir runs/delay --data data/mine
  audiolm evaluate --workdir runs/delay --data data/mine --config.evaluation.split=unseen
""",
    "import": """Make a workdir of a published checkpoint of MusicGen: a folder, or a repository and its revision.

The folder holds config.json, tokenizer.json and model.safetensors (or several, and their index). Whatever is missing in
the weights, too much or of a wrong shape is told by name; pickles are never read.

examples:
  audiolm import facebook/musicgen-small@main runs/musicgen
""",
    "export": """Write the weights of a trained run, and what it needs to be used, to one safetensors file.

examples:
  audiolm export --workdir runs/delay --out delay.safetensors
  # an imported checkpoint goes back to the layout that it came in, a folder
  audiolm export --workdir runs/musicgen --out musicgen
  # in Python: from audiolm_jax import generate; generate.load("delay.safetensors").generate(["one"])[0].waveform
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
