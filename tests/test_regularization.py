"""What holds a transfer to its source: the terms are the papers', and they compose with every method that trains."""

import numpy as np
import pytest
import torch
from helpers import same_bits
from test_transfer import job_of, options

from headwater.data.batches import batch_of
from headwater.data_parallel import Share
from headwater.fitting import read_splits
from headwater.records import StageRecord
from headwater.regularizers import anchor, spectral_shrinkage
from headwater.tasks.classification import pooled_states
from headwater.transfer_learning.regularization import Anchor
from headwater.transfer_learning.verb import transfer
from headwater.weights import weights_of

TRAINED = ("init", "finetune", "multitask")
KEPT = "encoder.stack.layers.0.fwd.weight_hh"


def test_the_anchor_pulls_in_proportion_to_the_distance():
    weights = {"a": torch.tensor([[1.0, 2.0]], requires_grad=True), "b": torch.tensor([5.0], requires_grad=True)}
    to = {"a": torch.tensor([[0.0, 4.0]]), "b": torch.tensor([5.0]), "unused": torch.ones(3)}
    term = anchor(weights, to, 0.5)
    term.backward()
    assert term.item() == pytest.approx(0.25 * (1 + 4))
    assert weights["a"].grad.tolist() == [[0.5, -1.0]]
    assert weights["b"].grad.tolist() == [0.0]


def test_what_is_frozen_is_not_pulled_and_one_share_takes_the_pull():
    learning, frozen = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    pull = Anchor({"a": learning, "b": frozen}, {"a": torch.zeros(2), "b": torch.zeros(2)}, 3.0)
    assert [term.item() for term in pull.losses(0, Share())] == [3.0]
    assert [term.item() for share in (0, 1) for term in pull.losses(0, Share(share, 2))] == [3.0]
    assert list(Anchor({"b": frozen}, {"b": torch.zeros(2)}, 3.0).losses(0, Share())) == []


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (1, 3)])
def test_shrinkage_is_the_square_of_the_smallest_singular_value(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    left, values, right = torch.linalg.svd(features.detach(), full_matrices=False)
    term = spectral_shrinkage(features)
    term.backward()
    assert term.item() == pytest.approx(values[-1].item() ** 2, rel=1e-4)
    torch.testing.assert_close(features.grad, 2 * values[-1] * torch.outer(left[:, -1], right[-1]))


@pytest.mark.parametrize("method", TRAINED)
def test_a_strong_anchor_keeps_what_was_carried_over_and_empties_a_new_head(method, data, source, tmp_path):
    plain, pulled = (
        transfer(source, options(data, tmp_path / str(pull), method=method, l2_sp=pull, l2_sp_head=pull, clip=1e6))
        for pull in (0.0, 100.0)
    )

    def moved(made):
        return (made.tensors[KEPT] - source.weights()[KEPT]).norm()

    assert moved(pulled) < 0.3 * moved(plain)
    assert pulled.tensors["head.linear.weight"].norm() < 0.5 * plain.tensors["head.linear.weight"].norm()


def test_a_head_that_was_carried_over_is_anchored_too(data, source, tmp_path):
    for file, labels in (("train.csv", 2), ("three.csv", 3)):
        job = job_of(source, options(data, tmp_path / "t", data=str(data / file), test=None, l2_sp=1.0))
        pulls = job.anchors()
        assert [pull.strength for pull in pulls] == ([1.0] if labels == 2 else [1.0, 0.01])
        assert "head.linear.weight" in pulls[-1].to
        assert same_bits(weights_of(job.model) | dict(pulls[0].to), weights_of(job.model))


@pytest.mark.parametrize("method", TRAINED)
def test_shrinkage_lowers_the_smallest_singular_value(method, data, source, tmp_path):
    values = []
    for strength in (0.0, 10.0):
        given = {"method": method, "bss": strength, "l2_sp": 0.001, "batch_size": 8, "epochs": 2}
        made = transfer(source, options(data, tmp_path / str(strength), **given))
        examples = read_splits(options(data, tmp_path / "t"), 0).train.encode(made.featurizer, made.labels)
        features = torch.from_numpy(pooled_states(made.model(), examples))
        values.append(sum(spectral_shrinkage(batch).item() for batch in features.split(8)))
    assert values[1] < 0.7 * values[0]


def test_from_scratch_nothing_is_held(data, source, tmp_path):
    one = transfer(source, options(data, tmp_path / "a", method="scratch", epochs=1))
    two = transfer(source, options(data, tmp_path / "b", method="scratch", epochs=1, l2_sp=1.0, bss=1.0))
    assert same_bits(one.tensors, two.tensors)


def test_the_loss_of_a_broken_model_is_told_as_without_shrinkage(data, source, tmp_path):
    job = job_of(source, options(data, tmp_path / "t", bss=1.0))
    with torch.no_grad():
        job.model.encoder.embedding.weight[:] = torch.nan
    examples = job.splits.train.encode(job.featurizer, job.splits.labels)
    assert not job.task.loss(job.model, batch_of(examples, np.arange(8))).isfinite()


def test_the_pull_to_the_source_takes_the_place_of_the_one_to_zero(data, source, tmp_path):
    one, other = (
        transfer(source, options(data, tmp_path / name, method="init", l2_sp=0.1, weight_decay=decay))
        for name, decay in (("a", 0.3), ("b", 0.0))
    )
    assert one.identity == other.identity
    notes = StageRecord.load(tmp_path / "a").notes
    assert any(note.startswith("--weight-decay was ignored") for note in notes)


@pytest.mark.parametrize("method", ["lora", "adapters"])
def test_without_the_pull_to_the_source_weights_decay_as_ever(method, data, source, tmp_path):
    one, other = (
        transfer(
            source,
            options(data, tmp_path / str(pull), method=method, rank=2, l2_sp=pull, weight_decay=0.3, epochs=1),
        )
        for pull in (0.0, 0.1)
    )
    assert one.identity == other.identity


def test_a_single_row_has_no_spectrum_to_shrink(data, source, tmp_path):
    with_it, without = (
        transfer(source, options(data, tmp_path / str(eta), method="init", bss=eta, batch_size=1, epochs=1, rows=12))
        for eta in (5.0, 0.0)
    )
    assert with_it.identity == without.identity
