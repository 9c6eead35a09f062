"""Language models: how well each predicts the next token, beside the source before and the unigrams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwater.records import StageRecord

PERPLEXITY = "perplexity"


def language_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return the perplexities of each language model, or None where there is none."""
    lines = []
    for record in records:
        measured = next((name for name in ("test", "valid") if PERPLEXITY in record.metrics.get(name, {})), None)
        if measured:
            lines.append(
                {
                    "record": record,
                    "figures": record.metrics[measured],
                    "before": record.metrics.get("before", {}).get(PERPLEXITY),
                    "unigram": record.baselines.get("unigram", {}).get(PERPLEXITY),
                    "held_out": measured == "valid",
                }
            )
    return {"lines": lines, "held_out": any(line["held_out"] for line in lines)} if lines else None
