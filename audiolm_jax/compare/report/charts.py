"""Inline SVG charts without a library: lines and points over nice axes, coloured by the page's CSS classes.

A series is {"name", "index" (of the strategy: decides colour and marker), "points": [(x, y), ...]}, a point series may
carry "hollow" and "interval", the ends of its bar. The numbers under the pointer are read off `data-points` by page.js.
"""

import json
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 520, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 46
MARKERS = ("circle", "square", "diamond", "triangle", "down", "cross", "plus")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) that lie in [low, high]."""
    if not high > low:
        high = low + (abs(low) or 1)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; fewer where that makes too many."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]
        if len(ticks) <= 7:
            break
    return ticks


def number(value: float) -> str:
    """Short: 1200 -> "1,200", 0.05 -> "0.05", 2.5e12 -> "2.5e12"."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.4g}"


class _Scale:
    """Numbers from `low` to `high` on an axis, linear or logarithmic."""

    def __init__(self, low: float, high: float, log: bool = False):
        self.low, self.high, self.log = low, high, log

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        ticks = log_ticks(self.low, self.high) if self.log else []
        return ticks if len(ticks) > 1 else nice_ticks(self.low, self.high)


class _Axes:
    """Maps data to the drawing. A logarithmic axis leaves room on both sides."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log_x: bool = False, log_y: bool = False):
        low, high = min(xs), max(xs)
        if log_x:
            self.x = _Scale(low / 1.6, high * 1.6, log=True)
        else:
            self.x = _Scale(low, high if high > low else low + 1)
        if log_y:
            self.y = _Scale(min(ys) / 1.6, max(ys) * 1.6, log=True)
        else:
            spread = (max(ys) - min(ys)) or abs(max(ys)) * 0.1 or 1
            self.y = _Scale(min(ys) - 0.08 * spread, max(ys) + 0.08 * spread)

    def at(self, x: float, y: float) -> tuple[float, float]:
        right, up = self.x.share(x) * (WIDTH - _LEFT - _RIGHT), self.y.share(y) * (HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + right, 1), round(HEIGHT - _BOTTOM - up, 1)

    def frame(self, x_label: str, y_label: str) -> str:
        parts = []
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        for tick in self.y.ticks():
            y = self.at(self.x.low, tick)[1]
            parts.append(f'<line class="gridline" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
        for tick in self.x.ticks():
            x = self.at(tick, self.y.low)[0]
            parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        middle = (_LEFT + right) / 2
        parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
        middle = (_TOP + bottom) / 2
        parts.append(
            f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return "".join(parts)


def marker(index: int, x: float, y: float, size: float = 5, hollow: bool = False) -> str:
    """The marker of strategy number `index`: its shape tells strategies apart where colour does not."""
    shape = MARKERS[index % len(MARKERS)]
    kind = f'class="mark s{index % 7}{" hollow" if hollow else ""}"'
    r = size
    if shape == "circle":
        return f'<circle {kind} cx="{x}" cy="{y}" r="{r}"/>'
    a, b = 0.45 * r, 1.25 * r
    plus = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    outline = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "diamond": [(0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)],
        "triangle": [(0, -1.2 * r), (1.2 * r, r), (-1.2 * r, r)],
        "down": [(0, 1.2 * r), (1.2 * r, -r), (-1.2 * r, -r)],
        "cross": [((x - y) * 0.75, (x + y) * 0.75) for x, y in plus],
        "plus": plus,
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outline)
    return f'<polygon {kind} points="{points}"/>'


def line_chart(series: list[dict], x_label: str, y_label: str, title: str) -> str:
    """Lines over a linear x axis; a title for screen readers. "" where there is nothing to draw."""
    series = [line for line in series if len(line["points"]) > 1]
    if not series:
        return ""
    ys = [y for line in series for _, y in line["points"]]
    axes = _Axes([x for line in series for x, _ in line["points"]], ys)
    parts, readout = [axes.frame(x_label, y_label)], []
    for line in series:
        at = [axes.at(x, y) for x, y in line["points"]]
        path = "M" + "L".join(f"{x},{y}" for x, y in at)
        parts.append(f'<path class="line s{line["index"] % 7}" d="{path}"/>')
        parts.append(marker(line["index"], *at[-1], size=4))
        readout.append(_readout(line, at))
    return _svg(parts, readout, title, x_label, y_label)


def scatter_chart(series: list[dict], x_label: str, y_label: str, title: str, diagonal: bool = False) -> str:
    """One labelled point per series over a logarithmic x axis, with its interval, and the Pareto front.

    Less is better on both axes. diagonal: both are logarithmic, and the line is x = y instead of the front.
    """
    if not series:
        return ""
    points = [item["points"][0] for item in series]
    ys = [y for item, (_, middle) in zip(series, points) for y in (middle, *item.get("interval", ()))]
    axes = _Axes([x for x, _ in points], ys, log_x=True, log_y=diagonal)
    parts, readout = [axes.frame(x_label, y_label)], []
    if diagonal:
        ends = max(axes.x.low, axes.y.low), min(axes.x.high, axes.y.high)
        front = [(end, end) for end in ends] if ends[0] < ends[1] else []
    else:
        front = sorted(p for p in points if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points))
    if len(front) > 1:
        path = "M" + "L".join("{},{}".format(*axes.at(*p)) for p in front)
        parts.append(f'<path class="front" d="{path}"/>')
    labels = [(x - 8, y + 5, 16) for x, y in (axes.at(*p) for p in points)]  # no name covers a marker
    for item, (px, py) in zip(series, points):
        x, y = axes.at(px, py)
        if "interval" in item:
            low, top = (axes.at(px, end)[1] for end in item["interval"])
            parts.append(f'<line class="error s{item["index"] % 7}" x1="{x}" x2="{x}" y1="{top}" y2="{low}"/>')
        parts.append(marker(item["index"], x, y, 6, item.get("hollow", False)))
        parts.append(_label(item["name"], x, y, labels))
        readout.append(_readout(item, [(x, y)]))
    return _svg(parts, readout, title, x_label, y_label)


def _label(name: str, x: float, y: float, labels: list[tuple[float, float, float]]) -> str:
    """A name beside its point, at the first of six positions that no label covers."""
    width = 7.2 * len(name)
    places = [(11, 4), (-11 - width, 4), (-width / 2, -13), (-width / 2, 22), (11, -12), (11, 20)]
    for dx, dy in places:
        left, base = x + dx, y + dy
        inside = left > _LEFT and left + width < WIDTH and _TOP < base < HEIGHT - _BOTTOM
        free = all(abs(base - b) > 14 or left + width < l or left > l + w for l, b, w in labels)
        if inside and free:
            break
    labels.append((left, base, width))
    return f'<text class="name" x="{left:.1f}" y="{base:.1f}">{escape(name)}</text>'


def _readout(item: dict, at: list[tuple[float, float]]) -> dict:
    rows = [[x, y, number(px), number(py)] for (x, y), (px, py) in zip(at, item["points"])]
    return {"name": item["name"], "index": item["index"] % 7, "at": rows}


def _svg(parts: list[str], readout: list[dict], title: str, x_label: str, y_label: str) -> str:
    data = escape(json.dumps({"x": x_label, "y": y_label, "series": readout}))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-points="{data}">{"".join(parts)}<g class="hover"></g></svg>'
    )
