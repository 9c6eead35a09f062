"""Horizontal bars as a self-contained SVG, for a light and a dark page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, ROW, LABEL = 760, 30, 300
_STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#57606a}.n{fill:#1f2933;font-weight:600}.base{fill:#9aa5b1}"
    ".ours{fill:#0b7285}@media(prefers-color-scheme:dark){text{fill:#9aa5b1}.n{fill:#e4e7eb}.base{fill:#52606d}"
    ".ours{fill:#3bc9db}}"
)


class Bar(NamedTuple):
    """A bar.

    Attributes:
        label: To its left.
        value: Its length; None for a heading without a bar.
        shown: To its right.
        kind: ``"ours"`` or ``"base"``.
    """

    label: str
    value: float | None = None
    shown: str = ""
    kind: str = "base"


def draw(bars: Sequence[Bar], title: str, axis: str, out: str) -> None:
    """Write the bars to a file; the longest takes the width."""
    height = ROW * len(bars) + 34
    scale = (WIDTH - LABEL - 80) / max(bar.value or 0.0 for bar in bars)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
    parts = [head, f"<style>{_STYLE}</style>"]
    for number, bar in enumerate(bars):
        y = number * ROW + 8
        if bar.value is None:
            parts.append(f'<text class="n" x="{LABEL}" y="{y + 17}">{escape(bar.label)}</text>')
            continue
        width = bar.value * scale
        parts.append(f'<text x="{LABEL - 10}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect class="{bar.kind}" x="{LABEL}" y="{y}" width="{max(width, 1):.1f}" height="20" rx="3"/>')
        parts.append(f'<text class="n" x="{LABEL + width + 8:.1f}" y="{y + 15}">{bar.shown}</text>')
    parts.append(f'<text x="{LABEL}" y="{height - 8}">{escape(axis)}</text></svg>')
    Path(out).write_text("\n".join(parts) + "\n", encoding="utf-8")
