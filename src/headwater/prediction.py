"""Using a model: the same for a checkpoint, which runs in torch, and for an artifact, which runs without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from headwater.config import ValueColumns
from headwater.data.rows import Rows, read_rows
from headwater.data.table import write_table
from headwater.deployment.artifact import ARTIFACT_FILE, Artifact
from headwater.errors import CheckpointError, ConfigError, OutputError
from headwater.evaluation import Evaluation
from headwater.features.featurizer import Featurizer, Inputs
from headwater.inference import Predictor
from headwater.statistics import over_clients

if TYPE_CHECKING:
    from headwater.checkpoint import Checkpoint

_OVER_CLIENTS = {
    "client_accuracy_sd": "spread",
    "worst_decile_accuracy": "worst",
    "worst_decile_gap": "gap",
    "lowest_client_accuracy": "low",
    "highest_client_accuracy": "high",
}


class EvaluateOptions(ValueColumns):
    """Options of `evaluate`."""

    data: str
    """Rows to measure on: a file, or `card:NAME/SPLIT`."""
    text: str = "text"
    """The column that holds the text."""
    label: str = "label"
    """The column that holds the label; a language model needs none."""
    client: str | None = None
    """The column that names each row's client, whose own model then reads the row where there is one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Processor threads for the arithmetic."""


class PredictOptions(ValueColumns):
    """Options of `predict`; give one text, or a file of rows and where to write."""

    data: str | None = None
    """A file of texts or of numeric rows, or `card:NAME/SPLIT`."""
    text: str = "text"
    """The text itself; with `--data`, the column that holds the texts."""
    out: Path | None = None
    """The table to write, with the columns text, label and probability; its suffix says the kind. In place of a text,
    numeric rows have their name (`row`) and windows the step they begin with (`start`, from 0)."""
    client: str | None = None
    """Use this client's own model."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Processor threads for the arithmetic."""


def load_predictor(path: str | Path, *, client: str | None = None, threads: int = 1) -> Predictor:
    """Open a checkpoint or an artifact.

    Args:
        path: Its folder.
        client: Whose own model to use; the shared one by default.
        threads: Processor threads for the arithmetic.

    Raises:
        CheckpointError: The folder is neither, is damaged, or holds no model of that client.
        ConfigError: The model is no classifier.
    """
    if (Path(path) / ARTIFACT_FILE).exists():
        predictor = Artifact.load(path).predictor(threads)
        if client is not None and client not in predictor.clients:
            whose = f"that of client {predictor.clients[0]!r}" if predictor.clients else "the shared one"
            raise CheckpointError(
                f"{path} holds one model, {whose}: export the checkpoint again with --client {client}"
            )
        return predictor
    return _checkpoint(path, threads).predictor(client)


def evaluate(path: str | Path, options: EvaluateOptions) -> dict[str, Any]:
    """Measure a checkpoint or an artifact on labelled rows.

    Returns:
        ``accuracy``, ``macro_f1``, ``loss`` (nats a row), ``n``, ``auc`` and ``ece`` (area under the ROC curve and
        expected calibration error, see `metrics.ScoreCounts`); with clients also ``clients`` (their
        number), ``client_accuracy_sd``, ``worst_decile_accuracy`` (mean accuracy of the worst tenth of the
        clients, at least one), ``worst_decile_gap`` (what that lacks of the mean), ``lowest_client_accuracy`` and
        ``highest_client_accuracy``, each client counting the same. A language model: what its task counts.

    Raises:
        HeadwaterError: The folder or the rows can't be used, or a row has a label unknown to the model.
    """
    if (Path(path) / ARTIFACT_FILE).exists():
        predictor = load_predictor(path, threads=options.threads)
        rows = _labelled(options, predictor.labels, predictor.featurizer)
        return _figures(rows, predictor.labels, predictor.probabilities(rows.inputs))
    checkpoint = _checkpoint(path, options.threads)
    if not checkpoint.labels:
        values = options.only(ValueColumns)
        rows = read_rows(options.data, text=options.text, values=values, features=checkpoint.featurizer.options)
        examples = rows.encode(checkpoint.featurizer, ())
        return {**checkpoint.config.make_task().count(checkpoint.model(), examples, 64).figures()}
    rows = _labelled(options, checkpoint.labels, checkpoint.featurizer)
    return _figures(rows, checkpoint.labels, checkpoint.probabilities(rows))


def predict(path: str | Path, options: PredictOptions) -> dict[str, Any]:
    """Predict labels with a checkpoint or an artifact.

    Returns:
        For one text ``label``, ``probability`` and ``probabilities`` by label; for a file ``rows`` (their
        number) and ``out``, the table that has been written.

    Raises:
        ConfigError: Neither a text nor a file was given, or both, or no place to write.
        OutputError: The table exists already, or can't be written.
        HeadwaterError: The folder or the file of texts can't be used.
    """
    if options.data is None:
        if "text" not in options.model_fields_set or not options.text.strip():
            raise ConfigError('give a text: --text "...", or a file of texts: --data FILE --text COLUMN --out FILE')
        if options.out is not None:
            raise ConfigError(f"out = {str(options.out)!r}: a table is written for a file of rows: add --data FILE")
        predictor = load_predictor(path, client=options.client, threads=options.threads)
        if predictor.featurizer.modality != "text":
            raise ConfigError("the model reads numbers, not text: give --data FILE --values COLUMNS --out FILE")
        labels, sure, probabilities_NK = _predicted(predictor, [options.text])
        shares = {label: float(p) for label, p in zip(predictor.labels, probabilities_NK[0], strict=True)}
        return {"label": labels[0], "probability": sure[0], "probabilities": shares}
    if options.out is None:
        raise ConfigError("a file of rows needs a table to write the labels to: add --out, such as labels.csv")
    if options.out.exists():
        raise OutputError(f"{options.out} exists already: choose another --out, or delete it")
    predictor = load_predictor(path, client=options.client, threads=options.threads)
    values, features = options.only(ValueColumns), predictor.featurizer.options
    rows = read_rows(options.data, text=options.text, values=values, features=features)
    labels, sure, _ = _predicted(predictor, rows.inputs)
    write_table(options.out, {**_shown(rows), "label": labels, "probability": sure})
    return {"rows": len(rows), "out": str(options.out)}


def _predicted(predictor: Predictor, rows: Inputs) -> tuple[list[str], list[float], np.ndarray]:
    """Return each row's label, how probable it is, and the probabilities of all (N, K)."""
    probabilities_NK = predictor.probabilities(rows)
    labels = [predictor.labels[number] for number in probabilities_NK.argmax(1)]
    return labels, [float(value) for value in probabilities_NK.max(1)], probabilities_NK


def _shown(rows: Rows) -> dict[str, list[Any]]:
    """Return the columns by which a reader knows the rows."""
    if not rows.recordings:
        return {"text": list(rows.texts)}
    return {"row": list(rows.recordings)} | ({"start": list(rows.starts)} if rows.starts else {})


def _checkpoint(path: str | Path, threads: int) -> Checkpoint:
    import torch

    from headwater.checkpoint import Checkpoint

    torch.set_num_threads(threads)
    return Checkpoint.load(path)


def _labelled(options: EvaluateOptions, labels: tuple[str, ...], featurizer: Featurizer) -> Rows:
    text, label, client = options.text, options.label, options.client
    values, features = options.only(ValueColumns), featurizer.options
    rows = read_rows(options.data, text=text, label=label, client=client, values=values, features=features)
    rows.targets(labels)
    return rows


def _figures(rows: Rows, labels: tuple[str, ...], probabilities_NK: np.ndarray) -> dict[str, Any]:
    evaluation = Evaluation.of(rows, labels, probabilities_NK)
    figures: dict[str, Any] = evaluation.figures() | evaluation.scores().figures()
    if rows.clients:
        accuracies = [evaluation.counts(found).figures()["accuracy"] for found in rows.by_client().values()]
        figures["clients"] = len(accuracies)
        over = over_clients(accuracies)
        figures |= {name: over[key] for name, key in _OVER_CLIENTS.items()}
    return figures
