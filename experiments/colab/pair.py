"""The notebooks of this folder from the scripts beside them: `make pairs`.

    python -m experiments.colab.pair [--check]

NAME.py, in jupytext's percent format, is what is edited; NAME.ipynb is what Colab opens: the same cells without
outputs, always the same bytes. --check writes nothing and names the notebooks that are not what their scripts make.
To keep edits made in Colab: `jupytext --to py:percent NAME.ipynb`, then write the pair again.
"""

import argparse
import sys
from pathlib import Path

from audiolm_jax import files
from audiolm_jax.errors import InputError, exit_code

FOLDER = Path(__file__).resolve().parent


def scripts(folder: Path = FOLDER) -> list[Path]:
    """Those of notebooks: they begin with jupytext's header."""
    return sorted(path for path in folder.glob("*.py") if path.read_text(encoding="utf-8").startswith("# ---\n"))


def notebook(script: Path):
    """The notebook of a script (nbformat). Raises InputError where a library is missing."""
    try:
        import jupytext
    except ImportError as error:
        raise missing(error) from None
    made = jupytext.read(script)
    made.metadata["jupytext"].pop("text_representation", None)  # which holds the version of jupytext
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{script.stem}-{number:02d}"  # jupytext draws them
    return made


def missing(error: ImportError) -> InputError:
    """What to say where one of the libraries for notebooks is not installed."""
    return InputError(f"{error.name} is not installed; the notebooks need: pip install 'audiolm-jax[notebook]'")


def text_of(script: Path) -> str:
    """What stands in its .ipynb. Raises InputError where a library is missing."""
    made = notebook(script)  # which tells of a missing library
    import nbformat

    return nbformat.writes(made, version=4) + "\n"


def differing(folder: Path = FOLDER) -> list[str]:
    """Names of the notebooks that are not what their scripts make, or have no script."""
    expected = {path.with_suffix(".ipynb").name: text_of(path) for path in scripts(folder)}
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 2 if something would change")
    if parser.parse_args().check:
        if wrong := differing():
            raise InputError(f"{', '.join(wrong)}: differs from what the script of that name makes; run make pairs")
        return 0
    for script in scripts():
        files.write_text(script.with_suffix(".ipynb"), text_of(script))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
