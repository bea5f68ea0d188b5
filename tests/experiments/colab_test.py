"""The notebooks of experiments/colab: their pairs, and what is refused when they are executed (`make notebooks`)."""

import shutil
import sys

import numpy as np
import pytest
import soundfile

from audiolm_jax.errors import InputError
from experiments.colab import execute, pair

jupytext = pytest.importorskip("jupytext", reason="pip install 'audiolm-jax[notebook]'")
pytest.importorskip("nbclient", reason="pip install 'audiolm-jax[notebook]'")
import nbformat  # noqa: E402  (of jupytext)
from nbformat.v4 import new_code_cell, new_notebook, new_output  # noqa: E402

NAMES = [path.stem for path in pair.scripts()]
TAGS = ("parameters", "recordings")


def test_the_notebooks_are_those_of_the_scripts_and_all_are_executed():
    assert pair.differing() == []
    assert sorted(execute.NOTEBOOKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_what_a_person_wants_and_stores_nothing(name):
    notebook = nbformat.read(pair.FOLDER / f"{name}.ipynb", 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in code[:3]] == [["install"], ["parameters"], None]
    assert code[0].source.startswith('PACKAGE = "audiolm-jax"') and "../.." not in code[0].source
    assert "\n%pip install" in code[0].source
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    words = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all(word in words for word in ("Runtime", "GPU", "TPU", "jax[cuda12]", "jax[tpu]", "bfloat16"))


def test_a_script_that_was_changed_is_told(tmp_path):
    for name in ("generate.py", "generate.ipynb", "pair.py"):
        shutil.copy(pair.FOLDER / name, tmp_path)
    assert pair.differing(tmp_path) == []
    script = tmp_path / "generate.py"
    script.write_text(script.read_text().replace("SEED = 0", "SEED = 1"))
    assert pair.differing(tmp_path) == ["generate.ipynb"]
    (tmp_path / "generate.ipynb").rename(tmp_path / "other.ipynb")
    assert pair.differing(tmp_path) == ["generate.ipynb", "other.ipynb"]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(InputError, match=r"jupytext is not installed.*pip install 'audiolm-jax\[notebook\]'"):
        pair.differing()


def small(*sources, tags=("install", "parameters")):
    cells = [new_code_cell(source) for source in sources]
    for cell, tag in zip(cells, tags, strict=False):
        cell.metadata["tags"] = [tag]
    return new_notebook(cells=cells)


def test_parameters_are_replaced(tmp_path):
    notebook = execute.prepared(small("", "A = 1\nB = 'b'", "print(A, B)"), {"A": 2})
    execute.execute(notebook, tmp_path)
    assert [output.text for output in execute.outputs(notebook)] == ["2 b\n"]
    with pytest.raises(InputError, match="C: not set in the parameters cell"):
        execute.prepared(small("", "A = 1"), {"C": 2})
    with pytest.raises(InputError, match="0 cells have the tag 'parameters'"):
        execute.prepared(small("", "A = 1", tags=("install",)), {})


def test_the_install_cell_takes_the_wheel_and_what_the_checkout_lends_is_told(tmp_path):
    notebook = execute.installing(small('PACKAGE = "audiolm-jax"  # or another', "A = 1"), tmp_path / "a.whl")
    assert notebook.cells[0].source == f"PACKAGE = '{tmp_path}/a.whl'  # or another"
    notebook.cells.insert(2, new_code_cell("import experiments.colab.pair"))
    with pytest.raises(InputError, match=r"of the checkout: .*experiments/colab/pair\.py"):
        execute.execute(notebook, tmp_path, PYTHONPATH=str(execute.ROOT))
    with pytest.raises(InputError, match="sets PACKAGE 0 times"):
        execute.installing(small("print()", "A = 1"), tmp_path / "a.whl")


@pytest.mark.parametrize("name", ["finetune", "generate"])
def test_a_recording_of_ones_own_is_uploaded(name, tmp_path):
    """The dialog is Colab's, which is nowhere else: here a module chooses."""
    sound = np.linspace(-0.5, 0.5, 800)
    soundfile.write(tmp_path / "chosen", sound, 100, format="wav")
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "files.py").write_text(
        "import shutil\nfrom pathlib import Path\n\n\ndef upload():\n"
        "    return {'mine.wav': Path(shutil.copy('chosen', 'mine.wav')).read_bytes()}\n"
    )
    cells = pair.notebook(pair.FOLDER / f"{name}.py").cells
    parameters, upload = (next(cell for cell in cells if tag in cell.metadata.get("tags", ())) for tag in TAGS)
    seen = {
        "finetune": "samples, rate = soundfile.read(f'{RECORDINGS}/mine.wav')\nprint(len(samples), rate)",
        "generate": "print(len(beginning), rate)",
    }
    uploaded = new_code_cell("import soundfile\nfrom pathlib import Path\nUPLOAD = True")
    notebook = new_notebook(cells=[parameters, uploaded, upload, new_code_cell(seen[name])])
    execute.execute(notebook, tmp_path)
    expected = {"finetune": "800 100\n", "generate": "400 100\n"}  # half of 8 seconds to continue
    assert execute.outputs(notebook)[-1].text == expected[name]


def test_a_cell_that_raises_is_told(tmp_path):
    with pytest.raises(InputError, match=r"(?s)a cell failed.*NameError: name 'undefined_name'"):
        execute.execute(small("undefined_name", tags=()), tmp_path)


def shown(waveform, pixels, text="fine"):
    """A notebook that shows a player, two pictures and words."""
    import base64
    import io

    import matplotlib.image

    from audiolm_jax.sampling.result import Result

    png = io.BytesIO()
    matplotlib.image.imsave(png, pixels)
    encoded = base64.b64encode(png.getvalue()).decode()
    player = Result(np.zeros((50, 4), int), 0, waveform, 8000, True, 50, 1.0)._repr_html_()
    cell = new_code_cell(
        outputs=[
            new_output("display_data", {"text/html": player}),
            new_output("display_data", {"image/png": encoded}),
            new_output("display_data", {"text/html": "<svg ></svg>"}),
            new_output("stream", name="stderr", text=text),
        ]
    )
    return new_notebook(cells=[cell])


def test_what_a_notebook_shows_is_looked_at():
    loud, bright = np.sin(np.arange(4000)), np.eye(8)
    assert execute.check(shown(loud, bright), 1, 2) == "1 players of 0.5 to 0.5 s, 2 pictures"
    for notebook, counts, message in (
        (shown(0 * loud, bright), (1, 2), "player 1 has no sound"),
        (shown(loud, 0 * bright), (1, 2), "picture 1 is empty"),
        (shown(loud, bright), (2, 2), "1 players and 2 pictures were shown, not 2 and 2"),
        (shown(loud, bright, "UserWarning: old"), (1, 2), "a cell warns"),
    ):
        with pytest.raises(InputError, match=message):
            execute.check(notebook, *counts)
