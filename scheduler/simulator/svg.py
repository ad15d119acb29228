"""Small charts as SVG text: lines over linear or logarithmic axes, and dots in rows.

No script, no style sheet, no outside reference: colours are attributes, with class names beside
them so that a page may recolour for a dark background. Every chart has a title and a description
for screen readers, and `<title>` tooltips along its x axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from scheduler.simulator.curves import BOUND, Curve

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 22, 12, 40
_TICKS = 6
_TOOLTIPS = 60

# Okabe and Ito's colours, told apart by colour-blind readers; dashes tell the ninth from the first.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d", "#555555")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows, with the unit.
        log: logarithmic.
        low: its start; None takes the data's.
        high: its end; None takes the data's.
        tick: how a value on it is written.
        ticks: where its ticks are, those outside left out; none chooses round numbers.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    tick: Callable[[float], str] = "{:g}".format
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values to pixels along one axis."""

    low: float
    high: float
    log: bool
    start: float
    end: float
    fixed: tuple[float, ...]

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.fixed:
            return [value for value in self.fixed if self.low <= value <= self.high]
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            decades = max(1, (last - first) // _TICKS + 1)
            return [10.0**power for power in range(first, last + 1, decades)]
        step = _nice((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, int(self.high / step + 1e-9) + 1)]


def colour(place: int) -> str:
    """Colour of the series at `place`."""
    return PALETTE[place % len(PALETTE)]


def stroke(place: int) -> str:
    """Attributes that draw a line of the series at `place`; the bound is a thick grey one."""
    if place == BOUND:
        return 'class="bound" fill="none" stroke="#888888" stroke-width="3" stroke-opacity="0.6"'
    dash = _DASHES[place // len(PALETTE) % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'class="s{place % len(PALETTE)}" fill="none" stroke="{colour(place)}"'
        f' stroke-width="1.6" stroke-linejoin="round"{dashed}'
    )


def line_chart(title: str, about: str, curves: Sequence[Curve], x: Axis, y: Axis) -> str:
    """A chart of `curves`, the bound beneath the others. O(points)."""
    if not curves:
        raise ValueError("a chart needs a curve")
    across = _scale(x, [curve.x for curve in curves], _LEFT, WIDTH - _RIGHT, tight=True)
    up = _scale(y, [curve.y for curve in curves], HEIGHT - _BOTTOM, _TOP)
    parts = [_open(title, about), _grid(across, up, x, y)]
    parts += [
        f'<polygon fill="#888888" fill-opacity="0.14" points="{_area(curve, across, up)}"/>'
        for curve in curves
        if curve.place == BOUND
    ]
    parts += [
        f'<polyline {stroke(curve.place)} points="{_points(curve, across, up)}"/>'
        for curve in sorted(curves, key=lambda curve: curve.place)
    ]
    parts += [_tooltips(curves, across, x, y), "</svg>"]
    return "".join(parts)


def dot_rows(
    title: str,
    about: str,
    labels: Sequence[str],
    names: Sequence[str],
    rows: Sequence[Sequence[float]],
    x: Axis,
) -> str:
    """A row of dots for each label: one for each policy, in the colours of the line charts.

    Args:
        title: what is shown.
        about: in words, for screen readers.
        labels: one for each row.
        names: of the policies.
        rows: values, shape (labels, policies); NaN draws no dot.
        x: the axis.
    """
    height = _TOP + 24 * len(labels) + _BOTTOM
    left = 120
    across = _scale(x, [np.array(row) for row in rows], left, WIDTH - _RIGHT)
    parts = [_open(title, about, height)]
    for value in across.ticks():
        at = f"{across.at(value):.1f}"
        parts.append(
            f'<line class="grid" stroke="#e2e2e2" x1="{at}" x2="{at}" y1="{_TOP}"'
            f' y2="{height - _BOTTOM}"/>'
            f'<text class="tick" x="{at}" y="{height - _BOTTOM + 16}" text-anchor="middle"'
            f' font-size="11" fill="#555555">{escape(x.tick(value))}</text>'
        )
    for place, (label, values) in enumerate(zip(labels, rows, strict=True)):
        y = _TOP + 24 * place + 12
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end" font-size="11"'
            f' fill="#555555">{escape(_short(label))}</text>'
            f'<line class="grid" stroke="#e2e2e2" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y}"'
            f' y2="{y}"/>'
        )
        parts += [
            f'<circle class="f{number % len(PALETTE)}" cx="{across.at(value):.1f}" cy="{y}"'
            f' r="5" fill="{colour(number)}" fill-opacity="0.75">'
            f"<title>{escape(f'{label}, {name}: {x.tick(value)}')}</title></circle>"
            for number, (name, value) in enumerate(zip(names, values, strict=True))
            if math.isfinite(value)
        ]
    parts.append(_label(x.label, (left + WIDTH - _RIGHT) / 2, height - 6))
    return "".join([*parts, "</svg>"])


def _open(title: str, about: str, height: int = HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(f"{title}. {about}")}" font-family="system-ui, sans-serif">'
    )


def _scale(
    axis: Axis, data: Sequence[np.ndarray], start: float, end: float, *, tight: bool = False
) -> _Scale:
    values = np.concatenate([part[np.isfinite(part)] for part in data])
    low = axis.low if axis.low is not None else float(values.min(initial=math.inf))
    high = axis.high if axis.high is not None else float(values.max(initial=-math.inf))
    if not math.isfinite(low) or not math.isfinite(high):
        low, high = (1.0, 10.0) if axis.log else (0.0, 1.0)
    if axis.log:
        low = 10.0 ** math.floor(math.log10(max(low, 1e-12)))
        high = max(10.0 ** math.ceil(math.log10(max(high, 1e-12))), low * 10)
    elif axis.high is None and not tight:
        step = _nice(max(high - low, 1e-9) / _TICKS)
        high = step * max(math.ceil(high / step), math.floor(low / step) + 1)
    return _Scale(low, max(high, low + 1e-9), axis.log, start, end, axis.ticks)


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step - 1e-12)


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> str:
    floor = HEIGHT - _BOTTOM
    parts = []
    for value in up.ticks():
        at = up.at(value)
        parts.append(
            f'<line class="grid" stroke="#e2e2e2" x1="{_LEFT}" x2="{WIDTH - _RIGHT}"'
            f' y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end"'
            f' font-size="11" fill="#555555">{escape(y.tick(value))}</text>'
        )
    for value in across.ticks():
        at = across.at(value)
        parts.append(
            f'<line class="grid" stroke="#bbbbbb" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}"'
            f' y2="{floor + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{floor + 16}" text-anchor="middle"'
            f' font-size="11" fill="#555555">{escape(x.tick(value))}</text>'
        )
    parts.append(
        f'<line class="axis" stroke="#888888" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}"'
        f' y2="{floor}"/>'
    )
    parts.append(_label(x.label, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6))
    middle = (_TOP + floor) / 2
    parts.append(
        f'<text class="tick" transform="translate(12 {middle}) rotate(-90)"'
        f' text-anchor="middle" font-size="11" fill="#555555">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _label(text: str, x: float, y: float) -> str:
    return (
        f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle" font-size="11"'
        f' fill="#555555">{escape(text)}</text>'
    )


def _points(curve: Curve, across: _Scale, up: _Scale) -> str:
    return " ".join(
        f"{across.at(float(x)):.1f},{up.at(float(y)):.1f}"
        for x, y in zip(curve.x, curve.y, strict=True)
    )


def _area(curve: Curve, across: _Scale, up: _Scale) -> str:
    """The curve's points, closed along the bottom of the chart."""
    first, last = (across.at(float(curve.x[place])) for place in (0, -1))
    return f"{first:.1f},{up.start:.1f} {_points(curve, across, up)} {last:.1f},{up.start:.1f}"


def _tooltips(curves: Sequence[Curve], across: _Scale, x: Axis, y: Axis) -> str:
    """Invisible columns over the chart, each telling every curve's value there."""
    width = (across.end - across.start) / _TOOLTIPS
    parts = []
    for number in range(_TOOLTIPS):
        share = (number + 0.5) / _TOOLTIPS
        at = across.low + share * (across.high - across.low)
        if across.log:
            at = across.low * (across.high / across.low) ** share
        told = [f"{x.label}: {x.tick(at)}"]
        told += [
            f"{curve.name}: {y.tick(float(np.interp(at, curve.x, curve.y)))}"
            for curve in curves
            if curve.x.size and curve.x[0] <= at <= curve.x[-1]
        ]
        parts.append(
            f'<rect class="hover" x="{across.start + number * width:.1f}" y="{_TOP}"'
            f' width="{width:.1f}" height="{HEIGHT - _TOP - _BOTTOM}" fill="#888888"'
            f' fill-opacity="0"><title>{escape(chr(10).join(told))}</title></rect>'
        )
    return "".join(parts)


def _short(label: str) -> str:
    return label if len(label) <= 18 else f"{label[:17]}\u2026"  # noqa: PLR2004 - what fits
