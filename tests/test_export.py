"""Export: every target computes what the checkpoint computes, or it is never written."""

import itertools
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from small_models import HEAD, LABELS, personal, sentences, small_checkpoint, write_rows

from headwater.cells import CELLS
from headwater.checkpoint import Checkpoint
from headwater.compression.int8 import quantize
from headwater.deployment import EXPORT_TARGETS, export_target
from headwater.deployment.artifact import Artifact
from headwater.deployment.onnx_graph import OPERATORS
from headwater.deployment.onnx_target import OnnxTarget
from headwater.deployment.verb import ExportOptions, export
from headwater.deployment.verify import random_batches, rounding, verify
from headwater.errors import CheckpointError, ConfigError, ExportError, OutputError
from headwater.records import StageRecord
from headwater.tasks.classification import torch_runner

POOLINGS = ("last", "max", "mean", "concat")


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch):
    monkeypatch.setattr("headwater.deployment.latency._CALLS", 3)


def compressed(checkpoint):
    config = checkpoint.config.model_copy(update={"compression": "int8"})
    return replace(checkpoint, config=config, tensors=quantize(checkpoint.tensors))


def verified(target, model, checkpoint, settings=None):
    run = target.open(model, settings or {}, 1)
    reference = torch_runner(checkpoint.model())
    return verify(run, reference, checkpoint.featurizer, tolerance=1e-5)


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", EXPORT_TARGETS)
def test_conformance(name, cell, bidirectional, layers, stored):
    target = export_target(name)
    for pooling in POOLINGS:
        checkpoint = small_checkpoint(pooling=pooling, cell=cell, bidirectional=bidirectional, layers=layers)
        checkpoint = compressed(checkpoint) if stored == "int8" else checkpoint
        model = target.build(checkpoint.config, checkpoint.tensors)
        variants = target.variants(checkpoint.config)
        assert len(variants) == (2 if stored == "int8" else 1)
        for settings in variants.values():
            result = verified(target, model, checkpoint, settings)
            assert result.passed, (pooling, settings, result)
            assert (result.agreement, result.batches, result.rows) == (1.0, 12, 44)


def test_every_cell_has_an_operator():
    assert OPERATORS.keys() == CELLS.keys()


def test_the_random_batches_hold_what_goes_wrong():
    batches = list(random_batches(small_checkpoint().featurizer, 0))
    assert {tokens.shape for tokens, _, _ in batches} == set(itertools.product((1, 3, 7), (1, 5, 33, 100)))
    for tokens, other, lengths in batches:
        valid = np.arange(tokens.shape[1]) < lengths[:, None]
        assert lengths.max() == tokens.shape[1]
        assert lengths.min() == 1 or len(lengths) == 1
        assert (tokens[valid] == other[valid]).all()
        assert (tokens[~valid] == 0).all()
    seen = np.concatenate([tokens[np.arange(tokens.shape[1]) < n[:, None]] for tokens, _, n in batches])
    assert {0, 1, 39} <= set(seen.tolist())
    assert any((tokens != other).any() for tokens, other, _ in batches)


def graph_of(checkpoint):
    return onnx.load_from_string(OnnxTarget().build(checkpoint.config, checkpoint.tensors))


def change(model, part, edit):
    """Edit the one constant whose name contains `part`."""
    (constant,) = [c for c in model.graph.initializer if part in c.name]
    constant.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(constant).copy()), constant.name))


def swap_gates(values):
    return np.concatenate([values[:, 5:10], values[:, :5], values[:, 10:]], axis=1)


def nudge(values):
    values.flat[0] += 0.01
    return values


def set_attribute(model, operator, name, value):
    for node in model.graph.node:
        if node.op_type == operator:
            for attribute in node.attribute:
                if attribute.name == name:
                    attribute.i = value


def read_padding(model):
    """Pool the maximum over all steps, padding too."""
    (maximum,) = [node for node in model.graph.node if node.op_type == "ReduceMax"]
    (mask,) = [node for node in model.graph.node if node.output[0] == maximum.input[0]]
    maximum.input[0] = mask.input[1]


def flip_one_more(model):
    """Flip one step more than each row has."""
    (mirror,) = [node for node in model.graph.node if node.op_type == "Where" and "Sub" in node.input[1]]
    (valid,) = [node for node in model.graph.node if node.output[0] == mirror.input[0]]
    valid.op_type = "LessOrEqual"


FAULTS = {
    "gates swapped": ("gru", lambda m: change(m, "layers.0.fwd.weight_hh", swap_gates)),
    "one weight nudged": ("lstm", lambda m: change(m, "layers.0.bwd.weight_ih", nudge)),
    "head bias nudged": ("lstm", lambda m: change(m, "head.linear.bias", nudge)),
    "reset elsewhere": ("gru", lambda m: set_attribute(m, "GRU", "linear_before_reset", 0)),
    "padding pooled": ("rnn", read_padding),
    "flip by one off": ("lstm", flip_one_more),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tampered_graph_fails(fault):
    cell, damage = FAULTS[fault]
    checkpoint = small_checkpoint(cell=cell)
    model = graph_of(checkpoint)
    assert verified(OnnxTarget(), model.SerializeToString(), checkpoint).passed
    damage(model)
    result = verified(OnnxTarget(), model.SerializeToString(), checkpoint)
    assert not result.passed
    assert result.max_difference > 1e-5


def test_a_wrong_scale_fails():
    checkpoint = compressed(small_checkpoint())
    model = graph_of(checkpoint)
    change(model, "layers.0.fwd.weight_hh.scale", lambda scale: np.roll(scale, 1))
    assert not verified(OnnxTarget(), model.SerializeToString(), checkpoint).passed


def test_numbers_that_are_not_finite_fail():
    checkpoint = small_checkpoint()
    reference = torch_runner(checkpoint.model())
    result = verify(lambda t, n: reference(t, n) * np.float32("nan"), reference, checkpoint.featurizer, tolerance=0.5)
    assert not result.passed


def test_the_graph_keeps_to_the_portable_operators():
    for cell in CELLS:
        model = graph_of(compressed(small_checkpoint(cell=cell)))
        assert (model.ir_version, [o.version for o in model.opset_import]) == (8, [17])
        operators = {node.op_type for node in model.graph.node}
        assert "ReverseSequence" not in operators
        assert "Loop" not in operators
        for node in model.graph.node:
            assert node.domain == ""
            assert all(node.output)
            if node.op_type in {"LSTM", "GRU", "RNN"}:
                assert len(node.input) == 4  # no sequence_lens
                assert "direction" not in {attribute.name for attribute in node.attribute}


def test_int8_weights_stay_int8_and_the_embedding_is_never_unpacked():
    model = graph_of(compressed(small_checkpoint()))
    kinds = {constant.name: constant.data_type for constant in model.graph.initializer}
    matrices = [name for name in kinds if name.endswith(("weight", "weight_ih", "weight_hh"))]
    assert len(matrices) == 6
    assert all(kinds[name] == onnx.TensorProto.INT8 for name in matrices)
    readers = [node.op_type for node in model.graph.node if "encoder.embedding.weight" in node.input]
    assert readers == ["Gather"]


def test_an_artifact_has_the_checkpoints_files_and_goes_on_with_its_lineage(tmp_path):
    made = small_checkpoint()
    made.save(tmp_path / "m")
    checkpoint = Checkpoint.load(tmp_path / "m")
    texts = sentences(40)
    truth = [LABELS[n] for n in checkpoint.predictor().probabilities(texts).argmax(1)]
    data = write_rows(tmp_path / "rows.csv", texts, truth)
    artifact = export(checkpoint, ExportOptions(out=tmp_path / "a", data=data, quiet=True))
    for name in ("config.json", "vocabulary.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    assert (artifact.record.labels, artifact.record.checkpoint) == (LABELS, checkpoint.identity)
    record = StageRecord.load(tmp_path / "a")
    assert artifact.lineage.stages[-1].verb == "export"
    assert artifact.lineage.stages[-1].parents == record.parents
    assert record.parents[0].identity == checkpoint.identity
    assert "| export | onnx |" in (tmp_path / "a" / "card.md").read_text()
    assert record.verification == artifact.record.verification
    assert (record.verification.rows, record.verification.agreement) == (44 + 40, 1.0)
    assert record.metrics["test"]["accuracy"] == 1.0
    assert record.sizes == {
        name: (tmp_path / "a" / name).stat().st_size for name in ("model.onnx", "config.json", "vocabulary.json")
    }
    assert [(row.runtime, row.length) for row in record.latency] == [
        (runtime, length) for length in (20, 100) for runtime in ("torch", "onnxruntime")
    ]
    assert not (tmp_path / "a.partial").exists()


def test_an_int8_artifact_takes_the_faster_way_that_passed(tmp_path, monkeypatch):
    checkpoint = compressed(small_checkpoint())
    for slow in ("onnxruntime", "onnxruntime, unpacked at load"):

        def measured(runners, size, *, threads, slow=slow):
            from headwater.records import Latency

            assert set(runners) == {"torch", "onnxruntime", "onnxruntime, unpacked at load"}
            times = {"torch": 9.0, slow: 5.0}
            return [
                Latency(runtime=name, batch=1, length=20, median_us=times.get(name, 1.0), p90_us=9.0)
                for name in runners
            ]

        monkeypatch.setattr("headwater.deployment.verb.measure", measured)
        artifact = export(checkpoint, ExportOptions(out=tmp_path / slow[-4:], quiet=True))
        assert bool(artifact.record.settings) == (slow == "onnxruntime")
        assert artifact.predictor().probabilities(["w1 w2"]).shape == (1, 3)


def test_a_failed_export_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    checkpoint = small_checkpoint()
    right = OnnxTarget.build
    wrong = small_checkpoint(seed=1)
    monkeypatch.setattr(OnnxTarget, "build", lambda self, config, _: right(self, config, wrong.tensors))
    with pytest.raises(ExportError, match="nothing was written; this is no rounding"):
        export(checkpoint, ExportOptions(out=tmp_path / "a", quiet=True))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(OnnxTarget, "build", right)
    export(checkpoint, ExportOptions(out=tmp_path / "a", quiet=True))
    assert not (tmp_path / "a.partial").exists()
    with pytest.raises(OutputError, match="already holds"):
        export(checkpoint, ExportOptions(out=tmp_path / "a", quiet=True))


def test_a_model_that_grows_rounding_errors_is_refused_with_that_reason(tmp_path):
    calm = small_checkpoint(cell="rnn", hidden_size=64)
    wild = replace(calm, tensors={n: v * 3 if n.endswith("weight_hh") else v for n, v in calm.tensors.items()})
    assert rounding(wild.model(), wild.featurizer) > 1e-3
    with pytest.raises(ExportError, match="multiplies rounding errors"):
        export(wild, ExportOptions(out=tmp_path / "a", quiet=True))


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_a_clients_own_model(tmp_path, stored):
    checkpoint = small_checkpoint()
    checkpoint = compressed(checkpoint) if stored == "int8" else checkpoint
    checkpoint = replace(checkpoint, personal=personal(checkpoint, "ann", "bob"))
    artifact = export(checkpoint, ExportOptions(out=tmp_path / "a", client="bob", quiet=True))
    texts = sentences(20)
    given = artifact.predictor().probabilities(texts)
    np.testing.assert_allclose(given, checkpoint.predictor("bob").probabilities(texts), atol=1e-5)
    assert np.abs(given - checkpoint.predictor().probabilities(texts)).max() > 1e-2
    stored_head = {c.name: c.data_type for c in onnx.load(tmp_path / "a" / "model.onnx").graph.initializer}
    assert stored_head[HEAD] == onnx.TensorProto.FLOAT
    with pytest.raises(CheckpointError, match="no model of client 'eve'"):
        export(checkpoint, ExportOptions(out=tmp_path / "b", client="eve", quiet=True))


def test_what_cannot_be_exported_says_so(tmp_path):
    language = small_checkpoint(task={"name": "language_modeling"}, bidirectional=False)
    with pytest.raises(ExportError, match="only a classification model"):
        export(language, ExportOptions(out=tmp_path / "a", quiet=True))
    checkpoint = small_checkpoint()
    foreign = checkpoint.config.encoder.model_copy(update={"cell": "sru"})
    with pytest.raises(ExportError, match="no operator for the cell 'sru'"):
        OnnxTarget().build(checkpoint.config.model_copy(update={"encoder": foreign}), checkpoint.tensors)
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        export_target("onxx")


@pytest.mark.parametrize("name", ["model.onnx", "vocabulary.json", "config.json", "artifact.json"])
def test_a_damaged_artifact_is_refused(tmp_path, name):
    export(small_checkpoint(), ExportOptions(out=tmp_path / "a", quiet=True))
    path = tmp_path / "a" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        Artifact.load(tmp_path / "a")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        Artifact.load(tmp_path / "a")


def test_foreign_folders_are_refused(tmp_path):
    from headwater.folder import seal

    checkpoint = small_checkpoint()
    checkpoint.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="no artifact"):
        Artifact.load(tmp_path / "m")
    export(checkpoint, ExportOptions(out=tmp_path / "a", quiet=True))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "a")
    path = tmp_path / "a" / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "headwater.artifact/9"}))
    seal(tmp_path / "a")
    with pytest.raises(CheckpointError, match="isn't an artifact of this version"):
        Artifact.load(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"can't read model\.onnx"):
        OnnxTarget().open(b"no graph", {}, 1)


def test_equal_checkpoints_give_equal_files(tmp_path):
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        export(small_checkpoint(), ExportOptions(out=tmp_path / name, quiet=True))
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in "ab")
    assert first == second
