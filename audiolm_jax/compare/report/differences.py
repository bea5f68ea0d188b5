"""Differences between strategies of one size, as matrices: row minus column, with intervals."""

from markupsafe import Markup

from audiolm_jax.compare.report.schema import meaningless
from audiolm_jax.compare.report.tables import colours, lacking, signed
from audiolm_jax.compare.report.templates import parts

_METRICS = (("bits_per_second", "Bits per second of audio", 1), ("cer", "Character error rate, points", 100))
_SIGN = {None: "", "upper": "≤ ", "lower": "≥ ", "both": "~ "}
_TURNED = {None: None, "upper": "lower", "lower": "upper", "both": "both"}


def between(results: dict, a: str, b: str, metric: str) -> dict:
    """The difference a minus b, also where the results hold b minus a."""
    for pair in results["differences"]:
        if pair["metric"] == metric and (pair["a"], pair["b"]) == (a, b):
            return pair
        if pair["metric"] == metric and (pair["a"], pair["b"]) == (b, a):
            low, high = (None if end is None else -end for end in (pair["high"], pair["low"]))
            turned = {"difference": -pair["difference"], "low": low, "high": high}
            return pair | turned | {"a": a, "b": b, "bound": _TURNED[pair["bound"]]}
    raise KeyError((a, b, metric))


def sign(pair: dict) -> int:
    """Sign of a significant difference; 0 if the interval contains 0 or is missing, or a bound leaves the sign open."""
    if pair["low"] is None:
        return 0
    if pair["high"] < 0 and pair["bound"] in (None, "upper"):
        return -1
    return 1 if pair["low"] > 0 and pair["bound"] in (None, "lower") else 0


def matrices(results: dict) -> list[Markup]:
    """For every size with at least two strategies, one matrix per metric that means something."""
    result, numbers, metrics = [], colours(results), _METRICS[:1] if meaningless(results) else _METRICS
    for size in dict.fromkeys(entry["size"] for entry in results["strategies"]):
        members = [entry for entry in results["strategies"] if entry["size"] == size]
        for metric, title, scale in metrics if len(members) > 1 else ():
            rows = []
            for entry in members:
                cells = [_cell(results, entry["name"], other["name"], metric, scale) for other in members]
                rows.append((entry, metric == "bits_per_second" and entry["likelihood"] == "bound", cells))
            result.append(parts.matrix(title, numbers, members, rows))
    return result


def _cell(results: dict, row: str, column: str, metric: str, scale: float) -> dict[str, str]:
    """Row minus column; {} on the diagonal."""
    if row == column:
        return {}
    pair = between(results, row, column, metric)
    kind, value = {-1: "less", 0: "", 1: "more"}[sign(pair)], _SIGN[pair["bound"]] + signed(scale * pair["difference"])
    return {"kind": kind, "value": value, "interval": interval(results, pair, scale)}


def interval(results: dict, pair: dict, scale: float = 1) -> str:
    """ "−1.0 to 2.0", times `scale`, or the reason why there is none."""
    if pair["low"] is None:
        first = next(entry for entry in results["strategies"] if entry["name"] == pair["a"])
        return f"no interval: {lacking(results, first, pair['metric'])}"
    return f"{signed(scale * pair['low'])} to {signed(scale * pair['high'])}"
