"""`audiolm generate`."""

import argparse
import contextlib
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolm_jax import files
from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local
from audiolm_jax.errors import InputError, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from audiolm_jax import audio
    from audiolm_jax.sampling.result import Result

SUFFIXES = (".wav", ".flac")
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
  # with a speaker of a Qwen3-TTS, after `audiolm import Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice runs/qwen`
  audiolm generate --workdir runs/qwen --text "Good morning." --speaker ryan --language english --out morning.wav
  # decode while generating, and other sampling
  audiolm generate --workdir runs/delay --text "two six" --out two.wav --stream --config.sampling.temperature=0.8

Compiled programs are kept for the next command in ~/.cache/audiolm_jax/xla ($XDG_CACHE_HOME);
JAX_ENABLE_COMPILATION_CACHE=false in the environment switches that off.
"""


def add(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=arguments.anywhere, metavar="DIR", help="folder of a trained run")
    source.add_argument("--checkpoint", type=local, metavar="FILE", help="a file that `audiolm export` wrote")
    parser.add_argument("--text", default="", help="what to say")
    parser.add_argument("--prompt", type=local, metavar="FILE", help="a recording to continue, or whose voice to take")
    parser.add_argument("--melody", type=local, metavar="FILE", help="a recording to follow (musicgen-melody)")
    parser.add_argument(
        "--speaker", default="", help="fills {speaker} in the text template of the run, or one that the model names"
    )
    parser.add_argument("--language", metavar="NAME", help="of the text (Qwen3-TTS)")
    parser.add_argument("--instruction", metavar="TEXT", help="how to speak (Qwen3-TTS)")
    parser.add_argument("--prompt-text", default="", metavar="TEXT", help="transcript of the prompt")
    parser.add_argument("--out", type=local, required=True, metavar="FILE", help="the wav or flac file to write")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, metavar="N", help="exact length in frames of the codec")
    length.add_argument("--seconds", type=float, metavar="S", help="exact length in seconds")
    parser.add_argument("--seed", type=int, help="of the sampling (default: sampling.seed of the configuration)")
    parser.add_argument("--stream", action="store_true", help="decode and write while generating")


def run(options: argparse.Namespace) -> None:
    config = arguments.config(options, only=("sampling",))
    if options.out.suffix not in (SUFFIXES[:1] if options.stream else SUFFIXES):
        accepted = f"must end in {SUFFIXES[0]}" + ("" if options.stream else f" or {SUFFIXES[1]}")
        raise InputError(f"--out={options.out}: the name {accepted}")
    if options.workdir:
        arguments.trained_run(options.workdir)
    elif not options.checkpoint.is_file():
        raise InputError(f"--checkpoint={options.checkpoint}: there is no such file; `audiolm export` writes one")
    source = options.workdir or options.checkpoint
    codec = codec_ahead(source)
    from audiolm_jax import audio, loading

    generator = loading.load(source, codec=codec)
    changed = [override.partition("=")[0].removeprefix("sampling.") for override in options.overrides]
    generator.sampling = dataclasses.replace(generator.sampling, **{key: config.sampling[key] for key in changed})
    template = generator.data_config.template
    if "{speaker}" in template and not (options.speaker or generator.data_config.speaker):
        shown = shortened(repr(template), 200)
        print(f"audiolm: the text of this run was {shown}; --speaker names a voice of its training", file=sys.stderr)
    codec = generator.codec
    prompt = arguments.recording(options.prompt, codec.sample_rate, codec.channels, "--prompt")
    melody = arguments.recording(options.melody, codec.sample_rate, 1, "--melody")
    request = generator.request(
        options.text,
        audio=prompt,
        melody=melody,
        prompt_text=options.prompt_text,
        speaker=options.speaker,
        language=options.language,
        instruction=options.instruction,
        frames=options.frames,
        seconds=options.seconds,
        seed=options.seed,
    )
    arguments.writable(options.out.parent, "--out")
    if options.stream:
        rate, channels = generator.codec.sample_rate, generator.codec.channels
        with audio.writing_wav(options.out, rate, channels) as file:
            [result] = streamed(generator.run_stream([request]), file)
    else:
        [result] = generator.run([request])
        result.save(options.out)
    seconds = result.waveform.shape[-1] / result.sample_rate
    print(f"{options.out}: {seconds:.2f} s of audio in {result.seconds:.2f} s and {result.passes} passes")


def codec_ahead(source: Path) -> Any:
    """The codec of a model, its decoder being compiled in a thread while the model's modules are imported and traced.

    None if it cannot be opened: `loading.load` says why.
    """
    from audiolm_jax import codecs
    from audiolm_jax.sampling import DECODE_FRAMES
    from audiolm_jax.sampling.background import in_background

    with contextlib.suppress(Exception):
        if source.is_file():
            about = files.parse_json(files.safetensors_metadata(source)["about"], source)
        else:
            about = files.read_json(source / "config.json")
        codec = codecs.load(**{name: about["codec"][name] for name in ("name", "path", "codebooks")})
        if hasattr(codec, "warm"):
            in_background(functools.partial(codec.warm, DECODE_FRAMES))
        return codec
    return None


def streamed(stream: "Iterator[list[np.ndarray]]", file: "audio.WavFile") -> "list[Result]":
    """Writes the samples of a stream of one row as they come; returns its results."""
    while True:
        try:
            [samples] = next(stream)
        except StopIteration as end:
            return end.value
        file.write(samples)
        print(f"{file.seconds:6.2f} s of audio", flush=True)
