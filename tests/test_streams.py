"""Streams: every token once an epoch, windows that equal one long pass, a state that survives kills and processes."""

import math

import numpy as np
import pytest
import torch
from helpers import TINY, same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from headwater import native, trainer
from headwater.cells import CELLS
from headwater.data.examples import Examples
from headwater.data.streams import Streams
from headwater.data_parallel import Share
from headwater.errors import DataError
from headwater.features.text import BEGIN, END
from headwater.model import DropoutOptions
from headwater.native import OFF, using
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord
from headwater.tasks.language_modeling import StreamObjective
from headwater.trainer import TrainOptions, fit
from headwater.weights import weights_of

ROWS = st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=6), min_size=1, max_size=40)
OPTIONS = TrainOptions(epochs=3, batch_size=8, lr=0.02, patience=0)


def language_model(*, dropout=None, **task):
    config = toy_config(
        task={"name": "language_modeling", "bptt": 6, "ar": 2.0, "tar": 1.0} | task,
        bidirectional=False,
        layers=2,
        **({"dropout": dropout} if dropout else {}),
    )
    return toy_model(config), config.make_task()


def objective(model, task, *, batch_size=8, accumulate=1):
    return StreamObjective(model, task, toy_examples(44, seed=1), batch_size, 5, torch.device("cpu"), accumulate)


def epoch_of(streams, epoch=0):
    steps = range(epoch * streams.steps_per_epoch, (epoch + 1) * streams.steps_per_epoch)
    windows = [streams.window(step) for step in steps]
    return windows, *(np.concatenate([window[side] for window in windows], 1) for side in (0, 1))


@given(rows=ROWS, count=st.integers(1, 5), bptt=st.integers(1, 12), seed=st.integers(0, 3), epoch=st.integers(0, 2))
def test_an_epoch_predicts_each_token_and_end_once_from_the_one_before(rows, count, bptt, seed, epoch):
    total = sum(len(row) + 1 for row in rows)
    if total < count:
        with pytest.raises(DataError, match="lower --batch-size"):
            Streams(Examples(rows), count, bptt, seed)
        return
    streams = Streams(Examples(rows), count, bptt, seed)
    windows, inputs_BL, targets_BL = epoch_of(streams, epoch)
    assert inputs_BL.shape == targets_BL.shape == (count, total // count)
    assert all(window[0].shape[1] >= 1 for window in windows)
    line = list(zip(inputs_BL.flatten().tolist(), targets_BL.flatten().tolist(), strict=True))
    read, current = [], []
    for entered, wanted in line:
        assert entered == (current[-1] if current else BEGIN)
        if wanted == END:
            read.append(current)
            current = []
        else:
            current.append(wanted)
    left = [list(row) for row in rows]
    for row in read:
        left.remove(row)
    # What is over is shorter than the streams are many: the rest of a row that was begun, and whole rows.
    assert total - len(line) < count
    assert not current or any(row[: len(current)] == current for row in left)


def test_a_window_is_a_pure_function_of_the_seed_and_the_step():
    examples = toy_examples(60)
    one, two = Streams(examples, 4, 7, 3), Streams(examples, 4, 7, 3)
    forwards = [one.window(step)[0].tolist() for step in range(3 * one.steps_per_epoch)]
    backwards = [two.window(step)[0].tolist() for step in reversed(range(3 * one.steps_per_epoch))]
    assert forwards == backwards[::-1]
    assert epoch_of(one, 0)[1].tolist() != epoch_of(one, 1)[1].tolist()
    assert forwards[0] != Streams(examples, 4, 7, 4).window(0)[0].tolist()
    assert [step for step in range(3 * one.steps_per_epoch) if one.begins(step)] == [
        epoch * one.steps_per_epoch for epoch in range(3)
    ]


def test_the_lengths_of_windows_are_those_of_the_paper():
    streams = Streams(Examples([[5] * 99_999]), 2, 70, 0)
    lengths = np.array([window[0].shape[1] for epoch in range(9) for window in epoch_of(streams, epoch)[0]])
    assert lengths.mean() == pytest.approx(0.975 * 70, rel=0.01)
    short = lengths < 50
    assert short.mean() == pytest.approx(0.05, abs=0.01)
    assert (lengths[~short].mean(), lengths[short].mean()) == pytest.approx((70, 35), abs=1)
    assert lengths[~short].std() == pytest.approx(5, abs=0.5)
    edges = [set(np.cumsum([window[0].shape[1] for window in epoch_of(streams, e)[0]])[:-1]) for e in range(2)]
    assert len(edges[0] & edges[1]) < len(edges[0]) / 3


@pytest.mark.parametrize("level", sorted({OFF, native.best_level()}))
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_windows_with_a_state_equal_one_long_pass(cell, level):
    config = toy_config(task={"name": "language_modeling", "bptt": 5}, bidirectional=False, layers=2, cell=cell)
    model, task = toy_model(config).eval(), config.make_task()
    streams = Streams(toy_examples(30), 3, 5, 0)
    windows, inputs_BL, targets_BL = epoch_of(streams)
    state, total = None, 0.0
    with using(level):
        for inputs, targets in windows:
            y_BTH, after = model.encoder(torch.from_numpy(inputs), None, state)
            loss = F.cross_entropy(model.head(y_BTH, None).flatten(0, 1), torch.from_numpy(targets).flatten())
            total += float(loss.detach()) * inputs.shape[1]
            state = {name: value.detach() for name, value in after.items()}
        whole_BLH, end = model.encoder(torch.from_numpy(inputs_BL), None)
    assert len(windows) > 4
    torch.testing.assert_close(y_BTH, whole_BLH[:, -y_BTH.shape[1] :], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state, {name: value.detach() for name, value in end.items()}, atol=1e-5, rtol=1e-4)
    whole = F.cross_entropy(model.head(whole_BLH, None).flatten(0, 1), torch.from_numpy(targets_BL).flatten())
    assert total / inputs_BL.shape[1] == pytest.approx(float(whole.detach()), rel=1e-5)
    # The objective carries the same state, and begins the next epoch without it.
    carrying = StreamObjective(model, task, toy_examples(30), 3, 0, torch.device("cpu"))
    first = float(next(carrying.losses(0, Share())).detach())
    for step in range(1, carrying.steps_per_epoch):
        list(carrying.losses(step, Share()))
    torch.testing.assert_close(carrying.carried(), state, atol=1e-5, rtol=1e-4)
    assert float(next(carrying.losses(0, Share())).detach()) == first


def test_no_gradient_goes_back_beyond_a_window():
    model, task = language_model(ar=0.0, tar=0.0)
    carrying = objective(model, task)
    list(carrying.losses(0, Share()))
    assert not any(value.requires_grad for value in carrying.carried().values())
    assert all(bool(value.any()) for value in carrying.carried().values())


def test_the_regularizations_are_those_of_the_paper():
    given = torch.randint(4, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    model, task = language_model(ar=0.0, tar=0.0)
    model.eval()
    plain, _ = task.window_loss(model, given, given, None)
    y_BTH, _ = model.encoder(given, None)
    size = float(y_BTH.square().mean().detach())
    change = float((y_BTH[:, 1:] - y_BTH[:, :-1]).square().mean().detach())
    for ar, tar in ((2e4, 0.0), (0.0, 1e4), (3e4, 5e3)):
        settings = task.model_copy(update={"ar": ar, "tar": tar})
        loss, _ = settings.window_loss(model, given, given, None)
        assert float((loss - plain).detach()) == pytest.approx(ar * size + tar * change, rel=1e-4)
    # One step changes nothing that could be penalized.
    one = given[:, :1]
    single, without = (t.window_loss(model, one, one, None)[0] for t in (task.model_copy(update={"tar": 1.0}), task))
    assert float(single.detach()) == float(without.detach())


def test_the_learning_rate_goes_with_the_length_of_the_window():
    model, task = language_model()
    one = objective(model, task, batch_size=2)
    lengths = [one._streams.window(step)[0].shape[1] for step in range(one.steps_per_epoch)]
    mean = sum(lengths) / len(lengths)
    assert [one.lr_factor(step) for step in range(one.steps_per_epoch)] == [length / mean for length in lengths]
    assert len(set(lengths)) > 1
    rates = []
    constant = OPTIONS.model_copy(update={"schedule": "constant"})
    run = trainer._Run(model, [one], constant, 0.5, (trainer.ParameterGroup(("",)),), 0, None)
    with run.gradients:
        for _ in lengths:
            run.train_step()
            rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5 * length / mean for length in lengths])


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a fit in the middle."""


def fitted(*, stop_at=-1, state_file=None, options=OPTIONS):
    model, task = language_model(dropout=DropoutOptions(weight_dropout=0.2))
    main = objective(model, task, batch_size=options.batch_size, accumulate=options.accumulate)
    losses = main.losses

    def until(step, share):
        if step == stop_at:
            raise Stop
        return losses(step, share)

    main.losses = until
    held = toy_examples(30, seed=9)
    result = fit(
        model,
        [main],
        lambda: task.count(model, held, 64).figures(),
        options,
        best_by=task.best,
        seed=3,
        state_file=state_file,
    )
    return weights_of(model), result


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stop_at", [1, 7, 11])  # seven steps an epoch: in the first, at an edge, in the second
def test_an_interrupted_fit_ends_with_the_same_bits(tmp_path, monkeypatch, stop_at, processes):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    options = OPTIONS.model_copy(update={"processes": processes, "batch_size": 4, "accumulate": 2})
    weights, expected = fitted(options=options)
    state = tmp_path / "state"
    with pytest.raises(Stop):
        fitted(options=options, stop_at=stop_at, state_file=state)
    torch.manual_seed(123)  # whatever the new process drew before
    resumed, result = fitted(options=options, state_file=state)
    assert same_bits(resumed, weights)
    assert result == expected
    assert len(expected.curves[0].y) == 3


def test_a_pre_training_over_streams_is_measured_beside_the_unigrams(tmp_path):
    train, test = (
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed=seed))
        for name, count, seed in (("train", 240, 1), ("test", 90, 2))
    )
    given = TINY | {"data": train, "test": test, "task": "language_modeling", "bidirectional": False, "epochs": 4}
    made = pretrain(PretrainOptions(**given, bptt=12, ar=2.0, batch_size=8, out=tmp_path / "lm"))
    assert made.config.task == {"name": "language_modeling", "tied": True, "bptt": 12, "ar": 2.0, "tar": 0.0}
    record = StageRecord.load(tmp_path / "lm")
    figures, trivial = record.metrics["test"], record.baselines["unigram"]
    assert figures["n"] == trivial["n"]
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["perplexity"] < trivial["perplexity"] == pytest.approx(math.exp(trivial["loss"]))
