"""The rules of the house, read from the source, and each of them shown to catch what breaks it.

    ring          what may be imported there
    ground        config errors files locks audio                                 ground
    core          serialization codecs data model training sampling               ground, core
    published     hub encoders families, and the codecs that other people train   the above
    tools         evaluation compare plan cli alignment serve                     anything
    composition   __init__ __main__ loading runs                                  anything

Imports inside functions count like any other, so that a late import hides no arrow, and so does a string that names a
module ("audiolm_jax.data.corpora.folder", "audiolm_jax.model.lora:LoraConfig"), but for those of `TABLES`.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "audiolm_jax"

RINGS = ("ground", "core", "published", "tools")
PLACES = {
    "ground": "config errors files locks audio",
    "core": "serialization codecs data model training sampling",
    "published": "hub encoders families",
    "tools": "evaluation compare plan cli alignment serve",
    "composition": "__main__ loading runs",
}
PUBLISHED_CODECS = ("encodec", "encodec_chunks", "dac", "mimi", "qwen3", "stereo", "seanet", "layers")
# Modules with a table of others that are imported when they are asked for by name.
TABLES = ("audiolm_jax.config", "audiolm_jax.codecs")

FILES_BESIDE_THE_FOLDERS = 9
LINES, PARAMETERS, LOADED = 400, 8, 30

# What still breaks a rule. Each entry is to be deleted together with what it names; none may be added.
KNOWN_LONG: set[str] = set()
KNOWN_WIDE: set[str] = set()


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file, of the package below `root`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path], strings: bool = True) -> set[str]:
    """Modules of the package that a file imports anywhere in it, also in functions; `strings`: and those it names."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level + 1], node.module or ""]).strip(".")
            base = base if node.level else node.module
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {one if one in known else base for one in names}
        elif strings and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    return (found & known.keys()) - {name}


def graph(root: Path, strings: bool = True) -> dict[str, set[str]]:
    known = modules(root)
    return {name: imports(name, path, known, strings) for name, path in known.items()}


def ring(name: str) -> str:
    """The ring of a module. Raises KeyError for one that has no place yet."""
    if name == PACKAGE:
        return "composition"
    first, *rest = name.split(".")[1:]
    if first == "codecs" and rest and rest[0] in PUBLISHED_CODECS:
        return "published"
    return {place: ring for ring, places in PLACES.items() for place in places.split()}[first]


def outward(root: Path) -> Iterator[tuple[str, str]]:
    """Imports (from, to) that leave the ring of the importing module."""
    imported = graph(root, strings=False)
    for name, targets in graph(root).items():
        if ring(name) in ("tools", "composition"):
            continue
        allowed = RINGS[: RINGS.index(ring(name)) + 1]
        for target in imported[name] if name in TABLES else targets:
            if ring(target) not in allowed:
                yield name, target


def foreign(root: Path) -> Iterator[tuple[str, str]]:
    """(file, what it imports) where the package imports experiments or tests, or an experiment imports tests; and
    (file, "sys.path") of experiments that change it instead of being run as `python -m experiments.NAME.FILE`."""
    for path in sources(root):
        name = str(path.relative_to(root))
        refused = {"tests"} if name.startswith("experiments") else {"tests", "experiments"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots = {node.module.partition(".")[0]}
            else:
                roots = set()
            yield from ((name, one) for one in roots & refused)
            if name.startswith("experiments") and isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
                yield name, "sys.path"


def circles(root: Path) -> set[frozenset[str]]:
    """Strongly connected components of more than one module, of import statements alone (Tarjan 1972)."""
    edges = graph(root, strings=False)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in number:
                visit(target)
            if target in stack:
                low[name] = min(low[name], low[target])
        if low[name] == number[name]:
            members = stack[stack.index(name) :]
            del stack[-len(members) :]
            if len(members) > 1:
                components.add(frozenset(members))

    for name in edges:
        if name not in number:
            visit(name)
    return components


def sources(root: Path) -> list[Path]:
    return [path for folder in (PACKAGE, "experiments") for path in sorted((root / folder).rglob("*.py"))]


def long_files(root: Path) -> set[str]:
    """Files of the package and of experiments with more lines than are allowed."""
    return {str(path.relative_to(root)) for path in sources(root) if len(path.read_text("utf-8").splitlines()) > LINES}


def wide_functions(root: Path) -> set[str]:
    """`file:function` of those with too many parameters; self and cls are not counted."""
    found = set()
    for path in sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None]
            if len([name for name in names if name not in ("self", "cls")]) > PARAMETERS:
                found.add(f"{path.relative_to(root)}:{node.name}")
    return found


def beside_the_folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / PACKAGE).glob("*.py"))


def loaded(root: Path, *names: str) -> list[str]:
    """Modules of the package that a fresh interpreter has after importing `names`."""
    code = f"import sys, {', '.join(names)}; print(*[n for n in sys.modules if n.split('.')[0] == '{PACKAGE}'])"
    return run(root, "-c", code).split()


def run(root: Path, *arguments: str) -> str:
    """What an interpreter that sees only the package below `root` prints."""
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def house(tmp_path):
    """house({"audiolm_jax/core.py": source}): a package of these files and an empty `__init__`."""

    def build(files: dict[str, str]) -> Path:
        for name, text in {f"{PACKAGE}/__init__.py": "", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_imports_point_inward():
    assert not list(outward(ROOT))


def test_every_module_has_a_ring():
    assert {ring(name) for name in modules(ROOT)} <= {*RINGS, "composition"}


@pytest.mark.parametrize(
    "line",
    [
        "import audiolm_jax.hub.files",
        "from audiolm_jax.hub import files",
        "from ..hub import files",
        "def late():\n    from audiolm_jax.hub.files import read",
        "PLACE = 'audiolm_jax.hub.files:read'",
        "from audiolm_jax import loading",
    ],
)
def test_an_outward_import_is_caught(house, line):
    files = {"hub/files.py": "read = 1", "loading.py": "", "data/a.py": line}
    root = house({f"{PACKAGE}/{name}": text for name, text in files.items()})
    [(name, target)] = outward(root)
    assert name == "audiolm_jax.data.a" and target in ("audiolm_jax.hub.files", "audiolm_jax.loading")


def test_inward_imports_and_tables_of_names_pass(house):
    files = {
        "codecs/__init__.py": "CODECS = {'mimi': 'audiolm_jax.codecs.mimi'}",
        "codecs/mimi.py": "from audiolm_jax.hub import files\nfrom audiolm_jax import errors",
        "hub/files.py": "from audiolm_jax.codecs import mimi",
        "loading.py": "import audiolm_jax.cli",
        "cli.py": "from audiolm_jax import loading, codecs",
        "errors.py": "",
    }
    assert not list(outward(house({f"{PACKAGE}/{name}": text for name, text in files.items()})))


def test_experiments_stand_on_the_package_and_tests_on_both():
    assert not list(foreign(ROOT))


def test_what_stands_the_wrong_way_round_is_caught(house):
    root = house(
        {
            f"{PACKAGE}/a.py": "def late():\n    from experiments.nano import train",
            "experiments/b.py": "import tests.helpers",
            "experiments/c.py": "import sys\nsys.path.append('.')",
            "experiments/d.py": "from audiolm_jax import a\nfrom experiments import b",
        }
    )
    caught = [(f"{PACKAGE}/a.py", "experiments"), ("experiments/b.py", "tests"), ("experiments/c.py", "sys.path")]
    assert list(foreign(root)) == caught


def test_few_files_stand_beside_the_folders():
    assert len(beside_the_folders(ROOT)) <= FILES_BESIDE_THE_FOLDERS, beside_the_folders(ROOT)


def test_a_file_too_many_is_counted(house):
    root = house({f"{PACKAGE}/file_{n}.py": "" for n in range(FILES_BESIDE_THE_FOLDERS)})
    assert len(beside_the_folders(root)) == FILES_BESIDE_THE_FOLDERS + 1


def test_files_and_functions_are_small():
    assert not long_files(ROOT) - KNOWN_LONG
    assert not wide_functions(ROOT) - KNOWN_WIDE


def test_a_long_file_and_a_wide_function_are_caught(house):
    root = house(
        {
            f"{PACKAGE}/long.py": "x = 1\n" * (LINES + 1),
            f"{PACKAGE}/just.py": "x = 1\n" * LINES,
            f"{PACKAGE}/eight.py": "class C:\n    def eight(self, a, b, c, /, d, *, e, f, g, **h): ...",
            "experiments/nine.py": "class C:\n    def nine(self, a, b, c, /, d, *i, e, f, g, **h): ...",
        }
    )
    assert long_files(root) == {f"{PACKAGE}/long.py"}
    assert wide_functions(root) == {"experiments/nine.py:nine"}


def test_no_modules_import_each_other():
    assert not circles(ROOT)


@pytest.mark.parametrize("late", [False, True])
def test_a_circle_is_caught(house, late):
    back = "def late():\n    from audiolm_jax import a" if late else "from audiolm_jax import a"
    root = house(
        {
            f"{PACKAGE}/a.py": "from audiolm_jax.b import c",
            f"{PACKAGE}/b/c.py": back,
            f"{PACKAGE}/d.py": "import audiolm_jax.a",
        }
    )
    assert circles(root) == {frozenset({"audiolm_jax.a", "audiolm_jax.b.c"})}


# A run with a workdir, by the core alone; the codes are those that nano made.
TRAIN_AND_SPEAK = """
from audiolm_jax.data import batches, tokens
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.model import checkpoints
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.model.spec import Spec
from audiolm_jax.training import loop
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from experiments.nano.sample import sample
from experiments.nano.train import CODEC, DATA, MODEL, ORDER

source = tokens.open_split("nano/tokens", "train")
spec = Spec(MODEL, make_vocab(source.metadata, DATA), ORDER, data=DATA, codec=CODEC)
run = loop.Run(TrainingConfig(steps=2), OptimizerConfig(), ShardingConfig(), frame_rate=source.metadata["frame_rate"])
loop.train("run", batches.training_batches(source, DATA, spec.grid, spec.vocab, seed=0), spec, run)
checkpoints.export_safetensors("run", "run.safetensors")
print(sample("run.safetensors", "one", seconds=0.32, temperature=1.0, seed=0).waveform.size)
"""


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Path:
    """A copy of ground, core and experiments/nano, and nothing else."""
    root = tmp_path_factory.mktemp("fork")
    for name, path in modules(ROOT).items():
        if ring(name) in ("ground", "core") or name == PACKAGE:
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copytree(ROOT / "experiments" / "nano", root / "experiments" / "nano")
    return root


def test_the_core_alone_trains_and_speaks(fork):
    """Every module of the core can be imported, nano runs for 20 steps, and so does a run with a workdir for 2."""
    told = run(
        fork, "-m", "experiments.nano.train", "--data", "nano", "--out", "nano/model.safetensors", "--steps", "20"
    )
    losses = [float(loss) for loss in re.findall(r"loss +([0-9.]+)", told)]
    assert len(losses) == 3 and losses[-1] < 0.5 * losses[0]
    sample = ("nano/model.safetensors", "--text", "one two", "--out", "one.wav", "--seconds", "1")
    run(fork, "-m", "experiments.nano.sample", *sample)
    waveform, rate = soundfile.read(fork / "one.wav")
    assert len(waveform) == rate == 16000 and abs(waveform).max() > 0.01
    every = "".join(f"import {name}\n" for name in modules(fork))
    assert run(fork, "-c", every + TRAIN_AND_SPEAK).split()[-1] == str(8 * 640)


def test_a_fork_cannot_reach_what_it_lacks(fork):
    names = "hub encoders families codecs.mimi evaluation compare plan cli loading".split()
    code = f"import importlib\nfor name in {names}:\n    try:\n        importlib.import_module('{PACKAGE}.' + name)\n"
    assert run(fork, "-c", code + "    except ModuleNotFoundError:\n        print(name)").split() == names


def test_nano_imports_the_core_alone():
    for name, lines in (("train", 150), ("sample", 60)):
        path = ROOT / "experiments" / "nano" / f"{name}.py"
        used = imports(f"experiments.nano.{name}", path, modules(ROOT))
        assert used and {ring(module) for module in used} <= {"ground", "core"}
        assert len(path.read_text(encoding="utf-8").splitlines()) <= lines


def test_importing_training_loads_few_modules():
    modules_loaded = loaded(ROOT, "audiolm_jax.training.loop")
    assert len(modules_loaded) <= LOADED, modules_loaded


def test_modules_too_many_are_counted(house):
    names = [f"m{n}" for n in range(LOADED)]
    root = house(
        {f"{PACKAGE}/{name}.py": "" for name in names} | {f"{PACKAGE}/all.py": f"from . import {', '.join(names)}"}
    )
    assert len(loaded(root, "audiolm_jax.all")) == LOADED + 2
