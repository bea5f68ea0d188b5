"""The numbers of the page: the tables of results and speed, and the bits of every codebook."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from audiolm_jax.compare.report.templates import NONE, parts

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def prefixed(value: float, unit: str = "") -> str:
    """1234567 -> "1.23 M"; below a thousand as it is."""
    scale, prefix = next((row for row in _PREFIXES if value >= row[0]), (1, ""))
    return f"{value / scale:.3g} {prefix}{unit}".rstrip()


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def optional(value: float | None, text: Callable[[float], str] = "{:.2f}".format) -> str:
    return NONE if value is None else text(value)


def colours(results: dict) -> dict[str, int]:
    """Name of an entry -> number of its strategy, which is its colour and marker in every size."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(one["strategy"] for one in results["strategies"]))}
    return {one["name"]: numbers[one["strategy"]] for one in results["strategies"]}


def _interval(values: Iterable[float], scale: float = 1, is_best: bool = False, tag: str = "") -> Markup:
    """A value and the ends of its interval, times `scale`."""
    return parts.interval(*(f"{scale * value:.1f}" for value in values), is_best, tag)


def _bits(one: dict, is_best: bool) -> Markup:
    ends = (one[key] for key in ("bits_per_second", "bits_per_second_low", "bits_per_second_high"))
    return _interval(ends, 1, is_best, one["likelihood"])


def _cer(cer: dict, is_best: bool = False) -> Markup:
    return _interval((cer[key] for key in ("value", "low", "high")), 100, is_best)


def _opinion(cer: dict) -> str:
    return optional(cer["second_opinion"], percent)


def _spread(spread: dict, scale: float) -> Markup:
    return NONE if spread["sd"] is None else _interval((spread[key] for key in ("sd", "min", "max")), scale)


def results_table(results: dict) -> Markup:
    """Likelihood and intelligibility: one row per strategy, then the baselines and the ceilings."""
    strategies, base = results["strategies"], results["baselines"]
    uniform, unigram = base["uniform_bits_per_second"], base["unigram_bits_per_second"]
    best_bits = min(one["bits_per_second"] for one in strategies)
    best_cer = min(one["cer"]["value"] for one in strategies)
    seeds = any(len(one["seeds"]) > 1 for one in strategies)

    def over_seeds(metric: str, scale: float) -> tuple:
        return (("Seeds", "s.d., range", lambda one: _spread(one["spread"][metric], scale)),) if seeds else ()

    groups = (
        ("Bits on held-out speech", (
            ("Codes", "bits/s, 95 % interval", lambda one: _bits(one, one["bits_per_second"] == best_bits)),
            *over_seeds("bits_per_second", 1),
            ("Below", "unigram, %", lambda one: percent(1 - one["bits_per_second"] / unigram)),
            ("End", "bits/utt.", lambda one: optional(one["end_bits_per_utterance"])),
            ("Length", "bits/utt.", lambda one: optional(one["length_bits_per_utterance"])))),
        ("Character errors", (
            ("CER", "%, 95 % interval", lambda one: _cer(one["cer"], one["cer"]["value"] == best_cer)),
            *over_seeds("cer", 100),
            ("2nd opinion", "%", lambda one: _opinion(one["cer"])))),
    )  # fmt: skip
    references = []
    for name, bits in (("unigram codes", unigram), ("uniform codes", uniform)):
        below = "0.0" if bits == unigram else percent(1 - bits / unigram).replace("-", "−")
        references.append((name, [f"{bits:.1f}", *[""] * seeds, below] + [""] * (4 + seeds), True))
    for name, ceiling in (("real speech", "real"), ("through the codec", "codec")):
        cer = results["ceilings"][ceiling]["cer"]
        references.append((name, [""] * (4 + seeds) + [_cer(cer), *[""] * seeds, _opinion(cer)], True))
    return _strategies(results, groups, "Likelihood and intelligibility", references)


def also_table(results: dict) -> Markup | str:
    """Likelihood on the further splits, "" if there are none."""

    def cell(one: dict, split: str) -> Markup:
        ends = (one["also"][split][key] for key in ("bits_per_second", "low", "high"))
        return _interval(ends, tag=one["likelihood"])

    splits = list(results["strategies"][0]["also"])
    columns = [(split, "bits/s, 95 % interval", functools.partial(cell, split=split)) for split in splits]
    return _strategies(results, [("Bits on other held-out speech", columns)], "Other held-out speech") if splits else ""


def training_table(results: dict) -> Markup:
    """The budget of every strategy, of which one part is equal, and the time that training took."""

    def hours(one: dict) -> float:
        frames = [run["training_frames"] for run in one["seeds"]]
        return sum(frames) / len(frames) / results["codec"]["frame_rate"] / 3600

    groups = (
        ("Model", (("Parameters", "", lambda one: prefixed(one["parameters"])),)),
        ("Training", (
            ("Compute", "", lambda one: prefixed(one["training_flops"], "FLOP")),
            ("Steps", "", lambda one: f"{one['training_steps']:,}"),
            ("Rows", "of a batch", lambda one: f"{one['rows_per_step']:,}"),
            ("Audio", "hours", lambda one: f"{hours(one):.3g}"),
            ("Seconds", "mean", lambda one: f"{one['training_seconds']:,.0f}"))),
    )  # fmt: skip
    return _strategies(results, groups, "Training")


def speed_table(results: dict) -> Markup:
    """What generating takes: real-time factor, sequential passes and time to first audio, predicted and measured."""

    def measured(one: dict, key: str, text: Callable[[float], str]) -> Markup:
        """One of the measured times, marked if it is the least of all strategies."""
        value = one["speed"][key]
        return parts.best(text(value), value == min(other["speed"][key] for other in results["strategies"]))

    groups = (
        ("Generation", (
            ("RTF", "s per s of audio", lambda one: measured(one, "rtf", "{:.3f}".format)),
            ("Positions", "per s of audio", lambda one: f"{one['positions_per_second']:.4g}"))),
        ("Sequential passes", (
            ("Frames", "", lambda one: f"{one['cost']['frames']}"),
            ("Predicted", "", lambda one: f"{one['cost']['predicted_passes']:.5g}"),
            ("Measured", "", lambda one: f"{one['cost']['measured_passes']:.5g}"))),
        ("First audio", (
            ("Look-ahead", "frames", lambda one: f"{one['cost']['lookahead_frames']:.4g}"),
            ("Passes", "predicted", lambda one: f"{one['cost']['first_audio_passes']:.4g}"),
            ("Predicted", "s", lambda one: optional(one["speed"]["first_audio_predicted_seconds"], seconds)),
            ("Measured", "s", lambda one: measured(one, "first_audio_seconds", seconds)))),
    )  # fmt: skip
    return _strategies(results, groups, "Speed")


def _strategies(results: dict, groups: Sequence, label: str, references: Sequence = ()) -> Markup:
    """A row per strategy, then `references`. groups: (name, columns), a column (title, unit, cell of a strategy)."""
    numbers = colours(results)
    rows = [
        (parts.named(numbers[one["name"]], one), [cell(one) for _, columns in groups for *_, cell in columns], False)
        for one in results["strategies"]
    ]
    heads = tuple((name, [column[:2] for column in columns]) for name, columns in groups)
    return table(heads, [*rows, *references], label)


def table(groups: tuple, rows: list[tuple[str, list[str], bool]], label: str, of: str = "Strategy") -> Markup:
    """`groups` of columns (name, unit); rows of (title, cells, whether it is only there to compare with).

    label: for those who cannot see it. of: what a row is. Titles and cells that are HTML are `Markup`.
    """
    starts = list(itertools.accumulate((len(columns) for _, columns in groups), initial=0))
    return parts.table(groups, rows, starts, label, of)


def codebook_bars(results: dict) -> Markup:
    """Bits per second of every codebook, one bar per strategy, all on the scale of the unigram baseline."""
    numbers = colours(results)
    rows = [
        (one["name"], f"s{numbers[one['name']] % 7}", one["bits_per_second_per_codebook"], one["likelihood"] == "bound")
        for one in results["strategies"]
    ]
    rows.append(("unigram", "reference", results["baselines"]["per_codebook_unigram_bits_per_second"], False))
    return parts.bars(rows, max(sum(values) for _, _, values, _ in rows))
