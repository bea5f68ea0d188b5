"""Differences between strategies of one size, as matrices: row minus column, with intervals."""

from audiolm_jax.compare.report.tables import NONE, colours, escape, key

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


def told(pair: dict) -> int:
    """-1: a is smaller for sure, 1: larger, 0: the interval holds 0, or what is known is only a bound the wrong way."""
    if pair["high"] < 0 and pair["bound"] in (None, "upper"):
        return -1
    return 1 if pair["low"] > 0 and pair["bound"] in (None, "lower") else 0


def signed(value: float, form: str = "{:.1f}") -> str:
    """With a real minus sign."""
    return form.format(value).replace("-", "−")


def matrices(results: dict) -> str:
    """For every size with at least two strategies, one matrix per metric."""
    parts = []
    for size in dict.fromkeys(one["size"] for one in results["strategies"]):
        members = [one for one in results["strategies"] if one["size"] == size]
        for metric, title, scale, form in _METRICS if len(members) > 1 else ():
            parts.append(_matrix(results, members, metric, title, scale, form))
    return "".join(parts)


def _matrix(results: dict, members: list[dict], metric: str, title: str, scale: float, form: str) -> str:
    symbols = colours(results)
    head = "".join(f'<th scope="col">{escape(one["name"])}</th>' for one in members)
    rows = []
    for one in members:
        cells = "".join(_cell(results, one["name"], other["name"], metric, scale, form) for other in members)
        symbol = key(symbols[one["name"]], metric == "bits_per_second" and one["likelihood"] == "bound")
        rows.append(f'<tr><th class="first" scope="row">{symbol}{escape(one["name"])}</th>{cells}</tr>')
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{title}: differences">'
        f'<table class="results matrix"><thead><tr class="groups"><th class="first"></th>'
        f'<th class="group" colspan="{len(members)}">{title}: row minus column</th></tr>'
        f'<tr><th class="first"></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(results: dict, a: str, b: str, metric: str, scale: float, form: str) -> str:
    if a == b:
        return f"<td>{NONE}</td>"
    pair = between(results, a, b, metric)
    kind = {-1: ' class="less"', 0: "", 1: ' class="more"'}[told(pair)]
    low, high = (signed(scale * pair[end], form) for end in ("low", "high"))
    value = _SIGN[pair["bound"]] + signed(scale * pair["difference"], form)
    return f"<td{kind}><b>{value}</b><br><small>{low} to {high}</small></td>"
