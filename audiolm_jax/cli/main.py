"""The command line: prepare, train, generate, evaluate, import, export, compare, plan, codec.

Each subcommand is one function that reads the configuration and calls the modules. Bad input ends with one sentence
on stderr and exit code 2; Ctrl-C with one line that says how to go on and exit code 130.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from audiolm_jax import config as configs
from audiolm_jax import files
from audiolm_jax.cli import allocator
from audiolm_jax.cli.help import HELP, OVERRIDES, Parser
from audiolm_jax.cli.paths import data_folder, recording, run_folder
from audiolm_jax.errors import InputError, not_after_the_first, not_orbax, of_the_disk
from audiolm_jax.plan import libtpu


def build_parser() -> Parser:
    parser = Parser(
        prog="audiolm",
        description="Audio-token language models: every order on the codec grid.",
        epilog="`audiolm COMMAND --help` shows examples. Start with: audiolm compare --config demo --workdir runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, function: Callable[[argparse.Namespace], None]) -> Parser:
        summary, _, rest = HELP[name].partition("\n")
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=rest.strip("\n") + "\n" + OVERRIDES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(function=function)
        return sub

    config_help = "a configuration: a .py file, or the name of one in configs/ (default: %(default)s)"
    data_help = "folder of the corpus and its tokens (default: WORKDIR/data)"
    processes_help = "how this process is one of several: none (default), tpu, slurm or HOST:PORT,COUNT,ID"

    sub = add("prepare", prepare)
    sub.add_argument("--config", default="default", help=config_help)
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="where to write corpus and tokens")
    sub.add_argument("--processes", metavar="HOW", help=processes_help)

    sub = add("train", train)
    sub.add_argument("--config", default="default", help=config_help)
    sub.add_argument("--data", type=Path, metavar="DIR", help=data_help)
    sub.add_argument("--workdir", type=files.place, required=True, metavar="DIR", help="folder of the run, or gs://...")
    sub.add_argument("--processes", metavar="HOW", help=processes_help)

    sub = add("generate", generate)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=files.place, metavar="DIR", help="folder of a trained run")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="a file that `audiolm export` wrote")
    sub.add_argument("--text", default="", help="what to say")
    sub.add_argument("--prompt", type=Path, metavar="FILE", help="a recording to continue, or whose voice to take")
    sub.add_argument("--melody", type=Path, metavar="FILE", help="a recording to follow (musicgen-melody)")
    sub.add_argument("--speaker", default="", help="fills {speaker} in the text template of the run, if it has one")
    sub.add_argument("--prompt-text", default="", metavar="TEXT", help="what is said in the prompt")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="the wav file to write")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, metavar="N", help="exact length in frames of the codec")
    length.add_argument("--seconds", type=float, metavar="S", help="exact length in seconds")
    sub.add_argument("--seed", type=int, help="of the sampling (default: sampling.seed of the configuration)")
    sub.add_argument("--stream", action="store_true", help="decode and write while generating")

    sub = add("evaluate", evaluate)
    sub.add_argument("--workdir", type=files.place, required=True, metavar="DIR", help="folder of a trained run")
    sub.add_argument("--data", type=Path, metavar="DIR", help=data_help)

    sub = add("import", import_)
    sub.add_argument("source", metavar="SRC", help="a folder, or a repository owner/name[@revision]")
    sub.add_argument("workdir", type=Path, metavar="WORKDIR", help="folder of the run that it becomes")

    sub = add("export", export)
    sub.add_argument("--workdir", type=files.place, required=True, metavar="DIR", help="folder of a trained run")
    sub.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file, or a folder")

    sub = add("compare", compare)
    sub.add_argument("--config", default="demo", help=config_help)
    sub.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="folder of the comparison")

    sub = add("plan", plan)
    sub.add_argument("--config", default="default", help=config_help)
    sub.add_argument("--topology", required=True, metavar="SLICE", help="v5e:16x16, v5e-256, v5p-512, ... or h100:8")
    sub.add_argument("--programs", default="train,sample", help="train, sample or both (default: %(default)s)")
    sub.add_argument("--rows", type=int, help="requests sampled at once (default: one per batch shard)")
    sub.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")

    sub = add("codec", codec)
    sub.add_argument("action", choices=("encode", "decode", "info"), help="what to do")
    sub.add_argument("files", nargs="*", type=Path, metavar="FILE", help="recordings; for decode, what encode wrote")
    sub.add_argument("--codec", metavar="NAME", help="default, tiny, encodec, encodec_stereo, dac or mimi")
    sub.add_argument("--path", metavar="WEIGHTS", help="folder, safetensors file, or repository owner/name@revision")
    sub.add_argument("--codebooks", type=int, metavar="Q", help="keep the first so many codebooks (default: all)")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: beside every file)")
    return parser


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments without `--config.key=value` or `--config.key value`, and those as "key=value"."""
    rest, overrides, pending = [], [], None
    for argument in arguments:
        if pending is not None:
            overrides.append(f"{pending}={argument}")
            pending = None
        elif argument.startswith("--config."):
            text = argument.removeprefix("--config.")
            if "=" in text:
                overrides.append(text)
            else:
                pending = text
        else:
            rest.append(argument)
    if pending is not None:
        raise InputError(f"--config.{pending}: a value is missing; write --config.{pending}=VALUE")
    return rest, overrides


def prepare(options: argparse.Namespace) -> None:
    config = load_config(options)
    from audiolm_jax import runs

    directory = writable(options.data, "--data")
    with several(options) as primary:
        metadata = runs.prepare(config, directory, progress=primary)
    if not primary:
        return
    for split, found in metadata["splits"].items():
        print(f"{split:8s} {found['utterances']:6d} utterances, {found['seconds'] / 3600:.3f} hours")
    if metadata["rejects"]:
        print(f"{metadata['rejects']} recordings were left out: see {options.data / 'tokens' / 'rejects.jsonl'}")
    print(f"tokens: {options.data / 'tokens'}")


def train(options: argparse.Namespace) -> None:
    config = load_config(options)
    from audiolm_jax import runs

    data = data_folder(options)
    workdir = writable(options.workdir, "--workdir")
    with several(options) as primary:
        runs.train(config, data, workdir, progress=primary)
    if primary:
        length = " --seconds 8" if config.finetune.base else ""
        print(f"trained: {workdir}; next: audiolm generate --workdir {workdir} --text ...{length} --out out.wav")


def generate(options: argparse.Namespace) -> None:
    config = load_config(options, only=("sampling",))
    if options.out.suffix != ".wav":
        raise InputError(f"--out={options.out}: the name must end in .wav")
    if options.workdir:
        run_folder(options.workdir)
    elif not options.checkpoint.is_file():
        raise InputError(f"--checkpoint={options.checkpoint}: there is no such file; `audiolm export` writes one")
    import soundfile

    from audiolm_jax import loading

    generator = loading.load(options.workdir or options.checkpoint)
    given = [override.partition("=")[0].removeprefix("sampling.") for override in options.overrides]
    generator.sampling = dataclasses.replace(generator.sampling, **{key: config.sampling[key] for key in given})
    template = generator.data_config.template
    if "{speaker}" in template and not options.speaker:
        print(
            f"audiolm: the text of this run was {template!r}; --speaker names a voice of its training", file=sys.stderr
        )
    prompt, melody = (
        recording(path, generator.codec.sample_rate, flag)
        for path, flag in ((options.prompt, "--prompt"), (options.melody, "--melody"))
    )
    wanted = {
        "prompts": [prompt],
        "melodies": None if melody is None else [melody],
        "prompt_texts": [options.prompt_text],
        "speakers": options.speaker,
        "seeds": None if options.seed is None else [options.seed],
        "frames": options.frames,
        "seconds": options.seconds,
    }
    stream = generator.stream([options.text], **wanted)
    writable(options.out.parent, "--out")
    rate, channels = generator.codec.sample_rate, generator.codec.channels
    with (
        files.replacing(options.out) as temporary,
        soundfile.SoundFile(temporary, "w", rate, channels, subtype="PCM_16", format="WAV") as file,
    ):
        while True:
            try:
                [samples] = next(stream)
            except StopIteration as finished:
                [result] = finished.value
                break
            file.write(samples.T)
            if options.stream:
                file.flush()
                print(f"{file.frames / rate:6.2f} s of audio", flush=True)
    seconds = result.waveform.shape[-1] / result.sample_rate
    print(f"{options.out}: {seconds:.2f} s of audio in {result.seconds:.2f} s and {result.passes} passes")


def evaluate(options: argparse.Namespace) -> None:
    config = load_config(options, only=("evaluation", "sampling"))
    run_folder(options.workdir)
    from audiolm_jax.evaluation import run as measures

    evaluation, sampling = (configs.section(config, name) for name in ("evaluation", "sampling"))
    found = measures.evaluate(options.workdir, data_folder(options), evaluation, sampling)
    files.write_json(options.workdir / "evaluation.json", found)
    bound = "at most " if found["likelihood"] == "bound" else ""
    print(f"bits per second of audio   {bound}{found['bits_per_second']:.1f} +- {found['bits_per_second_se']:.1f}")
    print(f"  of unigram codes         {found['unigram_bits_per_second']:.1f}")
    where = f"all numbers: {options.workdir / 'evaluation.json'}"
    if "cer" not in found:  # music
        print(where)
        return
    cer = found["cer"]
    print(f"character error rate       {cer['value']:.3f} ({cer['low']:.3f} .. {cer['high']:.3f})")
    print(f"real-time factor           {found['speed']['rtf']:.3f}")
    print(f"first audio after          {found['speed']['first_audio_seconds']:.3f} s")
    print(f"{where}; what was spoken: {options.workdir / 'speech'}")


def import_(options: argparse.Namespace) -> None:
    if options.overrides:
        raise InputError(f"--config.{options.overrides[0]}: a published checkpoint has its own configuration")
    from audiolm_jax.families import musicgen

    source = musicgen.import_run(options.source, writable(options.workdir, "WORKDIR"))
    print(
        f"imported {source}: {options.workdir}; next: audiolm generate --workdir {options.workdir} --text ... "
        "--seconds 8 --out out.wav"
    )


def export(options: argparse.Namespace) -> None:
    if options.overrides:
        raise InputError(f"--config.{options.overrides[0]}: a trained run keeps its configuration")
    if options.out.suffix not in ("", ".safetensors"):
        raise InputError(f"--out={options.out}: the name must end in .safetensors, or be a folder's")
    run_folder(options.workdir)
    from audiolm_jax.families import musicgen
    from audiolm_jax.model import checkpoints

    if not options.out.suffix:
        musicgen.export_run(options.workdir, options.out, options.step)
        print(f"{options.out}: config.json, model.safetensors and what goes with them")
        return
    writable(options.out.parent, "--out")
    checkpoints.export_safetensors(options.workdir, options.out, options.step)
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB; next: audiolm generate --checkpoint {options.out}"
    )


def compare(options: argparse.Namespace) -> None:
    config = load_config(options)
    from audiolm_jax.compare import compare as module

    module.run(
        config, writable(options.workdir, "--workdir"), " ".join(["audiolm", *map(shlex.quote, options.arguments)])
    )


def codec(options: argparse.Namespace) -> None:
    if options.overrides:
        raise InputError(f"--config.{options.overrides[0]}: audiolm codec takes no configuration; see its --help")
    from audiolm_jax.cli import codec as codec_files

    out = options.out and writable(options.out, "--out")
    codec_files.command(options.action, options.files, out, options.codec, options.path, options.codebooks)


def plan(options: argparse.Namespace) -> None:
    from audiolm_jax.plan import plan as command

    command.run(options, load_config(options))


def load_config(options: argparse.Namespace, only: Sequence[str] = ()) -> ConfigDict:
    """The checked configuration; a command on a trained run (`only`) takes overrides of some sections alone."""
    for override in options.overrides if only else ():
        if override.partition(".")[0] not in only:
            raise InputError(
                f"--config.{override}: a trained run keeps its configuration; {options.command} takes only keys of "
                f"{' and '.join(only)}"
            )
    config = configs.load("default" if only else options.config, options.overrides)
    configs.check(config)
    return config


@contextlib.contextmanager
def several(options: argparse.Namespace) -> Iterator[bool]:
    """A block in which this process is one of those that --processes names; yields whether it is the first of them."""
    if options.processes is None:
        yield True
        return
    from audiolm_jax.training import processes

    processes.start(options.processes)
    with processes.together("Diverged"):
        yield processes.primary()


def writable(directory: Path, flag: str) -> Path:
    """The folder, made if need be. Raises InputError if nothing can be written in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".write-{platform.node()}-{os.getpid()}"
        probe.write_bytes(b"?")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{flag}={directory}: cannot be written ({error.strerror or error}); give a folder that you may write to"
        ) from error
    return directory


def main(arguments: list[str], keep_executables: bool = False) -> int:
    """Runs one command and returns its exit code: 0; 2 for bad input; 130, 143 for a signal; 1 for a run that diverged.

    keep_executables: what is compiled is kept in the workdir, so that the next start is quick. It is a setting of the
    whole process.
    """
    options = argparse.Namespace()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(not_orbax)
    try:
        rest, overrides = split_overrides(arguments)
        options = build_parser().parse(rest)
        options.overrides, options.arguments = overrides, arguments
        if keep_executables and getattr(options, "workdir", None) and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            import jax

            jax.config.update("jax_compilation_cache_dir", str(options.workdir / "compiled"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        options.function(options)
        return 0
    except InputError as error:
        return complain(str(error))
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "stopped; what was finished is kept, and the same command again goes on from there"
        print(f"\naudiolm: {said}", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help, or a signal during training, which saves first
        if stop.code in (130, 143):
            print(
                "\naudiolm: stopped; the last step is saved, and the same command again goes on from there",
                file=sys.stderr,
            )
            return stop.code
        raise
    except BrokenPipeError:  # `audiolm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if type(error).__name__ == "Diverged":  # training.py, not imported for its name alone
            complain(f"training stopped: {error}")
            return 1
        sentence = of_the_disk(error)
        if sentence is None:
            raise
        return complain(sentence)


def complain(sentence: str) -> int:
    print(f"audiolm: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def run() -> None:
    """Entry point of the console script."""
    sys.unraisablehook = not_after_the_first
    allocator.keep_memory()
    libtpu.quiet_without_chips()
    sys.exit(main(sys.argv[1:], keep_executables=True))
