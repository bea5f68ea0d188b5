"""`audiolm generate`."""

import argparse
import dataclasses
import sys

from audiolm_jax import files
from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local
from audiolm_jax.errors import InputError

HELP = """
examples:
  audiolm generate --workdir runs/delay --text "three one four" --out three.wav
  # from one file that `audiolm export` wrote
  audiolm generate --checkpoint delay.safetensors --text "three one four" --out three.wav
  # the voice of a recording (--text says what follows it, --prompt-text is its transcript)
  audiolm generate --workdir runs/delay --text "one five nine" --prompt voice.wav --prompt-text "two six" --out five.wav
  # music, with a checkpoint that `audiolm import` wrote
  audiolm generate --workdir runs/musicgen --text "slow jazz with a loud piano" --seconds 8 --out jazz.wav
  # with the melody of a recording, after `audiolm import facebook/musicgen-melody runs/melody`
  audiolm generate --workdir runs/melody --text "slow jazz" --melody hummed.wav --seconds 8 --out jazz.wav
  # decode while generating, and other sampling
  audiolm generate --workdir runs/delay --text "two six" --out two.wav --stream --config.sampling.temperature=0.8
"""


def add(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=files.place, metavar="DIR", help="folder of a trained run")
    source.add_argument("--checkpoint", type=local, metavar="FILE", help="a file that `audiolm export` wrote")
    parser.add_argument("--text", default="", help="what to say")
    parser.add_argument("--prompt", type=local, metavar="FILE", help="a recording to continue, or whose voice to take")
    parser.add_argument("--melody", type=local, metavar="FILE", help="a recording to follow (musicgen-melody)")
    parser.add_argument("--speaker", default="", help="fills {speaker} in the text template of the run, if it has one")
    parser.add_argument("--prompt-text", default="", metavar="TEXT", help="transcript of the prompt")
    parser.add_argument("--out", type=local, required=True, metavar="FILE", help="the wav file to write")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, metavar="N", help="exact length in frames of the codec")
    length.add_argument("--seconds", type=float, metavar="S", help="exact length in seconds")
    parser.add_argument("--seed", type=int, help="of the sampling (default: sampling.seed of the configuration)")
    parser.add_argument("--stream", action="store_true", help="decode and write while generating")


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options, only=("sampling",))
    if options.out.suffix != ".wav":
        raise InputError(f"--out={options.out}: the name must end in .wav")
    if options.workdir:
        arguments.trained_run(options.workdir)
    elif not options.checkpoint.is_file():
        raise InputError(f"--checkpoint={options.checkpoint}: there is no such file; `audiolm export` writes one")
    import soundfile

    from audiolm_jax import loading

    generator = loading.load(options.workdir or options.checkpoint)
    changed = [override.partition("=")[0].removeprefix("sampling.") for override in options.overrides]
    generator.sampling = dataclasses.replace(generator.sampling, **{key: config.sampling[key] for key in changed})
    template = generator.data_config.template
    if "{speaker}" in template and not options.speaker:
        print(
            f"audiolm: the text of this run was {template!r}; --speaker names a voice of its training", file=sys.stderr
        )
    codec = generator.codec
    prompt = arguments.recording(options.prompt, codec.sample_rate, codec.channels, "--prompt")
    melody = arguments.recording(options.melody, codec.sample_rate, 1, "--melody")
    request = generator.request(
        options.text,
        audio=prompt,
        melody=melody,
        prompt_text=options.prompt_text,
        speaker=options.speaker,
        frames=options.frames,
        seconds=options.seconds,
        seed=options.seed,
    )
    stream = generator.run_stream([request])
    arguments.writable(options.out.parent, "--out")
    rate, channels = generator.codec.sample_rate, generator.codec.channels
    with (
        files.replacing(options.out) as temporary,
        soundfile.SoundFile(temporary, "w", rate, channels, subtype="PCM_16", format="WAV") as file,
    ):
        while True:
            try:
                [samples] = next(stream)
            except StopIteration as end:
                [result] = end.value
                break
            file.write(samples.T)
            if options.stream:
                file.flush()
                print(f"{file.frames / rate:6.2f} s of audio", flush=True)
    seconds = result.waveform.shape[-1] / result.sample_rate
    print(f"{options.out}: {seconds:.2f} s of audio in {result.seconds:.2f} s and {result.passes} passes")
