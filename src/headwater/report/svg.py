"""The small parts that all charts are drawn from. Whatever goes through `tag` is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 6
"""How many series colours the style sheet has, as classes ``s0`` to ``s5``."""

Attribute = str | float | None


def tag(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """Write an element: plain strings and attribute values are escaped, `Markup` children are not.

    Args:
        name: The element's name.
        children: What stands inside.
        attributes: ``class_`` stands for ``class``, other underscores for hyphens; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(compact(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")  # noqa: S704 - every part is escaped above


def join(parts: Iterable[Markup]) -> Markup:
    """Put pieces of markup one after the other."""
    return Markup("").join(parts)


def compact(value: str | float) -> str:
    """Write a coordinate with at most two decimals, so that equal charts are equal bytes."""
    if isinstance(value, str):
        return value
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def text(content: str, x: float, y: float, *, anchor: str = "start", class_: str = "", tip: str = "") -> Markup:
    """Write a line of text, with a tooltip when `tip` is given."""
    children = [tag("title", tip), escape(content)] if tip else [escape(content)]
    return tag("text", *children, x=x, y=y, text_anchor=anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def dot(x: float, y: float, class_: str, *, tip: str = "", radius: float = 3.5) -> Markup:
    """Draw a dot with a tooltip."""
    children = [tag("title", tip)] if tip else []
    return tag("circle", *children, cx=x, cy=y, r=radius, class_=class_)


def drawing(parts: Iterable[Markup], *, width: float, height: float, label: str, class_: str = "") -> Markup:
    """Close a drawing: scales with its box, and reads its label aloud."""
    return tag(
        "svg",
        tag("title", label),
        *parts,
        viewBox=f"0 0 {compact(width)} {compact(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_=class_ or None,
    )


def figure(title: str, body: Markup, *, legend: Sequence[tuple[str, str]] = (), note: str = "") -> Markup:
    """Put a drawing under its title, with a legend of (class, words) that wraps like text.

    Args:
        title: What is shown.
        body: The drawing.
        legend: Each key's class and words.
        note: How to read it.
    """
    parts = [tag("figcaption", title), tag("div", body, class_="plot")]
    if legend:
        keys = (tag("li", tag("span", class_=f"key {class_}"), words) for class_, words in legend)
        parts.append(tag("ul", *keys, class_="legend"))
    if note:
        parts.append(tag("p", note, class_="note"))
    return tag("figure", *parts)


@dataclass(frozen=True)
class Scale:
    """A straight mapping from figures to coordinates."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of a figure."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class LogScale(Scale):
    """A mapping from positive figures to coordinates: equal ratios are equally far apart."""

    def __call__(self, value: float) -> float:
        """Return the coordinate of a figure."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def decades(self) -> list[float]:
        """Return the powers of ten in the range."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


def fit_ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Return round figures that span the range, about `most` steps apart.

    Args:
        low: The lowest value that must fit.
        high: The highest.
        most: How many steps, about.
        whole: Step over whole numbers only, for epochs and rounds.
    """
    if not high > low:
        margin = abs(low) / 20 or 0.5
        low, high = low - margin, high + margin
    raw = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def finite(values: Iterable[float]) -> list[float]:
    """Leave out what can't be drawn."""
    return [value for value in values if math.isfinite(value)]
