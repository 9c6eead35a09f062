"""What the sections on size, latency and verification show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwater.records import Latency, StageRecord
from headwater.report import formatting as fmt
from headwater.report.collect import accuracy, ancestors, measured

SMALLER = ("compress", "export")


def total(record: StageRecord) -> int:
    """Return the bytes that a device needs."""
    return sum(record.sizes.values())


def full_size(record: StageRecord, records: Sequence[StageRecord]) -> int | None:
    """Return the size of the nearest float32 checkpoint that a smaller artifact was made from."""
    if record.verb not in SMALLER:
        return None
    full = (total(found) for found in ancestors(record, records) if found.verb not in SMALLER and found.sizes)
    return next(full, None)


def shrink(record: StageRecord, records: Sequence[StageRecord]) -> float | None:
    """Return how many times smaller the artifact is than its float32 checkpoint."""
    full = full_size(record, records)
    return full / total(record) if full and total(record) else None


def final_artifact(records: Sequence[StageRecord]) -> StageRecord | None:
    """Return the last artifact: an export before a compressed model before a checkpoint that was measured."""
    sized = [record for record in records if total(record)]
    kinds = ([r for r in sized if r.verb == "export"], [r for r in sized if r.verb == "compress"])
    for found in (*kinds, [record for record in sized if measured(record)], sized):
        if found:
            return found[-1]
    return None


def size_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return what the table of sizes shows: one line for transfer runs on as many rows, or None without sizes."""
    merged: dict[object, list[StageRecord]] = {}
    for number, record in enumerate(records):
        if total(record):
            alike = ("rows", record.config.get("rows")) if record.verb == "transfer" else ("stage", number)
            merged.setdefault(alike, []).append(record)
    if not merged:
        return None
    lines = [size_line(group, records) for group in merged.values()]
    largest = max(line["bytes"] for line in lines)
    return {"lines": lines, "largest": largest, "ratios": any(line["ratio"] for line in lines)}


def size_line(group: Sequence[StageRecord], records: Sequence[StageRecord]) -> dict[str, Any]:
    """Return one line of the table of sizes: of several runs the largest."""
    first = max(group, key=total)
    several = ""
    if len(group) > 1:
        rows = first.config.get("rows") or "all"
        several = f"{len(group)} {fmt.verb_label(first.verb).lower()} runs, {rows} rows: the largest"
    return {
        "stage": several or first.name,
        "method": first.method if not several else "",
        "files": sorted(first.sizes.items()),
        "bytes": total(first),
        "ratio": shrink(first, records),
        "accuracy": accuracy(first) if not several else None,
    }


def latency_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return each stage's latencies, or None where none were measured."""
    stages = [
        {"name": record.name, "device": record.device, "lines": latency_lines(record.latency)}
        for record in records
        if record.latency
    ]
    return {"stages": stages} if stages else None


def latency_lines(rows: Sequence[Latency]) -> list[dict[str, Any]]:
    """Return each row beside the first one that was measured on the same work."""
    reference: dict[tuple[int, int, int], Latency] = {}
    lines = []
    for row in rows:
        first = reference.setdefault((row.batch, row.length, row.threads), row)
        ratio = row.median_us / first.median_us if first is not row and first.median_us else None
        lines.append({"row": row, "ratio": ratio, "reference": first.runtime})
    return lines


def device_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return what the section on the device shows, or None where nothing was measured."""
    verified = [record for record in records if record.verification]
    facts = {"sizes": size_facts(records), "latency": latency_facts(records), "verified": verified}
    return facts if any(facts.values()) else None
