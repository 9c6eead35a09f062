"""Bottleneck adapters: nothing at first, then a part of the model that all that stands behind it reads."""

from dataclasses import replace

import pytest
import torch
from helpers import same_bits, toy_config, toy_featurizer
from small_models import small_checkpoint
from test_reshaping import batch, built, drawn
from test_transfer import options
from torch import nn

from headwater.cells import CELLS
from headwater.cells.stack import RecurrentStack
from headwater.cells.stream import Stream
from headwater.checkpoint import Checkpoint
from headwater.compression.int8 import quantize
from headwater.compression.verb import CompressOptions, compress
from headwater.data.examples import Examples
from headwater.deployment.onnx_target import OnnxTarget
from headwater.deployment.verify import verify
from headwater.errors import CheckpointError, ConfigError
from headwater.federated.options import FederateOptions
from headwater.federated.verb import federate
from headwater.folder import seal
from headwater.native import best_level, using
from headwater.records import StageRecord
from headwater.reshaping.layers import drop_layer, insert_layer
from headwater.reshaping.shrinking import shrink
from headwater.reshaping.widths import grow
from headwater.tasks.classification import class_probabilities, torch_runner
from headwater.trainer import _Run
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer
from headwater.weights import load_weights, weights_of

LENGTHS = torch.tensor([7, 3, 5, 1])
OF_LAYER_0 = "encoder.stack.layers.0.adapter."
PARTS = {"down.weight", "down.bias", "up.weight", "up.bias"}


def tokens(vocabulary):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, vocabulary, (4, 7), generator=generator) * (torch.arange(7) < LENGTHS.unsqueeze(1))


def with_adapters(checkpoint, adapters, seed=3):
    """Return a checkpoint with adapters whose every weight is drawn."""
    config = checkpoint.config.model_copy(update={"adapters": adapters})
    model = config.build()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    load_weights(model, checkpoint.weights())
    return replace(checkpoint, config=config).with_model(model)


def adapted_stack(cell, *, bidirectional=False, residual_layers=(1,)):
    stack = RecurrentStack(
        cell, 4, 4, layers=3, bidirectional=bidirectional, residual_layers=residual_layers, adapters={0: 3, 1: 2, 2: 5}
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return stack.eval()


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("level", [best_level(), "off"])
@pytest.mark.parametrize("half", [False, True])
def test_fresh_adapters_change_nothing(cell, level, half):
    checkpoint = small_checkpoint(cell=cell, layers=2)
    plain = checkpoint.model()
    adapted = checkpoint.config.model_copy(update={"adapters": {0: 3, 1: 4}}).build().eval()
    load_weights(adapted, checkpoint.weights())
    batch = tokens(checkpoint.config.vocabulary_size)
    with using(level), torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(adapted(batch, LENGTHS), plain(batch, LENGTHS))
        adapted(batch, LENGTHS).float().logsumexp(1).sum().backward()
    up, down = (dict(adapted.named_parameters())[OF_LAYER_0 + name].grad for name in ("up.weight", "down.weight"))
    assert up.any()  # so that the next step moves them
    assert not down.any()


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_adapters_are_the_same_on_all_paths(cell):
    x, lengths = torch.randn(3, 6, 4), torch.tensor([6, 1, 4])
    stack = adapted_stack(cell, bidirectional=True)
    y, state = stack(x, lengths)
    with using("off"):
        portable, other = stack(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[row, :length], portable[row, :length], atol=1e-5, rtol=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual_layers", [(), (1,)])
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_streams_steps_equal_a_pass(cell, residual_layers):
    x, one = torch.randn(3, 6, 4), adapted_stack(cell, residual_layers=residual_layers)
    stream, (whole, after) = Stream(one), one(x[:1])
    steps = torch.stack([stream.step(value) for value in x[0]])
    torch.testing.assert_close(steps, whole[0], atol=1e-5, rtol=1e-5)
    for name, value in stream.state().items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-5)


def test_an_adapter_adds_what_its_bottleneck_makes_and_leaves_the_layers_own_states():
    stack = adapted_stack("lstm").double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    read, states = x, []
    for layer in stack.layers:
        twin = nn.LSTM(4, 4, batch_first=True).double()
        for name, value in layer.fwd.named_parameters():
            getattr(twin, f"{name}_l0").data.copy_(value)
        y, (h, _) = twin(read)
        states.append(h[0])
        summed = y if layer.gate is None else read + layer.gate * y
        down, up = layer.adapter.down, layer.adapter.up
        read = summed + (summed @ down.weight.T + down.bias).clamp(min=0) @ up.weight.T + up.bias
    made, after = stack(x)
    torch.testing.assert_close(made, read)
    for number, h in enumerate(states):
        torch.testing.assert_close(after[f"{number}.fwd.h"], h)


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_model_with_adapters_is_exported(cell, bidirectional, stored):
    target = OnnxTarget()
    checkpoint = with_adapters(small_checkpoint(cell=cell, layers=3, bidirectional=bidirectional), {0: 3, 2: 4})
    # Far below any cell's state, so that a maximum over the padding would be seen; the softmax hides nothing.
    low = {"encoder.stack.layers.2.adapter.up.bias": torch.full((10 if bidirectional else 5,), -9.0)}
    head = {"head.linear.weight": checkpoint.tensors["head.linear.weight"] / 20}
    checkpoint = replace(checkpoint, tensors=checkpoint.tensors | low | head)
    if stored == "int8":
        config = checkpoint.config.model_copy(update={"compression": "int8"})
        checkpoint = replace(checkpoint, config=config, tensors=quantize(checkpoint.tensors))
    built = target.build(checkpoint.config, checkpoint.tensors)
    for settings in target.variants(checkpoint.config).values():
        run = target.open(built, settings, 1)
        assert verify(run, torch_runner(checkpoint.model()), checkpoint.featurizer, tolerance=1e-5).passed, settings


def adapted_config(adapters, **encoder):
    return toy_config(layers=2, **encoder).model_copy(update={"adapters": adapters})


def probabilities(model):
    numbers = toy_featurizer().encode_all([" ".join(["film0", "superb", "plot3", "dull"][:n]) for n in (1, 2, 3, 4)])
    return torch.from_numpy(class_probabilities(model, Examples(numbers)))


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 9}, {"embedding_size": 8, "hidden_size": 6}, {"bidirectional": True}]
)
def test_a_wider_model_with_adapters_computes_the_same(changes):
    config = adapted_config({0: 3, 1: 2}, bidirectional=False)
    model = drawn(config)
    larger = config.model_copy(update={"encoder": config.encoder.model_copy(update=changes)})
    grown = grow(config, weights_of(model), larger, seed=0)
    assert grown[OF_LAYER_0 + "down.weight"].shape[0] == 3
    torch.testing.assert_close(probabilities(built(larger, grown)), probabilities(model), atol=1e-6, rtol=0)


def test_layers_go_in_and_out_with_their_adapters():
    config = adapted_config({1: 3})
    model = drawn(config)
    deeper, weights = insert_layer(config, weights_of(model), 1, seed=3)
    assert (deeper.adapters, deeper.residual_layers) == ({2: 3}, (1,))
    torch.testing.assert_close(probabilities(built(deeper, weights)), probabilities(model))
    rows = batch(150)
    again, restored = drop_layer(deeper, weights, 1, rows)
    assert again == config
    torch.testing.assert_close(probabilities(built(again, restored)), probabilities(model), atol=1e-4, rtol=0)
    one, _ = drop_layer(config, weights_of(model), 1, rows)
    assert one.adapters == {}


def test_units_that_only_an_adapter_reads_are_kept_and_idle_ones_go_without_a_loss():
    config = adapted_config({0: 3}, bidirectional=False)
    model = drawn(config)
    weights = weights_of(model)
    # Unit 0 of the first layer is heard through its adapter alone, unit 4 says the same always.
    weights["encoder.stack.layers.1.fwd.weight_ih"][:, 0] = 0.0
    weights["encoder.stack.layers.0.fwd.weight_hh"][:, [0, 4]] = 0.0
    weights[OF_LAYER_0 + "up.weight"][[0, 4]] = 0.0
    weights[OF_LAYER_0 + "down.weight"][:, 0] *= 10
    for name in ("weight_ih", "weight_hh"):
        weights[f"encoder.stack.layers.0.fwd.{name}"].view(4, 5, -1)[:, 4] = 0.0
    weights["encoder.stack.layers.0.fwd.bias_ih"].view(4, 5)[:, 4] = torch.tensor([0.0, -50.0, 2.0, 0.0])
    weights["encoder.stack.layers.0.fwd.bias_hh"].view(4, 5)[:, 4] = 0.0
    # A layer above has a unit that nobody hears.
    weights["head.linear.weight"].view(2, 3, 5)[:, :, 2] = 0.0
    weights["encoder.stack.layers.1.fwd.weight_hh"][:, 2] = 0.0
    smaller = config.model_copy(update={"encoder": config.encoder.model_copy(update={"hidden_size": 4})})
    made = built(smaller, shrink(config, weights, smaller, batch(40)))
    torch.testing.assert_close(probabilities(made), probabilities(built(config, weights)), atol=1e-5, rtol=0)


def test_only_adapters_and_head_learn_and_the_model_keeps_them(data, source, tmp_path, monkeypatch):
    gradients = set()
    step = _Run.train_step

    def watched(run):
        loss = step(run)
        gradients.update(name for name, value in run.trained.named_parameters() if value.grad is not None)
        return loss

    monkeypatch.setattr(_Run, "train_step", watched)
    made = transfer(source, options(data, tmp_path / "t", method="adapters", bottleneck=3, lr=0.05))
    head = {"head.linear.weight", "head.linear.bias"}
    assert gradients == head | {OF_LAYER_0 + part for part in PARTS}
    before = source.weights()
    for name, value in before.items():
        assert name in head or torch.equal(made.tensors[name][: len(value)], value), name
    assert made.tensors.keys() == before.keys() | {OF_LAYER_0 + part for part in PARTS}
    assert made.tensors[OF_LAYER_0 + "up.weight"].any()
    assert made.config.adapters == {0: 3}
    # 16 states, 3 units: two matrices, two biases; 3 labels read the states pooled in 3 ways.
    note = f"{2 * 16 * 3 + 3 + 16 + 3 * 48 + 3} weights were trained, of a model of {made.parameter_count():,}"
    assert f"{note}: 1 adapter and the head." in StageRecord.load(tmp_path / "t").notes
    assert same_bits(Checkpoint.load(tmp_path / "t").weights(), made.weights())


def test_a_model_with_adapters_is_a_source_again(data, source, tmp_path):
    given = {"method": "adapters", "bottleneck": 3, "epochs": 1}
    first = transfer(source, options(data, tmp_path / "a", **given))
    frozen = {name: value for name, value in first.tensors.items() if name.startswith("encoder.stack.")}

    def moved(made):
        return {name for name, value in frozen.items() if not torch.equal(made.tensors[name], value)}

    again = transfer(first, options(data, tmp_path / "b", **given))
    assert moved(again) == {OF_LAYER_0 + part for part in PARTS}
    lora = transfer(first, options(data, tmp_path / "c", method="lora", rank=2, epochs=1))
    assert not moved(lora) & {OF_LAYER_0 + part for part in PARTS}
    for method in ("init", "features", "scratch"):
        made = transfer(first, options(data, tmp_path / method, method=method, epochs=1))
        assert made.config.adapters == {0: 3}
        assert (moved(made) == frozen.keys()) == (method != "features")
    with pytest.raises(ConfigError, match="layer 1 the source has an adapter of 3 units: give --bottleneck 3"):
        transfer(first, options(data, tmp_path / "d", method="adapters", bottleneck=4))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("given", "adapters"), [("all", {0: 4, 1: 4}), ("2", {1: 4}), (" 2, 1", {0: 4, 1: 4}), ("1,1", {0: 4})]
)
def test_the_layers_can_be_chosen(given, adapters, data, tmp_path):
    source = small_checkpoint(layers=2)
    made = transfer(
        source, options(data, tmp_path / "t", method="adapters", bottleneck=4, adapter_layers=given, epochs=1)
    )
    assert made.config.adapters == adapters


@pytest.mark.parametrize("given", ["0", "2", "1,2", "", "one", "layers.0"])
def test_a_layer_that_is_not_there_is_refused(given, data, source, tmp_path):
    with pytest.raises(ConfigError, match=r"is no layer's number; there are: 1, or all"):
        transfer(source, options(data, tmp_path / "t", method="adapters", adapter_layers=given))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("units", [0, -1, 10**6])
def test_a_bottleneck_has_a_size(units):
    with pytest.raises(ConfigError, match=f"bottleneck = {units}"):
        TransferOptions.parse({"data": "x", "out": "t", "bottleneck": units})


def test_adapters_go_through_compression_and_a_federation(data, source, tmp_path):
    made = transfer(source, options(data, tmp_path / "t", method="adapters", bottleneck=3, epochs=2))
    small = compress(made, CompressOptions(out=tmp_path / "c", quiet=True))
    assert small.tensors[OF_LAYER_0 + "up.weight"].dtype == torch.int8
    given = {"data": str(data / "three.csv"), "client": "client", "rounds": 1, "participation": 1.0, "valid": 0.3}
    shared = federate(made, FederateOptions(**given, out=tmp_path / "f", controls=False, quiet=True, processes=1))
    assert shared.config.adapters == {0: 3}
    assert not torch.equal(shared.tensors[OF_LAYER_0 + "up.weight"], made.tensors[OF_LAYER_0 + "up.weight"])


@pytest.mark.parametrize("written", ['{"5": 3}', '{"-1": 3}', '{"0": 0}', '{"x": 3}'])
def test_a_config_with_adapters_that_cannot_be_is_refused(written, tmp_path):
    with_adapters(small_checkpoint(), {0: 3}).save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    text = path.read_text()
    assert '"adapters": {\n  "0": 3\n }' in text
    path.write_text(text.replace('"adapters": {\n  "0": 3\n }', f'"adapters": {written}'))
    seal(tmp_path / "m")
    with pytest.raises(CheckpointError, match="isn't the config of a checkpoint"):
        Checkpoint.load(tmp_path / "m")
