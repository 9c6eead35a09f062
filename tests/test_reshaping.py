"""Reshaping: what grows computes the same, what shrinks stays close, and the result is an ordinary checkpoint."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY, toy_config, toy_featurizer, toy_model, toy_rows, write_csv

from headwater import TransferOptions, transfer
from headwater.cells import CELLS
from headwater.cells.stack import RecurrentStack
from headwater.cells.stream import Stream
from headwater.checkpoint import Checkpoint
from headwater.compression.int8 import quantize
from headwater.data.batches import batch_of
from headwater.deployment.onnx_target import OnnxTarget
from headwater.deployment.verify import verify
from headwater.errors import CheckpointError, ConfigError, DataError
from headwater.folder import seal
from headwater.native import using
from headwater.records import StageRecord
from headwater.reshaping.layers import drop_layer, insert_layer
from headwater.reshaping.shrinking import shrink
from headwater.reshaping.verb import ReshapeOptions, reshape
from headwater.reshaping.widths import axes_of, grow
from headwater.tasks.classification import torch_runner
from headwater.weights import load_weights, weights_of

CLASSIFIERS = [
    {"name": "classification", "labels": ("bad", "good"), "pooling": pooling} for pooling in ("last", "max", "concat")
]
LANGUAGE_MODEL = {"name": "language_modeling"}
GROWN = [{"hidden_size": 9}, {"embedding_size": 11}, {"hidden_size": 7, "embedding_size": 8}]


def batch(rows=12, seed=0):
    examples = toy_rows(rows, seed=seed).encode(toy_featurizer(), ("bad", "good"))
    return batch_of(examples, np.arange(rows))


def drawn(config, seed=0):
    """Return a model whose weights are all away from zero, biases and gates too."""
    model = toy_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def built(config, weights):
    model = config.build()
    load_weights(model, weights)
    return model.eval()


@torch.no_grad()
def outputs(model, rows):
    y_BTF, _ = model.encoder(rows.inputs, rows.lengths_B)
    logits = model.head(y_BTF, rows.lengths_B)
    return logits if logits.ndim == 2 else logits[torch.arange(logits.shape[1]) < rows.lengths_B.unsqueeze(1)]


def with_encoder(config, **changes):
    return config.model_copy(update={"encoder": config.encoder.model_copy(update=changes)})


def far(model, other, rows):
    return float((outputs(model, rows) - outputs(other, rows)).abs().max())


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("task", [*CLASSIFIERS, LANGUAGE_MODEL])
@pytest.mark.parametrize("layers", [1, 2])
def test_growth_keeps_the_function(cell, task, layers):
    two = task["name"] == "classification"
    config = toy_config(cell=cell, task=task, layers=layers, bidirectional=two)
    model = drawn(config)
    for sizes in GROWN:
        larger = with_encoder(config, **sizes)
        weights = grow(config, weights_of(model), larger, seed=1)
        assert far(model, built(larger, weights), batch()) <= 1e-6 * (1 + float(outputs(model, batch()).abs().max()))


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("task", CLASSIFIERS)
def test_a_second_direction_keeps_the_function(cell, task):
    config = toy_config(cell=cell, task=task, layers=2, bidirectional=False)
    model = drawn(config)
    larger = with_encoder(config, bidirectional=True)
    both = built(larger, grow(config, weights_of(model), larger, seed=1))
    assert far(model, both, batch()) <= 1e-6 * (1 + float(outputs(model, batch()).abs().max()))


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("task", [CLASSIFIERS[2], LANGUAGE_MODEL])
@pytest.mark.parametrize("number", [1, 2])
def test_an_inserted_layer_keeps_the_function_to_the_bit_and_renumbers(cell, task, number):
    config = toy_config(cell=cell, task=task, layers=2, bidirectional=task["name"] == "classification")
    model = drawn(config)
    deeper, weights = insert_layer(config, weights_of(model), number, seed=1)
    assert (deeper.encoder.layers, deeper.residual_layers) == (3, (number,))
    assert torch.equal(outputs(model, batch()), outputs(built(deeper, weights), batch()))
    top = "encoder.stack.layers.1.fwd.weight_hh"
    assert torch.equal(weights[top.replace(".1.", f".{1 + (number == 1)}.")], weights_of(model)[top])


def test_what_grew_learns_everywhere():
    config = toy_config(layers=1, bidirectional=False)
    larger = with_encoder(config, hidden_size=9, embedding_size=8)
    deeper, weights = insert_layer(larger, grow(config, weights_of(drawn(config)), larger, seed=1), 1, seed=2)
    model = built(deeper, weights).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = weights_of(model)
    for _ in range(2):  # what reads the new units moves first, and then they do
        optimizer.zero_grad()
        rows = batch()
        torch.nn.functional.cross_entropy(model(rows.inputs, rows.lengths_B), rows.targets_B).backward()
        optimizer.step()
    changed = {name: (value != before[name]) for name, value in weights_of(model).items()}
    assert changed["head.linear.weight"].all()
    assert changed["encoder.stack.layers.0.fwd.weight_hh"].float().mean() > 0.95
    assert changed["encoder.stack.layers.1.gate"].all()
    assert changed["encoder.stack.layers.1.fwd.weight_ih"].float().mean() > 0.95
    told = batch().inputs.unique()
    assert changed["encoder.embedding.weight"][told[told > 0]][:, 6:].all()


@pytest.mark.parametrize("task", [CLASSIFIERS[2], LANGUAGE_MODEL])
def test_shrinking_takes_back_what_growing_has_added(task):
    config = toy_config(task=task, bidirectional=task["name"] == "classification")
    model = drawn(config)
    larger = with_encoder(config, hidden_size=9, embedding_size=11)
    grown = grow(config, weights_of(model), larger, seed=1)
    for name in grown:  # heard by nobody, the new units must not even be heard among themselves
        if "weight_hh" in name:
            grown[name][:, 5:] = 0.0
    again = built(config, shrink(larger, grown, config, batch()))
    assert far(model, again, batch()) <= 1e-5 * (1 + float(outputs(model, batch()).abs().max()))


def test_the_units_that_matter_stay():
    config = toy_config(layers=2, bidirectional=True)
    weights = weights_of(drawn(config))
    silent = {"fwd": [1, 3], "bwd": [0]}  # units of the first layer that nobody reads
    for side in ("fwd", "bwd"):
        name = f"encoder.stack.layers.0.{side}.weight_hh"
        weights[name][:, silent[side]] = 0.0
        columns = silent["fwd"] + [5 + unit for unit in silent["bwd"]]
        weights[f"encoder.stack.layers.1.{side}.weight_ih"][:, columns] = 0.0
    smaller = with_encoder(config, hidden_size=3)
    kept = shrink(config, weights, smaller, batch())
    for side in ("fwd", "bwd"):
        old, new = (weights_[f"encoder.stack.layers.0.{side}.weight_ih"] for weights_ in (weights, kept))
        stay = [row for row in range(5) if any(torch.equal(old[row], value) for value in new[:3])]
        assert len(stay) == 3
        assert not set(stay) & set(silent[side])


def test_a_residual_layer_loses_the_units_that_it_adds_to():
    config, weights = insert_layer(toy_config(), weights_of(drawn(toy_config())), 1, seed=1)
    weights["encoder.stack.layers.1.gate"] = torch.arange(1.0, 11.0)
    smaller = shrink(config, weights, with_encoder(config, hidden_size=3), batch())
    gates = smaller["encoder.stack.layers.1.gate"].int().tolist()
    kept = [smaller[f"encoder.stack.layers.0.{side}.weight_hh"] for side in ("fwd", "bwd")]
    for side, part in enumerate(kept):
        units = [gate - 1 - 5 * side for gate in gates[3 * side : 3 * side + 3]]
        old = weights[f"encoder.stack.layers.0.{('fwd', 'bwd')[side]}.weight_hh"]
        assert torch.equal(part[:3], old[units][:, units])


@pytest.mark.parametrize("task", CLASSIFIERS)
def test_the_mean_of_what_goes_stays_with_its_readers(task):
    """Units that always say the same go first, and nothing changes: also where two layers' states are added up."""
    config = toy_config(cell="rnn", task=task)
    config, weights = insert_layer(config, weights_of(drawn(config)), 1, seed=1)
    weights["encoder.stack.layers.1.gate"] = torch.linspace(-1.5, 2.0, 10)
    for number in (0, 1):
        for side in ("fwd", "bwd"):
            name = f"encoder.stack.layers.{number}.{side}"
            weights[f"{name}.bias_ih"] = torch.linspace(0.4, 1.2, 5) * (1 + number)
            weights[f"{name}.weight_ih"][2] = 0.0
            weights[f"{name}.weight_hh"][2] = weights[f"{name}.weight_hh"][:, 2] = 0.0
    model, smaller = built(config, weights), with_encoder(config, hidden_size=4)
    assert far(model, built(smaller, shrink(config, weights, smaller, batch(60))), batch(60, seed=1)) < 2e-5


@pytest.mark.parametrize("task", [*CLASSIFIERS, LANGUAGE_MODEL])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_dropped_layer_is_made_up_for(task, number):
    config = toy_config(task=task, layers=3, bidirectional=task["name"] == "classification", hidden_size=8)
    model = drawn(config)
    shallower, weights = drop_layer(config, weights_of(model), number, batch(200))
    assert shallower.encoder.layers == 2
    repaired, others = built(shallower, weights), batch(100, seed=1)  # rows that the map hasn't seen
    spread = float(outputs(model, others).std())
    # The head's bias alone would leave the whole spread.
    assert float((outputs(model, others) - outputs(repaired, others)).square().mean().sqrt()) < 0.9 * spread


def test_dropping_an_inserted_layer_restores_the_model():
    config = toy_config(layers=2)
    model = drawn(config)
    deeper, weights = insert_layer(config, weights_of(model), 1, seed=3)
    again, restored = drop_layer(deeper, weights, 1, batch(200))
    assert again == config
    assert far(model, built(again, restored), batch()) < 1e-4


def residual_stack(cell="lstm", *, bidirectional=False):
    torch.manual_seed(0)
    stack = RecurrentStack(cell, 4, 4, layers=3, bidirectional=bidirectional, residual_layers={1, 2})
    for layer in stack.layers[1:]:
        torch.nn.init.normal_(layer.gate)
    return stack.eval()


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_residual_layers_are_the_same_on_all_paths(cell):
    x, lengths = torch.randn(3, 6, 4), torch.tensor([6, 1, 4])
    stack = residual_stack(cell, bidirectional=True)
    y, state = stack(x, lengths)
    with using("off"):
        portable, other = stack(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[row, :length], portable[row, :length], atol=1e-5, rtol=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5)
    one = residual_stack(cell)
    stream, whole = Stream(one), one(x[:1])[0]
    steps = torch.stack([stream.step(value) for value in x[0]])
    torch.testing.assert_close(steps, whole[0], atol=1e-5, rtol=1e-5)


def test_a_residual_layer_adds_its_gated_states():
    stack, plain = residual_stack(), residual_stack()
    for layer in plain.layers:
        layer.gate = None
    x = torch.randn(2, 5, 4)
    first, _ = plain.layers[0](x, None, None, {})
    second, _ = plain.layers[1](first, None, None, {})
    joined = first + stack.layers[1].gate * second
    third, _ = plain.layers[2](joined, None, None, {})
    torch.testing.assert_close(stack(x)[0], joined + stack.layers[2].gate * third, atol=1e-5, rtol=1e-5)


def test_the_first_layer_cannot_be_residual():
    with pytest.raises(ValueError, match="the first one is number 1"):
        RecurrentStack("lstm", 4, 4, layers=2, residual_layers={0})


def checkpoint_of(config, seed=0):
    return Checkpoint(config, toy_featurizer(), {}).with_model(drawn(config, seed))


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_reshaped_model_is_exported(cell, pooling, tmp_path):
    checkpoint = checkpoint_of(toy_config(cell=cell, task=CLASSIFIERS[0] | {"pooling": pooling}))
    made = reshape(checkpoint, ReshapeOptions(out=tmp_path / "new", insert_layer=1, hidden_size=7, quiet=True))
    gate, bias = "encoder.stack.layers.1.gate", "encoder.stack.layers.1.fwd.bias_ih"
    drawn_anew = {gate: torch.full_like(made.tensors[gate], -1.5), bias: torch.full_like(made.tensors[bias], 4.0)}
    head = {"head.linear.weight": made.tensors["head.linear.weight"] / 20}  # so that the softmax hides nothing
    made = replace(made, tensors=made.tensors | drawn_anew | head)
    target = OnnxTarget()
    run = target.open(target.build(made.config, made.tensors), {}, 1)
    assert verify(run, torch_runner(made.model()), made.featurizer, tolerance=1e-5).passed


def test_the_verb_says_how_far_the_models_are_apart_and_the_result_goes_on(tmp_path):
    data = write_csv(tmp_path / "rows.csv", toy_rows(200))
    checkpoint = checkpoint_of(toy_config(layers=2))
    options = ReshapeOptions(
        out=tmp_path / "new", hidden_size=9, embedding_size=4, insert_layer=1, drop_layer=1, data=data, quiet=True
    )
    made = reshape(checkpoint, options)
    shape = made.config.encoder
    assert (shape.layers, shape.hidden_size, shape.embedding_size) == (2, 9, 4)
    record = StageRecord.load(tmp_path / "new")
    assert record.notes[0].startswith("From 2 x 5 units, two directions, embedding 6 to 2 x 9 units")
    assert 0.0 <= record.metrics["after"]["agreement"] <= 1.0
    difference = float(record.notes[1].rpartition(" ")[2].rstrip("."))
    assert 0 < difference < math.inf
    again = transfer(
        made, TransferOptions(out=tmp_path / "t", data=data, method="init", control=False, **train_options())
    )
    assert again.config.residual_layers == made.config.residual_layers == (1,)


def train_options():
    return {name: value for name, value in TINY.items() if name not in ("embedding_size", "hidden_size")}


def test_growth_needs_no_rows_and_says_that_nothing_changed(tmp_path):
    options = ReshapeOptions(out=tmp_path / "new", hidden_size=16, bidirectional=True, quiet=True)
    made = reshape(checkpoint_of(toy_config(bidirectional=False)), options)
    assert made.config.encoder.bidirectional
    difference = StageRecord.load(tmp_path / "new").notes[1]
    assert "64 rows of random tokens" in difference
    assert float(difference.rpartition(" ")[2].rstrip(".")) <= 1e-6


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        ({}, {}, "nothing to change"),
        ({}, {"bidirectional": True}, "both directions already"),
        ({"task": LANGUAGE_MODEL, "bidirectional": False}, {"bidirectional": True}, "must not read ahead"),
        ({}, {"hidden_size": 2}, "--hidden-size can't keep the function exactly"),
        ({"layers": 2}, {"drop_layer": 1}, "--drop-layer can't keep the function exactly"),
        ({}, {"hidden_size": 5}, "hidden_size is 5 already: leave --hidden-size out"),
        ({}, {"insert_layer": 2}, "above layers 1 to 1, not above layer 2"),
    ],
)
def test_what_cannot_be_done_is_refused(config, changes, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        reshape(checkpoint_of(toy_config(**config)), ReshapeOptions(out=tmp_path / "new", quiet=True, **changes))
    assert not (tmp_path / "new").exists()


def test_clients_own_weights_would_not_fit(tmp_path):
    checkpoint = checkpoint_of(toy_config())
    own = {"c": {"head.linear.bias": torch.zeros(2)}}
    with pytest.raises(ConfigError, match="reshape first, then personalize"):
        reshape(replace(checkpoint, personal=own), ReshapeOptions(out=tmp_path / "new", hidden_size=9, quiet=True))


@pytest.mark.parametrize(("number", "said"), [(1, "needs one at least"), (3, "layer 3 can't be dropped")])
def test_a_layer_that_cannot_go_is_kept(number, said, tmp_path):
    data = write_csv(tmp_path / "rows.csv", toy_rows(200))
    with pytest.raises(ConfigError, match=said):
        reshape(
            checkpoint_of(toy_config()), ReshapeOptions(out=tmp_path / "new", drop_layer=number, data=data, quiet=True)
        )


def test_too_few_rows_to_fit_and_measure_on(tmp_path):
    data = write_csv(tmp_path / "rows.csv", toy_rows(40))
    with pytest.raises(DataError, match="has 40 rows"):
        reshape(checkpoint_of(toy_config()), ReshapeOptions(out=tmp_path / "new", hidden_size=3, data=data, quiet=True))


def test_a_config_with_residual_layers_that_cannot_be_is_refused(tmp_path):
    checkpoint_of(toy_config(layers=2)).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"residual_layers": []', '"residual_layers": [\n  5\n ]'))
    seal(tmp_path)
    with pytest.raises(CheckpointError, match="residual layers"):
        Checkpoint.load(tmp_path)


def test_an_int8_model_becomes_float32_and_says_so(tmp_path):
    checkpoint = checkpoint_of(toy_config())
    config = checkpoint.config.model_copy(update={"compression": "int8"})
    small = replace(checkpoint, config=config, tensors=quantize(checkpoint.tensors))
    made = reshape(small, ReshapeOptions(out=tmp_path / "new", hidden_size=9, quiet=True))
    assert made.config.compression == ""
    assert "The int8 weights became float32." in StageRecord.load(tmp_path / "new").notes


def test_a_layer_that_others_add_to_is_kept(tmp_path):
    config, weights = insert_layer(toy_config(), weights_of(drawn(toy_config())), 1, seed=0)
    config, weights = insert_layer(config, weights, 2, seed=0)
    for number in (0, 1):
        with pytest.raises(ConfigError, match=f"layer {number + 2} adds to layer {number + 1}"):
            drop_layer(config, weights, number, batch())


def test_axes_name_every_parameter():
    for task in (*CLASSIFIERS, LANGUAGE_MODEL, {"name": "representation"}):
        config = toy_config(task=task, layers=2, bidirectional=task["name"] != "language_modeling")
        model = toy_model(config)
        axes = axes_of(model, config)
        assert {name: len(axis) for name, axis in axes.items()} == {n: p.ndim for n, p in model.named_parameters()}
