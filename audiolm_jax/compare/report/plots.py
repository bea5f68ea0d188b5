"""The charts of the page: forests, training curves, what compute and time buy, predicted against measured time."""

from markupsafe import Markup

from audiolm_jax.compare.report import charts
from audiolm_jax.compare.report.schema import meaningless
from audiolm_jax.compare.report.tables import colours, lacking
from audiolm_jax.compare.report.templates import parts

_BITS, _CER = "bits per second of audio", "character errors, %"


def _metrics(results: dict) -> list[tuple]:
    """(title, axis, metric, values of an entry in the unit of the axis) of every metric that means something."""
    bits = "Bits", _BITS, "bits_per_second", lambda entry: [entry[f"bits_per_second{e}"] for e in ("", "_low", "_high")]
    if meaningless(results):
        return [bits]
    ends = ("value", "low", "high")

    def errors(entry: dict) -> list[float | None]:
        return [None if entry["cer"][end] is None else 100 * entry["cer"][end] for end in ends]

    return [bits, ("Character errors", _CER, "cer", errors)]


def forests(results: dict) -> list[Markup]:
    """Bits and character errors of every strategy with interval, seeds, and what they are to be compared with."""
    base, numbers, cards = results["baselines"], colours(results), []
    rates = {name: 100 * results["ceilings"][name]["cer"]["value"] for name in ("real", "codec")}
    references = {
        "bits_per_second": (
            ("unigram codes", base["unigram_bits_per_second"]),
            ("uniform codes", base["uniform_bits_per_second"]),
        ),
        "cer": (("recordings", rates["real"]), ("recordings after the codec", rates["codec"])),
    }
    for title, label, metric, values in _metrics(results):
        series = []
        for entry in results["strategies"]:
            item = _point(entry, numbers, metric, values)
            ends = [f"{end:.1f}" for end in item.get("interval", ())]
            text = " to ".join(ends) if ends else f"none: {lacking(results, entry, metric)}"
            scale = 100 if metric == "cer" else 1
            series.append(
                item | {"points": [(values(entry)[0], text)], "seeds": [scale * s[metric] for s in entry["seeds"]]}
            )
        chart = charts.forest_chart(series, label, f"{title} of every strategy", references[metric])
        cards.append(parts.chart(f"{title} of held-out speech" if metric != "cer" else title, chart))
    return cards


def _point(entry: dict, numbers: dict[str, int], metric: str, values) -> dict:
    """The name, colour, marker and interval of an entry in a chart."""
    _, *ends = values(entry)
    hollow = metric == "bits_per_second" and entry["likelihood"] == "bound"
    item = {"name": entry["name"], "index": numbers[entry["name"]], "hollow": hollow}
    return item if ends[0] is None else item | {"interval": ends}


def training(results: dict) -> list[Markup]:
    """Bits while training, and generation time against what the cost model predicts."""
    numbers, curves, times = colours(results), [], []
    held_out = all(entry.get("validation_curve") for entry in results["strategies"])
    for entry in results["strategies"]:
        scale = entry["training_flops"] / max(entry["training_steps"], 1) / 1e12
        measured = entry["validation_curve"] if held_out else entry["training_curve"]
        curve = [(step * scale, bits) for step, bits in measured]
        if len(curve) > 12:  # the first steps fall so far that nothing else would be seen
            curve = [point for point in curve if point[0] >= 0.05 * curve[-1][0]]
        hollow = entry["likelihood"] == "bound"
        style = {"name": entry["name"], "index": numbers[entry["name"]], "hollow": hollow}
        curves.append({**style, "points": curve})
        speed = entry["speed"]
        seconds = max(speed["generation_predicted_seconds"], 1e-9), max(speed["generation_seconds"], 1e-9)
        times.append({**style, "points": [seconds]})
    kind = "held-out" if held_out else "training"
    lines = charts.line_chart(
        curves, "training compute, TFLOP", _BITS, f"Bits per second on {kind} speech over compute"
    )
    measured = charts.scatter_chart(
        times,
        "predicted seconds (roofline of the passes)",
        "measured seconds",
        "Generation time, measured against predicted",
        diagonal=True,
    )
    caption = (
        "Of the sentences spoken with a clock. On the dotted line a prediction would be exact. It counts arithmetic "
        "and memory alone; the rest is overhead of the loop and the codec."
    )
    legend = parts.legend(numbers, results["strategies"])
    return [
        parts.chart(f"Bits on {kind} speech while training", lines, legend),
        parts.chart("Generation time, predicted and measured", measured, caption=caption),
    ]


def trade_offs(results: dict) -> list[Markup]:
    """Bits and character errors against training compute, sequential passes and seconds of work."""
    rate = results["codec"]["frame_rate"]
    axes = (
        ("training compute, TFLOP", "training compute", lambda entry: entry["training_flops"] / 1e12),
        (
            "sequential passes per second of audio",
            "sequential passes",
            lambda entry: max(entry["cost"]["measured_passes"], 1) * rate / entry["cost"]["frames"],
        ),
        ("seconds of work per second of audio", "seconds", lambda entry: max(entry["speed"]["rtf"], 1e-6)),
    )
    numbers, cards = colours(results), []
    for label, short, x in axes:
        xs = [x(entry) for entry in results["strategies"]]
        if max(xs) < 1.1 * min(xs) and len(xs) > 1:
            continue  # it is equal between them
        for title, y_label, metric, values in _metrics(results):
            series = [
                _point(entry, numbers, metric, values) | {"points": [(x(entry), values(entry)[0])]}
                for entry in results["strategies"]
            ]
            chart = charts.scatter_chart(series, label, y_label, f"{title} against {short}")
            cards.append(parts.chart(f"{title} against {short}", chart))
    return cards
