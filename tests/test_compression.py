"""Compression: numbers near the old ones, figures measured before and after, nothing compressed twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_models import HEAD, LABELS, personal, sentences, small_checkpoint, write_rows

from headwater.checkpoint import Checkpoint
from headwater.compression.int8 import quantize, quantize_rows
from headwater.compression.verb import CompressOptions, compress
from headwater.errors import ConfigError, DataError
from headwater.records import StageRecord

MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(MATRICES)
def test_each_number_is_off_by_at_most_half_a_scale(values):
    whole, scale = quantize_rows(torch.from_numpy(values))
    assert whole.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale.shape == (len(values), 1)
    assert (scale > 0).all()
    assert int(whole.abs().max()) <= 127
    ordinary = np.abs(values).max(1) > 1e-30
    off = np.abs(whole.double().numpy() * scale.double().numpy() - values)
    assert (off <= 0.5001 * scale.double().numpy())[ordinary].all()


def test_a_row_too_small_for_a_scale_becomes_zeros():
    whole, scale = quantize_rows(torch.tensor([[1e-45, 0.0]]))
    assert (whole.tolist(), scale.tolist()) == ([[0, 0]], [[1.0]])


def test_the_scale_is_the_largest_magnitude_over_127_and_1_for_zeros():
    whole, scale = quantize_rows(torch.tensor([[1.0, -254.0, 3.1], [0.0, 0.0, 0.0]]))
    assert scale.tolist() == [[2.0], [1.0]]
    assert whole.tolist() == [[0, -127, 2], [0, 0, 0]]  # 1 / 2 rounds to even


def test_every_matrix_is_stored_in_8_bits_and_every_bias_in_32():
    checkpoint = small_checkpoint(layers=2)
    stored = quantize(checkpoint.tensors)
    for name, value in checkpoint.tensors.items():
        if value.ndim == 2:
            assert stored[name].dtype == torch.int8
            assert stored[name + ".scale"].shape == (len(value), 1)
        else:
            assert torch.equal(stored[name], value)
            assert name + ".scale" not in stored


def test_a_compressed_checkpoint_is_read_back_and_decoded(tmp_path):
    checkpoint = small_checkpoint()
    made = compress(checkpoint, CompressOptions(out=tmp_path / "c", quiet=True))
    assert made.config.compression == "int8"
    assert made.weights().keys() == checkpoint.weights().keys()
    for name, value in made.weights().items():
        before = checkpoint.tensors[name]
        assert value.dtype == torch.float32
        assert (value - before).abs().max() <= before.abs().max() / 127
    assert made.parameter_count() == checkpoint.parameter_count()
    assert made.identity != checkpoint.identity
    record = StageRecord.load(tmp_path / "c")
    assert (record.verb, record.method) == ("compress", "int8")
    assert record.parents[0].identity == checkpoint.identity
    assert made.lineage.stages[-1].verb == "compress"


def test_the_file_has_less_than_30_percent(tmp_path):
    words = [f"w{n}" for n in range(3000)]
    checkpoint = small_checkpoint(words=words, embedding_size=100, hidden_size=128)
    made = compress(checkpoint, CompressOptions(out=tmp_path / "c", quiet=True))
    record = StageRecord.load(tmp_path / "c")
    size = (tmp_path / "c" / "model.safetensors").stat().st_size
    assert record.sizes["model.safetensors"] == made.sizes()["model.safetensors"] == size
    assert size < 0.3 * checkpoint.sizes()["model.safetensors"]
    assert f"{size:,} bytes" in record.notes[0]


def test_figures_before_and_after_and_the_agreement_are_recorded(tmp_path):
    checkpoint = small_checkpoint()
    texts = sentences(60)
    truth = [LABELS[n] for n in checkpoint.predictor().probabilities(texts).argmax(1)]
    data = write_rows(tmp_path / "rows.csv", texts, truth)
    made = compress(checkpoint, CompressOptions(out=tmp_path / "c", data=data, quiet=True))
    numbers = [LABELS.index(label) for label in truth]
    before, after = (model.predictor().probabilities(texts) for model in (checkpoint, made))
    hits = float((after.argmax(1) == numbers).mean())
    record = StageRecord.load(tmp_path / "c")
    assert record.metrics["before"]["accuracy"] == 1.0
    for where, probabilities in (("before", before), ("after", after), ("test", after)):
        loss = -np.log(probabilities[range(60), numbers]).mean()
        assert record.metrics[where]["loss"] == pytest.approx(loss, rel=1e-6)
    assert record.metrics["before"]["loss"] != record.metrics["after"]["loss"]
    assert record.metrics["after"]["accuracy"] == record.metrics["test"]["accuracy"] == pytest.approx(hits)
    assert record.metrics["after"]["agreement"] == pytest.approx(hits)  # the float model is right everywhere
    assert record.data[0].rows == len(record.correct) == 60
    wrong = write_rows(tmp_path / "wrong.csv", ["w1"], ["excellent"])
    with pytest.raises(DataError, match="never seen in training"):
        compress(checkpoint, CompressOptions(out=tmp_path / "d", data=wrong, quiet=True))
    assert not (tmp_path / "d").exists()


def test_the_clients_own_weights_stay_in_float32_and_are_measured_by_client(tmp_path):
    checkpoint = small_checkpoint()
    checkpoint = replace(checkpoint, personal=personal(checkpoint, "ann", "bob"))
    texts, clients = sentences(30), ["ann", "bob", "stranger"] * 10
    write_rows(tmp_path / "rows.csv", texts, ["bad"] * 30, clients)
    options = CompressOptions(out=tmp_path / "c", data=str(tmp_path / "rows.csv"), client="client", quiet=True)
    made = compress(checkpoint, options)
    for client in ("ann", "bob"):
        assert torch.equal(made.personal[client][HEAD], checkpoint.personal[client][HEAD])
    from headwater.data.rows import read_rows

    rows = read_rows(str(tmp_path / "rows.csv"), text="text", label="label", client="client")
    own = made.probabilities(rows)
    for number, client in enumerate(clients):
        of = made.predictor(client if client != "stranger" else None)
        np.testing.assert_allclose(own[number], of.probabilities([texts[number]])[0], atol=1e-6)
    shared = made.predictor().probabilities(texts)
    assert np.abs(own - shared)[:2].max() > 1e-3
    accuracy = StageRecord.load(tmp_path / "c").metrics["after"]["accuracy"]
    assert accuracy == pytest.approx(float((own.argmax(1) == 0).mean()))


def test_twice_is_refused(tmp_path):
    made = compress(small_checkpoint(), CompressOptions(out=tmp_path / "c", quiet=True))
    with pytest.raises(ConfigError, match="compressed already"):
        compress(made, CompressOptions(out=tmp_path / "d", quiet=True))
    assert not (tmp_path / "d").exists()


def test_a_language_model_is_compressed_but_not_measured(tmp_path):
    checkpoint = small_checkpoint(task={"name": "language_modeling"}, bidirectional=False)
    compress(checkpoint, CompressOptions(out=tmp_path / "c", quiet=True))
    assert Checkpoint.load(tmp_path / "c").config.compression == "int8"
    data = write_rows(tmp_path / "rows.csv", ["w1"], ["bad"])
    with pytest.raises(ConfigError, match="only a classifier"):
        compress(checkpoint, CompressOptions(out=tmp_path / "d", data=data, quiet=True))
