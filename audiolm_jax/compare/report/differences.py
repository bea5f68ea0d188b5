"""Differences between strategies of one size, as matrices: row minus column, with intervals."""

from markupsafe import Markup

from audiolm_jax.compare.report.tables import colours
from audiolm_jax.compare.report.templates import parts

_METRICS = (
    ("bits_per_second", "Bits per second of audio", 1, "{:.1f}"),
    ("cer", "Character error rate, points", 100, "{:.1f}"),
)
_SIGN = {None: "", "upper": "≤ ", "lower": "≥ ", "both": "~ "}
_TURNED = {None: None, "upper": "lower", "lower": "upper", "both": "both"}


def between(results: dict, a: str, b: str, metric: str) -> dict:
    """The difference a minus b, whichever way round the results hold it."""
    for pair in results["differences"]:
        if pair["metric"] == metric and (pair["a"], pair["b"]) == (a, b):
            return pair
        if pair["metric"] == metric and (pair["a"], pair["b"]) == (b, a):
            turned = {"difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}
            return pair | turned | {"a": a, "b": b, "bound": _TURNED[pair["bound"]]}
    raise KeyError((a, b, metric))


def sign(pair: dict) -> int:
    """Sign of a significant difference; 0 if the interval holds 0, or a bound leaves it open."""
    if pair["high"] < 0 and pair["bound"] in (None, "upper"):
        return -1
    return 1 if pair["low"] > 0 and pair["bound"] in (None, "lower") else 0


def signed(value: float, form: str = "{:.1f}") -> str:
    """With a real minus sign."""
    return form.format(value).replace("-", "−")


def matrices(results: dict) -> list[Markup]:
    """For every size with at least two strategies, one matrix per metric."""
    result, numbers = [], colours(results)
    for size in dict.fromkeys(one["size"] for one in results["strategies"]):
        members = [one for one in results["strategies"] if one["size"] == size]
        for metric, title, scale, form in _METRICS if len(members) > 1 else ():
            rows = [
                (
                    one,
                    metric == "bits_per_second" and one["likelihood"] == "bound",
                    [_cell(results, (one["name"], other["name"], metric), scale, form) for other in members],
                )
                for one in members
            ]
            result.append(parts.matrix(title, numbers, members, rows))
    return result


def _cell(results: dict, names: tuple[str, str, str], scale: float, form: str) -> dict[str, str]:
    """{} on the diagonal. names: of the row, of the column, of the metric."""
    if names[0] == names[1]:
        return {}
    pair = between(results, *names)
    return {
        "kind": {-1: "less", 0: "", 1: "more"}[sign(pair)],
        "value": _SIGN[pair["bound"]] + signed(scale * pair["difference"], form),
        "low": signed(scale * pair["low"], form),
        "high": signed(scale * pair["high"], form),
    }
