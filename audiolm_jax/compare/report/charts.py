"""Inline SVG charts without a library: lines, points and forests over nice axes, coloured by the page's CSS classes.

A series is {"name", "index" (of the strategy: decides colour and marker), "points": [(x, y), ...]}, a point series may
carry "hollow" and "interval", the ends of its bar. The numbers under the pointer are read off `data-points` by page.js.
"""

import itertools
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
    step = min((power * m for m in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / raw)))
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
    """Short: 1200 -> "1,200", 0.05 -> "0.05", 2.5e12 -> "2.5e12", -1 -> "−1"."""
    if value <= 0:
        return f"−{number(-value)}" if value else "0"
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
    """Maps data to the drawing. A logarithmic axis leaves room on both sides; with log_y both have the same range."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log_x: bool = False, log_y: bool = False):
        if log_y:
            xs = ys = [*xs, *ys]
        low, high = min(xs), max(xs)
        if log_x:
            self.x = _Scale(low / 1.6, high * 1.6, log=True)
        else:
            self.x = _Scale(low, high if high > low else low + 1)
        if log_y:
            self.y = _Scale(min(ys) / 1.6, max(ys) * 1.6, log=True)
        else:
            spread = (max(ys) - min(ys)) or abs(max(ys)) * 0.1 or 1
            below = min(ys) - 0.08 * spread
            self.y = _Scale(below if min(ys) < 0 else max(below, 0.0), max(ys) + 0.08 * spread)

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
        parts.append(marker(line["index"], *at[-1], 4, line.get("hollow", False)))
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
        front = [(end, end) for end in (axes.x.low, axes.x.high)]
    else:
        front = sorted(p for p in points if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points))
    at = [axes.at(*p) for p in front]
    if len(front) > 1:
        parts.append(f'<path class="front" d="M{"L".join("{},{}".format(*p) for p in at)}"/>')
    taken = [box for start, end in itertools.pairwise(at) for box in _boxes(start, end)]
    for item, point in zip(series, points):
        x, y = axes.at(*point)
        taken.append((x - 9, y - 9, x + 9, y + 9))
        for low, top in [[axes.at(point[0], end)[1] for end in item["interval"]]] if item.get("interval") else []:
            parts.append(f'<line class="error s{item["index"] % 7}" x1="{x}" x2="{x}" y1="{top}" y2="{low}"/>')
            taken.append((x - 2, top, x + 2, low))
        readout.append(_readout(item, [(x, y)]))
    for item, point in zip(series, points):
        parts.append(marker(item["index"], *axes.at(*point), 6, item.get("hollow", False)))
        parts.append(_label(item["name"], *axes.at(*point), taken))
    return _svg(parts, readout, title, x_label, y_label)


def _boxes(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float, float, float]]:
    """Small boxes along a line: what a label must not cover."""
    count = 1 + int(math.dist(start, end) / 4)
    middles = [[a + (b - a) * n / count for a, b in zip(start, end)] for n in range(count + 1)]
    return [(x - 2, y - 2, x + 2, y + 2) for x, y in middles]


def text_box(name: str, left: float, base: float) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) of a name, as wide and high as it is on a narrow screen (page.css)."""
    return left, base - 13, left + 9.2 * len(name), base + 4


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """A name near its point, at the nearest place where it covers no box of `taken`; joined to it if that is far."""
    width = text_box(name, 0, 0)[2]
    places = [(11, 5), (-11 - width, 5), (-width / 2, -13), (-width / 2, 25)]
    for far in range(14, 130, 6):
        for turn in range(16):
            dx, dy = far * math.cos(turn * math.pi / 8), far * math.sin(turn * math.pi / 8)
            places.append((dx if dx > 0.1 else dx - width if dx < -0.1 else -width / 2, dy + 5))
    boxes = [(place, text_box(name, x + place[0], y + place[1])) for place in places]
    inside = [
        (place, box)
        for place, box in boxes
        if box[0] > _LEFT and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - _BOTTOM
    ]
    covered = [sum(overlap(box, other) for other in taken) for _, box in inside]
    (dx, dy), box = inside[covered.index(min(covered))]
    taken.append(box)
    line = ""
    if max(abs(dy - 5), dx, -dx - width) > 24:
        end = min(max(x, box[0]), box[2]), box[3] if y > box[3] else box[1] if y < box[1] else dy + y - 5
        line = f'<line class="tick" x1="{x}" y1="{y}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
        taken += _boxes((x, y), end)
    # The text may be narrower than its box: it keeps to the side where its point is.
    anchor, start = next(
        (anchor, box[0] + share * width)
        for anchor, share, holds in (("start", 0, dx > 0), ("end", 1, dx <= -width), ("middle", 0.5, True))
        if holds
    )
    return f'{line}<text class="name" x="{start:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{escape(name)}</text>'


def overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def forest_chart(series: list[dict], x_label: str, title: str, references: Sequence[tuple[str, float]] = ()) -> str:
    """A row per series: its marker over its interval, and a dot for each of its "seeds". Less is better.

    references: names and values of vertical lines, named above the rows where no other line passes.
    """
    ends = [x for item in series for x in (item["points"][0][0], *item.get("interval", ()), *item["seeds"])]
    ends += [value for _, value in references]
    spread = (max(ends) - min(ends)) or abs(max(ends)) * 0.1 or 1
    scale = _Scale(max(min(ends) - 0.06 * spread, min(0.0, min(ends))), max(ends) + 0.06 * spread)
    left = 14 + max(text_box(item["name"], 0, 0)[2] for item in series)
    top = 20 * len(references) + 8
    bottom, middle = top + 34 * len(series), (left + WIDTH - _RIGHT) / 2

    def at(value: float) -> float:
        return round(left + scale.share(value) * (WIDTH - _RIGHT - left), 1)

    parts, readout = [], []
    for tick in scale.ticks():
        parts.append(f'<line class="gridline" x1="{at(tick)}" x2="{at(tick)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{at(tick)}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>')
    leftward = [at(value) > middle for _, value in references]  # the names then stand left of their lines
    for row, (name, value) in enumerate(sorted(references, key=lambda pair: pair[1], reverse=any(leftward))):
        x, end = at(value), at(value) > middle
        parts.append(f'<line class="front" x1="{x}" x2="{x}" y1="{20 * row + 6}" y2="{bottom}"/>')
        parts.append(
            f'<text x="{x - 6 if end else x + 6}" y="{20 * row + 17}" text-anchor="{"end" if end else "start"}">'
            f"{escape(name)}</text>"
        )
    for row, item in enumerate(series):
        y, x, kind = top + 34 * row + 15, at(item["points"][0][0]), f"s{item['index'] % 7}"
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 5}" text-anchor="end">{escape(item["name"])}</text>')
        if item.get("interval"):
            low, high = map(at, item["interval"])
            parts.append(f'<line class="error {kind}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
        parts += [f'<circle class="seed {kind}" cx="{at(seed)}" cy="{y + 11}" r="2.5"/>' for seed in item["seeds"]]
        parts.append(marker(item["index"], x, y, 5, item.get("hollow", False)))
        readout.append(_readout(item, [(x, y)]))
    parts.append(f'<line class="axis" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>')
    return _svg(parts, readout, title, x_label, "interval", bottom + 46)


def _readout(item: dict, at: list[tuple[float, float]]) -> dict:
    texts = [[part if isinstance(part, str) else number(part) for part in point] for point in item["points"]]
    rows = [[x, y, *text] for (x, y), text in zip(at, texts)]
    return {"name": item["name"], "index": item["index"] % 7, "at": rows}


def _svg(parts: list[str], readout: list[dict], title: str, x_label: str, y_label: str, height: float = HEIGHT) -> str:
    data = escape(json.dumps({"x": x_label, "y": y_label, "series": readout}))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}" '
        f'data-points="{data}">{"".join(parts)}<g class="hover"></g></svg>'
    )
