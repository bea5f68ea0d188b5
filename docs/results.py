"""Puts the numbers of a comparison into the README: `python -m docs.results runs/demo/results.json`."""

import json
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def table(results: dict) -> str:
    """The section between the markers, as Markdown."""
    baselines, ceilings = results["baselines"], results["ceilings"]
    processor = f"{results['hardware']['cores']} cores of {results['hardware']['processor']}"
    load = f"{results['hardware']['load_average']:.0f}"
    lines = [
        f"`make demo` at commit `{results['commit']}`, {processor}, jax {results['versions']['jax']}, load {load}:",
        "",
        "| strategy | bits per second (95 %) | character errors | real-time factor | passes (frames) | first audio |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for found in results["strategies"]:
        sign = "≤ " if found["likelihood"] == "bound" else ""
        low, high = found["bits_per_second_low"], found["bits_per_second_high"]
        interval = "" if low is None else f" ({low:.0f}–{high:.0f})"
        bits = f"{sign}{found['bits_per_second']:.0f}{interval}"
        cost, speed = found["cost"], found["speed"]
        passes = f"{cost['measured_passes']}" + (f" + {cost['depth_passes']} small" if cost.get("depth_passes") else "")
        lines.append(
            f"| `{found['name']}` | {bits} | {found['cer']['value']:.0%} | {speed['rtf']:.2f} | "
            f"{passes} ({cost['frames']}) | {speed['first_audio_seconds']:.2f} s |"
        )
    lines += [
        f"| unigram codes | {baselines['unigram_bits_per_second']:.0f} | | | | |",
        f"| uniform codes | {baselines['uniform_bits_per_second']:.0f} | | | | |",
        f"| the recordings | | {ceilings['real']['cer']['value']:.0%} | | | |",
        f"| the same through the codec | | {ceilings['codec']['cer']['value']:.0%} | | | |",
    ]
    return "\n".join(lines) + "\n"


def main(path: str) -> None:
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    README.write_text(f"{before}{BEGIN}{table(results)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
