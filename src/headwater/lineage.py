"""Where a checkpoint came from: it travels with the weights, so that no stage can be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headwater.errors import CheckpointError
from headwater.records import DataUse, Metrics, Parent, Privacy, Record


class LineageEntry(Record):
    """One stage on the way."""

    name: str
    verb: str
    method: str = ""
    parents: list[Parent] = []
    data: list[DataUse] = []
    seed: int = 0
    versions: dict[str, str] = {}
    metrics: dict[str, Metrics] = {}
    privacy: Privacy | None = None


class Lineage(Record):
    """The stages of a checkpoint, oldest first."""

    stages: list[LineageEntry] = []

    def then(self, entry: LineageEntry) -> Lineage:
        """Return the lineage with one more stage."""
        return Lineage(stages=[*self.stages, entry])

    @classmethod
    def load(cls, path: Path) -> Lineage:
        """Read `lineage.json`.

        Raises:
            CheckpointError: It is missing or isn't a lineage of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise CheckpointError(f"{path} isn't a lineage of this version: {str(error).splitlines()[0]}") from error

    def card(self, config: dict[str, Any], parameters: int) -> str:
        """Return the model card: the same facts for people, in Markdown."""
        lines = [
            f"# {self.stages[-1].name if self.stages else 'A model'}",
            "",
            _describe(config, parameters),
        ]
        if labels := config["task"].get("labels"):
            lines += ["", f"Labels: {', '.join(labels)}."]
        lines += ["", "| stage | method | seed | trained on | figures |", "| --- | --- | --- | --- | --- |"]
        for stage in self.stages:
            data = ", ".join(
                f"{use.path} ({use.rows:,} rows)" for use in stage.data if use.role in ("train", "unlabelled")
            )
            figures = "; ".join(
                f"{where}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items())
                for where, values in stage.metrics.items()
            )
            cells = [stage.verb, stage.method, str(stage.seed), data, figures]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        for stage in self.stages:
            if stage.privacy:
                lines += [
                    "",
                    _promise(stage.name, stage.privacy),
                ]
        return "\n".join(lines) + "\n"


def _describe(config: dict[str, Any], parameters: int) -> str:
    encoder = config["encoder"]
    reads = f"embedding {encoder['embedding_size']}, vocabulary {config['vocabulary_size']:,}"
    if config["channels"]:
        projected = f" projected to {encoder['embedding_size']}" if encoder["projection"] else ""
        reads = f"{config['channels']} channels{projected}"
    return (
        f"A {'bidirectional ' if encoder['bidirectional'] else ''}{encoder['cell'].upper()} with "
        f"{encoder['layers']} x {encoder['hidden_size']} units, {reads}, "
        f"{parameters:,} parameters; task: {config['task']['name']}."
    )


def _promise(stage: str, privacy: Privacy) -> str:
    return (
        f"Privacy: ({privacy.epsilon:.3g}, {privacy.delta:.1e})-differentially private for each {privacy.unit} "
        f"in the stage {stage}. {privacy.note}"
    )
