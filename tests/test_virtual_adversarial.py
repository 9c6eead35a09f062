"""Virtual adversarial training: the perturbation and its divergence are the paper's, with every method that trains."""

import numpy as np
import pytest
import torch
from helpers import NO_DROPOUT, same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv
from test_control import Stop
from test_transfer import job_of, options
from torch import nn
from torch.nn import functional as F

from headwater import trainer
from headwater.cells import CELLS
from headwater.data.batches import batch_of
from headwater.data.examples import Examples
from headwater.data_parallel import Share
from headwater.errors import ConfigError, DataError
from headwater.model import DropoutOptions
from headwater.native import best_level, using
from headwater.precision import has_bfloat16
from headwater.records import StageRecord
from headwater.trainer import _Run
from headwater.transfer_learning import virtual_adversarial
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer
from headwater.transfer_learning.virtual_adversarial import VirtualAdversarial, divergences, worst_step

CPU = torch.device("cpu")
MUCH = DropoutOptions(
    embedding_dropout=0.5, input_dropout=0.5, hidden_dropout=0.5, weight_dropout=0.5, head_dropout=0.5
)


def drawn(*, dropout=NO_DROPOUT, **encoder):
    model = toy_model(toy_config(dropout=dropout, **encoder))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model


def smoothness(model, examples=None, **given):
    given = {"data": "x", "out": "y", "vat": 1.0, "vat_radius": 2.0, "batch_size": 4} | given
    return VirtualAdversarial(model, examples or toy_examples(12), TransferOptions(**given), CPU)


@pytest.fixture
def steps(monkeypatch):
    """The perturbations that are found, as they come, and the divergence of any other."""
    found = []

    def watched(divergence, random, radius):
        step = worst_step(divergence, random, radius)
        found.append((step, divergence, random))
        return step

    monkeypatch.setattr(virtual_adversarial, "worst_step", watched)
    return found


def test_the_worst_step_is_one_power_iteration():
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    curvature = square @ square.mT
    random = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)

    def divergence(step):
        flat = step.flatten(1).unsqueeze(2)
        return 0.5 * (flat.mT @ curvature @ flat).flatten()

    made = worst_step(divergence, random, 3.0).flatten(1)
    product = (curvature @ random.flatten(1).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(made, 3.0 * product / product.norm(dim=1, keepdim=True))


def test_a_row_whose_divergence_is_flat_is_not_perturbed_and_a_tiny_gradient_is_scaled_up():
    random = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    steep = torch.tensor([0.0, 1e-30, 1.0])
    made = worst_step(lambda step: steep * step.square().sum((1, 2)), random, 2.0)
    assert not made[0].any()
    torch.testing.assert_close(made[1:].flatten(1).norm(dim=1), torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(made[1], made[1].norm() * random[1] / random[1].norm())


def test_the_divergence_is_kullback_and_leiblers():
    before, after = (torch.randn(5, 3, generator=torch.Generator().manual_seed(n)).log_softmax(1) for n in (0, 1))
    expected = (before.exp() * (before - after)).sum(1)
    torch.testing.assert_close(divergences(before, after), expected)
    assert not divergences(before, before).any()


def test_a_batch_equals_finite_differences_in_float64():
    """Embeddings looked up, spreads counted, rows run one by one by `torch.nn` and gradients taken by differences."""
    model = drawn(embedding_size=2, hidden_size=3, bidirectional=False, task=classifier("last")).double()
    examples = Examples([[5, 7, 7], [9, 4]], [0, 1])
    objective = smoothness(model, examples, vat_radius=1.5)
    torch.manual_seed(4)
    value = objective.divergence(batch_of(examples, np.arange(2)))
    value.backward()

    table = model.encoder.embedding.weight.detach()
    seen = table[[5, 7, 7, 9, 4]]
    spread = (seen - seen.mean(0)).square().mean(0).sqrt()
    twin = nn.LSTM(2, 3, batch_first=True).double()
    for name, parameter in model.encoder.stack.layers[0].fwd.named_parameters():
        getattr(twin, f"{name}_l0").data.copy_(parameter)
    head = model.head.linear

    def log_probabilities(rows):
        return torch.log_softmax(twin(rows.unsqueeze(0))[1][0][0, 0] @ head.weight.T + head.bias, 0)

    torch.manual_seed(4)
    random = torch.randn(2, 3, 2, dtype=torch.float64)
    expected = []
    for row, numbers in enumerate(([5, 7, 7], [9, 4])):
        clean = table[numbers]
        before = log_probabilities(clean).detach()

        def divergence(step, clean=clean, before=before):
            return (before.exp() * (before - log_probabilities(clean + spread * step))).sum()

        start = random[row, : len(numbers)]
        start = 0.1 * start / start.norm()
        gradient = torch.zeros_like(start)
        for place in np.ndindex(*start.shape):
            nudge = torch.zeros_like(start)
            nudge[place] = 1e-5
            gradient[place] = (divergence(start + nudge) - divergence(start - nudge)).detach() / 2e-5
        expected.append(divergence(1.5 * gradient / gradient.norm()))
    assert value.item() == pytest.approx(sum(expected).item() / 2, rel=1e-6)
    mean = sum(expected) / 2
    of_head, of_recurrence = torch.autograd.grad(mean, [head.weight, twin.weight_hh_l0])
    torch.testing.assert_close(head.weight.grad, of_head, rtol=1e-5, atol=1e-9)
    recurrence = model.encoder.stack.layers[0].fwd.weight_hh.grad
    torch.testing.assert_close(recurrence, of_recurrence, rtol=1e-5, atol=1e-9)


def classifier(pooling):
    return {"name": "classification", "labels": ("bad", "good"), "pooling": pooling}


@pytest.mark.parametrize("cell", sorted(set(CELLS) - {"rnn_relu"}))  # whose gradient jumps where a unit switches
def test_the_kernels_equal_torch(cell):
    found = []
    for level in (best_level(), "off"):
        model = drawn(cell=cell, layers=2, dropout=MUCH).train()
        objective = smoothness(model)
        torch.manual_seed(4)
        with using(level):
            value = objective.divergence(batch_of(objective._examples, np.arange(8)))
            value.backward()
        found.append((value.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (ours, gradients), (theirs, others) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(value, others[name], rtol=1e-2, atol=1e-4 * float(others[name].abs().max()))


def test_the_perturbation_is_found_in_float32_also_where_products_are_not(steps):
    if not has_bfloat16(CPU):
        pytest.skip("no bfloat16 here")
    model, examples = drawn(), toy_examples(16)
    for half in (False, True):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            smoothness(model, examples).divergence(batch_of(examples, np.arange(16)))
    assert torch.equal(steps[0][0], steps[1][0])


@pytest.mark.parametrize("half", [False, True])
def test_the_perturbation_has_its_norm_and_is_worse_than_random_ones(half, steps):
    if half and not has_bfloat16(CPU):
        pytest.skip("no bfloat16 here")
    model, examples = drawn(layers=2), toy_examples(16)
    batch = batch_of(examples, np.arange(16))
    objective = smoothness(model, examples)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        value = objective.divergence(batch)
    ((step, divergence, random),) = steps
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((16,), 2.0))
    assert not step[torch.arange(step.shape[1]) >= batch.lengths_B.unsqueeze(1)].any()
    worst = divergence(step).mean()
    assert value.item() == pytest.approx(worst.item(), rel=0.1 if half else 1e-4)
    valid = (random != 0).any(2, keepdim=True)
    for seed in range(20):
        other = torch.randn(random.shape, generator=torch.Generator().manual_seed(seed)) * valid
        other = 2.0 * other / other.flatten(1).norm(dim=1).view(-1, 1, 1)
        assert divergence(other).mean() < 0.7 * worst


def test_a_longer_embedding_is_perturbed_as_much_more():
    examples = toy_examples(12)
    batch, values = batch_of(examples, np.arange(12)), []
    for scale in (1.0, 1000.0):
        model = drawn()
        model.encoder.embedding.weight.data *= scale
        for cell in (model.encoder.stack.layers[0].fwd, model.encoder.stack.layers[0].bwd):
            cell.weight_ih.data /= scale
        torch.manual_seed(4)
        values.append(smoothness(model, examples).divergence(batch).item())
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("part", ["head.linear.weight", "encoder.embedding.weight"])
def test_a_model_that_ignores_its_inputs_is_smooth(part):
    model = drawn(dropout=MUCH).train()
    dict(model.named_parameters())[part].data.zero_()
    value = smoothness(model).divergence(batch_of(toy_examples(12), np.arange(12)))
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("level", [best_level(), "off"])
def test_all_passes_drop_the_same_units(level):
    model, examples = drawn(layers=2, dropout=MUCH).train(), toy_examples(12)
    batch = batch_of(examples, np.arange(12))
    with using(level):
        unmoved = [smoothness(model, examples, vat_radius=1e-6).divergence(batch).item() for _ in range(5)]
        moved = [smoothness(model, examples).divergence(batch).item() for _ in range(5)]
    assert max(map(abs, unmoved)) < 1e-6
    assert len(set(moved)) == 5


def test_parameters_that_learn_get_gradients_and_those_frozen_none():
    model = drawn()
    embedding = model.encoder.embedding.weight.requires_grad_(requires_grad=False)
    smoothness(model).divergence(batch_of(toy_examples(12), np.arange(12))).backward()
    assert embedding.grad is None
    learning = {name: p for name, p in model.named_parameters() if p is not embedding}
    assert all(p.requires_grad for p in learning.values())
    # Between two predictions, the head's bias may stay where it is; all else moves them.
    assert all(p.grad.any() for name, p in learning.items() if name != "head.linear.bias")


@pytest.mark.parametrize(("accumulate", "count"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_the_parts_of_a_step_weigh_as_much_as_their_rows(accumulate, count, monkeypatch):
    rows = []

    def divergence(objective, batch):
        rows.append(len(batch.lengths_B))
        return torch.tensor(1.0)

    monkeypatch.setattr(VirtualAdversarial, "divergence", divergence)
    objective = smoothness(drawn(), toy_examples(30), vat=0.5, accumulate=accumulate)
    losses = [loss for number in range(count) for loss in objective.losses(0, Share(number, count))]
    assert sum(losses).item() == pytest.approx(0.5)
    assert sum(rows) == 4 * accumulate
    assert max(rows) <= 4


def test_labelled_rows_come_as_the_task_reads_them():
    examples = toy_examples(30)
    task = trainer.TaskObjective(drawn(), toy_config().make_task(), examples, 4, 7, CPU)
    objective = smoothness(drawn(), examples, seed=7)
    assert all((objective._steps.rows(step) == task._steps.rows(step)).all() for step in range(20))


TRAINED = ("scratch", "init", "finetune", "multitask", "lora", "adapters")


@pytest.mark.parametrize("method", TRAINED)
def test_it_goes_with_every_method_that_trains(method, data, source, tmp_path):
    found = []
    for weight in (0.0, 20.0):
        given = {"method": method, "epochs": 3, "patience": 0, "bss": 0.001, "unfreeze": "at_once", "clip": 1e6}
        made = transfer(source, options(data, tmp_path / str(weight), vat=weight, **given))
        examples = toy_rows(60, seed=9, labels=made.labels).encode(made.featurizer, made.labels)
        torch.manual_seed(0)
        with torch.enable_grad():
            found.append(smoothness(made.model(), examples).divergence(batch_of(examples, np.arange(60))).item())
    assert found[1] < 0.7 * found[0]


def test_feature_extraction_has_no_use_for_it(data, source, tmp_path):
    transfer(source, options(data, tmp_path / "t", method="features", vat=1.0, vat_data="nowhere.csv"))
    notes = StageRecord.load(tmp_path / "t").notes
    assert {note.split()[0] for note in notes if "was ignored" in note} >= {"--vat", "--vat-data"}


def test_rows_without_labels_are_read_too(data, source, tmp_path):
    more = write_csv(tmp_path / "more.csv", toy_rows(50, seed=11))
    plain, wider = (
        transfer(source, options(data, tmp_path / name, method="init", epochs=1, vat=1.0, vat_data=given))
        for name, given in (("a", None), ("b", more))
    )
    assert not same_bits(plain.tensors, wider.tensors)
    uses = [(use.role, use.path, use.rows) for use in StageRecord.load(tmp_path / "b").data]
    assert ("unlabelled", more, 50) in uses
    given = options(data, tmp_path / "b", method="init", epochs=1, vat=1.0, vat_data=more, resume=True)
    assert transfer(source, given).identity == wider.identity
    write_csv(tmp_path / "more.csv", toy_rows(50, seed=12))
    with pytest.raises(ConfigError, match="the content of vat_data isn't what"):
        transfer(source, given)


def test_the_rows_of_the_batches_are_those_of_both_files(data, source, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("headwater.transfer_learning.job.fit_task", lambda *_, others, **__: seen.extend(others))
    more = write_csv(tmp_path / "more.csv", toy_rows(50, seed=11))
    job = job_of(source, options(data, tmp_path / "t", vat=1.0, vat_data=more))
    job.fit()
    (objective,) = seen
    assert len(objective._examples) == len(job.splits.train) + 50
    assert len(objective._examples.targets_N) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_ends_with_the_same_bits(processes, data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"method": "init", "epochs": 1, "batch_size": 32, "patience": 0, "vat": 1.0, "processes": processes}
    whole = transfer(source, options(data, tmp_path / "whole", **given))
    step, taken = _Run.train_step, []

    def stopping(run):
        taken.append(run.step)
        if len(taken) == 4:
            raise Stop
        return step(run)

    monkeypatch.setattr(_Run, "train_step", stopping)
    with pytest.raises(Stop):
        transfer(source, options(data, tmp_path / "killed", **given))
    monkeypatch.setattr(_Run, "train_step", step)
    torch.manual_seed(99)
    resumed = transfer(source, options(data, tmp_path / "killed", **given, resume=True))
    assert same_bits(resumed.tensors, whole.tensors)
    plain = transfer(source, options(data, tmp_path / "plain", **given | {"vat": 0.0}))
    assert not same_bits(plain.tensors, whole.tensors)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vat": -1.0}, "vat = -1.0"),
        ({"vat_radius": 0.0}, "vat_radius = 0.0"),
        ({"vat_radius": float("inf")}, "vat_radius = inf"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        TransferOptions.parse({"data": "x", "out": "t"} | given)


def test_rows_that_cannot_be_read_are_refused(data, source, tmp_path):
    (tmp_path / "other.csv").write_text("review\nlovely film1\n")
    for file, said in (("none.csv", "none.csv"), ("other.csv", "no column 'text'")):
        with pytest.raises(DataError, match=said):
            transfer(source, options(data, tmp_path / "t", vat=1.0, vat_data=str(tmp_path / file)))
        assert {path.name for path in tmp_path.iterdir()} == {"other.csv"}


def test_a_reference_for_the_spread():
    model, examples = drawn(), toy_examples(12)
    rows = F.embedding(torch.from_numpy(examples.inputs), model.encoder.embedding.weight.detach())
    torch.testing.assert_close(smoothness(model, examples)._spread(), rows.std(0, unbiased=False))
