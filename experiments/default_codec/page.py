"""The page of a codec: scores by number of codebooks, how the codes are used, the training, and clips to listen to."""

import json
from pathlib import Path

import numpy as np
from markupsafe import escape

from audiolm_jax import files
from audiolm_jax.compare.report import charts, listen, tables, templates

SPLITS = {"test": "sentences never heard, by voices of the training", "unseen": "voices never heard"}
SCORES = {  # (title, unit, decimals)
    "pesq": ("PESQ", "wide band", 2),
    "stoi": ("STOI", "", 3),
    "estoi": ("ESTOI", "", 3),
    "si_sdr": ("SI-SDR", "dB", 1),
    "log_mel": ("Log-mel", "distance", 3),
}


def write(path: Path, results: dict, clips: list[dict], log: list[dict]) -> None:
    """Writes the page.

    Args:
      results: what `evaluate.main` writes as JSON.
      clips: {"title", "sounds": [{"name", "scores" (text), "waveform"}, ...]}, one for each utterance.
      log: the lines of log.jsonl of the training, may be empty.
    """
    splits = [name for name in SPLITS if name in results]
    sections = [
        ("scores", "Scores", "".join(_scores(results, split) for split in splits)),
        ("curves", "What a codebook buys", _curves(results, splits)),
        ("usage", "How the codes are used", _usage(results, splits)),
        ("training", "Training", _training(log)),
        ("listen", "Listen", _listen(results, clips)),
    ]
    header = f'<p class="question">{_about(results)}</p>'
    footer = f"Weights {results['fingerprint'][:16]}. The same numbers are in results.json beside this page."
    files.write_text(path, templates.page("Default codec", header, sections, footer))


def _about(results: dict) -> str:
    return (
        f"{results['frame_rate']:g} frames a second × {results['codebooks']} codebooks × {results['codebook_size']} "
        f"codes at {results['sample_rate'] / 1000:g} kHz; speech that the training never heard, means over utterances."
    )


def _rate(results: dict, count: int) -> float:
    """Kbit per second of `codebooks` codebooks."""
    return count * results["frame_rate"] * np.log2(results["codebook_size"]) / 1000


def _scores(results: dict, split: str) -> str:
    found = results[split]
    columns = tuple((title, unit) for title, unit, _ in SCORES.values())
    seconds = found["frames"] / results["frame_rate"]
    groups = ((f"{split}: {SPLITS[split]} ({found['utterances']} utterances, {seconds:.0f} s)", columns),)
    rows = []
    for count, scores in found["scores"].items():
        cells = [f"{scores[name]:.{digits}f}" for name, (_, _, digits) in SCORES.items()]
        rows.append((f"{count} · {_rate(results, int(count)):.2f} kbit/s", cells, False))
    return tables.table(groups, rows, f"Scores, {split}", "Codebooks")


def _legend(names: list[str]) -> str:
    return (
        f'<div class="legend">{"".join(f"<span>{templates.key(n)}{name}</span>" for n, name in enumerate(names))}</div>'
    )


def _curves(results: dict, splits: list[str]) -> str:
    cards = []
    for metric in ("pesq", "stoi"):
        series = []
        for index, split in enumerate(splits):
            scores = results[split]["scores"].items()
            points = [(_rate(results, int(count)), row[metric]) for count, row in scores]
            series.append({"name": split, "index": index, "points": points})
        title = SCORES[metric][0]
        chart = charts.line_chart(series, "kbit per second", title, f"{title} by bit rate")
        cards.append(f'<div class="card"><h3>{title}</h3>{chart}{_legend(splits)}</div>' if chart else "")
    return f'<div class="pair">{"".join(cards)}</div>' if any(cards) else ""


def _usage(results: dict, splits: list[str]) -> str:
    size = results["codebook_size"]
    columns = (("Used", "% of codes"), ("Entropy", "bits"), ("Most used", "% of frames"))
    rows = []
    for level, uses in enumerate(zip(*(results[split]["usage"] for split in splits), strict=True)):
        cells = [
            text
            for use in uses
            for text in (f"{100 * use['codes'] / size:.0f}", f"{use['entropy']:.2f}", f"{100 * use['most']:.1f}")
        ]
        rows.append((str(level + 1), cells, False))
    return tables.table(tuple((split, columns) for split in splits), rows, "Codes used", "Codebook")


def _training(log: list[dict]) -> str:
    cards = []
    for term, title in (("total", "Loss on held-out speech"), ("mel", "Log-mel distance on held-out speech")):
        names = sorted(
            {name for line in log for name in line if name.startswith("valid") and name.endswith(f"/{term}")}
        )
        series = [
            {
                "name": f"{name[5 : name.index('/')]} codebooks",
                "index": index,
                "points": [(line["step"], line[name]) for line in log if name in line],
            }
            for index, name in enumerate(names)
        ]
        chart = charts.line_chart(series, "steps", term, title)
        legend = _legend([one["name"] for one in series])
        cards.append(f'<div class="card"><h3>{title}</h3>{chart}{legend}</div>' if chart else "")
    return f'<div class="pair">{"".join(cards)}</div>' if any(cards) else ""


def _listen(results: dict, clips: list[dict]) -> str:
    cards = []
    for clip in clips:
        longest = max(len(sound["waveform"]) for sound in clip["sounds"])
        sounds = "".join(
            listen.clip(
                (sound["name"], "", sound["scores"]),
                f"{clip['title']}, {sound['name']}",
                sound["waveform"],
                results["sample_rate"],
                100 * len(sound["waveform"]) / longest,
            )
            for sound in clip["sounds"]
        )
        cards.append(
            f'<article class="card sentence"><h3>{escape(clip["title"])}</h3><div class="clips">{sounds}</div>'
            "</article>"
        )
    return '<p class="lead">Press a spectrogram to play it.</p>' + "".join(cards) if cards else ""


def read_log(path: Path) -> list[dict]:
    """The lines of a training log; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
