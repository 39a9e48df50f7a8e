"""Plots as SVG text: they show in Markdown, in a page without JavaScript, and can be zoomed where serve/web/plot.js runs.

A plot is a `Plot` of `Series`. Its lines stand in an inner <svg class="view"> in units of the frame (0 to 580, 0 to 240);
`data-x` and `data-y` of the outer one tell which range that is, so that a script can zoom and read values without knowing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WEB = Path(__file__).parents[1] / "serve" / "web"  # style and script of plots are one file each, for reports and live pages
WIDTH, LEFT, TOP, FRAME_WIDTH, FRAME_HEIGHT = 660, 64, 12, 580, 240
MOST_POINTS = 2000  # more than a plot has pixels
COLOURS = 6  # that plot.css has

Values = Sequence[float | None]
Scale = Callable[[float], float]


@dataclass
class Series:
    """One line. `faint` draws it thin and pale, under a smoothed one; None leaves a gap."""

    name: str
    x: Sequence[float]
    y: Values
    colour: int = 0
    faint: bool = False
    dots: bool = False


@dataclass
class Plot:
    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    low: float | None = None  # of the y axis; None takes what the lines that are not faint need
    high: float | None = None
    log_x: bool = False  # not in a page: plot.js zooms linear axes alone


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values, about `count` of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs((high - low) / step - count))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from 10**low to 10**high."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= math.log10(factor) + power <= high]


def label(value: float, step: float) -> str:
    """A tick's text: no more digits than the step between ticks needs, and k, M, B for large numbers."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and step >= unit / 1000:
            return f"{value / unit:.6g}{name}"
    if value and abs(step) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def draw(plot: Plot, *, alone: bool = False) -> str:
    """The plot as <svg>; `alone` makes it a file of its own, with its style."""
    along = math.log10 if plot.log_x else float
    x_low, x_high = _range([along(x) for series in plot.series for x in series.x], 0.0)
    strong = [y for series in plot.series if not series.faint for y in series.y]
    y_low, y_high = _range([y for y in strong if y is not None and math.isfinite(y)], 0.06)
    y_low, y_high = (y_low if plot.low is None else plot.low), (y_high if plot.high is None else plot.high)

    def across(x: float) -> float:
        return (along(x) - x_low) / (x_high - x_low) * FRAME_WIDTH

    def down(y: float) -> float:
        return max(-9999.0, min(9999.0, (y_high - y) / (y_high - y_low) * FRAME_HEIGHT))

    lines = [_line(series, across, down) for series in plot.series]
    legend = _legend([series for series in plot.series if not series.faint])
    named = f'aria-label="{escape(plot.title)}: {escape(plot.y_label)} over {escape(plot.x_label)}"'
    bottom = TOP + FRAME_HEIGHT
    middle = f'x="{LEFT + FRAME_WIDTH // 2}" y="{bottom + 38}" text-anchor="middle"'
    frame = f'x="{LEFT}" y="{TOP}" width="{FRAME_WIDTH}" height="{FRAME_HEIGHT}" viewBox="0 0 {FRAME_WIDTH} {FRAME_HEIGHT}"'
    height = bottom + 48 + (22 * legend.count("<g") if legend else 0)
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}" role="img" {named}',
            f' data-x="{x_low:.9g} {x_high:.9g}" data-y="{y_low:.9g} {y_high:.9g}">',
            _style() if alone else "",
            _axes(log_ticks(x_low, x_high) if plot.log_x else ticks(x_low, x_high), ticks(y_low, y_high, 4), across, down),
            f'<svg class="view" {frame} preserveAspectRatio="none">{"".join(lines)}</svg>',
            f'<text class="name" {middle}>{escape(plot.x_label)}</text>',
            f'<text class="name" transform="translate(13 {TOP + FRAME_HEIGHT // 2}) rotate(-90)" text-anchor="middle">',
            f"{escape(plot.y_label)}</text>{legend}</svg>",
        ]
    )


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-9 * abs(high):  # rounding of an average, too
        low, high = low - abs(low) * 0.05 - 1e-9 * (not low), high + abs(high) * 0.05 + (not high)
    room = margin * (high - low)
    return low - room, high + room


def _axes(xs: list[float], ys: list[float], across: Scale, down: Scale) -> str:
    """Grid and numbers; plot.js writes the same anew when it zooms."""
    parts = []
    for x in xs:
        at, text = LEFT + across(x), label(x, xs[1] - xs[0] if len(xs) > 1 else abs(x) or 1)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}v{FRAME_HEIGHT}"/>')
        parts.append(f'<text x="{at:.1f}" y="{TOP + FRAME_HEIGHT + 17}" text-anchor="middle">{text}</text>')
    for y in ys:
        at, text = TOP + down(y), label(y, ys[1] - ys[0] if len(ys) > 1 else abs(y) or 1)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}h{FRAME_WIDTH}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    return f'<g class="axes">{"".join(parts)}</g>'


def _line(series: Series, across: Scale, down: Scale) -> str:
    """The line, interrupted where a value is missing; a point that stands alone, or each of `dots`, is a dot."""
    stride = max(1, -(-len(series.x) // MOST_POINTS))
    pieces: list[list[str]] = [[]]
    for x, y in list(zip(series.x, series.y, strict=True))[::stride]:
        if y is None or not math.isfinite(y):
            pieces.append([])
        else:
            pieces[-1].append(f"{across(x):.1f},{down(y):.1f}")
    kind = f"s{series.colour % COLOURS}{' faint' if series.faint else ''}"
    text = "".join(f'<polyline class="{kind}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1)
    dots = [point for piece in pieces if series.dots or len(piece) == 1 for point in piece]
    dotted = "".join(f"M{point}h0" for point in dots)  # a line of no length keeps its round ends whatever the zoom
    text += f'<path class="{kind} dot" d="{dotted}"/>' if dotted else ""
    pale = ' data-faint=""' if series.faint else ""
    return f'<g data-name="{escape(series.name)}"{pale}>{text}</g>' if text else ""


def _legend(series: Sequence[Series]) -> str:
    """Rows of names below the plot, where there is more than one line."""
    if len(series) < 2:
        return ""
    rows: list[str] = [""]
    across, top = LEFT, TOP + FRAME_HEIGHT + 60
    for one in series:
        width = 34 + 7 * len(one.name)
        if rows[-1] and across + width > WIDTH:
            rows.append("")
            across, top = LEFT, top + 22
        rows[-1] += f'<path class="s{one.colour % COLOURS}" d="M{across} {top - 4}h18"/>'
        rows[-1] += f'<text x="{across + 24}" y="{top}">{escape(one.name)}</text>'
        across += width + 10
    return "".join(f'<g class="legend">{row}</g>' for row in rows)


def _style() -> str:
    return f"<style>{(WEB / 'plot.css').read_text(encoding='utf-8')}</style>"


@dataclass
class Bar:
    """A value from 0 to 1 with its interval (95%)."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    colour: int = 0


def draw_shares(title: str, groups: dict[str, list[Bar]], marks: dict[str, dict[str, float]], *, alone: bool = False) -> str:
    """Shares of each group as bars with their intervals. `marks` are lines at {name: {group: value}}: guessing, targets."""
    left, right, row = 150, 560, 20
    scale = right - left
    top, parts = 14, []
    for group, bars in groups.items():
        middle = top + row * len(bars) / 2 + 4
        parts.append(f'<text x="{left - 10}" y="{middle:.0f}" text-anchor="end" class="name">{escape(group)}</text>')
        for number, bar in enumerate(bars):
            y, width = top + row * number, max(0.0, bar.value) * scale
            parts.append(
                f'<rect class="s{bar.colour % COLOURS}" x="{left}" y="{y}" width="{width:.1f}" height="{row - 5}" rx="2"/>'
            )
            end = width
            if bar.interval:
                low, high = (left + max(0.0, share) * scale for share in bar.interval)
                end = max(width, high - left)
                at = y + (row - 5) / 2
                parts.append(f'<path class="interval" d="M{low:.1f} {at}H{high:.1f}m0 -4v8M{low:.1f} {at - 4}v8"/>')
            text = f"{escape(bar.name)} {bar.value:.1%}"
            parts.append(f'<text x="{left + end + 7:.1f}" y="{y + 12}">{text}</text>')
        for number, shares in enumerate(marks.values()):
            if group in shares:
                at = left + shares[group] * scale
                parts.append(f'<path class="mark m{number}" d="M{at:.1f} {top - 4}v{row * len(bars) + 3}"/>')
        top += row * len(bars) + 16
    shown = [(number, name) for number, (name, shares) in enumerate(marks.items()) if any(group in shares for group in groups)]
    for place, (number, name) in enumerate(shown):
        x = left + 150 * place
        parts.append(
            f'<path class="mark m{number}" d="M{x} {top + 4}h22"/><text x="{x + 28}" y="{top + 8}">{escape(name)}</text>'
        )
    box = f'viewBox="0 0 {WIDTH + 20} {top + 20 * bool(shown)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="plot shares" {box} role="img" aria-label="{escape(title)}">' + (
        f"{_style() if alone else ''}{''.join(parts)}</svg>"
    )
