"""Numeric rows: prepared alike everywhere, read alike by kernels and torch, and taken the whole path by every verb."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NO_DROPOUT, TINY, toy_series, write_lists

from headwater import fine_tune
from headwater.cells.stream import Stream
from headwater.checkpoint import MODEL_FILE, Checkpoint, ModelConfig
from headwater.cli import main
from headwater.compression.int8 import quantize
from headwater.compression.verb import CompressOptions, compress
from headwater.config import ValueColumns
from headwater.data.batches import batch_of
from headwater.data.examples import Examples
from headwater.data.rows import Rows, hold_out, read_rows, row_notes
from headwater.data_parallel import Share
from headwater.deployment import export_target
from headwater.deployment.verb import ExportOptions, export
from headwater.deployment.verify import verify
from headwater.errors import CheckpointError, ConfigError, DataError
from headwater.features.numeric import STANDARDIZATION_FILE, NumericFeaturizer, NumericOptions
from headwater.federated.options import FederateOptions
from headwater.federated.personalization import PersonalizeOptions, personalize
from headwater.federated.verb import federate
from headwater.fitting import Splits
from headwater.journey import read_journey, run_journey
from headwater.metalearning.options import MetalearnOptions
from headwater.metalearning.verb import metalearn
from headwater.model import EncoderOptions
from headwater.prediction import EvaluateOptions, PredictOptions, evaluate, load_predictor, predict
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord
from headwater.report import write_report
from headwater.reshaping.verb import ReshapeOptions, reshape
from headwater.tasks.classification import torch_runner
from headwater.transfer_learning.choice import _folds
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer
from headwater.transfer_learning.virtual_adversarial import VirtualAdversarial

RUN = TINY | {"values": "values", "epochs": 4}
SHARED_DATA = Path(os.environ.get("HEADWATER_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A folder of numeric toy files: train.jsonl and test.jsonl, and three.jsonl of three labels."""
    folder = tmp_path_factory.mktemp("numbers")
    write_lists(folder / "train.jsonl", toy_series(240, seed=1, clients=6))
    write_lists(folder / "test.jsonl", toy_series(90, seed=2, clients=6))
    write_lists(folder / "three.jsonl", toy_series(240, seed=3, labels=("falls", "rests", "rises")))
    return folder


@pytest.fixture(scope="session")
def numeric_folder(numbers, tmp_path_factory):
    """The folder of a checkpoint that reads the channels as they are; not to be changed."""
    out = tmp_path_factory.mktemp("numeric") / "source"
    files = {"data": str(numbers / "train.jsonl"), "test": str(numbers / "test.jsonl"), "out": out}
    pretrain(PretrainOptions(**RUN | files))
    return out


@pytest.fixture
def numeric(numeric_folder):
    """The checkpoint in it."""
    return Checkpoint.load(numeric_folder)


def small(*, channels=3, projection=False, seed=0, dropout=NO_DROPOUT, **encoder):
    """Return a checkpoint with every weight drawn."""
    featurizer = NumericFeaturizer(NumericOptions(), np.arange(channels) - 1.0, np.arange(channels) + 0.5)
    shape = {"embedding_size": 6 if projection else channels, "hidden_size": 5, "projection": projection} | encoder
    config = ModelConfig(
        **featurizer.sizes,
        encoder=EncoderOptions(**shape),
        dropout=dropout,
        featurizer=featurizer.options,
        task={"name": "classification", "labels": ("a", "b", "c"), "pooling": "concat"},
    )
    torch.manual_seed(seed)
    model = config.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Checkpoint(config, featurizer, {}).with_model(model)


def random_batch(channels=3, count=7):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(int(length), channels)).astype(np.float32) for length in rng.integers(1, 12, count)]
    return batch_of(Examples(rows, [0] * count), np.arange(count))


def test_standardization_is_fitted_on_the_rows_that_it_is_given():
    rows = toy_series(50).inputs
    featurizer = NumericFeaturizer.fit(rows, NumericOptions(max_length=5))
    read = np.concatenate([row[:5] for row in rows])
    standard = np.concatenate(featurizer.encode_all(rows))
    assert standard.dtype == np.float32
    assert np.allclose(standard, (read - read.mean(0)) / read.std(0), atol=1e-5)
    assert np.allclose(standard.mean(0), 0, atol=1e-5)
    assert np.allclose(standard.std(0), 1, atol=1e-5)
    assert [featurizer.is_cut(row) for row in rows] == [len(row) > 5 for row in rows]


def test_large_numbers_keep_their_small_differences():
    rows = [np.array([[1e9 + 1], [1e9 + 2]]), np.array([[1e9 + 3]])]
    assert np.allclose(NumericFeaturizer.fit(rows, NumericOptions()).encode(rows[0]).ravel(), [-1.2247, 0], atol=1e-3)


def test_a_channel_that_never_changes_is_left_in_its_scale():
    featurizer = NumericFeaturizer.fit([np.full((5, 1), 0.1), np.full((4, 1), 0.1)], NumericOptions())
    assert np.allclose(featurizer.encode(np.array([[0.1], [0.3]])).ravel(), [0, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (np.ones((2, 3)), "3 channels where the model reads 2"),
        (np.ones(2), r"shape \(2,\) where numbers"),
        (np.ones((0, 2)), r"shape \(0, 2\)"),
        (np.array([["a", "b"]]), "<U1"),
        (np.array([[1.0, np.nan]]), "aren't finite"),
        (np.array([[1.0, 1e300]]), "aren't finite"),
        ("text", "where numbers"),
    ],
)
def test_rows_that_a_model_cannot_read_are_refused(row, said):
    featurizer = NumericFeaturizer(NumericOptions(), np.zeros(2), np.full(2, 0.1))
    with pytest.raises(DataError, match=said):
        featurizer.encode(row)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mean": [1]}', '{"mean": [1], "deviation": [0]}'])
@pytest.mark.parametrize("more", ["", '{"mean": [1, 2], "deviation": [1]}', '{"mean": [NaN], "deviation": [1]}'])
def test_a_standardization_that_is_none_is_refused(tmp_path, content, more):
    (tmp_path / STANDARDIZATION_FILE).write_text(more or content)
    with pytest.raises(CheckpointError, match=STANDARDIZATION_FILE):
        NumericFeaturizer.load(tmp_path, NumericOptions())


def test_recordings_are_cut_into_windows():
    rows = Rows([np.arange(10.0)[:, None], np.arange(3.0)[:, None]], ["a", "b"], [], "toy", "0", ["p", "q"])
    cut = rows.windows(NumericOptions(window=4, stride=3))
    assert [row.ravel().tolist() for row in cut.inputs] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [0, 1, 2]]
    assert (cut.labels, cut.recordings, cut.starts) == (["a"] * 3 + ["b"], ["p"] * 3 + ["q"], [0, 3, 6, 0])
    assert [len(row) for row in rows.windows(NumericOptions(window=5)).inputs] == [5, 5, 3]


def test_windows_of_a_recording_stay_on_one_side_of_a_split():
    recordings = [np.full((40, 1), float(number)) for number in range(60)]
    rows = Rows(recordings, ["a", "b"] * 30, [], "toy", "0", [str(number) for number in range(60)])
    train, valid = hold_out(rows.windows(NumericOptions(window=8)), 0.2, 0)
    assert len(train) + len(valid) == 300
    assert len(valid) == 60
    assert not {*train.recordings} & {*valid.recordings}
    single = replace(rows.take([0, 1]), recordings=["p", "q"]).windows(NumericOptions(window=8, stride=1))
    assert len(hold_out(single, 0.9, 0)[1]) in (0, len(single))
    assert len(hold_out(single, 0.4, 0)[1]) == 0


def test_what_a_reader_must_know_of_numeric_rows_is_said():
    rows = toy_series(20)
    featurizer = NumericFeaturizer.fit(rows.inputs, NumericOptions(max_length=8))
    cut = sum(len(row) > 8 for row in rows.inputs)
    assert row_notes(featurizer, rows, rows.take([1, 2])) == [
        f"{cut} of 20 training rows ({cut / 20:.1%}) are longer than 8 steps: the rest of each was cut off.",
        "2 of 2 rows to measure on have the numbers of one among the training rows.",
    ]
    assert rows.fingerprint() != rows.take(range(19, -1, -1)).fingerprint()
    with pytest.raises(DataError, match="read as numbers"):
        _ = rows.texts


SHAPES = [{}, {"projection": True}, {"projection": True, "layers": 2, "bidirectional": False}, {"cell": "gru"}]


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_and_torch_agree_in_outputs_and_gradients(shape, monkeypatch):
    model, batch = small(**shape).model().train(), random_batch()

    def run():
        model.zero_grad()
        logits = model(batch.inputs, batch.lengths_B)
        logits.square().sum().backward()
        return logits.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}

    kernels, by_kernels = run()
    monkeypatch.setattr("headwater.cells.stack.usable", lambda _: False)
    plain, by_torch = run()
    assert torch.allclose(kernels, plain, atol=1e-5)
    assert by_kernels.keys() == by_torch.keys()
    assert all(torch.allclose(by_kernels[name], by_torch[name], atol=1e-4, rtol=1e-4) for name in by_torch)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(shape):
    model, batch = small(**shape).model(), random_batch()
    behind = torch.arange(batch.inputs.shape[1] + 4) >= batch.lengths_B.unsqueeze(1)
    wider = torch.nn.functional.pad(batch.inputs, (0, 0, 0, 4)).masked_fill(behind.unsqueeze(2), 7.0)
    assert torch.allclose(model(wider, batch.lengths_B), model(batch.inputs, batch.lengths_B), atol=1e-6)


@pytest.mark.parametrize("projection", [False, True])
def test_steps_of_a_stream_are_the_forward_pass(projection):
    encoder = small(bidirectional=False, projection=projection).model().encoder
    x_TC = random_batch().inputs[0]
    stream = Stream(encoder.stack)
    steps = torch.stack([stream.step(encoder.embed(x_C).detach()) for x_C in x_TC])
    assert torch.allclose(steps, encoder(x_TC.unsqueeze(0))[0][0], atol=1e-5)


def test_dropout_is_for_what_is_learned():
    dropout = NO_DROPOUT.model_copy(update={"input_dropout": 0.5})
    x = random_batch().inputs
    assert torch.equal(small(dropout=dropout).model().train().encoder.embed(x), x)
    assert (small(dropout=dropout, projection=True).model().train().encoder.embed(x) == 0).any()


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_artifact_equals_its_model(shape, stored):
    checkpoint = small(**shape)
    if stored == "int8":
        config = checkpoint.config.model_copy(update={"compression": "int8"})
        checkpoint = replace(checkpoint, config=config, tensors=quantize(checkpoint.tensors))
    target = export_target("onnx")
    model = target.build(checkpoint.config, checkpoint.tensors)
    for settings in target.variants(checkpoint.config).values():
        run = target.open(model, settings, 1)
        result = verify(run, torch_runner(checkpoint.model()), checkpoint.featurizer, tolerance=1e-5)
        assert result.passed, result


def test_a_pretrained_model_beats_the_majority_and_comes_back_as_it_was(numeric, numeric_folder, numbers):
    record = StageRecord.load(numeric_folder)
    assert record.metrics["test"]["accuracy"] > 0.8 > record.baselines["majority"]["accuracy"]
    assert record.baselines["summary_logistic_regression"]["accuracy"] > 0.8
    assert record.model["channels"] == 2
    assert "embedding" not in {name.split(".")[1] for name in numeric.tensors}
    assert numeric.config.encoder.embedding_size == 2
    again = evaluate(numeric_folder, EvaluateOptions(data=str(numbers / "test.jsonl"), values="values"))
    assert {name: again[name] for name in record.metrics["test"]} == pytest.approx(record.metrics["test"])
    content = json.loads((numeric_folder / STANDARDIZATION_FILE).read_text())
    assert content["mean"] == numeric.featurizer.mean_C.tolist()
    assert "2 channels" in (numeric_folder / "card.md").read_text()


def test_a_changed_standardization_is_noticed(numeric_folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in numeric_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / STANDARDIZATION_FILE).write_text('{"mean": [0, 0], "deviation": [1, 1]}')
    with pytest.raises(CheckpointError, match=f"{STANDARDIZATION_FILE} is damaged"):
        Checkpoint.load(copy)
    (copy / STANDARDIZATION_FILE).unlink()
    with pytest.raises(CheckpointError, match=STANDARDIZATION_FILE):
        Checkpoint.load(copy)


def test_a_federation_and_what_comes_after_it(numeric, numbers, tmp_path):
    files = {"data": str(numbers / "train.jsonl"), "test": str(numbers / "test.jsonl"), "values": "values"}
    common = {**files, "quiet": True, "device": "cpu"}
    shared = federate(numeric, FederateOptions(**common, out=tmp_path / "f", client="client", rounds=2, valid=0.3))
    assert shared.featurizer.files() == numeric.featurizer.files()
    assert set(StageRecord.load(tmp_path / "f").controls) == {"alone", "central"}
    dealt = {"partition": "iid", "clients": 3, "rounds": 1, "controls": False, "freeze": "embedding"}
    federate(numeric, FederateOptions(**common, out=tmp_path / "g", **dealt))
    own = personalize(shared, PersonalizeOptions(**common, out=tmp_path / "p", client="client"))
    assert len(own.personal) == 6
    measured = {"data": files["test"], "values": "values", "quiet": True}
    packed = compress(own, CompressOptions(**measured, out=tmp_path / "c", client="client"))
    assert packed.tensors["encoder.stack.layers.0.fwd.weight_ih"].dtype == torch.int8
    artifact = export(packed, ExportOptions(**measured, out=tmp_path / "e"))
    assert artifact.record.verification.max_difference < 1e-5
    assert StageRecord.load(tmp_path / "e").verification.agreement == 1.0
    rows = toy_series(9, seed=5).inputs
    assert np.allclose(
        load_predictor(tmp_path / "e").probabilities(rows), packed.predictor().probabilities(rows), atol=1e-5
    )
    table = tmp_path / "labels.jsonl"
    assert predict(tmp_path / "e", PredictOptions(data=files["test"], values="values", out=table))["rows"] == 90
    first = json.loads(table.read_text().splitlines()[0])
    assert list(first) == ["row", "label", "probability"]
    assert first["row"] == "1"
    assert evaluate(tmp_path / "e", EvaluateOptions(data=files["test"], values="values"))["n"] == 90
    assert "<html" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 11}, "2 channels"),
        ({"insert_layer": 1, "bidirectional": False}, "2 x 8 units"),
        ({"hidden_size": 5, "data": True}, "5 units"),
    ],
)
def test_a_reshaped_model_keeps_what_it_can(numeric, numbers, tmp_path, change, said):
    data = {"data": str(numbers / "train.jsonl"), "values": "values"} if change.pop("data", None) else {}
    made = reshape(numeric, ReshapeOptions(**change, **data, out=tmp_path / "r", quiet=True))
    assert said in StageRecord.load(tmp_path / "r").notes[0]
    if not data:
        rows = toy_series(20, seed=9).inputs
        want = numeric.predictor().probabilities(rows)
        assert np.allclose(made.predictor().probabilities(rows), want, atol=1e-5)


def test_the_width_of_a_projection_can_change_that_of_channels_cannot(numeric, tmp_path):
    with pytest.raises(ConfigError, match="read the channels as they are"):
        reshape(numeric, ReshapeOptions(embedding_size=9, out=tmp_path / "r"))
    projected = small(projection=True)
    wider = reshape(projected, ReshapeOptions(embedding_size=9, out=tmp_path / "w", quiet=True))
    assert wider.tensors["encoder.projection.weight"].shape == (9, 3)


def transferring(data, test, out, **more):
    shared = {name: value for name, value in RUN.items() if name in TransferOptions.model_fields} | {"control_seeds": 1}
    return TransferOptions(**shared | {"data": str(data), "test": str(test), "out": out} | more)


def options(numbers, out, **more):
    return transferring(numbers / "train.jsonl", numbers / "test.jsonl", out, **more)


@pytest.mark.parametrize(
    "method", ["scratch", "init", "features", "finetune", "multitask", "lora", "adapters", "prototypes"]
)
def test_every_method_carries_numbers_over(numeric, numbers, tmp_path, method):
    more = {"source_data": str(numbers / "three.jsonl")} if method == "multitask" else {}
    more |= {"rank": 2} if method == "lora" else {}
    made = transfer(numeric, options(numbers, tmp_path / "t", method=method, control=False, **more))
    record = StageRecord.load(tmp_path / "t")
    assert ("zero_shot" in record.metrics) == (method != "scratch")
    assert record.coverage is None
    assert record.controls == {}
    assert made.config.channels == 2


def other_channels(path):
    rows = toy_series(120, seed=8)
    return write_lists(path, replace(rows, inputs=[row[:, 1:] for row in rows.inputs]))


def test_other_channels_get_an_input_side_of_their_own(numeric, tmp_path):
    data = other_channels(tmp_path / "one.jsonl")
    made = transfer(numeric, transferring(data, data, tmp_path / "t", method="init"))
    assert made.config.encoder.projection
    assert made.tensors["encoder.projection.weight"].shape == (2, 1)
    record = StageRecord.load(tmp_path / "t")
    assert set(record.controls) == {"scratch"}
    assert "zero_shot" not in record.metrics
    assert "The source has read numbers of 2 channels, the target's rows are numbers of 1 channels" in record.notes[0]


@pytest.mark.parametrize("method", ["init", "finetune", "lora", "adapters", "auto"])
def test_the_core_of_a_text_model_reads_numbers(source, numbers, tmp_path, method):
    more = {"freeze": "encoder"} if method == "init" else {"rank": 1} if method == "lora" else {}
    made = transfer(source, options(numbers, tmp_path / "t", method=method, **more))
    record = StageRecord.load(tmp_path / "t")
    assert made.config.encoder.projection
    assert made.tensors["encoder.projection.weight"].shape == (8, 2)
    core = "encoder.stack.layers.0.fwd.weight_hh"
    if method == "init":
        assert torch.equal(made.tensors[core], source.tensors[core])
    if record.method != "scratch":
        assert set(record.controls) == {"scratch"}
        said = [note for note in record.notes if note.startswith("The source has read text")]
        assert len(said) == 1
        assert any(note.startswith("Over training from scratch") for note in record.notes)


def test_the_core_of_a_numeric_model_reads_text(numeric, data, tmp_path):
    made = transfer(numeric, transferring(data / "train.csv", data / "test.csv", tmp_path / "t", values=None))
    assert made.tensors["encoder.embedding.weight"].shape == (made.config.vocabulary_size, 2)
    assert set(StageRecord.load(tmp_path / "t").controls) == {"scratch"}


@pytest.mark.parametrize(
    ("method", "said"),
    [("features", "input side is new"), ("prototypes", "input side is new"), ("multitask", "can read")],
)
def test_methods_that_need_the_source_s_input_side_say_so(source, numbers, tmp_path, method, said):
    more = {"source_data": "x"} if method == "multitask" else {}
    with pytest.raises(ConfigError, match=said):
        transfer(source, options(numbers, tmp_path / "t", method=method, **more))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lm_weight": 0.1}, "a language model predicts tokens"),
        ({"task": "language_modeling"}, "predicts tokens"),
    ],
)
def test_numbers_have_no_language_model(numeric, numbers, tmp_path, given, said):
    with pytest.raises(ConfigError, match=said):
        transfer(numeric, options(numbers, tmp_path / "t", method="init", **given))
    assert not (tmp_path / "t").exists()


def test_adapters_stay_in_a_numeric_model_and_are_exported(numeric, numbers, tmp_path):
    made = transfer(numeric, options(numbers, tmp_path / "t", method="adapters", bottleneck=3, control=False))
    core = "encoder.stack.layers.0.fwd.weight_hh"
    assert torch.equal(made.tensors[core], numeric.tensors[core])
    assert made.tensors["encoder.stack.layers.0.adapter.down.weight"].abs().sum() > 0
    export(made, ExportOptions(out=tmp_path / "e", quiet=True))  # compares the graph with the model


def test_a_new_input_side_learns_with_adapters(source, numbers, tmp_path):
    given = {"method": "adapters", "control": False}
    once, more = (
        transfer(source, options(numbers, tmp_path / str(epochs), epochs=epochs, **given)) for epochs in (1, 2)
    )
    projection, core = "encoder.projection.weight", "encoder.stack.layers.0.fwd.weight_hh"
    assert not torch.equal(once.tensors[projection], more.tensors[projection])
    assert torch.equal(once.tensors[core], source.tensors[core])


@pytest.mark.parametrize("projection", [False, True])
def test_the_spread_that_virtual_adversarial_training_counts_in_is_that_of_what_layers_read(projection):
    model = small(projection=projection).model()
    rng = np.random.default_rng(0)
    examples = Examples([(rng.standard_normal((steps, 3)) * [1, 2, 3]).astype(np.float32) for steps in (5, 9, 4)])
    given = TransferOptions(data="x", out="y", vat=1.0)
    objective = VirtualAdversarial(model, examples, given, torch.device("cpu"))
    with torch.no_grad():
        read_NE = model.encoder.embed(torch.from_numpy(examples.inputs))
    torch.testing.assert_close(objective._spread(), read_NE.std(0, unbiased=False))
    (loss,) = objective.losses(0, Share(0, 1))
    assert float(loss.detach()) > 0


def test_virtual_adversarial_training_reads_more_numbers_without_labels(numeric, numbers, tmp_path):
    given = {"method": "init", "epochs": 1, "vat": 1.0, "control": False}
    plain = transfer(numeric, options(numbers, tmp_path / "p", **given))
    made = transfer(numeric, options(numbers, tmp_path / "t", **given, vat_data=str(numbers / "three.jsonl")))
    assert plain.identity != made.identity
    assert [use.rows for use in StageRecord.load(tmp_path / "t").data][-1] == 240


def test_fine_tuning_in_one_call_takes_numbers(numeric, numbers, tmp_path):
    files = {"data": str(numbers / "three.jsonl"), "values": "values", "rows": 45}
    made = fine_tune(numeric, **files, control=False, quiet=True, device="cpu", out=tmp_path / "t")
    assert made.labels == ("falls", "rests", "rises")
    assert any("took finetune untried" in note for note in StageRecord.load(tmp_path / "t").notes)


def test_the_runs_that_choose_a_method_keep_the_windows_of_a_recording_together():
    long = [np.zeros((40, 1))] * 12
    rows = Rows(long, ["a", "b"] * 6, [], "toy", "0" * 64, recordings=[str(n) for n in range(12)])
    windows = rows.windows(NumericOptions(window=10))
    none = windows.take([])
    folds = _folds(Splits(windows, none, none, "valid", ("a", "b"), windows.labels), seed=0)
    assert len(folds) == 3
    for fold in folds:
        assert not set(fold.train.recordings) & set(fold.test.recordings)
        assert set(fold.train.labels) == {"a", "b"}
    assert sum(len(fold.test) for fold in folds) == len(windows)


@pytest.mark.parametrize("method", ["reptile", "fomaml", "prototypes"])
def test_meta_learning_reads_numbers(numbers, tmp_path, method):
    shape = {"hidden_size": 8, "embedding_size": 6, "projection": True, "quiet": True, "device": "cpu"}
    few = {"episodes": 6, "test_episodes": 3, "shots": 2, "queries": 3, "inner_steps": 2, "adapt_steps": 2}
    given = {"data": str(numbers / "train.jsonl"), "values": "values", "tasks": "client"}
    made = metalearn(None, MetalearnOptions(**shape | few | given, method=method, out=tmp_path / "m"))
    assert (made.config.channels, made.config.vocabulary_size) == (2, 0)
    assert "summary_logistic_regression" in StageRecord.load(tmp_path / "m").baselines


def test_meta_learning_takes_no_windows(numbers, tmp_path):
    given = {"data": str(numbers / "train.jsonl"), "values": "values", "tasks": "client", "window": 3}
    with pytest.raises(ConfigError, match="windows of a recording"):
        metalearn(None, MetalearnOptions(**given, quiet=True, out=tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_the_modality_of_rows_must_be_the_model_s(numeric_folder, source_folder, numbers, data, tmp_path):
    with pytest.raises(ConfigError, match="the model reads numbers, not text: add --values"):
        evaluate(numeric_folder, EvaluateOptions(data=str(data / "test.csv")))
    with pytest.raises(ConfigError, match="the model reads text, not numbers"):
        evaluate(source_folder, EvaluateOptions(data=str(numbers / "test.jsonl"), values="values"))
    with pytest.raises(ConfigError, match="the model reads numbers, not text: give --data"):
        predict(numeric_folder, PredictOptions(text="good"))
    given = {"data": str(numbers / "train.jsonl"), "out": tmp_path / "m", "task": "language_modeling"}
    with pytest.raises(ConfigError, match="a language model predicts tokens"):
        pretrain(PretrainOptions(**RUN | given, bidirectional=False))
    assert not (tmp_path / "m").exists()


def test_channels_keep_their_order(numbers, tmp_path):
    rows = [json.loads(line) for line in (numbers / "train.jsonl").read_text().splitlines()]
    columns = [{"x": [a for a, _ in r["values"]], "y": [b for _, b in r["values"]], "label": r["label"]} for r in rows]
    (tmp_path / "xy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in columns))
    pretrain(PretrainOptions(**RUN | {"data": str(tmp_path / "xy.jsonl"), "values": "x, y", "out": tmp_path / "m"}))
    assert evaluate(tmp_path / "m", EvaluateOptions(data=str(tmp_path / "xy.jsonl"), values="x,y"))["accuracy"] > 0.8
    with pytest.raises(ConfigError, match=r"in another order: give --values x,y"):
        evaluate(tmp_path / "m", EvaluateOptions(data=str(tmp_path / "xy.jsonl"), values="y,x"))
    data, made = tmp_path / "xy.jsonl", Checkpoint.load(tmp_path / "m")
    with pytest.raises(ConfigError, match="in another order"):
        transfer(made, transferring(data, data, tmp_path / "t", values="y,x"))
    other = transfer(made, transferring(data, data, tmp_path / "t", values="y", method="init", epochs=1))
    assert other.featurizer.options.columns == ("y",)


def test_windows_go_with_the_model(tmp_path):
    rng = np.random.default_rng(0)
    time = np.arange(400)
    wave = {
        f"{name}/{k}": np.sin(time * speed + rng.random())
        for name, speed in (("slow", 0.2), ("fast", 0.9))
        for k in range(4)
    }
    np.savez(tmp_path / "a.npz", **wave)
    given = {"data": str(tmp_path / "a.npz"), "values": "*", "window": 16, "valid": 0.25, "out": tmp_path / "m"}
    made = pretrain(PretrainOptions(**TINY | given, max_length=8))
    record = StageRecord.load(tmp_path / "m")
    assert [use.rows for use in record.data] == [150, 50]
    assert "--max-length was ignored: it has an effect without --window only." in record.notes
    assert made.featurizer.options.window == 16
    table = tmp_path / "labels.csv"
    assert predict(tmp_path / "m", PredictOptions(data=given["data"], values="*", out=table))["rows"] == 200
    assert table.read_text().splitlines()[2].startswith('"slow/0",16,')
    rows = read_rows(given["data"], text="text", values=ValueColumns(values="*"), features=made.featurizer.options)
    assert {len(row) for row in rows.inputs} == {16}


def test_a_journey_of_numbers_on_the_command_line(numbers, tmp_path, capsys):
    (tmp_path / "n.toml").write_text(f"""
[defaults]
values = "values"
data = "{numbers / "train.jsonl"}"
test = "{numbers / "test.jsonl"}"
[[stage]]
name = "source"
verb = "pretrain"
hidden_size = 8
epochs = 1
projection = true
embedding_size = 4
[[stage]]
name = "target"
verb = "transfer"
from = "source"
method = "init"
rows = 60
epochs = 1
""")
    run_journey(read_journey(tmp_path / "n.toml"), tmp_path / "runs", jobs=1, quiet=True)
    assert Checkpoint.load(tmp_path / "runs" / "target").config.encoder.embedding_size == 4
    flags = ["--data", str(numbers / "test.jsonl"), "--values", "values"]
    assert main(["evaluate", str(tmp_path / "runs" / "target"), *flags]) == 0
    assert "n: 90" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "runs" / "target"), "--data", flags[1]]) == 2
    assert "add --values" in capsys.readouterr().err


def test_a_resumed_training_of_numbers_has_the_same_bits(numbers, tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.trainer.AUTOSAVE_SECONDS", -1.0)
    given = RUN | {"data": str(numbers / "train.jsonl"), "projection": True}
    pretrain(PretrainOptions(**given, out=tmp_path / "whole"))

    def stop(self, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("headwater.progress.Progress.epoch_done", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(PretrainOptions(**given, out=tmp_path / "m"))
    pretrain(PretrainOptions(**given, out=tmp_path / "m", resume=True))
    assert (tmp_path / "m" / MODEL_FILE).read_bytes() == (tmp_path / "whole" / MODEL_FILE).read_bytes()


def shared(*parts):
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} isn't here; HEADWATER_DATA names the folder of the data sets")
    return path


def test_japanese_vowels_are_read():
    path = shared("japanese_vowels", "train.jsonl.gz")
    rows = read_rows(str(path), text="", label="label", values=ValueColumns(values="series", channels_first=True))
    assert len(rows) == 270
    assert {row.shape[1] for row in rows.inputs} == {12}
    assert (min(map(len, rows.inputs)), max(map(len, rows.inputs))) == (7, 26)
    assert sorted(set(rows.labels)) == [str(number) for number in range(1, 10)]


def test_bearings_are_read():
    path = shared("cwru_bearing", "load1.npz")
    options = NumericOptions(window=1024)
    rows = read_rows(str(path), text="", label="", values=ValueColumns(values="*"), features=options)
    assert len(set(rows.labels)) == 9
    assert {row.shape for row in rows.inputs} == {(1024, 1)}
    assert np.abs(np.concatenate(rows.inputs)).max() < 10
