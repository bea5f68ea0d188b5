"""The order on the grid as an SVG: codebooks as rows, frames as columns, each cell coloured by its step.

It needs the order alone, no code of the strategy's. Self-contained: no external fonts, scripts or style sheets. Text
has the colour of the page around it or, in a file of its own, of the colour scheme.
"""

from xml.sax.saxutils import escape, quoteattr

import numpy as np

from audiolm_jax.serialization import Grid, cost, label, layout

# Viridis (S. van der Walt and N. Smith, matplotlib 1.5, CC0) at nine even places: perceptually uniform.
_RAMP = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
_STYLE = (
    ".order text{font:11px system-ui,sans-serif;fill:currentColor}"
    ".order .label{font-size:10px;opacity:.7}.order .name{font-size:13px;font-weight:600}"
    ".order .dark{fill:#fff}.order .light{fill:#111}"
    ".order rect{stroke:currentColor;stroke-opacity:.15}"
    ".order .end{stroke-opacity:.8;stroke-dasharray:3 2}"
    "svg.order:root{color:#1b1b1b}@media(prefers-color-scheme:dark){svg.order:root{color:#e8e8e8}}"
)
_CELL, _GAP, _LEFT, _TOP = 30, 2, 34, 8


def svg(grid: Grid, frames: int = 8, title: str = "") -> str:
    """An SVG element of a segment of `frames` frames, with a title (default: the strategy) and a caption.

    A cell shows its step, from 1; the dashed cell is the end of audio. Raises InputError for no frames.
    """
    step_TQ = layout.order_TQ(grid, frames)
    codebooks, title = grid.codebooks, title or label(grid.config.strategy)
    steps, ahead = cost.steps(grid, frames), cost.look_ahead(grid, frames)

    body = [_text(_LEFT - 8, _middle(q), f"q{q}", "end", "label") for q in range(codebooks)]
    body += [_text(_x(t) + _CELL / 2, _y(codebooks) + 12, f"t{t}", "middle", "label") for t in range(frames)]
    for t, q in np.ndindex(frames, codebooks):
        body += _cell(t, q, int(step_TQ[t, q]), steps, "")
    if grid.causal_levels:
        body += _cell(frames, 0, int(grid.order(frames, 0, frames)), steps, "end")
        body.append(_text(_x(frames) + _CELL / 2, _y(1) + 9, "end", "middle", "label"))

    caption = f"{frames} frames × {codebooks} codebooks: {_count(steps, 'step')}"
    if grid.depth:
        caption += f" at {_count(cost.causal_positions(grid, frames), 'position')}"
    waits = f"look-ahead before frame 0: {_count(ahead, 'frame') if ahead else 'none'}"
    width = max(_x(frames + 1) + 4, _LEFT + round(6.1 * max(len(caption), len(waits))))
    height = _y(codebooks) + 66
    description = f"{caption}; {waits}. Each cell shows the step at which it is predicted."
    attributes = f'width="{width}" height="{height}" role="img" aria-label={quoteattr(title)}'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="order" viewBox="0 0 {width} {height}" {attributes}>',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{_STYLE}</style>",
            *body,
            _text(_LEFT, _y(codebooks) + 33, title, "start", "name"),
            _text(_LEFT, _y(codebooks) + 47, caption, "start", ""),
            _text(_LEFT, _y(codebooks) + 61, waits, "start", ""),
            "</svg>",
        ]
    )


def _cell(t: int, q: int, step: int, steps: int, kind: str) -> list[str]:
    red, green, blue = _colour(step / max(steps - 1, 1))
    # Relative luminance (WCAG 2.2) above which black reads better than white.
    linear = [(c / 255) ** 2.2 for c in (red, green, blue)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18
    attributes = f' class="{kind}"' if kind else ""
    rect = (
        f'<rect{attributes} x="{_x(t)}" y="{_y(q)}" width="{_CELL}" height="{_CELL}" rx="4" '
        f'fill="#{red:02x}{green:02x}{blue:02x}"/>'
    )
    return [rect, _text(_x(t) + _CELL / 2, _middle(q), str(step + 1), "middle", "light" if light else "dark")]


def _colour(share: float) -> tuple[int, int, int]:
    """Red, green and blue of the ramp at 0 <= share <= 1."""
    stops = np.array([tuple(bytes.fromhex(stop)) for stop in _RAMP], float)
    at = share * (len(stops) - 1)
    return tuple(round(np.interp(at, np.arange(len(stops)), channel)) for channel in stops.T)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _x(t: int) -> int:
    return _LEFT + t * (_CELL + _GAP)


def _y(q: int) -> int:
    return _TOP + q * (_CELL + _GAP)


def _middle(q: int) -> float:
    return _y(q) + _CELL / 2 + 4


def _text(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text{classes} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'
