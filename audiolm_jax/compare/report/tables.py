"""The numbers of the page: the tables of results and speed, and the bits of every codebook."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from audiolm_jax.compare.report.schema import meaningless
from audiolm_jax.compare.report.templates import NONE, parts
from audiolm_jax.evaluation import intervals

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def prefixed(value: float, unit: str = "") -> str:
    """1234567 -> "1.23 M"; below a thousand as it is."""
    scale, prefix = next((row for row in _PREFIXES if value >= row[0]), (1, ""))
    return f"{value / scale:.3g} {prefix}{unit}".rstrip()


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def seconds(value: float) -> str:
    return f"{value:.2g}" if value < 0.01 else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def optional(value: float | None, text: Callable[[float], str] = "{:.2f}".format) -> str:
    return NONE if value is None else text(value)


def colours(results: dict) -> dict[str, int]:
    """Name of an entry -> number of its strategy, which is its colour and marker in every size."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(entry["strategy"] for entry in results["strategies"]))}
    return {entry["name"]: numbers[entry["strategy"]] for entry in results["strategies"]}


def signed(value: float) -> str:
    """One decimal, with a typographic minus sign, and none before 0."""
    text = f"{value:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _interval(values: Iterable[float | None], scale: float = 1, is_best: bool = False, **texts: str) -> Markup:
    """A value and the ends of its interval, times `scale`. texts: `tag`, and `lacking` where there is no interval."""
    return parts.interval(*(None if value is None else f"{scale * value:.1f}" for value in values), is_best, **texts)


def lacking(results: dict, entry: dict, metric: str) -> str:
    """Why an entry has no interval of the bits, or of the errors: "1 utterance"."""
    held = results["held_out"]["utterance_seconds" if metric == "bits_per_second" else "sentence_characters"]
    return intervals.lacking(len(held), len(entry["seeds"])) or "no errors"


def _bits(results: dict, entry: dict, is_best: bool) -> Markup:
    ends = (entry[key] for key in ("bits_per_second", "bits_per_second_low", "bits_per_second_high"))
    reason = lacking(results, entry, "bits_per_second")
    return _interval(ends, 1, is_best, tag=entry["likelihood"], lacking=reason)


def _cer(cer: dict, is_best: bool = False, seeds: int = 1) -> Markup:
    reason = intervals.lacking(cer["utterances"], seeds) or "no errors"
    return _interval((cer[key] for key in ("value", "low", "high")), 100, is_best, lacking=reason)


def _opinion(cer: dict) -> str:
    return optional(cer["second_opinion"], percent)


def _spread(spread: dict, scale: float) -> Markup:
    return NONE if spread["sd"] is None else _interval((spread[key] for key in ("sd", "min", "max")), scale)


def results_table(results: dict) -> Markup:
    """Likelihood and intelligibility: one row per strategy, then the baselines and the ceilings."""
    strategies, base = results["strategies"], results["baselines"]
    uniform, unigram = base["uniform_bits_per_second"], base["unigram_bits_per_second"]
    no_judge = meaningless(results)
    best_bits, best_cer = (  # none is marked where there is no interval
        None if any(entry[key] is None for entry in rows) else min(entry[value] for entry in rows)
        for rows, value, key in (
            (strategies, "bits_per_second", "bits_per_second_low"),
            ([entry["cer"] for entry in strategies], "value", "low"),
        )
    )
    seeds = any(len(entry["seeds"]) > 1 for entry in strategies)

    def over_seeds(metric: str, scale: float) -> tuple:
        return (("Seeds", "s.d., range", lambda entry: _spread(entry["spread"][metric], scale)),) if seeds else ()

    def bits(entry: dict) -> Markup:
        return _bits(results, entry, entry["bits_per_second"] == best_bits)

    def filled(*columns: tuple) -> tuple:
        """Those in which a strategy has something."""
        return tuple(column for column in columns if any(column[2](entry) != NONE for entry in strategies))

    groups = (
        ("Bits on held-out speech", filled(
            ("Codes", "bits/s, 95 % interval", bits),
            *over_seeds("bits_per_second", 1),
            ("Below", "unigram, %", lambda entry: signed(100 - 100 * entry["bits_per_second"] / unigram)),
            ("End", "bits/utt.", lambda entry: optional(entry["end_bits_per_utterance"])),
            ("Length", "bits/utt.", lambda entry: optional(entry["length_bits_per_utterance"])))),
        ("Character errors" + " (no judge of this speech)" * bool(no_judge), filled(
            ("CER", "%, 95 % interval",
             lambda entry: _cer(entry["cer"], not no_judge and entry["cer"]["value"] == best_cer, len(entry["seeds"]))),
            *over_seeds("cer", 100),
            ("2nd opinion", "%", lambda entry: _opinion(entry["cer"])))),
    )  # fmt: skip
    first, second = (len(columns) for _, columns in groups)
    references = []
    for name, bits in (("unigram codes", unigram), ("uniform codes", uniform)):
        cells = [f"{bits:.1f}", *[""] * seeds, signed(100 - 100 * bits / unigram)]
        references.append((name, cells + [""] * (first + second - len(cells)), True))
    for name, ceiling in (("real speech", "real"), ("through the codec", "codec")):
        cer = results["ceilings"][ceiling]["cer"]
        cells = [_cer(cer), *[""] * seeds, _opinion(cer)]
        references.append((name, [""] * first + cells[:second], True))
    return _strategies(results, groups, "Likelihood and intelligibility", references)


def also_table(results: dict) -> Markup | str:
    """Likelihood on the further splits beside unigram and uniform codes, "" if there are none."""

    def cell(entry: dict, split: str) -> Markup:
        rate = entry["also"][split]
        reason = intervals.lacking(rate["utterances"], len(entry["seeds"]))
        ends = (rate[key] for key in ("bits_per_second", "low", "high"))
        return _interval(ends, tag=entry["likelihood"], lacking=reason)

    splits, base = list(results["strategies"][0]["also"]), results["baselines"]
    columns = [(split, "bits/s, 95 % interval", functools.partial(cell, split=split)) for split in splits]
    unigram = base.get("also_unigram_bits_per_second", {})
    rows = [("uniform codes", [f"{base['uniform_bits_per_second']:.1f}"] * len(splits), True)]
    if unigram:
        rows.insert(0, ("unigram codes", [optional(unigram.get(split), "{:.1f}".format) for split in splits], True))
    return _strategies(results, [("Codes", columns)], "Bits on other held-out speech", rows) if splits else ""


def training_table(results: dict) -> Markup:
    """The budget of every strategy, of which one part is equal, and the time that training took."""

    def hours(entry: dict) -> float:
        frames = [run["training_frames"] for run in entry["seeds"]]
        return sum(frames) / len(frames) / results["codec"]["frame_rate"] / 3600

    groups = (
        ("Model", (("Parameters", "", lambda entry: prefixed(entry["parameters"])),)),
        ("Training", (
            ("Compute", "", lambda entry: prefixed(entry["training_flops"], "FLOP")),
            ("Steps", "", lambda entry: f"{entry['training_steps']:,}"),
            ("Rows", "of a batch", lambda entry: f"{entry['rows_per_step']:,}"),
            ("Audio", "hours", lambda entry: f"{hours(entry):.3g}"),
            ("Seconds", "mean", lambda entry: f"{entry['training_seconds']:,.0f}"))),
    )  # fmt: skip
    return _strategies(results, groups, "Training")


def speed_table(results: dict) -> Markup:
    """Speed of generation: real-time factor, sequential passes, time to first audio; predicted and measured."""

    def measured(entry: dict, key: str, text: Callable[[float], str]) -> Markup:
        """One of the measured times, marked if it is the least of all strategies."""
        value = entry["speed"][key]
        return parts.best(text(value), value == min(other["speed"][key] for other in results["strategies"]))

    def in_depth(entry: dict) -> str:
        return optional(entry["cost"].get("depth_passes") or None, "{:.5g}".format)

    groups = (
        ("Generation", (
            ("RTF", "s per s of audio", lambda entry: measured(entry, "rtf", "{:.3f}".format)),
            ("Positions", "per s of audio", lambda entry: f"{entry['positions_per_second']:.4g}"))),
        ("Sequential passes", (
            ("Frames", "", lambda entry: f"{entry['cost']['frames']}"),
            ("Predicted", "", lambda entry: f"{entry['cost']['predicted_passes']:.5g}"),
            ("Measured", "", lambda entry: f"{entry['cost']['measured_passes']:.5g}"),
            ("In depth", "small ones", in_depth))),
        ("First audio", (
            ("Look-ahead", "frames", lambda entry: f"{entry['cost']['lookahead_frames']:.4g}"),
            ("Passes", "predicted", lambda entry: f"{entry['cost']['first_audio_passes']:.4g}"),
            ("Predicted", "s", lambda entry: optional(entry["speed"]["first_audio_predicted_seconds"], seconds)),
            ("Measured", "s", lambda entry: measured(entry, "first_audio_seconds", seconds)))),
    )  # fmt: skip
    return _strategies(results, groups, "Speed")


def _strategies(results: dict, groups: Sequence, label: str, references: Sequence = ()) -> Markup:
    """A row per strategy, then `references`. groups: (name, columns), a column (title, unit, cell of a strategy)."""
    numbers, rows = colours(results), []
    for entry in results["strategies"]:
        cells = [cell(entry) for _, columns in groups for *_, cell in columns]
        rows.append((parts.named(numbers[entry["name"]], entry), cells, False))
    heads = tuple((name, [column[:2] for column in columns]) for name, columns in groups)
    return table(heads, [*rows, *references], label)


def table(groups: tuple, rows: list[tuple[str, list[str], bool]], label: str, kind: str = "Strategy") -> Markup:
    """`groups` of columns (name, unit); rows of (title, cells, whether it is a reference).

    label: its caption. kind: what a row is. Titles and cells that are HTML are `Markup`.
    """
    starts = list(itertools.accumulate((len(columns) for _, columns in groups), initial=0))
    return parts.table(groups, rows, starts, label, kind)


def codebook_bars(results: dict) -> Markup:
    """Bits per second of every codebook, one bar per strategy, all on one scale."""
    numbers, rows = colours(results), []
    for entry in results["strategies"]:
        name, bound = entry["name"], entry["likelihood"] == "bound"
        rows.append((name, f"s{numbers[name] % 7}", entry["bits_per_second_per_codebook"], bound))
    unigram = results["baselines"]["per_codebook_unigram_bits_per_second"]
    uniform = results["baselines"]["uniform_bits_per_second"]
    rows += [("unigram", "reference", unigram, False)]
    rows += [("uniform", "reference", [uniform / len(unigram)] * len(unigram), False)]
    return parts.bars(rows, max(sum(values) for _, _, values, _ in rows))
