"""The roofline plot (Williams et al. 2009): how near each measured path comes to what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, inf, log10

from markupsafe import Markup

from headwater.benchmark.measure import OURS, Row
from headwater.report import formatting as fmt
from headwater.report.svg import Scale, compact, dot, join, line, tag, text

_WIDTH, _TOP, _PANEL, _LEFT, _RIGHT = 1000.0, 64.0, 232.0, 60.0, 820.0
_CLASSES = {OURS: "ours", "torch padded": "padded", "torch": "padded", "torch packed": "packed", "ONNX Runtime": "onnx"}
_LEGEND = {"ours": "headwater", "padded": "torch, padded or stepped", "packed": "torch packed", "onnx": "ONNX Runtime"}
_STYLE = """
svg { --paper: #fff; --ink: #16212b; --soft: #4d5b68; --grid: #e6eaed; --roof: #66737f;
  --ours: #2171b5; --padded: #d0661a; --packed: #8a57b8; --onnx: #15866c; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --paper: #0f1419; --ink: #e4e9ee; --soft: #a9b5c0; --grid: #25303b;
  --roof: #8492a0; --ours: #5aa9e6; --padded: #f0944d; --packed: #c59be6; --onnx: #3fbf9f; } }
text { font: 12.5px system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; fill: var(--soft); }
.title { font-size: 17px; font-weight: 650; fill: var(--ink); } .cell { font-weight: 650; fill: var(--ink); }
.grid { stroke: var(--grid); } .case { fill: none; stroke: var(--roof); stroke-width: 0.7; stroke-dasharray: 2 3; }
.roof { fill: none; stroke: var(--roof); stroke-width: 1.6; } .roof.bfloat16 { stroke-dasharray: 6 4; }
.roof.lower { stroke-width: 1; stroke-dasharray: 1 3; }
.ours { --c: var(--ours); } .padded { --c: var(--padded); } .packed { --c: var(--packed); } .onnx { --c: var(--onnx); }
circle.float32 { fill: var(--c); stroke: var(--paper); stroke-width: 0.7; }
circle.bfloat16 { fill: var(--paper); stroke: var(--c, var(--soft)); stroke-width: 1.9; }
"""


def plotted(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that become points: layers and steps, whose work is counted."""
    return [row for row in rows if row.part in ("layer", "step")]


def roofline(rows: Sequence[Row], title: str) -> str:
    """Draw GFLOP/s over arithmetic intensity as a self-contained SVG, a panel for each cell.

    Args:
        rows: Products and memory, which make the roof, and layers and steps, which stand under it.
        title: Names the machine.
    """
    points = plotted(rows)
    peaks = [row for row in rows if row.part == "product"]
    cells = list(dict.fromkeys(row.cell for row in points))
    slope = next(row.gbytes for row in rows if row.part == "memory")
    xs = [row.flops / row.bytes for row in points] or [1.0, 100.0]
    ridges = [peak.gflops / slope for peak in peaks]
    speeds = [row.gflops for row in (*points, *peaks)]
    x = Scale(log10(min(xs) / 1.5), log10(max(*xs, *ridges) * 1.5), _LEFT, _RIGHT)
    low, high = log10(min(speeds) / 1.5), log10(max(speeds) * 1.3)
    parts = [text(title, 16, 26, class_="title"), _legend(points)]
    for number, cell in enumerate(cells):
        top = _TOP + number * _PANEL
        y = Scale(low, high, top + _PANEL - 22, top + 64)
        parts.append(text(f"{cell.upper()}, GFLOP/s", 16, top + 16, class_="cell"))
        parts += [_grid(x, y), _roof(peaks, slope, x, y)]
        parts.append(_panel([row for row in points if row.cell == cell], x, y))
    bottom = _TOP + len(cells) * _PANEL
    below = "useful work per byte of least memory traffic, FLOP/byte"
    parts.append(text(below, (_LEFT + _RIGHT) / 2, bottom + 16, anchor="middle"))
    svg = tag(
        "svg",
        tag("title", title),
        tag("style", Markup(_STYLE)),  # noqa: S704 - a constant
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {compact(_WIDTH)} {compact(bottom + 30)}",
        role="img",
        aria_label=title,
    )
    return f"{svg}\n"


def _grid(x: Scale, y: Scale) -> Markup:
    parts = [line(_LEFT, y.start, _RIGHT, y.start, "grid")]
    for value in _ticks(y):
        parts.append(line(_LEFT, y(log10(value)), _RIGHT, y(log10(value)), "grid"))
        parts.append(text(fmt.number(value), _LEFT - 8, y(log10(value)) + 4, anchor="end"))
    parts += [text(fmt.number(v), x(log10(v)), y.start + 18, anchor="middle") for v in _ticks(x)]
    return join(parts)


def _ticks(scale: Scale) -> list[float]:
    """Return 1, 2, 5, 10, ... within the scale, without the twos and fives where they would touch."""
    apart = abs(scale.end - scale.start) / (scale.high - scale.low)
    powers = range(floor(scale.low), ceil(scale.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if apart > 70 else (1,))]
    return [value for value in values if scale.low <= log10(value) <= scale.high]


def _roof(peaks: Sequence[Row], slope: float, x: Scale, y: Scale) -> Markup:
    """Draw the slope of the memory up to each peak; the highest of a precision is its roof."""
    rise = log10(slope)  # the speed at an intensity is their sum: both are logarithms
    start = max(x.low, y.low - rise)
    parts, labels = [], []
    for peak in peaks:
        speed = log10(peak.gflops)
        highest = peak.gflops == max(other.gflops for other in peaks if other.precision == peak.precision)
        rising = f"{compact(x(start))},{compact(y(start + rise))} " if highest else ""
        level = f"{compact(x(speed - rise))},{compact(y(speed))} {compact(_RIGHT)},{compact(y(speed))}"
        parts.append(tag("polyline", points=rising + level, class_=f"roof {peak.precision if highest else 'lower'}"))
        labels.append((y(speed), f"{peak.path}, {peak.precision}: {peak.gflops:.0f}"))
    labels.sort()
    places = _apart([at for at, _ in labels], [15.0] * len(labels))
    parts += [text(words, _RIGHT + 8, place + 4) for place, (_, words) in zip(places, labels, strict=True)]
    middle = (start + min(log10(peak.gflops) for peak in peaks) - rise) / 2
    parts.append(text(f"memory: {slope:.0f} GB/s", x(middle) + 10, y(middle + rise) + 16))
    return join(parts)


def _panel(points: Sequence[Row], x: Scale, y: Scale) -> Markup:
    """Draw one cell's points: those of a case stand over each other, under its name."""
    parts = []
    cases = sorted({row.case for row in points}, key=lambda case: _at(points, case))
    middles = [x(_at(points, case)) for case in cases]
    names = _apart(middles, [8.4 * len(case) + 10 for case in cases])
    for case, middle, name in zip(cases, middles, names, strict=True):
        rows = sorted((row for row in points if row.case == case), key=lambda row: row.path == OURS)
        lowest = max(y(log10(row.gflops)) for row in rows)
        stem = f"{compact(name)},{y.end - 20} {compact(middle)},{y.end - 6} {compact(middle)},{compact(lowest)}"
        parts.append(tag("polyline", points=stem, class_="case"))
        parts.append(text(case, name, y.end - 25, anchor="middle", class_="cell"))
        parts += [
            dot(
                middle,
                y(log10(row.gflops)),
                f"point {_CLASSES[row.path]} {row.precision}",
                tip=f"{row.cell} {case}, {row.path}, {row.precision}: {row.gflops:.3g} GFLOP/s",
                radius=4.2,
            )
            for row in rows
        ]
    return join(parts)


def _at(points: Sequence[Row], case: str) -> float:
    return log10(next(row.flops / row.bytes for row in points if row.case == case))


def _apart(middles: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return the rising middles of things of these sizes, pushed on where they would touch."""
    moved: list[float] = []
    end = -inf
    for middle, size in zip(middles, sizes, strict=True):
        moved.append(max(middle, end + size / 2))
        end = moved[-1] + size / 2
    return moved


def _legend(points: Sequence[Row]) -> Markup:
    shown = {_CLASSES[row.path] for row in points}
    keys = [(f"{class_} float32", words) for class_, words in _LEGEND.items() if class_ in shown]
    if any(row.precision == "bfloat16" for row in points):
        keys.append(("bfloat16", "a ring: in bfloat16"))
    parts, left = [], 16.0
    for class_, words in keys:
        parts.append(tag("circle", cx=left + 5, cy=48, r=4.2, class_=f"key {class_}"))
        parts.append(text(words, left + 15, 52))
        left += 40 + 6.8 * len(words)
    return join(parts)
