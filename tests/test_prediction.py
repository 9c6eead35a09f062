"""Prediction: checkpoints and artifacts answer alike, and an artifact answers without torch."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_models import LABELS, WORDS, personal, sentences, small_checkpoint, write_rows

from headwater.compression.verb import CompressOptions, compress
from headwater.data.rows import Rows, read_rows
from headwater.data.table import read_table
from headwater.deployment.verb import ExportOptions, export
from headwater.errors import CheckpointError, ConfigError, DataError, OutputError
from headwater.explain.occlusion import examples, occlusion
from headwater.features.text import TextFeaturizer
from headwater.prediction import EvaluateOptions, PredictOptions, evaluate, load_predictor, predict
from headwater.statistics import worst_decile

TEXTS = sentences(50)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint with clients' own models; artifacts of the shared one, of ann's and of int8 weights."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headwater.deployment.latency._CALLS", 1)
        checkpoint = small_checkpoint()
        checkpoint = replace(checkpoint, personal=personal(checkpoint, "ann", "bob"))
        checkpoint.save(folder / "checkpoint")
        export(checkpoint, ExportOptions(out=folder / "artifact", quiet=True))
        export(checkpoint, ExportOptions(out=folder / "ann", client="ann", quiet=True))
        int8 = compress(checkpoint, CompressOptions(out=folder / "int8", quiet=True))
        export(int8, ExportOptions(out=folder / "int8-artifact", quiet=True))
    return folder


@pytest.mark.parametrize(("one", "other"), [("checkpoint", "artifact"), ("int8", "int8-artifact")])
def test_artifact_equals_checkpoint(folders, one, other):
    a, b = load_predictor(folders / one), load_predictor(folders / other)
    assert a.labels == b.labels == LABELS
    assert a.featurizer.vocabulary == b.featurizer.vocabulary
    np.testing.assert_allclose(a.probabilities(TEXTS), b.probabilities(TEXTS), atol=1e-5)
    assert a.probabilities([]).shape == b.probabilities([]).shape == (0, 3)


@pytest.mark.parametrize("name", ["checkpoint", "artifact"])
def test_the_order_of_the_texts_is_kept(folders, name, monkeypatch):
    predictor = load_predictor(folders / name)
    alone = np.concatenate([predictor.probabilities([text]) for text in TEXTS])
    monkeypatch.setattr("headwater.inference.run_all.__defaults__", (7,))
    together = predictor.probabilities(TEXTS)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1.0, atol=1e-6)


def test_a_clients_own_model(folders):
    shared = load_predictor(folders / "checkpoint")
    assert shared.clients == ("ann", "bob")
    ann = load_predictor(folders / "checkpoint", client="ann").probabilities(TEXTS)
    assert np.abs(ann - shared.probabilities(TEXTS)).max() > 1e-2
    for client in (None, "ann"):
        exported = load_predictor(folders / "ann", client=client)
        assert exported.clients == ("ann",)
        np.testing.assert_allclose(exported.probabilities(TEXTS), ann, atol=1e-5)
    with pytest.raises(CheckpointError, match="no model of client 'eve'"):
        load_predictor(folders / "checkpoint", client="eve")
    with pytest.raises(CheckpointError, match="that of client 'ann'"):
        load_predictor(folders / "ann", client="bob")
    with pytest.raises(CheckpointError, match="the shared one"):
        load_predictor(folders / "artifact", client="bob")


def test_a_row_that_is_read_backward_is_explained_in_the_order_of_its_text():
    predictor = small_checkpoint().predictor()
    options = predictor.featurizer.options.model_copy(update={"direction": "backward"})
    backward = replace(predictor, featurizer=TextFeaturizer(options, predictor.featurizer.vocabulary))
    text = " ".join(WORDS[:12])
    rows = Rows([text], ["good"], [], "toy", "0" * 64)
    (example,) = examples(backward, rows, 1)
    tokens, weights, _, _ = occlusion(backward, text)
    assert example.tokens == text.split() == tokens[::-1]
    assert example.weights == weights.tolist()[::-1]


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
sys.modules["torch"] = sys.modules["onnx"] = None  # importing either is an error
from headwater.prediction import EvaluateOptions, PredictOptions, evaluate, load_predictor, predict
artifact, data, out = sys.argv[1:]
shares = load_predictor(artifact).probabilities(["w1 w2", "w3"]).tolist()
figures = evaluate(artifact, EvaluateOptions(data=data, client="client"))
one = predict(artifact, PredictOptions(text="w1 w2"))
many = predict(artifact, PredictOptions(data=data, out=Path(out)))
print(json.dumps([shares, figures, one, many]))
"""


@pytest.mark.parametrize("name", ["artifact", "int8-artifact"])
def test_an_artifact_needs_no_torch(folders, tmp_path, name):
    data = write_rows(tmp_path / "rows.csv", TEXTS, ["bad", "good"] * 25, ["x", "y"] * 25)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folders / name), data, str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shares, figures, one, many = json.loads(done.stdout)
    expected = load_predictor(folders / name).probabilities(["w1 w2", "w3"])
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert one["label"] == LABELS[int(expected[0].argmax())]
    assert figures == pytest.approx(evaluate(folders / name, EvaluateOptions(data=data, client="client")))
    assert many["rows"] == 50


def test_evaluate(folders, tmp_path):
    hits = load_predictor(folders / "checkpoint").probabilities(TEXTS).argmax(1)
    labels = [LABELS[(n + (row % 5 == 0)) % 3] for row, n in enumerate(hits)]  # every fifth label is wrong
    data = write_rows(tmp_path / "rows.csv", TEXTS, labels)
    for name in ("checkpoint", "artifact"):
        figures = evaluate(folders / name, EvaluateOptions(data=data))
        assert figures.keys() == {"accuracy", "macro_f1", "loss", "n", "auc", "ece"}
        assert (figures["accuracy"], figures["n"]) == (0.8, 50)
    wrong = write_rows(tmp_path / "wrong.csv", ["w1"], ["goood"])
    for name in ("checkpoint", "artifact"):
        with pytest.raises(DataError, match=r"never seen in training \(did you mean 'good'\?\)"):
            evaluate(folders / name, EvaluateOptions(data=wrong))


def test_evaluate_by_client(folders, tmp_path):
    names = ["ann", "bob", "eve", "ann", "eve"] * 10
    data = write_rows(tmp_path / "rows.csv", TEXTS, ["bad", "fair"] * 25, names)
    rows = read_rows(data, text="text", label="label", client="client")
    accuracies, right = [], 0
    for client, found in rows.by_client().items():
        own = load_predictor(folders / "checkpoint", client=client if client != "eve" else None)
        guesses = own.probabilities([TEXTS[i] for i in found]).argmax(1)
        hits = [LABELS[g] == rows.labels[i] for g, i in zip(guesses, found, strict=True)]
        accuracies.append(float(np.mean(hits)))
        right += sum(hits)
    figures = evaluate(folders / "checkpoint", EvaluateOptions(data=data, client="client"))
    assert figures["accuracy"] == right / 50
    assert figures["clients"] == 3
    assert figures["client_accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert figures["worst_decile_gap"] == pytest.approx(np.mean(accuracies) - min(accuracies))
    assert (figures["lowest_client_accuracy"], figures["highest_client_accuracy"]) == (min(accuracies), max(accuracies))
    assert figures["worst_decile_accuracy"] == worst_decile(accuracies) == min(accuracies)
    assert figures["accuracy"] != evaluate(folders / "checkpoint", EvaluateOptions(data=data))["accuracy"]


def test_a_language_model_is_measured_by_its_own_task(tmp_path):
    checkpoint = small_checkpoint(task={"name": "language_modeling"}, bidirectional=False)
    checkpoint.save(tmp_path / "m")
    data = write_rows(tmp_path / "rows.csv", ["w1 w2", "w3"], ["-", "-"])
    figures = evaluate(tmp_path / "m", EvaluateOptions(data=data))
    assert figures["n"] == 5  # the tokens and two ends
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))
    with pytest.raises(ConfigError, match="no labels to predict"):
        load_predictor(tmp_path / "m")


@pytest.mark.parametrize("name", ["checkpoint", "artifact"])
def test_predict(folders, tmp_path, name):
    expected = load_predictor(folders / name).probabilities(TEXTS)
    one = predict(folders / name, PredictOptions(text=TEXTS[0]))
    assert one["probabilities"] == pytest.approx(dict(zip(LABELS, map(float, expected[0]), strict=True)))
    assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
    data = write_rows(tmp_path / "rows.csv", TEXTS, ["-"] * 50)
    out = tmp_path / "labels.csv"
    assert predict(folders / name, PredictOptions(data=data, out=out)) == {"rows": 50, "out": str(out)}
    table = read_table(out, ["text", "label", "probability"])
    assert table["text"] == TEXTS
    assert table["label"] == [LABELS[n] for n in expected.argmax(1)]
    np.testing.assert_allclose([float(p) for p in table["probability"]], expected.max(1), atol=1e-6)
    with pytest.raises(OutputError, match="exists already"):
        predict(folders / name, PredictOptions(data=data, out=out))


def test_predict_refuses_what_it_cannot_do(folders, tmp_path):
    for options in (PredictOptions(), PredictOptions(text=" ")):
        with pytest.raises(ConfigError, match="give a text"):
            predict(folders / "artifact", options)
    with pytest.raises(ConfigError, match="add --out"):
        predict(folders / "artifact", PredictOptions(data="rows.csv"))
    with pytest.raises(CheckpointError, match="isn't a folder"):
        predict(tmp_path / "nothing", PredictOptions(text="w1"))
    data = write_rows(tmp_path / "rows.csv", ["w1"], ["-"])
    with pytest.raises(DataError, match="unknown suffix"):
        predict(folders / "artifact", PredictOptions(data=data, out=tmp_path / "labels.docx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]
