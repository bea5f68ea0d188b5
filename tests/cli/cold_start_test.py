"""A command that speaks: which modules it imports, what it compiles, and what it keeps for the next one."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import audiolm_jax
from audiolm_jax import files
from audiolm_jax.cli import generate, programs

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "experiments" / "serialization_ablation" / "checkpoints" / "delay.safetensors"
HEAVY = ("orbax", "grain", "tensorflow_datasets", "array_record", "matplotlib", "pandas", "pyarrow", "tensorboardX")
HEAVY += ("sklearn", "datasets", "torch", "tokenizers", "huggingface_hub", "scipy.signal", "tqdm")
PROGRAMS = {"prefill", "run_chunk", "_call", "broadcast_in_dim", "convert_element_type"}

SPEAK = """
import sys
from audiolm_jax.cli import main
import jax.monitoring
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
sys.argv = ["audiolm", *sys.argv[1:]]
try:
    main.run()
finally:
    print("MISSED", events.count("/jax/compilation_cache/cache_misses"))
    print("FOUND", events.count("/jax/compilation_cache/cache_hits"))
    print("MODULES", *sys.modules)
"""


def speak(tmp_path: Path, cache: Path, **environment: str) -> subprocess.CompletedProcess:
    """`audiolm generate` in a process of its own, as a user starts it, with jax's log of compilations."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    env = plain | {"XDG_CACHE_HOME": str(cache), "JAX_LOG_COMPILES": "1", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": ""}
    env |= environment
    command = [sys.executable, "-c", SPEAK, "generate", f"--checkpoint={CHECKPOINT}", "--text=seven two"]
    command += ["--speaker=belinda", "--frames=31", f"--out={tmp_path / 'one.wav'}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def compiled(done: subprocess.CompletedProcess) -> list[str]:
    """The programs that XLA compiled, or that came out of the cache."""
    lines = [line for line in done.stderr.splitlines() if "Finished XLA compilation of jit(" in line]
    return sorted(line.partition("jit(")[2].partition(")")[0] for line in lines)


def cached(done: subprocess.CompletedProcess) -> tuple[int, int]:
    """(programs that the cache did not have, those that it had)"""
    missed, found = (int(done.stdout.partition(f"{word} ")[2].split()[0]) for word in ("MISSED", "FOUND"))
    return missed, found


@pytest.fixture(scope="module")
def first_and_second(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("cold")
    first = speak(tmp_path, tmp_path / "cache")
    wav = (tmp_path / "one.wav").read_bytes()
    second = speak(tmp_path, tmp_path / "cache")
    assert (tmp_path / "one.wav").read_bytes() == wav
    return first, second, tmp_path / "cache"


def test_what_speaking_does_not_need_is_not_imported(first_and_second):
    [line] = [line for line in first_and_second[0].stdout.splitlines() if line.startswith("MODULES")]
    modules = line.split()
    assert "audiolm_jax.sampling.generator" in modules
    assert not [name for name in modules if name in HEAVY or name.startswith(tuple(f"{heavy}." for heavy in HEAVY))]


def test_a_short_text_compiles_each_program_once_and_moves_weights_without_one(first_and_second):
    assert compiled(first_and_second[0]) == sorted(PROGRAMS)


def test_the_decoder_is_compiled_beside_imports_and_the_longest_program_first(first_and_second):
    first = first_and_second[0]
    modules = first.stdout.partition("MODULES ")[2].split()  # in the order in which they were imported
    assert modules.index("audiolm_jax.codecs.default") < modules.index("audiolm_jax.loading")
    begun = [
        line.partition("jit(")[2].partition(")")[0] for line in first.stderr.splitlines() if "Compiling jit(" in line
    ]
    assert begun.index("run_chunk") < begun.index("prefill")


def test_a_codec_that_cannot_be_opened_ahead_is_left_to_the_loading(tmp_path):
    assert generate.codec_ahead(CHECKPOINT).name == "default"
    files.write_json(tmp_path / "config.json", {"codec": {"name": "tiny", "path": None, "codebooks": 2}})
    assert generate.codec_ahead(tmp_path).codebooks == 2
    files.write_json(tmp_path / "config.json", {"codec": {"name": "no such", "path": None, "codebooks": 2}})
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    assert generate.codec_ahead(tmp_path) is None
    assert generate.codec_ahead(tmp_path / "broken.safetensors") is None
    assert generate.codec_ahead(tmp_path / "nothing") is None


def test_a_second_command_compiles_nothing(first_and_second):
    first, second, cache = first_and_second
    assert cached(first) == (len(PROGRAMS), 0) and cached(second) == (0, len(PROGRAMS))
    kept = {path.name.partition("-")[0].removeprefix("jit_") for path in cache.glob("audiolm_jax/xla/*/*-cache")}
    assert kept == PROGRAMS


def test_no_notes_about_missing_tpus(first_and_second):
    for done in first_and_second[:2]:
        assert not [line for line in done.stderr.splitlines() if "TPU" in line or "libtpu" in line or "Trace" in line]


def test_the_api_prints_no_notes_and_leaves_what_the_user_set():
    code = "import os, audiolm_jax, jax; jax.devices(); print(os.environ['TPU_WORKER_ID'], len(audiolm_jax.LIBTPU))"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    env |= {"PYTHONPATH": str(ROOT), "TPU_WORKER_ID": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("7 7\n", "")


def test_a_machine_with_a_tpu_is_left_as_it_is(monkeypatch):
    for name in audiolm_jax.LIBTPU:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(audiolm_jax, "TPUS", (str(ROOT / "pyproject*"),))
    audiolm_jax._quiet_without_tpus()
    assert not set(audiolm_jax.LIBTPU) & set(os.environ)
    monkeypatch.setattr(audiolm_jax, "TPUS", (str(ROOT / "no such device*"),))
    audiolm_jax._quiet_without_tpus()
    assert set(audiolm_jax.LIBTPU) <= set(os.environ)


def test_a_cache_that_cannot_be_written_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert programs.shared_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.shared_folder() == tmp_path / "audiolm_jax" / "xla" / programs.processor()


def test_jax_own_variables_switch_the_cache_off_or_move_it(tmp_path):
    cheap = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}  # what is compiled here need not be fast
    speak(tmp_path, tmp_path / "cache", JAX_ENABLE_COMPILATION_CACHE="false", **cheap)
    assert not list(tmp_path.glob("cache/audiolm_jax/xla/*/*-cache"))
    speak(tmp_path, tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"), **cheap)
    assert not list(tmp_path.glob("cache/audiolm_jax/xla/*/*-cache"))


def test_a_run_keeps_its_programs_beside_it(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    before = jax.config.jax_compilation_cache_dir
    try:
        programs.keep(argparse.Namespace(command="train", workdir=tmp_path))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
