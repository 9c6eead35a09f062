"""Training: the same bits each time, also after an interruption; schedules, thawing, stopping, refusals."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from helpers import TINY, same_bits, toy_config, toy_examples, toy_model
from torch import nn

from headwater import trainer
from headwater.errors import CheckpointError, ConfigError, DataError
from headwater.lr_finder import lr_range_test, suggest_lr
from headwater.model import DropoutOptions, SequenceModel
from headwater.native import recurrent, usable
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import Curve, StageRecord
from headwater.resume_state import load_state, save_state
from headwater.schedules import SCHEDULES, one_cycle, slanted_triangular
from headwater.trainer import (
    NEVER,
    Objective,
    ParameterGroup,
    TaskObjective,
    TrainOptions,
    fit,
    make_optimizer,
)
from headwater.weights import weights_of

EVERYTHING = (ParameterGroup(("",)),)
DROPOUT = DropoutOptions(weight_dropout=0.2)
OPTIONS = TrainOptions(epochs=4, batch_size=8, lr=0.02, patience=0)


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a fit in the middle."""


@dataclass
class Watched(Objective):
    """An objective that ends the process when a step is asked for."""

    inner: object
    stop_at: int = -1

    def __post_init__(self):
        self.steps_per_epoch = self.inner.steps_per_epoch

    def losses(self, step, share):
        if step == self.stop_at:
            raise Stop
        return self.inner.losses(step, share)


class Fitting:
    """A small fit of one or two objectives that can be made again with the same bits."""

    def __init__(self, *, two=False, dropout=DROPOUT, batch_size=8):
        config = toy_config(dropout=dropout, layers=2)
        self.model, self.task = toy_model(config), config.make_task()
        self.held = toy_examples(30, seed=9)
        self.objectives = [TaskObjective(self.model, self.task, toy_examples(44, seed=1), batch_size, seed=5)]
        self.trained = self.model
        if two:
            torch.manual_seed(1)
            other = SequenceModel(self.model.encoder, self.task.head(self.model.encoder, 0.3))
            self.objectives.append(TaskObjective(other, self.task, toy_examples(30, seed=2), 8, seed=6))
            self.trained = nn.ModuleDict({"target": self.model, "beside": other.head})
        self.stop_at = -1

    def evaluate(self):
        return self.task.count(self.model, self.held, 64).figures()

    def run(self, options=OPTIONS, groups=EVERYTHING, state_file=None, best_by=("accuracy", True), evaluate=None):
        first, *others = self.objectives
        return fit(
            self.model,
            [Watched(first, self.stop_at), *others],
            evaluate or self.evaluate,
            options,
            best_by=best_by,
            seed=3,
            groups=groups,
            trained=self.trained,
            state_file=state_file,
        )


@pytest.fixture
def save_each_step(monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)


def thawing(*, two):
    prefix = "target." if two else ""
    groups = [
        ParameterGroup((f"{prefix}head.",)),
        ParameterGroup((f"{prefix}encoder.stack.layers.1.",), 0.5, {1, 3}),
        ParameterGroup((f"{prefix}encoder.stack.",), 0.25, range(2, 9)),
        ParameterGroup((f"{prefix}encoder.embedding.",), epochs=NEVER),
    ]
    return [*groups, ParameterGroup(("beside.",))] if two else groups


def test_the_same_seed_gives_the_same_bits():
    one, two = Fitting(), Fitting()
    first, second = one.run(), two.run()
    assert same_bits(weights_of(one.model), weights_of(two.model))
    assert first == second


def test_training_learns_and_ends_with_the_best_weights():
    fitting = Fitting(dropout=DropoutOptions())
    before = fitting.evaluate()
    result = fitting.run(OPTIONS.model_copy(update={"epochs": 12}))
    assert before["accuracy"] < 0.75 < fitting.evaluate()["accuracy"]
    assert result.best == fitting.evaluate()
    accuracy = next(curve for curve in result.curves if curve.name == "valid accuracy")
    assert max(accuracy.y) == result.best["accuracy"]
    assert accuracy.x == [float(epoch) for epoch in range(1, 13)]
    assert result.stopped == "reached 12 epochs"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("two", "stop_at"), [(False, 6), (False, 17), (True, 1), (True, 8)])  # six steps an epoch
@pytest.mark.usefixtures("save_each_step")
def test_an_interrupted_fit_ends_with_the_same_bits(tmp_path, optimizer, two, stop_at):
    options = OPTIONS.model_copy(update={"optimizer": optimizer})
    whole = Fitting(two=two)
    expected = whole.run(options, thawing(two=two))
    state = tmp_path / "state"
    killed = Fitting(two=two)
    killed.stop_at = stop_at
    with pytest.raises(Stop):
        killed.run(options, thawing(two=two), state)
    torch.manual_seed(123)  # whatever the new process drew before
    resumed = Fitting(two=two)
    result = resumed.run(options, thawing(two=two), state)
    assert same_bits(weights_of(resumed.trained), weights_of(whole.trained))
    assert result == expected


@pytest.mark.usefixtures("save_each_step")
def test_a_fit_killed_twice_and_while_it_is_measured_ends_with_the_same_bits(tmp_path):
    whole = Fitting()
    expected = whole.run()
    state = tmp_path / "state"
    killed = Fitting()
    calls = 0

    def evaluate():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stop
        return killed.evaluate()

    with pytest.raises(Stop):
        killed.run(state_file=state, evaluate=evaluate)
    again = Fitting()
    again.stop_at = 15
    with pytest.raises(Stop):
        again.run(state_file=state)
    last = Fitting()
    assert last.run(state_file=state) == expected
    assert same_bits(weights_of(last.model), weights_of(whole.model))


@pytest.mark.usefixtures("save_each_step")
def test_the_last_epoch_wins_where_no_rows_are_held_out_also_after_an_interruption(tmp_path):
    whole = Fitting()
    kept = []
    expected = whole.run(best_by=None, evaluate=lambda: kept.append(weights_of(whole.model)) or {})
    assert len(kept) == 4
    assert same_bits(weights_of(whole.model), kept[-1])
    assert [curve.name for curve in expected.curves] == ["train loss"]
    killed = Fitting()
    killed.stop_at = 20  # in the last epoch
    with pytest.raises(Stop):
        killed.run(best_by=None, evaluate=dict, state_file=tmp_path / "state")
    resumed = Fitting()
    assert resumed.run(best_by=None, evaluate=dict, state_file=tmp_path / "state") == expected
    assert same_bits(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.usefixtures("save_each_step")
def test_an_interruption_does_not_make_the_training_more_patient(tmp_path):
    options = TrainOptions(epochs=9, batch_size=8, patience=2)
    scores = [0.7, 0.6, 0.5, 0.5, 0.5]
    all_of_them = iter(scores)
    expected = Fitting().run(options, evaluate=lambda: {"accuracy": next(all_of_them)})
    killed = Fitting()
    killed.stop_at = 14  # in the third epoch, after one without a better figure
    left = iter(scores)
    with pytest.raises(Stop):
        killed.run(options, evaluate=lambda: {"accuracy": next(left)}, state_file=tmp_path / "state")
    resumed = Fitting().run(options, evaluate=lambda: {"accuracy": next(left)}, state_file=tmp_path / "state")
    assert resumed == expected
    assert resumed.stopped == "no better held-out figure for 2 epochs"


def test_a_state_is_saved_now_and_then_only(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(trainer.time, "monotonic", lambda: float(next(clock)))
    saved = []
    monkeypatch.setattr(trainer, "save_state", lambda *given: saved.append(given))
    Fitting().run(state_file=tmp_path / "state")
    assert 1 <= len(saved) <= 24 / trainer.AUTOSAVE_SECONDS * 2


@pytest.mark.usefixtures("save_each_step")
def test_a_damaged_state_is_refused_by_name(tmp_path):
    state = tmp_path / "run.partial" / ".clients" / "state"
    state.parent.mkdir(parents=True)
    save_state(state, {"a": torch.ones(3)}, {"step": 1})
    tensors, facts = load_state(state)
    assert same_bits(tensors, {"a": torch.ones(3)})
    assert facts == {"step": 1}
    state.write_bytes(state.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="state"):
        Fitting().run(state_file=state)
    assert load_state(tmp_path / "none") is None
    assert load_state(None) is None


def test_a_state_of_which_one_bit_has_changed_is_refused(tmp_path):
    state = tmp_path / "run.partial" / ".clients" / "state"
    state.parent.mkdir(parents=True)
    save_state(state, {"a": torch.ones(3), "b": torch.tensor(2.0)}, {"step": 1})
    whole = state.read_bytes()
    for place in range(len(whole)):
        state.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="run.partial and start again"):
            load_state(state)


def test_training_stops_when_the_figure_no_longer_improves():
    fitting = Fitting()
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    kept = []

    def evaluate():
        kept.append(weights_of(fitting.model))
        return {"accuracy": next(scores)}

    result = fitting.run(TrainOptions(epochs=9, batch_size=8, patience=2), evaluate=evaluate)
    assert result.stopped == "no better held-out figure for 2 epochs"
    assert len(kept) == 4
    assert result.best == {"accuracy": 0.7}
    assert same_bits(weights_of(fitting.model), kept[1])


def test_a_lower_loss_is_better_where_the_task_says_so():
    fitting = Fitting()
    losses = iter([2.0, 1.0, 3.0])
    options = TrainOptions(epochs=3, batch_size=8, patience=0)
    result = fitting.run(options, best_by=("loss", False), evaluate=lambda: {"loss": next(losses)})
    assert result.best == {"loss": 1.0}


def test_what_is_dropped_in_training_is_dropped_in_every_epoch():
    fitting = Fitting()
    training = []

    class Seen(Objective):
        steps_per_epoch = 2

        def losses(self, step, share):
            training.append(fitting.model.training)
            return fitting.objectives[1].losses(step, share)

    fitting.objectives.insert(0, Seen())
    fitting.run(evaluate=lambda: {"accuracy": float(fitting.model.eval().training)})
    assert training == [True] * 8


def test_groups_learn_in_their_epochs_and_a_frozen_one_never_changes():
    fitting = Fitting()
    kept = [weights_of(fitting.model)]

    def evaluate():
        kept.append(weights_of(fitting.model))
        return {"accuracy": 0.0}

    fitting.run(OPTIONS.model_copy(update={"weight_decay": 0.1}), thawing(two=False), evaluate=evaluate)
    learning = {"head.": {0, 1, 2, 3}, "encoder.stack.layers.1.": {1, 3}, "encoder.stack.layers.0.": {2, 3}}
    for epoch, (before, after) in enumerate(pairwise(kept)):
        for name, value in after.items():
            learns = any(name.startswith(prefix) and epoch in epochs for prefix, epochs in learning.items())
            assert torch.equal(value, before[name]) != learns, (name, epoch)


def test_patience_begins_when_the_last_layer_has_thawed():
    groups = [ParameterGroup(("head.",)), ParameterGroup(("encoder.",), epochs={1, *range(4, 20)})]
    scores = iter([0.9, *[0.1] * 19])
    options = TrainOptions(epochs=20, batch_size=8, patience=2)
    result = Fitting().run(options, groups, evaluate=lambda: {"accuracy": next(scores)})
    assert len(result.curves[0].x) == 4 + 2
    assert result.best == {"accuracy": 0.9}


def test_a_smaller_factor_moves_a_group_less():
    def moved(factor):
        fitting = Fitting(batch_size=44)
        start = weights_of(fitting.model)
        groups = [ParameterGroup(("head.",)), ParameterGroup(("encoder.",), factor)]
        one = TrainOptions(epochs=1, lr=1e-3, optimizer="sgd", schedule="constant", weight_decay=0.0)
        fitting.run(one, groups, best_by=None, evaluate=dict)
        return {name: value - start[name] for name, value in weights_of(fitting.model).items()}

    whole, half = moved(1.0), moved(0.5)
    for name, value in whole.items():
        scale = 0.5 if name.startswith("encoder.") else 1.0
        torch.testing.assert_close(half[name], value * scale, atol=1e-7, rtol=1e-2)


def test_groups_must_fit_all_parameters_and_each_at_least_one():
    model = Fitting().model
    with pytest.raises(ConfigError, match=r"'encoder.embedding.weight' belongs to no group"):
        make_optimizer(model, [ParameterGroup(("head.",))], TrainOptions(), 0.1)
    with pytest.raises(ConfigError, match="nothing.*fits no parameter"):
        make_optimizer(model, [ParameterGroup(("",)), ParameterGroup(("nothing",))], TrainOptions(), 0.1)


def test_a_parameter_belongs_to_the_first_group_that_fits():
    model = Fitting().model
    groups = [ParameterGroup(("head.linear.bias",)), ParameterGroup(("head.",)), ParameterGroup(("",))]
    optimizer = make_optimizer(model, groups, TrainOptions(), 0.1)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes == [1, 1, len(list(model.parameters())) - 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("lr", [0.01, "auto"])
def test_a_loss_that_is_no_number_ends_the_training_with_a_way_out(value, lr):
    fitting = Fitting()

    class Broken(Objective):
        steps_per_epoch = 3

        def losses(self, step, share):
            yield next(fitting.model.parameters()).sum() * value

    fitting.objectives = [Broken()]
    with pytest.raises(DataError, match="lower --lr"):
        fitting.run(TrainOptions(epochs=1, lr=lr))


def test_the_gradient_is_clipped_to_its_norm():
    fitting = Fitting(batch_size=44)
    start = weights_of(fitting.model)
    options = TrainOptions(epochs=1, lr=1.0, optimizer="sgd", schedule="constant", weight_decay=0.0, clip=1e-3)
    fitting.run(options, best_by=None, evaluate=dict)
    step = sum((value - start[name]).double().square().sum() for name, value in weights_of(fitting.model).items())
    assert float(step) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_finder_puts_the_weights_back():
    fitting = Fitting()
    start = weights_of(fitting.model)
    curve = trainer._range_test(fitting.model, fitting.objectives, EVERYTHING, OPTIONS, 0)
    assert 1e-5 < suggest_lr(curve) < 0.3
    assert same_bits(weights_of(fitting.model), start)


def test_the_learning_rate_finder_moves_only_what_will_learn(monkeypatch):
    fitting = Fitting()
    seen = set()
    monkeypatch.setattr(trainer._Run, "train_step", lambda run: seen.update(learning(run.trained)) or 1.0)
    groups = [ParameterGroup(("head.",), epochs=()), ParameterGroup(("encoder.",), epochs=range(3, 9))]
    trainer._range_test(fitting.model, fitting.objectives, groups, OPTIONS, 0)
    assert seen == {name for name, _ in fitting.model.named_parameters() if name.startswith("encoder.")}


def learning(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_learning_rate_finder_stops_where_the_loss_rises():
    curve = lr_range_test(lambda lr: 1.0 if lr < 0.01 else 1e3)
    assert curve.x == sorted(curve.x)
    assert curve.x[0] == pytest.approx(1e-5)
    assert 0.01 < curve.x[-1] < 0.02
    assert len(curve.x) == len(curve.y)

    def diverges(lr):
        if lr > 0.01:
            raise DataError("the loss became nan")
        return 1.0 - lr

    assert 0.005 < lr_range_test(diverges).x[-1] <= 0.01
    with pytest.raises(DataError, match="nan"):
        lr_range_test(diverges, low=0.02)


def test_the_suggested_rate_stands_before_the_lowest_loss():
    assert suggest_lr(Curve(name="f", x_label="lr", x=[0.01, 0.1, 1.0], y=[3.0, 1.0, 9.0])) == pytest.approx(0.01)


def test_an_automatic_rate_is_used_and_told():
    result = Fitting().run(TrainOptions(epochs=1, batch_size=8, lr="auto"))
    (note,) = result.notes
    assert 1e-5 < float(note.split()[-1].rstrip(".")) < 0.3
    (tested,) = (curve for curve in result.curves if curve.chosen is not None)
    assert (tested.name, tested.x_label) == ("learning-rate finder", "learning rate")
    assert tested.chosen == suggest_lr(tested)
    assert f"{tested.chosen:.2g}." in note
    given = Fitting().run(TrainOptions(epochs=1, batch_size=8, lr=tested.chosen))
    assert given.curves == [curve for curve in result.curves if curve is not tested]
    assert Fitting().run(TrainOptions(epochs=1, batch_size=8, lr="auto")).notes == result.notes


def test_one_cycle_rises_over_a_quarter_and_falls_to_almost_nothing():
    shares = [one_cycle(step, 400) for step in range(400)]
    assert shares[0] == pytest.approx(0.04)
    assert shares[100] == 1.0
    assert shares[-1] < 0.002
    assert shares[:101] == sorted(shares[:101])
    assert shares[100:] == sorted(shares[100:], reverse=True)


def test_the_slanted_triangle_is_the_papers():
    def paper(t, total, cut_frac=0.1, ratio=32):  # equation 3
        cut = int(total * cut_frac)
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        return (1 + p * (ratio - 1)) / ratio

    shares = [slanted_triangular(step, 400) for step in range(400)]
    assert shares == pytest.approx([paper(step, 400) for step in range(400)])
    assert (shares[0], shares[40]) == (1 / 32, 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES.values())
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_every_schedule_stays_between_nothing_and_the_peak(schedule, total):
    assert all(0 < schedule(step, total) <= 1 for step in range(total))


def test_the_schedule_that_was_asked_for_is_the_optimizers(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    fitting = Fitting()
    fitting.run(TrainOptions(epochs=2, batch_size=8, lr=0.5, optimizer="sgd", schedule="slanted"))
    assert rates == pytest.approx([0.5 * slanted_triangular(step, 12) for step in range(12)])


def test_an_objective_beside_the_first_goes_round_at_its_own_pace():
    fitting = Fitting(two=True)
    beside = fitting.objectives[1]
    assert (fitting.objectives[0].steps_per_epoch, beside.steps_per_epoch) == (6, 4)
    start = copy.deepcopy(weights_of(fitting.trained))
    fitting.run()
    changed = {name for name, value in weights_of(fitting.trained).items() if not torch.equal(value, start[name])}
    assert {"beside.linear.weight", "target.head.linear.weight"} <= changed


def test_arithmetic_in_bfloat16_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(ConfigError, match="float32"):
        Fitting().run(OPTIONS.model_copy(update={"precision": "bfloat16"}))
    whole, auto = Fitting(), Fitting()
    whole.run()
    auto.run(OPTIONS.model_copy(update={"precision": "auto"}))
    assert same_bits(weights_of(whole.model), weights_of(auto.model))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_kernels_multiply_in_the_type_asked_for_in_training_and_in_measuring(monkeypatch, precision):
    fitting = Fitting()
    if not (usable(next(fitting.model.parameters())) and torch.cpu._is_avx512_bf16_supported()):
        pytest.skip("no kernels, or a processor without bfloat16 arithmetic")
    seen = []
    run = recurrent.run_forward
    monkeypatch.setattr(
        recurrent,
        "run_forward",
        lambda numbers, tensors: seen.append((fitting.model.training, numbers[-1])) or run(numbers, tensors),
    )
    fitting.run(OPTIONS.model_copy(update={"precision": precision, "epochs": 1}))
    half = int(precision == "bfloat16")
    assert set(seen) == {(True, half), (False, half)}


def test_bfloat16_learns_as_float32_does(data, tmp_path):
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16 arithmetic")
    curves = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        pretrain(
            PretrainOptions(**TINY | {"data": str(data / "train.csv"), "out": out, "precision": precision, "epochs": 6})
        )
        curves[precision] = {curve.name: curve.y for curve in StageRecord.load(out).curves}
    exact, coarse = (curves[precision]["train loss"] for precision in ("float32", "bfloat16"))
    assert exact[-1] < 0.8 * exact[0]
    assert coarse[-1] == pytest.approx(exact[-1], rel=0.1, abs=0.02)
    exact, coarse = (curves[precision]["valid accuracy"] for precision in ("float32", "bfloat16"))
    assert exact[0] < 0.9 < 0.95 < max(exact)
    assert max(coarse) > max(exact) - 0.02
