"""Executes the notebooks of this folder on the CPU, small, and looks at what they made: `make notebooks`.

    python -m experiments.colab.execute [NAME ...] [--out DIR]

Of every notebook, two cells are not taken as they are: the one tagged `install` is left out, and after the one tagged
`parameters` the values below are set. Everything else runs for real in a fresh kernel; checkpoints are tiny ones with
random weights in the published layout. A cell that raises, a player without sound, an empty picture or one of them too
few ends with an error. --out keeps the executed notebooks, to be looked at.

Two CPU cores: two to three minutes, most of it compilation.
"""

import argparse
import ast
import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiolm_jax.errors import InputError, exit_code
from experiments.colab import pair

# Of the kernels: most of the time is compilation.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


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
    """The notebook without its install cell, and with other values of its parameters.

    Raises InputError for a value that is no parameter there.
    """
    import nbformat

    parameters = notebook.cells[tagged(notebook, "parameters")]
    assigned = {target.id for line in ast.parse(parameters.source).body for target in line.targets}
    if unknown := values.keys() - assigned:
        raise InputError(f"{', '.join(sorted(unknown))}: not set in the parameters cell, which has {sorted(assigned)}")
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    notebook.cells.insert(tagged(notebook, "parameters") + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    del notebook.cells[tagged(notebook, "install")]
    return notebook


def execute(notebook, folder: Path) -> None:
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
        client.execute(env=os.environ | ENVIRONMENT)
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


def run(name: str, out: Path | None) -> str:
    """Executes one notebook; returns what it showed. Raises InputError."""
    trial = NOTEBOOKS[name]
    notebook = pair.notebook(pair.FOLDER / f"{name}.py")  # which tells of a missing library
    import nbformat

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared(notebook, trial["values"])
        if "CHECKPOINT" in trial["values"]:
            write_musicgen(folder / trial["values"]["CHECKPOINT"])
        try:
            execute(notebook, folder)
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
    for name in options.names or NOTEBOOKS:
        if name not in NOTEBOOKS:
            raise InputError(f"{name}: there is no such notebook; there are {', '.join(NOTEBOOKS)}")
        started = time.monotonic()
        try:
            shown = run(name, options.out)
        except InputError as error:
            raise InputError(f"{name}.ipynb: {error}") from None
        print(f"{name}.ipynb: {shown}; {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
