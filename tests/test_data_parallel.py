"""Steps of several batches, and steps spread over processes: equal to one large batch in one process."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from helpers import NO_DROPOUT, same_bits, toy_config, toy_examples, toy_model
from torch import nn

from headwater import trainer
from headwater.config import cores
from headwater.data_parallel import DataParallel, Share
from headwater.errors import DataError, WorkerError
from headwater.fitting import with_epochs
from headwater.model import DropoutOptions, SequenceModel
from headwater.tasks.language_modeling import StreamObjective
from headwater.trainer import NEVER, Objective, ParameterGroup, TaskObjective, TrainOptions, fit
from headwater.weights import weights_of
from headwater.workers import Workers

ROWS = 41
"""With batches of 8, one has a single row."""
OPTIONS = TrainOptions(epochs=2, batch_size=8, lr=0.1, optimizer="sgd", patience=0)
EVERYTHING = (ParameterGroup(("",)),)
KINDS = ["classification", "language_modeling", "multitask", "streams"]


def left():
    return [process for process in multiprocessing.active_children() if process.is_alive()]


class Watched(Objective):
    """An objective that calls something before a step's losses."""

    def __init__(self, inner, call):
        self.inner, self.call, self.steps_per_epoch = inner, call, inner.steps_per_epoch

    def losses(self, step, share):
        self.call(step, share)
        return self.inner.losses(step, share)


def fitted(kind, options=OPTIONS, *, dropout=NO_DROPOUT, call=None, state_file=None, groups=EVERYTHING):
    """Return the weights and the result of a fit that can be made again with the same bits."""
    language = {"language_modeling": 0, "streams": 4}
    task = {"name": "language_modeling", "bptt": language.get(kind), "ar": 2.0, "tar": 1.0}
    settings = {"task": task} if kind in language else {}
    config = toy_config(dropout=dropout, bidirectional=kind not in language, **settings)
    model, task = toy_model(config), config.make_task()
    more = {"batch_size": options.batch_size, "accumulate": options.accumulate}
    learns = StreamObjective if kind == "streams" else TaskObjective
    device = torch.device("cpu")
    objectives = [learns(model, task, toy_examples(ROWS, seed=1), seed=5, device=device, **more)]
    trained = model
    if kind == "multitask":
        torch.manual_seed(1)
        other = SequenceModel(model.encoder, task.head(model.encoder, 0.0))
        objectives.append(TaskObjective(other, task, toy_examples(30, seed=2), seed=6, **more))
        trained = nn.ModuleDict({"target": model, "beside": other.head})
    if call:
        objectives[0] = Watched(objectives[0], call)
    held = toy_examples(30, seed=9)
    result = fit(
        model,
        objectives,
        lambda: task.count(model, held, 64).figures(),
        options,
        best_by=None,
        seed=3,
        groups=groups,
        trained=trained,
        state_file=state_file,
    )
    return trained, result


def but(**changes):
    return OPTIONS.model_copy(update=changes)


def assert_close(one, other):
    """Compare two fits: weights, losses, held-out figures."""
    torch.testing.assert_close(weights_of(one[0]), weights_of(other[0]), rtol=0, atol=1e-5)
    for a, b in zip(one[1].curves, other[1].curves, strict=True):
        assert a.y == pytest.approx(b.y, abs=1e-4), a.name


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_are_accumulated_equal_one_large_batch(kind):
    large = fitted(kind, but(batch_size=24))
    assert_close(fitted(kind, but(batch_size=8, accumulate=3)), large)
    assert_close(fitted(kind, but(batch_size=5, accumulate=5, processes=2)), fitted(kind, but(batch_size=25)))
    assert large[1].curves[0].y[-1] < large[1].curves[0].y[0]


def test_epochs_and_schedules_count_steps_not_batches():
    objective = TaskObjective(None, None, toy_examples(ROWS), 8, seed=0, accumulate=3)
    assert objective.steps_per_epoch == 2
    options = TrainOptions(batch_size=8, accumulate=4)
    assert with_epochs(options, 640).epochs == with_epochs(TrainOptions(batch_size=32), 640).epochs == 20


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_train_as_one_does(kind, optimizer):
    options = but(optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.003)
    alone = fitted(kind, options)
    assert_close(fitted(kind, options.model_copy(update={"processes": 2})), alone)
    assert_close(fitted(kind, options.model_copy(update={"processes": 3})), alone)  # also for the batch of one row
    assert not left()


def test_the_rate_finder_works_with_processes():
    alone, shared = (fitted("classification", but(lr="auto", epochs=1, processes=count))[1] for count in (1, 2))
    assert alone.notes == shared.notes


def test_dropout_depends_on_the_seed_the_step_and_the_share_alone():
    dropped = {"dropout": DropoutOptions(weight_dropout=0.2)}
    first, second = (fitted("classification", but(processes=2), **dropped) for _ in range(2))
    assert same_bits(weights_of(first[0]), weights_of(second[0]))
    assert first[1] == second[1]
    drawn = {}

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = nn.Parameter(torch.zeros(64))

    module = Drawing()

    def draw(step, share):
        del step, share
        module.mask.grad = torch.zeros(64).bernoulli_(0.5)
        return 0.0

    for seed in (0, 1):
        with DataParallel(module, draw, 2, seed) as gradients:
            for step in (0, 1):
                gradients(step)
                (others,) = gradients._buffers
                drawn[seed, step, 1] = tuple(others["mask"].tolist())
                drawn[seed, step, 0] = tuple((module.mask.grad - others["mask"]).tolist())
    assert len(set(drawn.values())) == len(drawn) == 8


@pytest.mark.parametrize("stop_at", [4, 9])
def test_an_interrupted_fit_of_two_processes_ends_with_the_same_bits(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"options": but(processes=2, optimizer="adamw", lr=0.02), "dropout": DropoutOptions(weight_dropout=0.2)}
    whole, expected = fitted("multitask", **given)

    def stop(step, share):
        if step == stop_at:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fitted("multitask", call=stop, state_file=tmp_path / "state", **given)
    assert not left()
    torch.manual_seed(123)  # whatever the new process drew before
    resumed, result = fitted("multitask", state_file=tmp_path / "state", **given)
    assert same_bits(weights_of(resumed), weights_of(whole))
    assert result == expected


def test_a_worker_that_dies_is_an_error_and_leaves_no_process_behind():
    def die(step, share):
        if (step, share.number) == (3, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerError, match="SIGKILL"):
        fitted("classification", but(processes=2), call=die)
    assert not left()


def test_a_loss_that_is_no_number_in_a_worker_ends_the_training_with_a_way_out():
    with pytest.raises(DataError, match="lower --lr"):
        fitted("classification", but(processes=2, lr=1e30, clip=1e30))
    assert not left()


def test_groups_thaw_in_workers_too():
    groups = [
        ParameterGroup(("head.",)),
        ParameterGroup(("encoder.stack.",), epochs=range(1, 9)),
        ParameterGroup(("encoder.embedding.",), epochs=NEVER),
    ]
    seen = {}
    options = but(weight_decay=0.5)

    def trained(**changes):
        return fitted("classification", options.model_copy(update=changes), groups=groups)

    start = weights_of(trained(epochs=1, lr=1e-30, weight_decay=0.0)[0])
    for epochs in (1, 2):
        alone, shared = trained(epochs=epochs), trained(epochs=epochs, processes=2)
        assert_close(shared, alone)
        weights = weights_of(shared[0])
        seen[epochs] = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert seen[1] == {"head.linear.weight", "head.linear.bias"}
    assert seen[2] == set(start) - {"encoder.embedding.weight"}


class Pair(nn.Module):
    """Two parameters."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = (nn.Parameter(torch.arange(3.0)) for _ in range(2))


def test_a_parameter_that_no_share_has_used_has_no_gradient():
    pair = Pair()

    def gradient(step, share):
        pair.zero_grad()
        if share.number == 1:
            return 0.0
        loss = step * (share.number + 1) * pair.used.sum()
        loss.backward()
        return float(loss.detach())

    with DataParallel(pair, gradient, 3, 0) as gradients:
        for step in (1, 2):
            assert gradients(step) == 12.0 * step
            assert pair.used.grad.tolist() == [4.0 * step] * 3
            assert pair.idle.grad is None


def test_the_weights_are_shared_during_the_training_only():
    pair = Pair()

    def fill(value):
        with torch.no_grad():
            pair.used.fill_(value)
        return float(value)

    with DataParallel(pair, lambda step, share: fill(step), 2, 0) as gradients:
        assert gradients(7) == 14.0
        assert pair.used.tolist() == [7.0] * 3
    with Workers(1, fill) as workers:
        assert dict(workers.answers([9])) == {0: 9.0}
    assert pair.used.tolist() == [7.0] * 3


def test_each_process_computes_its_share_with_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with DataParallel(Pair(), lambda step, share: float(torch.get_num_threads()), 3, 0) as gradients:
            assert gradients(0) == 3.0
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_rows_are_dealt_so_that_the_shares_have_about_the_same_tokens():
    lengths = np.sort(np.random.default_rng(0).integers(1, 200, 32))
    for count in (2, 3, 4):
        shares = [Share(number, count).of(lengths) for number in range(count)]
        assert sorted(np.concatenate(shares)) == sorted(lengths)
        tokens = [share.sum() for share in shares]
        assert max(tokens) < 1.15 * min(tokens) + lengths.max()
    examples = toy_examples(ROWS)
    objective = TaskObjective(None, None, examples, 8, seed=0)
    for step in range(objective.steps_per_epoch):
        own = examples.lengths_N[objective._steps.rows(step)]
        assert own.tolist() == sorted(own)


def test_the_number_of_processes_fits_the_machine_the_batch_and_the_device():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert TrainOptions().processes_on(cpu) == 1
    assert TrainOptions(processes=3).processes_on(cpu) == 3
    assert TrainOptions(processes=0).processes_on(cpu) == min(cores(), 32)
    assert TrainOptions(processes=9, batch_size=2, accumulate=3).processes_on(cpu) == 6
    assert TrainOptions(processes=9).processes_on(gpu) == 1


@pytest.mark.parametrize("kind", KINDS[:2])
def test_workers_compute_in_bfloat16_where_the_fit_does(kind):
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16 arithmetic")
    coarse, alone, exact = (
        weights_of(fitted(kind, but(precision=precision, processes=processes, epochs=1))[0])
        for precision, processes in (("bfloat16", 2), ("bfloat16", 1), ("float32", 2))
    )

    def apart(one, other):
        return max(float((one[name] - other[name]).abs().max()) for name in one)

    assert apart(coarse, exact) > 1e-5
    assert apart(coarse, alone) < 3 * apart(alone, exact)
