"""The sections of the report in their order; one without facts is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headwater.records import Coverage, Curve, DataUse, Example, StageRecord
from headwater.report import formatting as fmt
from headwater.report.charts import Series, heat_map, line_chart, range_test_chart
from headwater.report.collect import plain, with_verb
from headwater.report.device import device_facts
from headwater.report.federation import federated_facts, personal_facts, privacy_facts
from headwater.report.few_shot import few_shot_facts
from headwater.report.language import language_facts
from headwater.report.lineage import draw_lineage
from headwater.report.transfer import transfer_facts

Facts = dict[str, Any]
MOST_EXAMPLES = 12


@dataclass(frozen=True)
class Section:
    """One section: `key` names its anchor and its template."""

    key: str
    title: str
    facts: Facts


def lineage_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return the drawn graph, where more than one stage is known."""
    if len(records) == 1 and not records[0].parents:
        return None
    wide, tall = draw_lineage(records)
    return {"wide": wide, "tall": tall}


def notes_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return the stages' own sentences; one that many stages say stands once."""
    said: dict[str, list[str]] = {}
    for record in records:
        for note in record.notes:
            said.setdefault(note, []).append(record.name)
    return {"notes": [{"text": note, "stages": stages} for note, stages in said.items()]} if said else None


def data_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return each file of rows once, with the stages that read it."""
    uses: dict[tuple[str, str, str], list[tuple[str, DataUse]]] = {}
    for record in records:
        for use in record.data:
            uses.setdefault((use.path, use.sha256, use.role), []).append((record.name, use))
    lines = []
    for (path, sha256, role), some in uses.items():
        counts = sorted({use.rows for _, use in some})
        rows = fmt.count(counts[0]) + (f" {fmt.DASH} {fmt.count(counts[-1])}" if len(counts) > 1 else "")
        stages = list(dict.fromkeys(name for name, _ in some))
        lines.append({"path": path, "sha256": sha256, "role": role, "rows": rows, "stages": stages})
    return {"lines": lines} if lines else None


def curve_charts(curves: Sequence[Curve]) -> list[Any]:
    """Draw the curves: those that measure the same over the same steps in one chart, one that chose a value alone."""
    charts: dict[tuple[str, str], list[Curve]] = {}
    for curve in (curve for curve in curves if curve.chosen is None):
        quantity = curve.name.split()[-1] if curve.name.split() else curve.name
        charts.setdefault((quantity, curve.x_label), []).append(curve)
    drawn = []
    for (quantity, x_label), some in charts.items():
        share = quantity in {"accuracy", "macro_f1", "coverage"}
        drawn.append(
            line_chart(
                [Series(curve.name, curve.x, curve.y) for curve in some],
                title=quantity[:1].upper() + quantity[1:],
                x_label=x_label,
                show=fmt.percent if share else fmt.number,
                show_tick=fmt.percent_tick if share else fmt.number,
            )
        )
    for curve in curves:
        if curve.chosen is not None:
            title, series = curve.name[:1].upper() + curve.name[1:], Series(curve.name, curve.x, curve.y)
            drawn.append(
                range_test_chart(series, curve.chosen, title=title, x_label=curve.x_label, y_label="train loss")
            )
    return [chart for chart in drawn if chart]


def in_matrix(record: StageRecord, records: Sequence[StageRecord]) -> bool:
    """Say whether the stage is one of several transfer runs, whose curves stand in the appendix."""
    return record.verb == "transfer" and len(with_verb(records, "transfer")) > 1


def training_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return the learning curves of the stages that stand alone."""
    stages = [
        {"record": record, "charts": charts}
        for record in records
        if not in_matrix(record, records) and (charts := curve_charts(record.curves))
    ]
    return {"stages": stages} if stages else None


COVERAGE_WORDS = {
    "copied": ("s0", "copied as they are"),
    "folded": ("s2", "found in another case"),
    "normalized": ("s1", "found in another form of the same characters"),
    "converted": ("s3", "found in other Chinese characters, traditional or simplified"),
    "composed": ("s4", "composed of their characters"),
    "pieced": ("s5", "composed of subwords that the source knows"),
    "new": ("same", "new"),
}


def coverage_kinds(coverage: Coverage) -> list[Facts]:
    """Return how many types were found in which way, and their share of the tokens where it is known."""
    total = sum(coverage.tokens.values())
    return [
        {
            "class": class_,
            "types": types,
            "words": words,
            "share": coverage.tokens.get(kind, 0) / total if total else None,
        }
        for kind, (class_, words) in COVERAGE_WORDS.items()
        if (types := getattr(coverage, kind))
    ]


def coverage_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return the vocabulary coverages: of runs on as many rows the first, with the span of the others."""
    found: dict[str, Facts] = {}
    for number, record in enumerate(records):
        if record.coverage:
            key = str(record.config.get("rows")) if record.verb == "transfer" else f"stage {number}"
            kinds = coverage_kinds(record.coverage)
            line = found.setdefault(key, {"coverage": record.coverage, "kinds": kinds, "stages": [], "shares": []})
            line["stages"].append(record.name)
            line["shares"].append(record.coverage.tokens_share)
    return {"lines": list(found.values())} if found else None


def confusion_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return the last stage's confusion matrix, then those of the other stages that stand alone."""
    drawn = [
        {"name": record.name, "chart": chart}
        for record in reversed(records)
        if record.confusion
        and (chart := heat_map(record.confusion.labels, record.confusion.counts, title=record.name))
        and not in_matrix(record, records)
    ]
    return {"first": drawn[0], "others": drawn[1:]} if drawn else None


def scores_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return the last stage's ROC curves and reliability diagram."""
    found = [record for record in records if record.scores]
    if not found or not (scores := found[-1].scores):
        return None
    roc = [Series(curve.name, curve.x, curve.y) for curve in scores.roc]
    trust = Series("the model", scores.reliability.x, scores.reliability.y)
    chart = partial(line_chart, show=fmt.percent, show_tick=fmt.percent_tick, whole=False)
    charts = [
        chart([*roc, Series("chance", [0, 1], [0, 1])], title="True positives", x_label="false positives"),
        chart(
            [trust, Series("its word", [0, 1], [0, 1])], title="Accuracy", x_label="probability of the predicted label"
        ),
    ]
    figures = next((figures for figures in found[-1].metrics.values() if "ece" in figures), {})
    return {"name": found[-1].name, "charts": charts, "error": scores.auc_error, "figures": figures}


def example_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return highlighted rows of the last stage that explained some."""
    explained = [record for record in records if record.examples]
    if not explained:
        return None
    record = explained[-1]
    examples = record.examples[:MOST_EXAMPLES]
    return {
        "name": record.name,
        "examples": [example_line(example) for example in examples],
        "left_out": len(record.examples) - len(examples),
    }


def example_line(example: Example) -> Facts:
    """Return a row with each token's weight on a scale of its own, from -1 to 1."""
    largest = max((abs(weight) for weight in example.weights), default=0.0) or 1.0
    tokens = [
        {"text": token, "weight": weight, "share": max(-1.0, min(1.0, weight / largest))}
        for token, weight in zip(example.tokens, example.weights, strict=False)
    ]
    return {"tokens": tokens, "example": example, "right": example.label == example.predicted}


def appendix_facts(records: Sequence[StageRecord]) -> Facts | None:
    """Return everything that a stage says about how it ran."""
    stages = []
    for record in records:
        facts = {
            "record": record,
            "config": [(key, plain(value)) for key, value in sorted(record.config.items())],
            "model": [(key, plain(value)) for key, value in sorted(record.model.items())],
            "versions": sorted(record.versions.items()),
            "charts": curve_charts(record.curves) if in_matrix(record, records) else [],
        }
        stages.append(facts)
    return {"stages": stages, "wall": sum(record.wall_seconds for record in records)}


SECTIONS: tuple[tuple[str, str, Callable[[Sequence[StageRecord]], Facts | None]], ...] = (
    ("lineage", "Lineage", lineage_facts),
    ("notes", "Notes and warnings", notes_facts),
    ("data", "Data", data_facts),
    ("training", "Training curves", training_facts),
    ("transfer", "Transfer", transfer_facts),
    ("few_shot", "Few rows of a new task", few_shot_facts),
    ("language", "Language models", language_facts),
    ("coverage", "Vocabulary coverage", coverage_facts),
    ("federated", "Federated learning", federated_facts),
    ("privacy", "Privacy spent", privacy_facts),
    ("personal", "Personalization", personal_facts),
    ("confusion", "Confusion", confusion_facts),
    ("scores", "Ranking and calibration", scores_facts),
    ("device", "On the device", device_facts),
    ("examples", "What the model reads", example_facts),
    ("appendix", "Appendix: how each stage ran", appendix_facts),
)


def build_sections(records: Sequence[StageRecord]) -> list[Section]:
    """Return the sections that have something to show."""
    built = ((key, title, make(records)) for key, title, make in SECTIONS)
    return [Section(key, title, facts) for key, title, facts in built if facts]
