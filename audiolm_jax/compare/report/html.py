"""Assembles report.html: one file that opens from disk, with nothing to fetch."""

from importlib import resources
from pathlib import Path

from audiolm_jax import files
from audiolm_jax.compare.report import differences, plots, tables
from audiolm_jax.compare.report.listen import listening
from audiolm_jax.compare.report.schema import EQUAL, write_results
from audiolm_jax.compare.report.tables import colours, escape, key
from audiolm_jax.compare.report.verdict import facts, verdict


def write_report(results: dict, directory: str | Path, pictures: dict[str, str] | None = None) -> Path:
    """Writes `directory`/results.json and `directory`/report.html; returns the path of the page.

    Args:
      results: see `report.schema`; the audio files of its samples are read from below `directory`.
      pictures: {strategy: an <svg> of its order on the grid}; put into the page as they are.

    Raises:
      InputError: the results do not follow the schema, or an audio file cannot be read.
    """
    directory = Path(directory)
    write_results(results, directory)
    page = directory / "report.html"
    files.write_text(page, build(results, directory, pictures or {}))
    return page


def build(results: dict, directory: Path, pictures: dict[str, str]) -> str:
    """The page as text."""
    sections = [
        ("results", "Results", _results(results)),
        ("differences", "Differences", _differences(results)),
        ("trade-offs", "What it costs", plots.trade_offs(results)),
        ("training", "Training and time", plots.training(results)),
        ("codebooks", "Bits of every codebook", _codebooks(results)),
        ("orders", "The orders", _pictures(results, pictures)),
        ("listen", "Listen", _listen(results, directory)),
        ("notes", "How to read this", _notes(results)),
        ("run", "The run", _run(results)),
    ]
    header = (
        f'<p class="question">{escape(results["question"])}</p><p class="verdict">{escape(verdict(results))}</p>'
        f"{facts(results)}"
    )
    footer = (
        f"Made by audiolm_jax at commit {escape(results['commit'][:12])}, {escape(results['created'])}. "
        "The same numbers are in results.json beside this page."
    )
    return page(results["title"], header, sections, footer)


def page(title: str, header: str, sections: list[tuple[str, str, str]], footer: str) -> str:
    """A whole page, with its style and script in it.

    sections: (name for links, title, content as HTML); those without content are left out. header, footer: as HTML.
    """
    beside = resources.files("audiolm_jax.compare.report")
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{beside.joinpath('page.css').read_text(encoding='utf-8')}</style>"
        "<noscript><style>audio{display:block!important;width:100%}.icon{display:none!important}</style></noscript>"
        f'</head><body><header><div class="inner"><h1>{escape(title)}</h1>'
        f"{header}<nav>{links}</nav></div></header><main>{body}</main>"
        f"<footer>{footer}</footer>"
        f'<div id="tip" role="status"></div>'
        f"<script>{beside.joinpath('page.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _results(results: dict) -> str:
    codec, corpus = results["codec"], results["corpus"]
    test = corpus["utterances"].get("test")
    lead = (
        f"{codec['codebooks']} codebooks of {codec['codebook_size']} codes at {codec['frame_rate']:g} frames per "
        f"second; every code is counted once. Corpus: {escape(corpus['name'])}"
        + (f", {test} test utterances" if test else "")
        + f"; speech of {results['strategies'][0]['cer']['utterances']} utterances was heard by the recogniser."
    )
    shown = "".join(
        table(results) for table in (tables.results_table, tables.also_table, tables.training_table, tables.speed_table)
    )
    return f'<p class="lead">{lead}</p>{shown}'


def _differences(results: dict) -> str:
    found = differences.matrices(results)
    if not found:
        return ""
    lead = (
        "Paired over utterances and seeds, with 95 % intervals. Green: the row is smaller (better), red: it is larger, "
        "and the interval leaves out 0. Each interval stands alone: of twenty differences that are nothing, one is "
        "marked by chance. ≤ and ≥: one side is an upper bound of its bits, so the true difference is at most, or at "
        "least, the one shown; ~: both sides are."
    )
    return f'<p class="lead">{lead}</p>{found}'


def _codebooks(results: dict) -> str:
    return (
        '<p class="lead">Bits per second of audio, codebook 1 (the coarsest) on the left; the scale is that of the '
        f'unigram baseline.</p><div class="card">{tables.codebook_bars(results)}</div>'
    )


def _pictures(results: dict, pictures: dict[str, str]) -> str:
    numbers, first = colours(results), {}
    for one in results["strategies"]:
        first.setdefault(one["strategy"], one)
    figures = "".join(
        f'<figure class="card"><h3>{key(numbers[one["name"]], one["likelihood"] == "bound")}{escape(name)}</h3>'
        f'<div class="plate">{pictures[name]}</div><figcaption>{_order_caption(one)}</figcaption></figure>'
        for name, one in first.items()
        if name in pictures
    )
    if not figures:
        return ""
    lead = "Cells with the same number are predicted together, given the text and every cell with a smaller number."
    return f'<p class="lead">{lead}</p><div class="pictures">{figures}</div>'


def _order_caption(one: dict) -> str:
    cost = one["cost"]
    return (
        f"{cost['predicted_passes']:.5g} sequential passes for {cost['frames']} frames; the first frame is complete "
        f"after {cost['first_audio_passes']:.4g}, with {cost['lookahead_frames']:.4g} later frames begun."
    )


def _listen(results: dict, directory: Path) -> str:
    if not results["sentences"]:
        return ""
    lead = (
        "Press a spectrogram to play it. Underneath is what the recogniser heard, with wrong words underlined and "
        "missing ones struck out. Spectrograms of one sentence share the time axis."
    )
    return f'<p class="lead">{lead}</p>{listening(results, directory)}'


def _notes(results: dict) -> str:
    notes = [
        (
            "Bits per second of audio is the negative log-likelihood (base 2) of held-out codes given text and "
            "earlier codes, summed over all codebooks and divided by the seconds of audio: each code counts once, "
            "without guidance and without padding. Where the audio ends, or how long it is, costs "
            "bits too; they stand apart."
        ),
        (
            "Intervals are 95 %. Over utterances they are a bootstrap; over seeds, where there are several, Student's "
            "t. With one seed they do not cover another training run; they never cover another corpus or codec."
        ),
    ]
    if results["ceilings"]["codec"]["cer"]["second_opinion"] is not None:
        notes.append(
            "The second opinion is pocketsphinx under a grammar of digit words. It was trained on human speech and "
            "hears synthetic voices poorly: read it against its own score on real speech, not the other column."
        )
    notes.append(
        "A character error rate is that of the recogniser and the speech together. Read it against the two rows at the "
        "foot of the table: generated speech comes out of the same codec."
    )
    notes += results["notes"]
    return '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def _run(results: dict) -> str:
    codec, corpus = results["codec"], results["corpus"]
    amounts = {
        f"{split}": f"{n:,} utterances, {corpus['hours'].get(split, 0):.2f} h"
        for split, n in corpus["utterances"].items()
    }
    blocks = [
        ("Equal", {"is": EQUAL[results["equal"]], "seeds": sorted({run["seed"] for one in results["strategies"]
                                                                     for run in one["seeds"]})}),
        ("Corpus", {"name": corpus["name"], "speakers": corpus["speakers"], **amounts}),
        ("Codec and recogniser", {
            "codec": codec["name"],
            "sample rate": f"{codec['sample_rate']} Hz",
            "codes": f"{codec['frame_rate']:g} Hz × {codec['codebooks']} × {codec['codebook_size']}",
            "codec weights": codec["fingerprint"][:16],
            "recogniser weights": results["recogniser"]["fingerprint"][:16],
        }),
        ("Hardware", results["hardware"]),
        ("Versions", {**results["versions"], "commit": results["commit"][:12], "config": results["config_hash"][:16]}),
    ]  # fmt: skip
    cards = "".join(f'<div class="card"><h3>{title}</h3>{_pairs(rows)}</div>' for title, rows in blocks)
    return (
        f'<div class="card command"><h3>Command</h3><pre>{escape(results["command"])}</pre>'
        f'<button class="copy">copy</button></div><div class="columns">{cards}</div>{_settings(results["config"])}'
    )


def _pairs(rows: dict) -> str:
    body = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(_value(v))}</td></tr>" for k, v in rows.items())
    return f'<table class="pairs"><tbody>{body}</tbody></table>'


def _value(value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "–"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in ("", None) else str(value)


def _settings(config) -> str:
    if not isinstance(config, dict) or not config:
        return ""
    flat = {name: value for name, value in config.items() if not isinstance(value, dict)}
    parts = [("", flat)] if flat else []
    parts += [(name, value) for name, value in config.items() if isinstance(value, dict)]
    content = "".join(
        f"<section>{f'<h3>{escape(name)}</h3>' if name else ''}{_pairs(_flatten(rows))}</section>"
        for name, rows in parts
    )
    return f'<details class="card"><summary>Configuration</summary><div class="settings">{content}</div></details>'


def _flatten(rows: dict, prefix: str = "") -> dict:
    out = {}
    for name, value in rows.items():
        if isinstance(value, dict):
            out |= _flatten(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
