"""The charts of the report, each one figure with tooltips: curves, intervals, a heat map, distributions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from headwater.report import formatting as fmt
from headwater.report.svg import (
    COLOURS,
    LogScale,
    Scale,
    dot,
    drawing,
    figure,
    finite,
    fit_ticks,
    join,
    line,
    tag,
    text,
)
from headwater.statistics import worst_decile

WIDTH = 420
MOST_POINTS = 400
MOST_DOTS = 40
Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A named curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def colour(index: int) -> str:
    """Return the class of a series; when the colours are used up they come back dashed."""
    return f"s{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    show: Format = fmt.number,
    show_tick: Format = fmt.number,
    levels: Sequence[tuple[str, float]] = (),
    height: float = 240.0,
    whole: bool = True,
    note: str = "",
) -> Markup:
    """Draw curves over one pair of axes.

    Args:
        series: The curves; points that aren't finite are left out.
        title: What the y axis shows.
        x_label: What the x axis shows.
        show: How a value of y is written.
        show_tick: How it is written beside the axis.
        levels: Named values drawn as horizontal lines.
        height: The drawing's height; its width is always the same.
        whole: Whether the x axis counts, such as epochs.
        note: How to read the chart.
    """
    drawn = [(one.name, points) for one in series if (points := thin(one))]
    if not drawn:
        return Markup("")
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points] + finite(value for _, value in levels)
    first, last = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    x_ticks = [tick for tick in fit_ticks(first, last, whole=whole) if first <= tick <= last]
    y_ticks = fit_ticks(min(ys), max(ys))
    left, top = 52.0, 10.0
    x = Scale(first, last, left + 6, WIDTH - 14.0)
    y = Scale(y_ticks[0], y_ticks[-1], height - 40, top)
    parts = axes(x, y, x_ticks, y_ticks, x_label=x_label, show=show_tick)
    for index, (name, value) in enumerate(levels):
        rule = line(x.start, y(value), x.end, y(value), f"level l{index % 3}")
        parts.append(tag("g", tag("title", f"{name}: {show(value)}"), rule))
    for index, (name, points) in enumerate(drawn):
        parts.append(curve(name, points, x, y, colour(index), show, x_label))
    legend = [(f"line {colour(index)}", name) for index, (name, _) in enumerate(drawn)]
    legend += [(f"rule l{index % 3}", f"{name} {show(value)}") for index, (name, value) in enumerate(levels)]
    ends = "; ".join(f"{name} ends at {show(points[-1][1])}" for name, points in drawn)
    body = drawing(parts, width=WIDTH, height=height, label=f"{title} by {x_label}: {ends}")
    return figure(title, body, legend=legend if len(legend) > 1 else (), note=note)


def curve(
    name: str, points: list[tuple[float, float]], x: Scale, y: Scale, class_: str, show: Format, x_label: str
) -> Markup:
    """Draw one curve, with a dot for each point where there are few."""
    path = "M" + "L".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    parts = [tag("path", tag("title", name), d=path, class_=f"curve {class_}")]
    if len(points) <= MOST_DOTS:
        parts += [
            dot(
                x(a),
                y(b),
                f"point {class_}",
                tip=f"{name}, {x_label} {fmt.number(a, 6)}: {show(b)}",
                radius=2.4,
            )
            for a, b in points
        ]
    return join(parts)


def range_test_chart(series: Series, chosen: float, *, title: str, x_label: str, y_label: str) -> Markup:
    """Draw a learning-rate finder's curve over a logarithmic axis, with the rate that was chosen by it."""
    points = [(x, y) for x, y in thin(series) if x > 0]
    if len(points) < 2 or not chosen > 0:
        return Markup("")
    y_ticks = fit_ticks(min(y for _, y in points), max(y for _, y in points))
    x = LogScale(min(points[0][0], chosen), max(points[-1][0], chosen), 58.0, WIDTH - 14.0)
    y = Scale(y_ticks[0], y_ticks[-1], 200.0, 10.0)
    said = f"{x_label} {fmt.number(chosen)}"
    parts = axes(x, y, x.decades(), y_ticks, x_label=x_label, show=fmt.number)
    parts.append(curve(series.name, points, x, y, colour(0), fmt.number, x_label))
    parts.append(tag("g", tag("title", f"chosen: {said}"), line(x(chosen), y.start, x(chosen), y.end, "mean")))
    legend = [(f"line {colour(0)}", y_label), ("tall", f"chosen: {fmt.number(chosen)}")]
    body = drawing(parts, width=WIDTH, height=240.0, label=f"{title}: {y_label} by {x_label}; chosen: {said}")
    return figure(title, body, legend=legend)


def thin(series: Series) -> list[tuple[float, float]]:
    """Return the points that can be drawn; of very many, the lowest and highest of each stretch."""
    points = [(x, y) for x, y in zip(series.x, series.y, strict=False) if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= MOST_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        piece = points[start : start + stretch]
        ends = {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept


def axes(
    x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], *, x_label: str, show: Format
) -> list[Markup]:
    """Draw a quiet grid with its figures."""
    parts = []
    for value in y_ticks:
        parts.append(line(x.start - 6, y(value), x.end, y(value), "grid"))
        parts.append(text(show(value), x.start - 14, y(value) + 4, anchor="end", class_="tick"))
    parts += [text(fmt.number(value, 6), x(value), y.start + 18, anchor="middle", class_="tick") for value in x_ticks]
    parts.append(text(x_label, (x.start + x.end) / 2, y.start + 36, anchor="middle", class_="axis"))
    return parts


def stacked_bars(
    bars: Sequence[Sequence[float]], names: Sequence[str], *, clients: Sequence[int], title: str
) -> Markup:
    """Draw a bar for each group of clients, made of a part for each name; of many names the largest have a colour.

    Args:
        bars: For each group, the largest clients' first, the parts in the order of the names: means over its clients.
        names: What the parts are.
        clients: How many each group has: its bar is as wide.
        title: What is shown.
    """
    totals = [sum(parts) for parts in zip(*bars, strict=True)]
    coloured = sorted(sorted(range(len(names)), key=lambda part: -totals[part])[:COLOURS])
    rest = sorted(set(range(len(names))) - set(coloured))
    kinds = [(colour(number), names[part], [part]) for number, part in enumerate(coloured)]
    kinds += [("same", f"{len(rest)} others", rest)] if rest else []
    y_ticks = fit_ticks(0.0, max(sum(parts) for parts in bars))
    x = Scale(0, sum(clients), 58.0, WIDTH - 14.0)
    y = Scale(y_ticks[0], y_ticks[-1], 200.0, 10.0)
    x_ticks = [tick for tick in fit_ticks(0, sum(clients), whole=True) if tick <= sum(clients)]
    drawn = axes(x, y, x_ticks, y_ticks, x_label="clients, the largest first", show=fmt.number)
    first = 0
    for count, parts in zip(clients, bars, strict=True):
        gap = min(1.0, 0.2 * (x(count) - x(0)))
        who = f"client {first + 1}" if count == 1 else f"{count} clients from {first + 1}"
        floor = 0.0
        for class_, name, some in kinds:
            value = sum(parts[part] for part in some)
            box = {"x": x(first), "y": y(floor + value), "width": x(first + count) - x(first) - gap}
            tip = tag("title", f"{who}, {name}: {fmt.number(value)}")
            drawn.append(tag("rect", tip, **box, height=y(floor) - y(floor + value), class_=f"part {class_}"))
            floor += value
        first += count
    legend = [(f"round {class_}", name) for class_, name, _ in kinds] if len(kinds) > 1 else []
    ends = f"{fmt.number(sum(bars[0]))} to {fmt.number(sum(bars[-1]))}"
    label = f"{title}: {ends}, {fmt.count(first)} clients, the largest first"
    return figure(title, drawing(drawn, width=WIDTH, height=240.0, label=label), legend=legend)


@dataclass(frozen=True)
class Bar:
    """One line of an interval chart: a value with whiskers, and the single runs behind it."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    runs: tuple[float, ...] = ()
    class_: str = "s0"
    tip: str = ""


def interval_chart(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    title: str,
    axis: str,
    show: Format = fmt.percent,
    show_tick: Format = fmt.percent_tick,
    zero: bool = False,
    note: str = "",
) -> Markup:
    """Draw dots with interval whiskers, one line each, under the names of their groups.

    Args:
        groups: Names and lines.
        title: What is shown.
        axis: What the x axis shows.
        show: How a value is written at the right.
        show_tick: How a value is written under the axis.
        zero: Draw a line at zero, for differences.
        note: How to read the chart.
    """
    bars = [bar for _, lines in groups for bar in lines]
    values = finite(v for bar in bars for v in (bar.value, bar.low, bar.high, *bar.runs) if v is not None)
    if not values:
        return Markup("")
    marks = fit_ticks(min([*values, 0.0] if zero else values), max([*values, 0.0] if zero else values), most=4)
    left = 22 + 6.9 * max(fmt.width(fmt.fit(bar.label, 20)) for bar in bars)
    scale = Scale(marks[0], marks[-1], left, WIDTH - 62.0)
    height = 22.0 * len(bars) + 30 * len(groups) + 44
    bottom = height - 40
    parts = [line(scale(mark), 6, scale(mark), bottom, "grid") for mark in marks]
    parts += [text(show_tick(mark), scale(mark), bottom + 18, anchor="middle", class_="tick") for mark in marks]
    parts.append(text(axis, (scale.start + scale.end) / 2, bottom + 36, anchor="middle", class_="axis"))
    if zero:
        parts.append(line(scale(0), 6, scale(0), bottom, "zero"))
    y = 0.0
    for name, lines in groups:
        y += 30
        parts.append(text(name, 0, y - 5, class_="group"))
        for bar in lines:
            y += 22
            parts.append(interval_line(bar, scale, y - 9, show))
    words = "; ".join(f"{name}, {bar.label}: {show(bar.value)}" for name, lines in groups for bar in lines)
    return figure(title, drawing(parts, width=WIDTH, height=height, label=f"{title}. {words}"), note=note)


def interval_line(bar: Bar, scale: Scale, y: float, show: Format) -> Markup:
    """Draw one dot with its whiskers, its runs and its value."""
    parts = [text(fmt.fit(bar.label, 20), 12, y + 4, class_="tick", tip=bar.tip or bar.label)]
    if bar.low is not None and bar.high is not None and math.isfinite(bar.low + bar.high):
        parts.append(line(scale(bar.low), y, scale(bar.high), y, f"whisker {bar.class_}"))
    parts += [dot(scale(run), y, f"run {bar.class_}", tip=show(run), radius=2.6) for run in finite(bar.runs)]
    if math.isfinite(bar.value):
        parts.append(dot(scale(bar.value), y, f"mark {bar.class_}", tip=bar.tip or show(bar.value), radius=4.5))
    parts.append(text(show(bar.value), WIDTH - 2, y + 4, anchor="end", class_="value"))
    return join(parts)


def heat_map(labels: Sequence[str], counts: Sequence[Sequence[int]], *, title: str, note: str = "") -> Markup:
    """Draw a confusion matrix: each line is a true label, shaded by its share of that label's rows."""
    if not labels or len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        return Markup("")
    cell = 80.0 if len(labels) <= 4 else 46.0 if len(labels) <= 10 else 30.0
    columns = 14 if len(labels) <= 10 else 10
    left = 30 + 6.6 * max(fmt.width(fmt.fit(label, columns)) for label in labels)
    top = 46.0 if len(labels) <= 10 else 92.0
    parts = [
        text("true label", 12, top + cell * len(labels) / 2, anchor="middle", class_="axis upright"),
        text("predicted label", left + cell * len(labels) / 2, 12, anchor="middle", class_="axis"),
    ]
    for index, label in enumerate(labels):
        middle = cell * (index + 0.5)
        parts.append(text(fmt.fit(label, columns), left - 8, top + middle + 4, anchor="end", class_="tick", tip=label))
        parts.append(column_head(label, left + middle, top - 8, cell=cell, slanted=len(labels) > 10))
    for row, (label, line_counts) in enumerate(zip(labels, counts, strict=True)):
        total = sum(line_counts)
        for column, number in enumerate(line_counts):
            share = number / total if total else 0.0
            tip = f"{label} predicted as {labels[column]}: {fmt.count(number)} rows, {fmt.percent(share)}"
            parts.append(heat_cell(left + column * cell, top + row * cell, cell, number, share, tip))
    right = sum(counts[index][index] for index in range(len(labels)))
    label = f"{title}: {fmt.count(right)} of {fmt.count(sum(map(sum, counts)))} rows on the diagonal"
    width, height = left + cell * len(labels) + 2, top + cell * len(labels) + 2
    return figure(title, drawing(parts, width=width, height=height, label=label, class_="natural"), note=note)


def column_head(label: str, x: float, y: float, *, cell: float, slanted: bool) -> Markup:
    """Write a column's label, turned where the columns are narrow."""
    if not slanted:
        return text(fmt.fit(label, max(3, int(cell // 6.6))), x, y, anchor="middle", class_="tick", tip=label)
    turned = f"rotate(-60 {x:.1f} {y:.1f})"
    return tag("g", text(fmt.fit(label, 10), x, y, class_="tick", tip=label), transform=turned)


def heat_cell(x: float, y: float, cell: float, number: int, share: float, tip: str) -> Markup:
    """Draw one cell; the share also decides which ink can be read on it."""
    box = tag("rect", x=x + 1, y=y + 1, width=cell - 2, height=cell - 2, rx=3, fill_opacity=0.05 + 0.95 * share)
    ink = "on" if share > 0.5 else "off"
    words = text(str(number), x + cell / 2, y + cell / 2 + 4, anchor="middle", class_=ink)
    return tag("g", tag("title", tip), box, words, class_="cell")


def distribution_chart(
    groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str, axis: str, note: str = ""
) -> Markup:
    """Draw one dot for each client, stacked where they are equal, with the mean and the worst decile."""
    groups = [(name, [(who, v) for who, v in rows if math.isfinite(v)]) for name, rows in groups]
    groups = [(name, rows) for name, rows in groups if rows]
    if not groups:
        return Markup("")
    values = [value for _, rows in groups for _, value in rows]
    marks = fit_ticks(min(values), max(values))
    scale = Scale(marks[0], marks[-1], 16.0, WIDTH - 26.0)
    most = 84.0 if len(groups) <= 3 else 40.0  # how high a stack may be
    step = (marks[-1] - marks[0]) / 56  # one bin is as wide as a dot
    parts: list[Markup] = []
    y = 0.0
    for index, (name, rows) in enumerate(groups):
        body, tall = stacked(name, rows, scale, step, y, most, colour(index))
        parts.append(body)
        y += tall
    grid = [line(scale(mark), 4, scale(mark), y, "grid") for mark in marks]
    grid += [text(fmt.percent_tick(mark), scale(mark), y + 18, anchor="middle", class_="tick") for mark in marks]
    grid.append(text(axis, WIDTH / 2, y + 36, anchor="middle", class_="axis"))
    words = "; ".join(f"{name}: mean {fmt.percent(mean_of(rows))} over {len(rows)} clients" for name, rows in groups)
    body = drawing([*grid, *parts], width=WIDTH, height=y + 44, label=f"{title}. {words}")
    legend = [("tall", "mean"), ("diamond", "mean of the worst tenth")]
    return figure(title, body, legend=legend, note=note)


def stacked(
    name: str,
    rows: Sequence[tuple[str, float]],
    scale: Scale,
    step: float,
    top: float,
    most: float,
    class_: str,
) -> tuple[Markup, float]:
    """Draw one group of the distribution; returns it with its height."""
    bins: dict[int, list[float]] = {}
    for _, value in rows:
        bins.setdefault(round(value / step), []).append(value)
    highest = max(map(len, bins.values()))
    rise = min(7.0, most / highest)
    tall = 34 + max(26.0, rise * highest)
    floor = top + tall - 6
    placed: Counter[int] = Counter()
    parts = [
        text(name, 0, top + 16, class_="group"),
        line(scale.start, floor + 4, scale.end, floor + 4, "floor"),
    ]
    for who, value in sorted(rows, key=lambda row: (row[1], row[0])):
        slot = round(value / step)
        x, y = scale(float(np.mean(bins[slot]))), floor - rise * placed[slot]
        parts.append(dot(x, y, f"client {class_}", tip=f"{who}: {fmt.percent(value)}", radius=3.1))
        placed[slot] += 1
    mean, worst = scale(mean_of(rows)), scale(worst_decile([value for _, value in rows]))
    parts.append(line(mean, floor + 4, mean, top + 24, "mean"))
    shape = f"M{worst:.1f},{floor - 3:.1f}l5,7l-5,7l-5,-7z"
    parts.append(tag("path", tag("title", "mean of the worst tenth"), d=shape, class_="worst"))
    return join(parts), tall + 8


def mean_of(rows: Sequence[tuple[str, float]]) -> float:
    """Return the mean over the clients, each counting the same."""
    return float(np.mean([value for _, value in rows]))


def change_chart(clients: Sequence[tuple[str, float, float]], *, title: str, note: str = "") -> Markup:
    """Draw each client's accuracy after over the one before: above the diagonal it gained."""
    clients = [client for client in clients if math.isfinite(client[1] + client[2])]
    if not clients:
        return Markup("")
    values = [value for client in clients for value in client[1:]]
    marks = fit_ticks(min(values), max(values))
    x, y = Scale(marks[0], marks[-1], 56.0, WIDTH - 34.0), Scale(marks[0], marks[-1], 280.0, 26.0)
    parts = [line(x.start, y(mark), x.end, y(mark), "grid") for mark in marks]
    parts += [line(x(mark), y.start, x(mark), y.end, "grid") for mark in marks]
    parts += [text(fmt.percent_tick(mark), 50, y(mark) + 4, anchor="end", class_="tick") for mark in marks]
    parts += [text(fmt.percent_tick(mark), x(mark), y.start + 18, anchor="middle", class_="tick") for mark in marks]
    parts.append(text("accuracy after", 0, 10, class_="axis"))
    parts.append(text("accuracy before", (x.start + x.end) / 2, 318, anchor="middle", class_="axis"))
    parts.append(line(x.start, y.start, x.end, y.end, "zero"))
    together: dict[tuple[float, float], list[str]] = {}
    for who, before, after in clients:
        together.setdefault((before, after), []).append(who)
    for (before, after), names in sorted(together.items()):
        class_ = "s0" if after > before else "s1" if after < before else "same"
        who = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        tip = f"{who}: {fmt.percent(before)} before, {fmt.percent(after)} after"
        parts.append(dot(x(before), y(after), f"client {class_}", tip=tip, radius=3.4 * math.sqrt(len(names))))
    gained, lost = (sum(sign * (after - before) > 0 for _, before, after in clients) for sign in (1, -1))
    label = f"{title}: {gained} clients gained, {lost} lost, {len(clients) - gained - lost} stayed"
    legend = [("round s0", "gained"), ("round s1", "lost"), ("round same", "same")]
    return figure(title, drawing(parts, width=WIDTH, height=324, label=label), legend=legend, note=note)
