"""Executes the notebooks of this folder on the CPU, small, and looks at what they made: `make notebooks`.

    python -m experiments.colab.execute [NAME ...] [--out DIR]

The package is built as a wheel, which the cell tagged `install` installs, without its dependencies, for a fresh kernel
in an empty folder: nothing is taken from this checkout. After the cell tagged `parameters` the values below are set,
and checkpoints are tiny ones with random weights in the published layout; all else runs for real. A cell that raises, a
player without sound, an empty picture or one of them too few ends with an error. --out keeps the executed notebooks, to
be looked at.

Two CPU cores: two to three minutes, most of it compilation.
"""

import argparse
import ast
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiolm_jax.errors import InputError, exit_code
from experiments.colab import pair

ROOT = pair.FOLDER.parents[1]
# Of the kernels: most of the time is compilation.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
ALONE = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}  # of pip, which warns of an index that cannot be reached
# What is run last.
FROM_THE_WHEEL = """
import sys
files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
files = {file for file in files if file.startswith(%r) and not file.startswith(sys.prefix)}
assert not files, f"of the checkout: {sorted(files)}"
"""


def write_musicgen(folder: Path) -> None:
    """A MusicGen of few random weights, at the rates of the published one: 32 kHz, 50 frames, 4 codebooks."""
    from audiolm_jax.codecs.encodec import EnCodecConfig
    from experiments.colab import random_musicgen

    codec = EnCodecConfig(
        num_filters=4,
        hidden_size=12,
        upsampling_ratios=(8, 5, 4, 4),
        num_residual_layers=1,
        codebook_size=32,
        sampling_rate=32000,
        target_bandwidths=(1.0,),
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    random_musicgen.write(folder, codec)


# What is executed of every notebook: the values of its parameters, and how many players and pictures it shows.
NOTEBOOKS = {
    "generate": {"values": {"CHECKPOINT": "tiny", "SECONDS": 1.0}, "players": 10, "pictures": 12},
    "compare_strategies": {
        # Hardly trained, and colder, a model may keep silent.
        "values": {"CONFIG": "tiny", "UTTERANCES": 24, "STEPS": 4, "TEMPERATURE": 1.0},
        "players": 7,
        "pictures": 5,
    },
    "finetune": {
        "values": {
            "CHECKPOINT": "tiny",
            "SECONDS": 1.0,
            "STEPS": 4,
            "BATCH": 2,
            "LEARNING_RATE": 0.03,
            "RANK": 4,
        },
        "players": 5,
        "pictures": 2,
    },
}


def tagged(notebook, tag: str) -> int:
    """The number of the one cell with a tag. Raises InputError if there is none, or several."""
    found = [n for n, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ())]
    if len(found) != 1:
        raise InputError(f"{len(found)} cells have the tag {tag!r}; there must be one")
    return found[0]


def prepared(notebook, values: dict[str, Any]):
    """The notebook with other values of its parameters. Raises InputError for a value that is no parameter there."""
    import nbformat

    parameters = notebook.cells[tagged(notebook, "parameters")]
    assigned = {target.id for line in ast.parse(parameters.source).body for target in line.targets}
    if unknown := values.keys() - assigned:
        raise InputError(f"{', '.join(sorted(unknown))}: not set in the parameters cell, which has {sorted(assigned)}")
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    notebook.cells.insert(tagged(notebook, "parameters") + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


def installing(notebook, wheel: Path):
    """The notebook whose install cell takes the wheel, and whose last cell raises if anything is of the checkout."""
    import nbformat

    install = notebook.cells[tagged(notebook, "install")]
    install.source, found = re.subn(r"(?m)^PACKAGE = \S+", f"PACKAGE = {str(wheel)!r}", install.source)
    if found != 1:
        raise InputError(f"the install cell sets PACKAGE {found} times; it must be once")
    notebook.cells.append(nbformat.v4.new_code_cell(FROM_THE_WHEEL % str(ROOT)))
    return notebook


def build(folder: Path) -> Path:
    """The wheel of this checkout, in a folder. Raises InputError with what the build says if it fails."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    done = subprocess.run(command, env=os.environ | ALONE, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the wheel cannot be built; it needs: pip install 'audiolm-jax[notebook]'\n{done.stderr}")
    return next(folder.glob("*.whl"))


def execute(notebook, folder: Path, **environment: str) -> None:
    """Runs all cells in a new kernel whose working directory is `folder`; their outputs come into the notebook.

    Raises InputError for a cell that raises, with its traceback, and where a library is missing.
    """
    try:
        import ipykernel  # noqa: F401  (without it there is no kernel to start)
        import nbclient
    except ImportError as error:
        raise pair.missing(error) from None
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from traitlets.config import Config

    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        resources={"metadata": {"path": str(folder)}},
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # without it the kernel warns
    )
    try:
        client.execute(env=os.environ | ENVIRONMENT | environment)
    except (CellExecutionError, DeadKernelError) as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the colours of a terminal
        raise InputError(f"a cell failed\n{plain}") from None


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(notebook, players: int, pictures: int) -> str:
    """What was shown, in words. Raises InputError for silence, empty pictures, other numbers of them, warnings."""
    import matplotlib.image
    import numpy as np
    import soundfile

    seconds, seen = [], 0
    for output in outputs(notebook):
        html, png = (output.get("data", {}).get(kind, "") for kind in ("text/html", "image/png"))
        for sound in re.findall(r'src="data:audio/[a-z-]+;base64,([^"]+)"', html):
            samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
            if not np.abs(samples).max(initial=0) > 0:
                raise InputError(f"player {len(seconds) + 1} has no sound")
            seconds.append(len(samples) / rate)
        seen += html.count("<svg ")
        if png:
            seen += 1
            if not matplotlib.image.imread(io.BytesIO(base64.b64decode(png))).std(axis=(0, 1)).max() > 0.01:
                raise InputError(f"picture {seen} is empty")
        if output.output_type == "stream" and "warning" in output.text.lower():
            raise InputError(f"a cell warns\n{output.text}")
    if (len(seconds), seen) != (players, pictures):
        raise InputError(f"{len(seconds)} players and {seen} pictures were shown, not {players} and {pictures}")
    return f"{len(seconds)} players of {min(seconds):.1f} to {max(seconds):.1f} s, {seen} pictures"


def run(name: str, wheel: Path, out: Path | None) -> str:
    """Executes one notebook with the package of a wheel; returns what it showed. Raises InputError."""
    trial = NOTEBOOKS[name]
    notebook = pair.notebook(pair.FOLDER / f"{name}.py")  # which tells of a missing library
    import nbformat

    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as packages:
        folder = Path(scratch)
        installing(prepared(notebook, trial["values"]), wheel)
        if "CHECKPOINT" in trial["values"]:
            write_musicgen(folder / trial["values"]["CHECKPOINT"])
        try:
            execute(notebook, folder, PIP_TARGET=packages, PYTHONPATH=packages, **ALONE)
        finally:
            if out:
                out.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, out / f"{name}.ipynb")
    return check(notebook, trial["players"], trial["pictures"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NOTEBOOKS)} (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to keep the executed notebooks")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in NOTEBOOKS]:
        raise InputError(f"{unknown[0]}: there is no such notebook; there are {', '.join(NOTEBOOKS)}")
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        for name in options.names or NOTEBOOKS:
            started = time.monotonic()
            try:
                shown = run(name, wheel, options.out)
            except InputError as error:
                raise InputError(f"{name}.ipynb: {error}") from None
            print(f"{name}.ipynb: {shown}; {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
