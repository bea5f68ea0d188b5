"""What a person gets: an importable package without heavy dependencies, pinned versions, working make targets."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import audiolm_jax
from audiolm_jax.cli import main
from audiolm_jax.serialization import STRATEGIES
from docs import draw

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "audiolm_jax").rglob("*.py")
    if path.name != "__main__.py"
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", name)[0]).lower()


def test_no_module_imports_torch_or_tensorflow():
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}:\n    importlib.import_module(name)\n"
        "heavy = {'torch', 'tensorflow', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_constraints_pin_every_dependency_and_hold_no_address():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pattern = r'[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.+]*( ; python_version (<|>=) "3\.12")?'
    assert not [line for line in lines if not re.fullmatch(pattern, line)]
    pinned = {normal(line) for line in lines}
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [
        name for extra in ("dev", "eval", "parity", "notebook") for name in extras[extra]
    ]
    assert {normal(name) for name in wanted} | {"libtpu"} <= pinned  # libtpu is what jax[tpu] brings
    assert set(extras) == {"tpu", "cuda", "gcs", "tf", "eval", "parity", "notebook", "dev"}


def pins(file: str, python: str) -> dict[str, str]:
    """Normal name -> version that a list of constraints pins for a version of Python."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    found = [one for one in found if not one.marker or one.marker.evaluate({"python_version": python})]
    return {normal(one.name): str(one.specifier).removeprefix("==") for one in found}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_bounds_let_in_the_lowest_and_the_newest_versions_that_were_tested(python):
    """The lowest are those of hosted notebooks, where nothing is to be replaced: a bound that is higher would, and one
    that is lower was never seen to hold."""
    lowest, newest = pins("constraints-lowest.txt", python), pins("constraints.txt", python)
    for requirement in map(Requirement, PROJECT["dependencies"]):
        name = normal(requirement.name)
        assert str(requirement.specifier) == f">={lowest[name]}", requirement
        assert requirement.specifier.contains(newest[name]), (requirement, newest[name])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["constraints-lowest.txt", "constraints.txt"])
def test_pip_resolves_both_lists(file):
    """With what the dependencies require of each other; it asks the package index."""
    command = ["install", "--dry-run", "--quiet", "--ignore-installed", "--constraint", str(ROOT / file), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imported(folder: str) -> set[str]:
    """Distributions, by normal name, of the modules that the files of a folder import anywhere."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, "audiolm_jax", "configs", "docs", "experiments", "tests"}
    names -= {"google"}  # google.colab, which Colab alone has
    names -= {path.stem for path in (ROOT / folder).rglob("*.py")}  # of scripts that import those beside them
    homes = importlib.metadata.packages_distributions()
    return {normal(home) for name in names for home in homes.get(name, [name])}


def test_what_is_imported_is_declared():
    """Also what other dependencies bring today."""
    extras = PROJECT["optional-dependencies"]
    declared = {normal(name) for name in PROJECT["dependencies"]}
    optional = declared | {normal(name) for group in extras.values() for name in group}
    optional |= {"jaxlib", "libtpu"}  # parts of jax and jax[tpu]
    assert imported("audiolm_jax") <= optional
    for folder in ("tests", "experiments", "docs"):
        assert imported(folder) <= optional


def test_the_package_says_what_it_is(capsys):
    assert audiolm_jax.__version__ == PROJECT["version"]
    assert set(audiolm_jax.__all__) < set(dir(audiolm_jax))
    for name in audiolm_jax.__all__:
        assert getattr(audiolm_jax, name).__name__ == name
    assert (ROOT / "audiolm_jax" / "py.typed").exists()
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"audiolm {PROJECT['version']}\n"
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has Generator, Result, SamplingConfig, load"):
        audiolm_jax.laod("runs/delay")


@pytest.mark.parametrize("target", ["demo", "plans", "notebooks", "test", "test-all", "lint", "bench", "speed"])
def test_make_targets_bring_their_own_environment(target, tmp_path):
    done = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path}/venv"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"-m venv {tmp_path}/venv" in done.stdout
    assert ("[dev,parity]" in done.stdout) == (target in ("test", "test-all", "lint", "bench"))
    assert "pesq" not in done.stdout


def test_make_refuses_an_old_interpreter(tmp_path):
    old = tmp_path / "python"
    code = "import sys; sys.version_info = (3, 9); exec(sys.argv[2])"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"VENV={tmp_path}/venv", f"PYTHON={old}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_what_a_person_runs():
    text = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in text
    assert re.findall(r"^make (\S+)", text, re.M) == ["lint", "planner", "notebooks", "test"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_pictures_of_the_readme_are_current():
    """`make pictures` would change nothing, and the README shows every strategy."""
    pictures = {str(path.relative_to(draw.DOCS)): path.read_text() for path in draw.DOCS.rglob("*.svg")}
    assert pictures == draw.drawn()
    readme = (ROOT / "README.md").read_text()
    for name in STRATEGIES:
        assert f"| ![](docs/grids/{name}.svg) | `{name}`" in readme
    for entry in json.loads((draw.ABLATION / "results.json").read_text())["strategies"]:
        clip = f"docs/clips/{entry['name']}.flac"
        assert f"[{entry['name']}]({clip})" in readme and (ROOT / clip).exists()


def test_files_stay_within_their_budget():
    for path in (ROOT / "audiolm_jax").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
        assert path.name not in ("utils.py", "util.py"), path
