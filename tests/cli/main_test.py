"""The command line: help that teaches, bad input in one sentence with exit code 2."""

import asyncio
import errno
import gc
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tqdm

from audiolm_jax import config, errors
from audiolm_jax.cli import main
from audiolm_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def refused(capsys, *arguments: str) -> str:
    """Runs a command that must be refused, and returns its one sentence."""
    assert main.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("audiolm: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_shows_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    examples = [line.split("#")[0].strip() for line in text.splitlines() if line.strip().startswith("audiolm ")]
    assert examples
    for example in examples:
        rest, overrides = main.split_overrides(shlex.split(example)[1:])
        options = main.parse(rest)
        assert options.command == command
        loaded = config.load("default", overrides)
        assert loaded.seed == 0


def test_a_command_is_imported_only_when_it_is_asked_for():
    """`audiolm --help` loads no command and no JAX, `audiolm train --help` only its own file; no help loads JAX."""
    code = (
        "import sys\nfrom audiolm_jax.cli import main\nfor command in sys.argv[1:]:\n"
        "    try: main.main([command, '--help'])\n    except SystemExit: pass\n"
        "print(*sorted(name for name in sys.modules if name == 'jax' or name.startswith('audiolm_jax.cli.')))"
    )

    def loaded(*commands: str) -> list[str]:
        process = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
        return [name.removeprefix("audiolm_jax.cli.") for name in process.stdout.splitlines()[-1].split()]

    always = {"allocator", "interrupts", "main", "programs"}
    assert set(loaded("--help")) == always
    assert set(loaded("train")) == {*always, "arguments", "train"}
    modules = loaded(*main.COMMANDS)
    assert {"codec", "import_"} < set(modules) and "jax" not in modules


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["compre"], "compare"),
        (["compare"], "--workdir"),
        (["compare", "--workdr", "x"], "did you mean --workdir?"),
        (["compare", "--workdir", "x", "--config", "nope"], "demo"),
        (["compare", "--workdir", "x", "--config.model.layrs=3"], "did you mean model.layers"),
        (["compare", "--workdir", "x", "--config.layers=3"], "did you mean model.layers"),
        (["compare", "--workdir", "x", "--config.model.layers=many"], "must be an integer >= 1, as in model.layers=4"),
        (["compare", "--workdir", "x", "--config.model.layers"], "a value is missing"),
        (["compare", "--workdir", "x", "--config.model=3"], "model is a section"),
        (["compare", "--workdir", "x", "--config.model.norm=batchnorm"], "rmsnorm"),
        (["compare", "--workdir", "x", "--config.serialization.strategy=zigzag"], "hierarchical"),
        (["compare", "--config", "tiny", "--workdir", f"{__file__}/below"], "cannot be written"),
        (["prepare", "--data", f"{__file__}/below"], "cannot be written"),
        (["train", "--workdir", "/dev/null/run"], "/dev/null/run"),
        (["generate", "--workdir", "no_such_run", "--out", "x.wav", "--text", "one"], "no_such_run"),
        (["generate", "--checkpoint", "none.safetensors", "--out", "x.wav"], "none.safetensors"),
        (["generate", "--checkpoint", "a", "--workdir", "b", "--out", "x.wav"], "--checkpoint"),
        (["generate", "--text", "one", "--out", "x.wav"], "--workdir --checkpoint"),
        (["export", "--workdir", "no_such_run", "--out", "x.safetensors"], "no_such_run"),
        (["export", "--workdir", "no_such_run", "--out", "x.bin"], ".safetensors"),
        (["evaluate", "--workdir", "no_such_run"], "no_such_run"),
        (["generate", "--workdir", "x", "--out", "x.wav", "--frames", "3", "--seconds", "1"], "--frames"),
        (["generate", "--workdir", "x", "--out", "x.wav", "--frames", "three"], "three"),
    ],
)
def test_bad_input_is_one_sentence(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir()) or arguments[-1].startswith("--config")


def test_a_configuration_that_does_not_run(capsys, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return 1 / 0\n")
    assert "ZeroDivisionError" in refused(capsys, "compare", "--workdir", "x", "--config", str(broken))


def test_a_configuration_with_an_unknown_key_or_section(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import default\ndef get_config():\n    c = default.get_config()\n    c.model.layrs = 3\n"
        "    return c\n"
    )
    with pytest.raises(InputError, match=r"model\.layrs does not exist; did you mean model\.layers\?"):
        config.check(config.load(str(path)))
    path.write_text(
        "from configs import default\nfrom ml_collections import ConfigDict\ndef get_config():\n"
        "    c = default.get_config()\n    c.modell = ConfigDict({'layers': 3})\n    return c\n"
    )
    with pytest.raises(InputError, match=r"section modell does not exist; did you mean model\?"):
        config.check(config.load(str(path)))


def test_own_configuration_can_build_on_a_neighbour(tmp_path):
    (tmp_path / "base_of_mine.py").write_text(
        "from configs import default\ndef get_config():\n    c = default.get_config()\n    c.seed = 7\n    return c\n"
    )
    (tmp_path / "mine.py").write_text(
        "from configs import base_of_mine\ndef get_config():\n    return base_of_mine.get_config()\n"
    )
    assert config.load(str(tmp_path / "mine.py"), ["seed=8"]).seed == 8
    assert config.load(str(tmp_path / "mine.py")).seed == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3", 3),
        ("seed=1_000", 1000),
        ("corpus.max_seconds=3", 3.0),
        ("corpus.max_seconds=1e3", 1000.0),
        ("corpus.require_text=False", False),
        ("corpus.require_text=1", True),
        ("corpus.path=/a=b", "/a=b"),
        ("compare.strategies=delay,masked", ("delay", "masked")),
        ("compare.strategies=('flat',)", ("flat",)),
        ("compare.strategies=flat", ("flat",)),
        ("serialization.delays=0,2,2,3", (0, 2, 2, 3)),
        ("serialization.delays=()", ()),
        ("codec.codebooks=2", 2),
        ("codec.path=weights.safetensors", "weights.safetensors"),
    ],
)
def test_overrides_have_the_type_of_the_key(text, expected):
    loaded = config.load("default", [text])
    value = config.flat(loaded)[text.partition("=")[0]]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "text", ["seed=1.5", "seed=true", "corpus.require_text=maybe", "compare.strategies=(1,2)", "corpus.max_seconds=x"]
)
def test_overrides_of_another_type_are_refused(text):
    with pytest.raises(InputError, match="must be"):
        config.load("default", [text])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_says_how_to_run_it(path):
    config.check(config.load(str(path)))
    assert "audiolm" in path.read_text().split('"""')[1]


def test_errors_of_the_disk_are_sentences():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/x")
    assert errors.disk_error(full).startswith("run/x: No space left on device; what was finished is kept")
    wrapped = RuntimeError("writing a chunk failed: No space left on device [source locations]")
    assert "No space left" in errors.disk_error(wrapped)
    try:
        try:
            raise full
        except OSError as error:
            raise ValueError("a library's words") from error
    except ValueError as error:
        assert "No space left" in errors.disk_error(error)
    assert errors.disk_error(ValueError("a defect of this program")) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "run/x"),
        OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
        ValueError("a library's words: Too many open files [source locations]"),
        InputError("run: cannot be written (Too many open files); give a folder that you may write to"),
    ],
)
def test_too_many_open_files_is_a_sentence_with_the_limit(error, capsys):
    assert main.complain(str(error) if isinstance(error, InputError) else errors.disk_error(error)) == 2
    said = capsys.readouterr().err
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert f"this process may have {limit} (ulimit -n)" in said and "raise the limit (ulimit -n" in said
    assert "you may write to" not in said


@pytest.mark.parametrize("command", ["prepare", "train", "generate", "compare"])
def test_a_command_that_may_open_no_file_says_so(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = {"prepare": ["--data=data"], "generate": ["--workdir=run", "--out=a.wav"]}.get(command, ["--workdir=run"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # what is open stays open
    try:
        said = refused(capsys, command, *more)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "this process may have 3 (ulimit -n)" in said


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
@pytest.mark.parametrize("left", [0, 1])  # neither its selector nor its sockets, or not its sockets
def test_an_event_loop_without_sockets_is_silent(left, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", errors.unraisable)
    free, limits = os.dup(2), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            asyncio.SelectorEventLoop()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.collect()
    assert capsys.readouterr().err == ""


def test_a_sentence_begins_on_a_line_of_its_own(capsys):
    with tqdm.tqdm(total=3, desc="half drawn") as bar:
        bar.update()
        main.complain("words")
    drawn, sentence, _ = capsys.readouterr().err.split("\n")
    assert "half drawn" in drawn and sentence == "audiolm: words"


def test_a_sentence_is_never_endless(capsys):
    main.complain("begin" + "x" * 50_000 + "end")
    said = capsys.readouterr().err
    assert len(said) < 2 * errors.LONGEST and said.startswith("audiolm: begin") and said.endswith("end\n")


@pytest.mark.parametrize(
    ("address", "reason"),
    [("az://box/run", "what reads addresses of az:// is not installed"), ("foo://box/run", "foo:// are not read")],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "generate", "export"])
def test_an_address_that_nothing_reads_is_refused(command, address, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = {"generate": ["--out=a.wav"], "export": ["--out=a.safetensors"]}.get(command, [])
    assert reason in refused(capsys, command, f"--workdir={address}", *more)


def test_addresses_of_files_are_refused(tmp_path, capsys):
    for key in ("corpus.path", "codec.path"):
        given = f"--config.{key}=gs://box/voices"
        said = refused(capsys, "prepare", f"--data={tmp_path}", "--config.corpus.name=folder", given)
        assert said.startswith(f"audiolm: {key}: gs://box/voices is an address")


@pytest.mark.parametrize("kind", ["a task", "a future", "a gathering"])
def test_further_writes_that_failed_are_silent(kind, caplog):
    """A full disk fails every array of a checkpoint; asyncio logs of those that nobody awaits when it forgets them."""
    assert main.main(["train"]) == 2  # any command adds the filters

    def forget(error: Exception) -> None:
        async def failing() -> None:
            raise error

        async def begin() -> None:
            if kind == "a task":
                tasks = [asyncio.ensure_future(failing())]
            elif kind == "a future":
                tasks = [asyncio.get_running_loop().create_future()]
                tasks[0].set_exception(error)
            else:
                tasks = [asyncio.gather(failing())]
            await asyncio.sleep(0.01)
            tasks.clear()

        asyncio.run(begin())
        gc.collect()

    caplog.clear()
    forget(ValueError('Error writing "layers.w" at "/runs/checkpoints/4.orbax-checkpoint-tmp/d/8f": File too large'))
    assert not caplog.messages
    forget(ValueError("of another library"))
    assert any("never retrieved" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "--data", "gs://bucket/data"],
        ["train", "--data", "gs://bucket/data", "--workdir", "run"],
        ["compare", "--workdir", "gs://bucket/compared"],
        ["export", "--workdir", "run", "--out", "s3://bucket/run.safetensors"],
        ["import", "owner/name", "gs://bucket/run"],
        ["generate", "--checkpoint", "gs://bucket/run.safetensors", "--out", "a.wav"],
        ["generate", "--workdir", "run", "--out", "gs://bucket/a.wav"],
        ["codec", "encode", "gs://bucket/a.wav"],
    ],
)
def test_an_address_where_a_path_is_needed_is_refused(arguments, tmp_path, monkeypatch, capsys):
    """Instead of making a local folder gs:/bucket."""
    monkeypatch.chdir(tmp_path)
    assert main.main(arguments) == 2
    assert "is an address, and a path on this machine is needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
