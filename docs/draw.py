"""Draws the pictures of the README: `make pictures`."""

from pathlib import Path

from audiolm_jax import serialization
from audiolm_jax.serialization import SerializationConfig, picture

FOLDER = Path(__file__).resolve().parent / "grids"
FRAMES, CODEBOOKS = 6, 4
OPTIONS = {"masked": {"iterations": (4, 1, 1, 1)}}


def drawn() -> dict[str, str]:
    """{file name: SVG} of every strategy."""
    found = {}
    for name in serialization.STRATEGIES:
        grid = serialization.bind(SerializationConfig(strategy=name, **OPTIONS.get(name, {})), CODEBOOKS)
        found[f"{name}.svg"] = picture.svg(grid, FRAMES) + "\n"
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in drawn().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
