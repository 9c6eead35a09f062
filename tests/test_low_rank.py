"""Low-rank adapters: the layers compute with the adapted weights, in the kernels too, and nothing of them is left."""

import pytest
import torch
from helpers import same_bits
from small_models import small_checkpoint
from test_transfer import options

from headwater.cells import CELLS
from headwater.errors import ConfigError
from headwater.native import recurrent, usable
from headwater.records import StageRecord
from headwater.reshaping.verb import ReshapeOptions, reshape
from headwater.trainer import _Run
from headwater.transfer_learning.low_rank import low_rank
from headwater.transfer_learning.verb import transfer
from headwater.weights import weights_of

ALL = ("weight_ih", "weight_hh", "embedding")
LENGTHS = torch.tensor([7, 3, 5, 1])


def drawn(model, *, seed=1):
    """Draw the adapters, so that they change something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora" in name:
            value.data.copy_(0.3 * torch.randn(value.shape, generator=generator))


def tokens(vocabulary):
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(1, vocabulary, (len(LENGTHS), 7), generator=generator)
    return drawn * (torch.arange(7) < LENGTHS.unsqueeze(1))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_merged_equals_unmerged(cell, training):
    checkpoint = small_checkpoint(cell=cell, layers=2)
    model = checkpoint.model()
    before = weights_of(model)
    batch = tokens(checkpoint.config.vocabulary_size)
    with torch.set_grad_enabled(training):
        plain = model(batch, LENGTHS)
        with low_rank(model.encoder, ALL, 2, 4.0):
            assert torch.equal(model(batch, LENGTHS), plain)  # B is zero
            drawn(model)
            adapted = model(batch, LENGTHS)
        merged = model(batch, LENGTHS)
    assert (adapted - plain).abs().max() > 1e-2
    assert (adapted - merged).abs().max() < 1e-6
    assert {n: v.shape for n, v in model.named_parameters()} == {n: v.shape for n, v in before.items()}
    assert all(torch.equal(v, before[n]) == ("bias" in n or "head" in n) for n, v in model.named_parameters())


def test_the_adapted_weight_is_the_papers():
    model = small_checkpoint().model()
    before = weights_of(model)
    name = "stack.layers.0.fwd.weight_hh"
    with low_rank(model.encoder, ("fwd.weight_hh",), 2, 3.0) as adapters:
        drawn(model)
        inside = dict(model.encoder.named_parameters())
        (adapter,) = adapters
        product = inside[f"{adapter}lora_B"] @ inside[f"{adapter}lora_A"]
    after = weights_of(model.encoder)
    torch.testing.assert_close(after[name], before[f"encoder.{name}"] + 3.0 / 2 * product.detach())
    assert same_bits({n: v for n, v in after.items() if n != name}, strip(before, "encoder.", name))


def strip(weights, prefix, left_out):
    plain = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return {name: value for name, value in plain.items() if name != left_out}


def test_the_kernels_compute_with_the_adapted_weights(monkeypatch):
    checkpoint = small_checkpoint()
    model = checkpoint.model()
    if not usable(next(model.parameters())):
        pytest.skip("no kernels here")
    seen = []
    run = recurrent.run_forward
    monkeypatch.setattr(
        recurrent, "run_forward", lambda numbers, given: seen.append(given["weight_hh"]) or run(numbers, given)
    )
    with low_rank(model.encoder, ALL, 2, 4.0):
        drawn(model)
        model(tokens(checkpoint.config.vocabulary_size), LENGTHS)
    layer = model.encoder.stack.layers[0]
    assert [torch.equal(used, cell.weight_hh) for used, cell in zip(seen, (layer.fwd, layer.bwd), strict=True)]


@pytest.mark.parametrize("processes", [1, 2])
def test_only_adapters_and_head_learn_and_an_ordinary_checkpoint_is_left(
    processes, data, source, tmp_path, monkeypatch
):
    gradients = set()
    step = _Run.train_step

    def watched(run):
        loss = step(run)
        gradients.update(name for name, value in run.trained.named_parameters() if value.grad is not None)
        return loss

    monkeypatch.setattr(_Run, "train_step", watched)
    given = options(data, tmp_path / "t", method="lora", rank=2, lora_targets="weight_hh, embedding", lr=0.05)
    made = transfer(source, given.model_copy(update={"processes": processes}))
    assert {name for name in gradients if "lora" not in name} == {"head.linear.weight", "head.linear.bias"}
    before = source.weights()
    for name, value in before.items():
        if name.startswith("encoder."):
            change = made.tensors[name][: len(value)] - value
            expected = 2 if "weight_hh" in name or "embedding" in name else 0
            values = torch.linalg.svdvals(change) if change.ndim == 2 else change.abs()
            assert int((values > 1e-4).sum()) == expected, name
    assert made.tensors.keys() == before.keys()
    trained = sum(
        2 * sum(made.tensors[name].shape) if name.startswith("encoder.") else made.tensors[name].numel()
        for name in made.tensors
        if "weight_hh" in name or "embedding" in name or "head" in name
    )
    note = f"{trained:,} weights were trained, of a model of {made.parameter_count():,}: 3 adapters and the head."
    assert note in StageRecord.load(tmp_path / "t").notes


def test_a_layer_just_inserted_learns_through_its_gate(data, source, tmp_path):
    deeper = reshape(source, ReshapeOptions(out=tmp_path / "deep", insert_layer=1, quiet=True))
    made = transfer(deeper, options(data, tmp_path / "t", method="lora", rank=2, lr=0.05))
    assert made.tensors["encoder.stack.layers.1.gate"].all()
    name = "encoder.stack.layers.1.fwd.weight_hh"
    assert not torch.equal(made.tensors[name], deeper.tensors[name])
    assert any("the gates of residual layers and the head" in note for note in StageRecord.load(tmp_path / "t").notes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_targets": "weight_ih,weight_xx"}, r"'weight_xx' names no matrix; there are: embedding.weight, stack"),
        ({"lora_targets": "bias_hh"}, "'bias_hh' names no matrix"),
        ({"lora_targets": ""}, "'' names no matrix"),
        ({"rank": 9}, "lower --rank"),
    ],
)
def test_what_cannot_be_adapted_is_refused(given, said, data, source, tmp_path):
    with pytest.raises(ConfigError, match=said):
        transfer(source, options(data, tmp_path / "t", method="lora", **given))
    assert not any(tmp_path.iterdir())


def test_adapters_are_computed_in_float32_also_where_products_are_not():
    model = small_checkpoint().model()
    with low_rank(model.encoder, ALL, 2, 4.0), torch.autocast("cpu", torch.bfloat16):
        assert model.encoder.stack.layers[0].fwd.weight_hh.dtype == torch.float32
