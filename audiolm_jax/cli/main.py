"""The command line: parser, dispatch, and errors as exit codes. A command is a file of this folder.

A command's file has HELP (what `audiolm COMMAND --help` prints after the summary), `add(parser)` and `run(options)`,
and is imported only when the command runs or its help is asked for. Bad input ends with one sentence on stderr and exit
code 2; Ctrl-C with one line that says how to resume and exit code 130.
"""

import argparse
import difflib
import importlib
import logging
import os
import sys
import warnings
from pathlib import Path

import audiolm_jax
from audiolm_jax.cli import allocator, interrupts, programs
from audiolm_jax.errors import (
    LONGEST,
    InputError,
    disk_error,
    drop_checkpoint_logs,
    open_files,
    shortened,
    unraisable,
)

# Command -> its summary. `import`, a keyword of Python, is in import_.py.
COMMANDS = {
    "prepare": "Turn audio and text into a data set of tokens.",
    "train": "Train a model on prepared tokens. The workdir is the run: the same command again resumes it.",
    "generate": "Make speech from text, from an audio prompt, or from both.",
    "evaluate": "Measure a trained model: bits per second of audio on held-out speech, intelligibility, speed.",
    "import": "Import a published MusicGen checkpoint into a workdir, from a folder or a repository (at a revision).",
    "export": "Export a trained run (weights, configuration, vocabulary) to one safetensors file.",
    "compare": "Train and measure several serialization strategies under equal conditions, and write one report.",
    "plan": "Compile a run for chips that are not attached: memory, collectives, a lower bound of the time of a step.",
    "config": "Print every key of a configuration, with its value and meaning, and what differs from the defaults.",
    "codec": "Encode recordings to codes and decode them, with any codec; hours of audio need little memory.",
}

OVERRIDES = """
overrides:
  Any key of the configuration can be set after it: --config.section.key=value. `audiolm config` prints all
  keys and their meaning. Tuples are written 1,2,3 or "(1, 2, 3)".
"""


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake as one sentence."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> None:
        raise InputError(f"{message}; see {self.prog} --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line without overrides; `run` is the function of its command.

    Raises InputError for a flag that the command does not have, naming the nearest one, then for whatever argparse
    refuses.
    """
    parser = Parser(
        prog="audiolm",
        description="Audio-token language models: every order on the codec grid.",
        epilog="`audiolm COMMAND --help` shows examples. Start with: audiolm compare --config demo --workdir runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {audiolm_jax.__version__}")
    chosen = parser
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:
            module = importlib.import_module(f"audiolm_jax.cli.{'import_' if name == 'import' else name}")
            command.epilog = module.HELP.strip("\n") + "\n" + OVERRIDES
            command.set_defaults(run=module.run)
            module.add(command)
            chosen = command
    known = [flag for action in chosen._actions for flag in action.option_strings]
    for flag in (argument.partition("=")[0] for argument in arguments):
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"see {chosen.prog} --help"
            raise InputError(f"{flag}: not a flag of {chosen.prog}; {hint}")
    options, rest = parser.parse_known_args(arguments)
    if rest and "files" in options and not any(argument.startswith("-") for argument in rest):
        options.files += [Path(argument) for argument in rest]  # argparse stops looking for files at the first flag
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments without `--config.key=value` or `--config.key value`, and those as "key=value"."""
    rest, overrides = [], []
    remaining = iter(arguments)
    for argument in remaining:
        text = argument.removeprefix("--config.")
        if text == argument:
            rest.append(argument)
        elif "=" in text:
            overrides.append(text)
        elif (value := next(remaining, None)) is not None:
            overrides.append(f"{text}={value}")
        else:
            raise InputError(f"--config.{text}: a value is missing; write --config.{text}=VALUE")
    return rest, overrides


def main(arguments: list[str], keep_executables: bool = False) -> int:
    """Runs one command and returns its exit code: 0; 2 for bad input; 130, 143 for a signal; 1 for a run that diverged;
    or one of the command's own.

    keep_executables: for a quick next start (programs.py); a setting of the process.
    """
    options = argparse.Namespace()
    try:
        rest, overrides = split_overrides(arguments)
        options = parse(rest)
        options.overrides, options.arguments = overrides, arguments
        if keep_executables:
            programs.keep(options)
        quiet_checkpoints()
        return options.run(options) or 0
    except InputError as error:
        return complain(str(error))
    except KeyboardInterrupt as interrupt:
        interrupts.caught.set()
        sentence = str(interrupt) or "stopped; what was finished is kept, and the same command again resumes"
        print(f"\naudiolm: {sentence}", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help, or a signal during training, which saves first
        if stop.code in (130, 143):
            print("\naudiolm: stopped; the last step is saved, and the same command again resumes", file=sys.stderr)
            return stop.code
        raise
    except BrokenPipeError:  # `audiolm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if type(error).__name__ == "Diverged":  # of training/loop.py, not imported for its name alone
            complain(f"training stopped: {error}")
            return 1
        sentence = disk_error(error)
        if sentence is None:
            raise
        return complain(sentence)


def quiet_checkpoints() -> None:
    """Drops the logs of a failed checkpoint, for this process: the error is also raised."""
    from absl import logging as absl

    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # Not by name: a record has the file that logs in it only if absl created the logger.
    for logger in (absl.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(drop_checkpoint_logs)


def complain(sentence: str) -> int:
    """Prints a sentence of bounded length on a line of its own; returns the exit code of bad input."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # ends its line
    sentence = open_files(sentence) or shortened(" ".join(sentence.split()), LONGEST)
    print(f"audiolm: {sentence}", file=sys.stderr)
    return 2


def run() -> None:
    """Entry point of the console script."""
    sys.unraisablehook = unraisable
    interrupts.install()
    allocator.keep_memory()
    if set(sys.argv[1:2]) & set(programs.SHARED):
        allocator.collect_rarely()
    code = main(sys.argv[1:], keep_executables=True)
    if code == 130 and sys.argv[1] in programs.SHARED:
        # At once: threads that compile or compute would go on, and those that want Python back abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
