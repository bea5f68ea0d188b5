"""The charts of the page: training curves, what compute and time buy, and predicted against measured time."""

from markupsafe import Markup

from audiolm_jax.compare.report import charts
from audiolm_jax.compare.report.tables import colours
from audiolm_jax.compare.report.templates import parts

_BITS, _CER = "bits per second of audio", "character errors, %"


def training(results: dict) -> list[Markup]:
    """Bits while training, and generation time against what the cost model predicts."""
    numbers, curves, times = colours(results), [], []
    for entry in results["strategies"]:
        scale = entry["training_flops"] / max(entry["training_steps"], 1) / 1e12
        curve = [(step * scale, bits) for step, bits in entry.get("validation_curve") or entry["training_curve"]]
        if len(curve) > 12:  # the first steps fall so far that nothing else would be seen
            curve = [point for point in curve if point[0] >= 0.05 * curve[-1][0]]
        style = {"name": entry["name"], "index": numbers[entry["name"]]}
        curves.append({**style, "points": curve})
        speed = entry["speed"]
        seconds = max(speed["generation_predicted_seconds"], 1e-9), max(speed["generation_seconds"], 1e-9)
        times.append({**style, "points": [seconds]})
    kind = "held-out" if all(s.get("validation_curve") for s in results["strategies"]) else "training"
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
        "Of the sentences spoken with a clock. On the dotted line a prediction would be exact; it counts arithmetic "
        "and memory alone, so what lies above the line is overhead of the loop and the codec."
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
    metrics = (
        ("Bits", _BITS, lambda entry: [entry[f"bits_per_second{end}"] for end in ("", "_low", "_high")]),
        ("Character errors", _CER, lambda entry: [100 * entry["cer"][end] for end in ("value", "low", "high")]),
    )
    numbers, cards = colours(results), []
    for label, short, x in axes:
        for metric, y_label, values in metrics:
            series = []
            for entry in results["strategies"]:
                y, *ends = values(entry)
                hollow = metric == "Bits" and entry["likelihood"] == "bound"
                point = {"name": entry["name"], "index": numbers[entry["name"]], "points": [(x(entry), y)]}
                series.append(point | {"interval": ends, "hollow": hollow})
            chart = charts.scatter_chart(series, label, y_label, f"{metric} against {short}")
            cards.append(parts.chart(f"{metric} against {short}", chart))
    return cards
