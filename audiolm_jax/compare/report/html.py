"""Assembles report.html: one file that opens from disk, with nothing to fetch."""

from pathlib import Path

from audiolm_jax import files
from audiolm_jax.compare.report import differences, plots, tables
from audiolm_jax.compare.report.listen import listening
from audiolm_jax.compare.report.schema import EQUAL, write_results
from audiolm_jax.compare.report.tables import colours
from audiolm_jax.compare.report.templates import page, parts, sections
from audiolm_jax.compare.report.verdict import facts, verdict
from audiolm_jax.config import flat


def write_report(results: dict, directory: str | Path, pictures: dict[str, str] | None = None) -> Path:
    """Writes `directory`/results.json and `directory`/report.html; returns the path of the page.

    Args:
      results: see `report.schema`; the audio files of its samples are read from below `directory`.
      pictures: {strategy: an <svg> of its order on the grid}; put into the page as they are.

    Raises InputError for results that do not follow the schema, and an audio file that cannot be read.
    """
    directory = Path(directory)
    write_results(results, directory)
    path = directory / "report.html"
    files.write_text(path, build(results, directory, pictures or {}))
    return path


def build(results: dict, directory: Path, pictures: dict[str, str]) -> str:
    """The page as text."""
    numbers, strategies = colours(results), results["strategies"]
    first = {entry["strategy"]: entry for entry in reversed(strategies)}  # an order is drawn once, whatever its sizes
    pictured = [entry for entry in strategies if entry is first[entry["strategy"]] and entry["strategy"] in pictures]
    functions = [tables.results_table, tables.also_table, tables.training_table, tables.speed_table]
    contents = [
        ("strategies", "The strategies", sections.forests(plots.forests(results))),
        ("results", "Results", sections.numbers(results, [table(results) for table in functions])),
        ("differences", "Differences", sections.differences(differences.matrices(results))),
        ("trade-offs", "What it costs", sections.trade_offs(plots.trade_offs(results))),
        ("training", "Training and time", sections.training(plots.training(results))),
        ("codebooks", "Bits of every codebook", sections.codebooks(tables.codebook_bars(results))),
        ("orders", "The orders", sections.orders(numbers, pictured, pictures)),
        ("listen", "Listen", sections.listen(*listening(results, directory))),
        ("notes", "How to read this", sections.notes(results)),
        ("run", "The run", sections.run(results["command"], _blocks(results), _settings(results["config"]))),
    ]
    header = sections.header(results, verdict(results), parts.facts(facts(results)))
    return page(results["title"], header, contents, sections.footer(results))


def _blocks(results: dict) -> list[tuple[str, dict[str, str]]]:
    """Cards about the run: (title, rows)."""
    codec, corpus = results["codec"], results["corpus"]
    hours = {
        split: f"{n:,} utterances, {corpus['hours'].get(split, 0):.2f} h" for split, n in corpus["utterances"].items()
    }
    seeds = sorted({run["seed"] for entry in results["strategies"] for run in entry["seeds"]})
    blocks = [
        ("Equal", {"is": EQUAL[results["equal"]], "seeds": seeds}),
        ("Corpus", {"name": corpus["name"], "speakers": corpus["speakers"], **hours}),
        ("Codec and recogniser", {
            "codec": codec["name"],
            "sample rate": f"{codec['sample_rate']} Hz",
            "codes": f"{codec['frame_rate']:g} Hz × {codec['codebooks']} × {codec['codebook_size']}",
            "codec weights": codec["fingerprint"][:16],
            "recogniser weights": results["recogniser"]["fingerprint"][:16],
        }),
        ("Hardware", {name: v for name, v in results["hardware"].items() if name not in results["versions"]}),
        ("Versions", {**results["versions"], "commit": results["commit"][:12], "config": results["config_hash"][:16]}),
    ]  # fmt: skip
    return [(title, {name: _text(value) for name, value in rows.items()}) for title, rows in blocks]


def _text(value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "–"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in ("", None) else str(value)


def _settings(config) -> list[tuple[str, dict[str, str]]]:
    """(section, its keys) of a configuration; "" is the section of the keys that are in none."""
    if not isinstance(config, dict):
        return []
    loose = {name: value for name, value in config.items() if not isinstance(value, dict)}
    parts = [("", loose), *((name, value) for name, value in config.items() if isinstance(value, dict))]
    return [(name, {key: _text(value) for key, value in flat(rows).items()}) for name, rows in parts if rows or name]
