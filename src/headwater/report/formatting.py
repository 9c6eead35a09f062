"""How figures are written: one way for each kind, everywhere in the report."""

from __future__ import annotations

import math
import unicodedata
from pathlib import PurePosixPath

NARROW = "\u202f"  # a narrow space that never breaks: between a figure and its unit
MINUS = "\u2212"
DASH = "\u2013"  # stands for a figure that there isn't, and between the ends of a span
TIMES = "\u00d7"

BASELINES = {
    "majority": "Majority class",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "summary_logistic_regression": "Summaries + logistic regression",
}
VERBS = {
    "pretrain": "Pre-training",
    "import": "Import",
    "transfer": "Transfer",
    "metalearn": "Meta-learning",
    "reshape": "Reshaping",
    "federate": "Federation",
    "personalize": "Personalization",
    "compress": "Compression",
    "export": "Export",
}


def percent(value: float | None) -> str:
    """Write a share: ``81.2 %``."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f}{NARROW}%"


def percent_tick(value: float) -> str:
    """Write a share under an axis, with no more digits than it needs: ``80 %``."""
    return f"{100 * value:.4g}{NARROW}%".replace("-", MINUS)


def points(value: float | None) -> str:
    """Write a difference of shares in percentage points, with its sign: ``+1.4``."""
    if value is None or not math.isfinite(value):
        return DASH
    rounded = round(100 * value, 1)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f}"


def size(count: float | None) -> str:
    """Write a number of bytes: ``412 KiB``."""
    if count is None:
        return DASH
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    digits = 0 if unit == "B" or amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:.{digits}f}{NARROW}{unit}"


def count(value: float | None) -> str:
    """Write a whole number with narrow spaces between the thousands."""
    return DASH if value is None else f"{int(value):,}".replace(",", NARROW)


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure with so many significant digits; very small and very large ones as powers of ten."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}{TIMES}10{str(int(exponent)).translate(SUPERSCRIPT)}"
        text = text.removeprefix(f"1{TIMES}")
    return text.replace("-", MINUS)


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def times(value: float | None) -> str:
    """Write a ratio: ``3.94`` and a multiplication sign."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.2f}{TIMES}"


def duration(seconds: float) -> str:
    """Write a wall time: ``42 s``, ``3 min 05 s``, ``1 h 12 min``."""
    if seconds < 10:
        return f"{seconds:.1f}{NARROW}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NARROW}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW}min {whole % 60:02d}{NARROW}s"
    return f"{whole // 3600}{NARROW}h {whole % 3600 // 60:02d}{NARROW}min"


def microseconds(value: float) -> str:
    """Write how long a call takes: ``184 µs``, ``2.31 ms``."""
    if value < 1000:
        return f"{three(value)}{NARROW}µs"
    if value < 1_000_000:
        return f"{three(value / 1000)}{NARROW}ms"
    return f"{three(value / 1_000_000)}{NARROW}s"


def three(value: float) -> str:
    """Write three digits, zeros at the end too, so that a column of times lines up."""
    return f"{value:#.3g}".removesuffix(".")


def rows_label(rows: int) -> str:
    """Write how many rows were learned from; 0 stands for all of them."""
    return f"{count(rows)} rows" if rows else "all rows"


def baseline_label(name: str) -> str:
    """Write the name of a baseline in words."""
    return BASELINES.get(name, name.replace("_", " "))


def verb_label(verb: str) -> str:
    """Write what a stage did as a noun."""
    return VERBS.get(verb, verb[:1].upper() + verb[1:])


def data_label(path: str) -> str:
    """Write rows by a short name: ``card:reviews/train`` and ``data/reviews.csv.gz`` are both ``reviews``."""
    if path.startswith("card:"):
        return path.removeprefix("card:").split("/")[0]
    return PurePosixPath(path.replace("\\", "/")).name.split(".")[0] or path


def width(text: str) -> int:
    """Return how many columns the text takes, two for a wide character."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def fit(text: str, columns: int) -> str:
    """Shorten the text with an ellipsis so that it takes at most so many columns."""
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept + char) > columns - 1:
            break
        kept += char
    return kept.rstrip() + "…"
