"""Draws the pictures of the README: `make pictures`. `python -m docs.draw clips` also speaks its clips again."""

import json
import sys
from pathlib import Path

from audiolm_jax import serialization
from audiolm_jax.serialization import SerializationConfig, picture

DOCS = Path(__file__).resolve().parent
ABLATION = DOCS.parent / "experiments" / "serialization_ablation"
FRAMES, CODEBOOKS = 6, 4
OPTIONS = {"masked": {"iterations": (4, 1, 1, 1)}}
TEXT, SPEAKER = "three one four one five", "belinda"

LEFT, WIDTH, ROW, LOW, HIGH = 110, 720, 30, 200.0, 800.0  # of the forest plot, in pixels and bits per second
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .number { text-anchor: end } .tick { text-anchor: middle }
line { stroke: #57606a } .interval { stroke: #0969da; stroke-width: 3 } .limit { stroke-dasharray: 4 4 }
circle { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } line { stroke: #8b949e } .interval { stroke: #58a6ff } circle { fill: #58a6ff }
}
</style>"""


def forest(results: dict) -> str:
    """Bits per second of every strategy of a comparison: the interval, and a dot for each seed."""

    def x(bits: float) -> float:
        return round(LEFT + (bits - LOW) / (HIGH - LOW) * (WIDTH - LEFT - 150), 1)

    entries = sorted(results["strategies"], key=lambda entry: entry["bits_per_second"])
    bottom = 40 + ROW * len(entries)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" role="img">',
        "<title>Held-out bits per second of every strategy, three seeds each</title>",
        STYLE,
        f'<text x="{x((LOW + HIGH) / 2)}" y="{bottom + 34}" class="tick">bits per second of held-out audio</text>',
        f'<text x="{WIDTH - 10}" y="20" class="number">bits/s, errors</text>',
    ]
    for bits in range(int(LOW), int(HIGH) + 1, 100):
        parts.append(f'<line x1="{x(bits)}" x2="{x(bits)}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{x(bits)}" y="{bottom + 18}" class="tick">{bits}</text>')
    for name in ("unigram", "uniform"):
        at = x(results["baselines"][f"{name}_bits_per_second"])
        parts.append(f'<line class="limit" x1="{at}" x2="{at}" y1="30" y2="{bottom}"/>')
        parts.append(f'<text x="{at}" y="20" class="tick">{name}</text>')
    parts.append(f'<line x1="{LEFT}" x2="{x(HIGH)}" y1="{bottom}" y2="{bottom}"/>')
    for row, entry in enumerate(entries):
        y = 48 + ROW * row
        low, high = (x(entry[f"bits_per_second_{end}"]) for end in ("low", "high"))
        sign = "≤ " if entry["likelihood"] == "bound" else ""
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" class="number">{entry["name"]}</text>')
        parts.append(f'<line class="interval" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
        parts += [f'<circle cx="{x(seed["bits_per_second"])}" cy="{y}" r="3"/>' for seed in entry["seeds"]]
        numbers = f"{sign}{entry['bits_per_second']:.0f}, {entry['cer']['value']:.0%}"
        parts.append(f'<text x="{WIDTH - 10}" y="{y + 4}" class="number">{numbers}</text>')
    return "\n".join([*parts, "</svg>"])


def drawn() -> dict[str, str]:
    """{path below docs/: SVG} of every picture."""
    pictures = {"ablation.svg": forest(json.loads((ABLATION / "results.json").read_text())) + "\n"}
    for name in serialization.STRATEGIES:
        grid = serialization.bind(SerializationConfig(strategy=name, **OPTIONS.get(name, {})), CODEBOOKS)
        pictures[f"grids/{name}.svg"] = picture.svg(grid, FRAMES) + "\n"
    return pictures


def speak() -> None:
    """Writes clips/STRATEGY.flac, spoken by the kept checkpoints of the ablation."""
    import soundfile

    import audiolm_jax

    sampling = audiolm_jax.SamplingConfig(temperature=(0.5,))
    for path in sorted((ABLATION / "checkpoints").glob("*.safetensors")):
        [result] = audiolm_jax.load(path, sampling).generate([TEXT], speakers=SPEAKER, seeds=0)
        soundfile.write(DOCS / "clips" / f"{path.stem}.flac", result.waveform, result.sample_rate)


if __name__ == "__main__":
    for name, svg in drawn().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(svg, encoding="utf-8")
    if sys.argv[1:] == ["clips"]:
        (DOCS / "clips").mkdir(exist_ok=True)
        speak()
