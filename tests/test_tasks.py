"""Tasks: whatever stands in `TASKS` learns, counts so that counts add, and never looks at padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy_config, toy_examples, toy_model
from sklearn.metrics import f1_score
from torch.nn import functional as F

from headwater.data.batches import batch_of
from headwater.data.examples import Examples
from headwater.errors import ConfigError
from headwater.features.text import END, UNKNOWN
from headwater.metrics import ClassificationCounts
from headwater.model import pool
from headwater.pretraining import PretrainOptions, pretrain
from headwater.tasks import TASKS, task_class
from headwater.tasks.classification import class_probabilities, pooled_states

SETTINGS = {
    "classification": {"name": "classification", "labels": ("bad", "good"), "pooling": "concat"},
    "language_modeling": {"name": "language_modeling"},
}
REFUSING = {"representation"}
LEARNING = sorted(TASKS.keys() - REFUSING)


def prepared(name, **encoder):
    config = toy_config(task=SETTINGS[name], bidirectional=not task_class(name).one_direction, **encoder)
    return toy_model(config), config.make_task()


def test_every_task_in_the_table_is_tested_here():
    assert TASKS.keys() == SETTINGS.keys() | REFUSING


@pytest.mark.parametrize("name", LEARNING)
def test_the_loss_falls_by_a_fifth_on_a_toy_set(name):
    model, task = prepared(name)
    examples = toy_examples(40)
    batch = batch_of(examples, np.arange(40))
    first = task.count(model, examples, 16).figures()["loss"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model.train()
    for _ in range(60):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.count(model, examples, 16).figures()["loss"] < first * 0.8


@pytest.mark.parametrize("name", LEARNING)
def test_merged_counts_equal_pooled_counts(name):
    model, task = prepared(name)
    examples = toy_examples(41)
    pooled = task.count(model, examples, 64)
    parts = [task.count(model, examples.take(rows), 64) for rows in np.array_split(np.arange(41), [1, 9, 30])]
    merged = parts[0] + parts[1] + parts[2] + parts[3]
    assert merged.figures().keys() == pooled.figures().keys() >= {"loss", "n"}
    for figure, value in pooled.figures().items():
        assert merged.figures()[figure] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", LEARNING)
def test_the_size_of_a_batch_changes_no_figure(name):
    model, task = prepared(name)
    examples = toy_examples(30)
    one, all_ = (task.count(model, examples, size).figures() for size in (1, 30))
    assert one == pytest.approx(all_, rel=1e-5)


@pytest.mark.parametrize("name", LEARNING)
def test_padding_changes_no_loss_and_no_gradient(name):
    model, task = prepared(name)
    model.eval()
    batch = batch_of(toy_examples(12), np.arange(12))
    tokens = F.pad(batch.inputs, (0, 4))
    behind = torch.arange(tokens.shape[1]) >= batch.lengths_B.unsqueeze(1)
    wider = replace(batch, inputs=tokens.masked_fill(behind, 7))
    results = []
    for given in (batch, wider):
        model.zero_grad()
        loss = task.loss(model, given)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LEARNING)
def test_parts_of_a_batch_add_up_to_its_loss_by_their_terms(name):
    model, task = prepared(name)
    examples = toy_examples(20)
    rows = np.arange(20)
    parts = [rows[:3], rows[3:17], rows[17:]]
    terms = [task.terms(examples.lengths_N[part]) for part in parts]
    losses = [float(task.loss(model, batch_of(examples, part)).detach()) for part in parts]
    whole = float(task.loss(model, batch_of(examples, rows)).detach())
    assert np.average(losses, weights=terms) == pytest.approx(whole, rel=1e-6)
    assert sum(terms) == task.terms(examples.lengths_N)


@pytest.mark.parametrize("name", LEARNING)
def test_the_mean_loss_of_training_is_the_counted_loss(name):
    model, task = prepared(name)
    model.eval()
    examples = toy_examples(12)
    loss = float(task.loss(model, batch_of(examples, np.arange(12))).detach())
    assert task.count(model, examples, 5).figures()["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", LEARNING)
def test_the_best_figure_of_a_task_is_one_that_it_counts(name):
    model, task = prepared(name)
    assert task.best[0] in task.count(model, toy_examples(4), 4).figures()


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_a_representation_refuses_to_learn_and_to_count(name):
    config = toy_config(task={"name": name})
    model, task, examples = toy_model(config), config.make_task(), toy_examples(4)
    with pytest.raises(ConfigError, match="transfer it"):
        task.loss(model, batch_of(examples, np.arange(4)))
    with pytest.raises(ConfigError, match="transfer it"):
        task.count(model, examples, 4)
    batch = batch_of(examples, np.arange(4))
    assert model(batch.inputs, batch.lengths_B).shape == (4, batch.inputs.shape[1], 10)


def test_classification_needs_two_labels():
    with pytest.raises(ConfigError, match="labels"):
        task_class("classification").parse({"labels": ["good"]})


def test_probabilities_and_pooled_states_come_in_the_order_of_the_rows():
    model, _ = prepared("classification")
    examples = toy_examples(23)
    together, states = class_probabilities(model, examples, 7), pooled_states(model, examples, 7)
    assert together.shape == (23, 2)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-6)
    for row in (0, 11, 22):
        alone = examples.take(np.array([row]))
        np.testing.assert_allclose(class_probabilities(model, alone)[0], together[row], atol=1e-6)
        np.testing.assert_allclose(pooled_states(model, alone)[0], states[row], atol=1e-6)


def test_figures_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 60)
    targets = rng.integers(3, size=60)  # the fourth label never occurs, but is predicted
    figures = ClassificationCounts.of(probabilities, targets).figures()
    predicted = probabilities.argmax(1)
    assert figures["accuracy"] == pytest.approx((predicted == targets).mean())
    assert figures["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))
    assert figures["loss"] == pytest.approx(-np.log(probabilities[np.arange(60), targets]).mean())
    assert figures["n"] == 60


def test_pooling_by_hand():
    y = torch.tensor([[[1.0, 10.0], [5.0, 20.0], [99.0, 99.0]]])
    lengths = torch.tensor([2])
    assert pool(y, lengths, "last", bidirectional=False).tolist() == [[5.0, 20.0]]
    assert pool(y, lengths, "last", bidirectional=True).tolist() == [[5.0, 10.0]]
    assert pool(y, lengths, "max", bidirectional=True).tolist() == [[5.0, 20.0]]
    assert pool(y, lengths, "mean", bidirectional=True).tolist() == [[3.0, 15.0]]
    assert pool(y, lengths, "concat", bidirectional=False).tolist() == [[5.0, 20.0, 5.0, 20.0, 3.0, 15.0]]


def test_a_language_model_predicts_each_token_and_the_end():
    model, task = prepared("language_modeling")
    examples = toy_examples(9)
    counts = task.count(model, examples, 4)
    assert counts.tokens == len(examples.inputs) + len(examples)
    assert counts.figures()["perplexity"] == pytest.approx(np.exp(counts.figures()["loss"]))
    _, targets = task._states(model, batch_of(examples, np.arange(9)))
    assert int((targets == END).sum()) == 9


def test_a_language_model_never_reads_ahead():
    model, task = prepared("language_modeling", layers=2)
    model.eval()
    row = [5, 6, 7, 8, 9]
    before, _ = task._states(model, batch_of(Examples([row]), np.arange(1)))
    after, _ = task._states(model, batch_of(Examples([[*row[:3], UNKNOWN, 11]]), np.arange(1)))
    torch.testing.assert_close(after[:4], before[:4])
    assert not torch.allclose(after[4], before[4])


def test_a_language_models_softmax_weights_are_its_embedding():
    model, _ = prepared("language_modeling")
    names = [name for name, _ in model.named_parameters()]
    assert sum(name.endswith("embedding.weight") for name in names) == 1
    assert "head.bias" in names


def test_a_bidirectional_language_model_is_refused_before_anything_is_read(tmp_path):
    options = PretrainOptions(data="nowhere.csv", out=tmp_path / "lm", task="language_modeling")
    with pytest.raises(ConfigError, match="--no-bidirectional"):
        pretrain(options)
