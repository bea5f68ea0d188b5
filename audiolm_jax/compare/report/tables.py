"""The numbers of the page: the tables of results and speed, and the bits of every codebook."""

import itertools

from markupsafe import Markup

from audiolm_jax.compare.report.templates import NONE, parts


def count(value: float) -> str:
    """1234567 -> "1.23 M"; below a thousand as it is."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}" if value != int(value) else f"{int(value)}"


def flops(value: float) -> str:
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value:.3g} FLOP"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def colours(results: dict) -> dict[str, int]:
    """Name of an entry -> number of its strategy, which is its colour and marker in every size."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(one["strategy"] for one in results["strategies"]))}
    return {one["name"]: numbers[one["strategy"]] for one in results["strategies"]}


def _cer(cer: dict, is_best: bool = False) -> Markup:
    return parts.interval(percent(cer["value"]), percent(cer["low"]), percent(cer["high"]), is_best)


def _opinion(cer: dict) -> str:
    return NONE if cer["second_opinion"] is None else percent(cer["second_opinion"])


def _columns(seeds: bool) -> tuple:
    """Of the results table; spread over seeds only where there are several."""
    over = (("Seeds", "s.d., range"),) if seeds else ()
    return (
        ("Bits on held-out speech", (
            ("Codes", "bits/s, 95 % interval"), *over, ("Below", "unigram, %"), ("End", "bits/utt."),
            ("Length", "bits/utt."))),
        ("Character errors", (("CER", "%, 95 % interval"), *over, ("2nd opinion", "%"))),
    )  # fmt: skip


_TRAINING = (
    ("Model", (("Parameters", ""),)),
    ("Training", (("Compute", ""), ("Steps", ""), ("Rows", "of a batch"), ("Audio", "hours"), ("Seconds", "mean"))),
)
_SPEED = (
    ("Generation", (("RTF", "s per s of audio"), ("Positions", "per s of audio"))),
    ("Sequential passes", (("Frames", ""), ("Predicted", ""), ("Measured", ""))),
    ("First audio", (("Look-ahead", "frames"), ("Passes", "predicted"), ("Predicted", "s"), ("Measured", "s"))),
)


def results_table(results: dict) -> str:
    """Likelihood and intelligibility: one row per strategy, then the baselines and the ceilings."""
    strategies, base = results["strategies"], results["baselines"]
    uniform, unigram = base["uniform_bits_per_second"], base["unigram_bits_per_second"]
    best_bits = min(s["bits_per_second"] for s in strategies)
    best_cer = min(s["cer"]["value"] for s in strategies)
    seeds = any(len(s["seeds"]) > 1 for s in strategies)
    numbers, rows = colours(results), []
    for one in strategies:
        bits = one["bits_per_second"]
        cells = [
            _bits(one, bits == best_bits),
            *([_spread(one["spread"]["bits_per_second"], 1)] if seeds else []),
            percent(1 - bits / unigram),
            NONE if one["end_bits_per_utterance"] is None else f"{one['end_bits_per_utterance']:.2f}",
            NONE if one["length_bits_per_utterance"] is None else f"{one['length_bits_per_utterance']:.2f}",
            _cer(one["cer"], one["cer"]["value"] == best_cer),
            *([_spread(one["spread"]["cer"], 100)] if seeds else []),
            _opinion(one["cer"]),
        ]
        rows.append((parts.named(numbers[one["name"]], one), cells, False))
    for name, bits in (("unigram codes", unigram), ("uniform codes", uniform)):
        below = "0.0" if bits == unigram else percent(1 - bits / unigram).replace("-", "−")
        rows.append((name, [f"{bits:.1f}", *[""] * seeds, below] + [""] * (4 + seeds), True))
    for name, ceiling in (("real speech", "real"), ("through the codec", "codec")):
        cer = results["ceilings"][ceiling]["cer"]
        rows.append((name, [""] * (4 + seeds) + [_cer(cer), *[""] * seeds, _opinion(cer)], True))
    return table(_columns(seeds), rows, "Likelihood and intelligibility")


def also_table(results: dict) -> str:
    """Likelihood on the further splits, "" if there are none."""
    strategies, numbers, rows = results["strategies"], colours(results), []
    splits = list(strategies[0]["also"])
    if not splits:
        return ""
    for one in strategies:
        rates = [one["also"][split] for split in splits]
        cells = [
            parts.interval(*(f"{rate[end]:.1f}" for end in ("bits_per_second", "low", "high")), tag=one["likelihood"])
            for rate in rates
        ]
        rows.append((parts.named(numbers[one["name"]], one), cells, False))
    columns = tuple((split, "bits/s, 95 % interval") for split in splits)
    return table((("Bits on other held-out speech", columns),), rows, "Other held-out speech")


def training_table(results: dict) -> str:
    """The budget of every strategy, of which one part is equal, and the time that training took."""
    numbers, rows = colours(results), []
    for one in results["strategies"]:
        shown = [run["training_frames"] for run in one["seeds"]]
        cells = [
            count(one["parameters"]),
            flops(one["training_flops"]),
            f"{one['training_steps']:,}",
            f"{one['rows_per_step']:,}",
            f"{sum(shown) / len(shown) / results['codec']['frame_rate'] / 3600:.3g}",
            f"{one['training_seconds']:,.0f}",
        ]
        rows.append((parts.named(numbers[one["name"]], one), cells, False))
    return table(_TRAINING, rows, "Training")


def speed_table(results: dict) -> str:
    """What generating takes: real-time factor, sequential passes and time to first audio, predicted and measured."""
    strategies = results["strategies"]
    best_rtf = min(s["speed"]["rtf"] for s in strategies)
    best_first = min(s["speed"]["first_audio_seconds"] for s in strategies)
    numbers, rows = colours(results), []
    for one in strategies:
        speed, cost = one["speed"], one["cost"]
        cells = [
            parts.best(f"{speed['rtf']:.3f}", speed["rtf"] == best_rtf),
            f"{one['positions_per_second']:.4g}",
            f"{cost['frames']}",
            f"{cost['predicted_passes']:.5g}",
            f"{cost['measured_passes']:.5g}",
            f"{cost['lookahead_frames']:.4g}",
            f"{cost['first_audio_passes']:.4g}",
            seconds(speed["first_audio_predicted_seconds"]),
            parts.best(seconds(speed["first_audio_seconds"]), speed["first_audio_seconds"] == best_first),
        ]
        rows.append((parts.named(numbers[one["name"]], one), cells, False))
    return table(_SPEED, rows, "Speed")


def _bits(one: dict, is_best: bool) -> Markup:
    ends = (f"{one[key]:.1f}" for key in ("bits_per_second", "bits_per_second_low", "bits_per_second_high"))
    return parts.interval(*ends, is_best, one["likelihood"])


def _spread(spread: dict, scale: float) -> Markup:
    if spread["sd"] is None:
        return NONE
    return parts.interval(*(f"{scale * spread[key]:.1f}" for key in ("sd", "min", "max")))


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
