"""Tasks beside the target's: several files, a language model, one task a step; resumed to the same bits, or refused."""

import csv
import math
import tomllib

import numpy as np
import pytest
import torch
from helpers import TINY, same_bits, toy_rows, write_csv
from test_transfer import job_of, options

from headwater import trainer
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.data_parallel import Share
from headwater.errors import ConfigError
from headwater.features.text import SPECIAL
from headwater.journey import read_journey
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord
from headwater.report import write_report
from headwater.tasks.language_modeling import TiedDecoder
from headwater.trainer import Objective
from headwater.transfer_learning.balancing import BALANCERS
from headwater.transfer_learning.multitask import language_model, source_tasks
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.task_sampling import Drawn, Draws
from headwater.transfer_learning.verb import transfer


@pytest.fixture(scope="session")
def one_way_folder(data, tmp_path_factory):
    """A language model of train.csv that reads forward; not to be changed."""
    out = tmp_path_factory.mktemp("one_way") / "source"
    given = TINY | {"data": str(data / "train.csv"), "out": out, "bidirectional": False, "task": "language_modeling"}
    pretrain(PretrainOptions(**given))
    return out


@pytest.fixture
def one_way(one_way_folder):
    return Checkpoint.load(one_way_folder)


@pytest.fixture
def plain(tmp_path):
    """Rows of text without labels, in a column of their own."""
    path = tmp_path / "plain.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["body"], *([text] for text in toy_rows(50, seed=7).texts)])
    return str(path)


def several(data, out, /, **changes):
    files = (str(data / "train.csv"), str(data / "three.csv"))
    given = {"method": "multitask", "source_data": files, "source_weight": (0.5, 0.25), "epochs": 2}
    return options(data, out, **given | changes)


# Which tasks there are


def test_each_file_is_a_task_with_columns_labels_and_a_weight_of_its_own(data, source, tmp_path):
    other = tmp_path / "other.csv"
    with other.open("w", newline="") as stream:
        csv.writer(stream).writerows([["body", "mood"], *[["a superb film1", "up"], ["a dull plot2", "down"]] * 9])
    files = (str(data / "train.csv"), str(other))
    more = {"source_text": ("text", "body"), "source_label": ("label", "mood"), "source_weight": (0.5, 2)}
    job = job_of(source, several(data, tmp_path / "t", source_data=files, **more))
    first, second = source_tasks(job)
    assert (first.weight, second.weight) == (0.5, 2.0)
    assert first.objective.task.labels == ("bad", "good")
    assert second.objective.task.labels == ("down", "up")
    assert [use.rows for use in job.source_uses] == [240, 18]
    heads = [task.objective.model.head for task in (first, second)]
    assert heads[0] is not heads[1]
    assert all(task.objective.model.encoder is job.model.encoder for task in (first, second))


def test_what_is_given_once_is_said_of_all_files(data, source, tmp_path):
    given = several(data, tmp_path / "t", source_weight=0.75)
    assert [weight for *_, weight in given.sources()] == [0.75, 0.75]
    assert {(text, label) for _, text, label, _ in given.sources()} == {("text", "label")}


def test_the_record_names_all_files_and_the_weights(data, source, tmp_path):
    made = transfer(source, several(data, tmp_path / "t"))
    record = StageRecord.load(tmp_path / "t")
    assert [use.role for use in record.data] == ["train", "valid", "test", "source", "source"]
    (note,) = (note for note in record.notes if note.startswith("Weights of the tasks"))
    assert note == f"Weights of the tasks: target 1, {data / 'train.csv'} 0.5, {data / 'three.csv'} 0.25."
    assert {name.partition(".")[0] for name in made.tensors} == {"encoder", "head"}
    write_report(tmp_path)
    assert "Weights of the tasks: target 1" in (tmp_path / "report.html").read_text()


def test_each_of_several_tasks_is_learned(data, source, tmp_path):
    found = [
        transfer(source, several(data, tmp_path / f"{number}", source_weight=weights)).identity
        for number, weights in enumerate([(0.5, 0.25), (0.5, 4.0), (4.0, 0.25)])
    ]
    assert len(set(found)) == 3


# A language model beside


@pytest.mark.parametrize("method", ["init", "finetune", "multitask"])
def test_a_language_model_is_learned_beside_by_each_method(method, data, one_way, tmp_path):
    files = {"source_data": str(data / "train.csv")} if method == "multitask" else {}
    without, beside = (
        transfer(one_way, options(data, tmp_path / str(weight), method=method, lm_weight=weight, epochs=3, **files))
        for weight in (0.0, 0.5)
    )
    assert without.identity != beside.identity
    assert without.tensors.keys() == beside.tensors.keys()
    assert any("language model 0.5" in note for note in StageRecord.load(tmp_path / "0.5").notes)


def test_a_language_model_beside_keeps_the_encoder_able_to_predict(data, one_way, tmp_path):
    losses = []
    for weight in (0.0, 5.0):
        given = options(data, tmp_path / str(weight), method="init", lm_weight=5.0)
        made = transfer(one_way, given.model_copy(update={"lm_weight": weight}))
        job = job_of(one_way, given)
        (beside,) = language_model(job)
        job.model.load_state_dict(made.model().state_dict())
        beside.objective.model.eval()
        with torch.no_grad():
            losses.append(float(sum(beside.objective.losses(0, Share()))))
    assert losses[1] < losses[0]


def test_the_text_is_the_training_rows_or_a_file_of_its_own(data, one_way, plain, tmp_path):
    given = options(data, tmp_path / "t", method="init", lm_weight=0.1, rows=40, test=None)
    job = job_of(one_way, given)
    (own,) = language_model(job)
    assert len(own.objective.examples) == 40
    assert job.source_uses == []
    job = job_of(one_way, given.model_copy(update={"lm_data": plain, "lm_text": "body"}))
    (beside,) = language_model(job)
    assert len(beside.objective.examples) == 50
    assert [(use.role, use.path, use.rows) for use in job.source_uses] == [("unlabelled", plain, 50)]


def test_the_head_of_a_source_that_is_a_language_model_is_taken_over(data, source, one_way, tmp_path):
    given = options(data, tmp_path / "t", method="init", lm_weight=0.1)
    job = job_of(one_way, given)
    (beside,) = language_model(job)
    head, before = beside.objective.model.head, one_way.weights()
    assert isinstance(head, TiedDecoder)
    assert torch.equal(head.project.weight, before["head.project.weight"])
    known = one_way.featurizer.numbers
    mean = before["head.bias"][len(SPECIAL) :].mean()
    new = 0
    for token, number in job.featurizer.numbers.items():
        expected = before["head.bias"][known[token]] if token in known else mean
        assert head.bias[number] == expected, token
        new += token not in known
    assert new > 0


def test_text_that_an_encoder_of_two_directions_would_read_ahead_is_refused_at_once(data, source, tmp_path):
    for method in ("init", "finetune", "multitask", "auto"):
        given = options(data, tmp_path / "t", method=method, lm_weight=0.1, data="nowhere.csv")
        with pytest.raises(ConfigError, match="both directions.*--no-bidirectional"):
            transfer(source, given)
    assert not any(tmp_path.iterdir())
    transfer(source, options(data, tmp_path / "t", method="features", lm_weight=0.1, epochs=1))


# One task a step


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e9])
def test_tasks_are_drawn_by_rows_to_the_power_of_one_over_the_temperature(temperature):
    rows = [400, 100, 1600]
    draws = Draws(rows, 200, temperature, seed=1)
    found = np.bincount([draws.at(step)[0] for step in range(3 * draws.steps_per_epoch)], minlength=3)
    chances = np.array(rows) ** (1 / temperature)
    np.testing.assert_allclose(found / found.sum(), chances / chances.sum(), atol=0.002)
    assert found[0] == 3 * 200  # the target's rows are gone through once an epoch


def test_draws_are_a_function_of_the_seed_and_the_step():
    one, again, other = (Draws([50, 70], 30, 1.0, seed) for seed in (1, 1, 2))
    steps = range(2 * one.steps_per_epoch)
    drawn = [one.at(step) for step in steps]
    assert [again.at(step) for step in reversed(steps)] == drawn[::-1]
    assert [other.at(step) for step in steps] != drawn
    first, second = drawn[: one.steps_per_epoch], drawn[one.steps_per_epoch :]
    assert [task for task, _ in first] != [task for task, _ in second]
    for task in (0, 1):
        assert [own for found, own in drawn if found == task] == list(range(2 * int(one.counts_T[task])))


def test_a_task_with_few_rows_is_drawn_all_the_same():
    draws = Draws([1000, 1], 20, 1.0, seed=0)
    assert [draws.at(step)[0] for step in range(draws.steps_per_epoch)].count(1) == 1


def test_only_the_drawn_task_learns_and_it_goes_on_with_its_own_rows():
    class Said(Objective):
        steps_per_epoch = 4

        def __init__(self, name):
            self.name = name

        def losses(self, step, share):
            yield (self.name, step, share)

    draws = Draws([4, 8], 4, 1.0, seed=0)
    tasks = [Drawn(Said(number), draws, number) for number in (0, 1)]
    said = [list(task.losses(step, "share")) for step in range(12) for task in tasks]
    found = [one for each in said for one in each]
    assert len(found) == 12
    assert [step for name, step, _ in found if name == 0] == [0, 1, 2, 3]
    assert [step for name, step, _ in found if name == 1] == list(range(8))


@pytest.mark.parametrize("balance", ["fixed", "uncertainty"])
def test_a_fit_that_draws_tasks_learns_all_of_them(balance, data, source, tmp_path):
    given = several(data, tmp_path / "t", task_temperature=1e9, balance=balance, epochs=1, optimizer="sgd", lr=0.05)
    heads = []
    step = trainer._Run.train_step

    def watched(run):
        value = step(run)
        learning = [name for name, parameter in run.trained.named_parameters() if parameter.grad is not None]
        heads.append({name[:7] for name in learning if name.startswith("heads.")})
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._Run, "train_step", watched)
        transfer(source, given)
    assert len(heads) == 3 * math.ceil(168 / 32)
    assert [heads.count(learning) for learning in (set(), {"heads.0"}, {"heads.1"})] == [6, 6, 6]


# Balancing from end to end


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a fit in the middle."""


WAYS = [(balance, {}) for balance in sorted(BALANCERS)] + [("uncertainty", {"task_temperature": 2.0})]


@pytest.mark.parametrize(("balance", "more"), WAYS)
def test_an_interrupted_run_ends_with_the_same_bits_and_weights(balance, more, data, one_way, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"balance": balance, "lm_weight": 0.1, **more}
    whole = transfer(one_way, several(data, tmp_path / "whole", **given))
    step = trainer._Run.train_step

    def stopping(run):
        if run.step == 9 and run.state_file:
            raise Stop
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "train_step", stopping)
        with pytest.raises(Stop):
            transfer(one_way, several(data, tmp_path / "killed", **given))
    resumed = transfer(one_way, several(data, tmp_path / "killed", **given, resume=True))
    assert same_bits(resumed.tensors, whole.tensors)
    assert StageRecord.load(tmp_path / "killed").notes == StageRecord.load(tmp_path / "whole").notes


def test_each_way_trains_another_model_and_says_its_weights(data, source, tmp_path):
    notes, identities = {}, set()
    for balance in BALANCERS:
        identities.add(transfer(source, several(data, tmp_path / balance, balance=balance)).identity)
        notes[balance] = [note for note in StageRecord.load(tmp_path / balance).notes if "tasks" in note]
    assert len(identities) == len(BALANCERS) == 4
    given = notes["fixed"][0]
    assert notes["pcgrad"][0] == given
    assert "pairs of the tasks' gradients were in conflict" in notes["pcgrad"][1]
    for balance in ("uncertainty", "gradnorm"):
        (said,) = notes[balance]
        assert said != given
        weights = [float(part.rpartition(" ")[2]) for part in said.rstrip(".").split(", ")]
        assert len(weights) == 3
        if balance == "gradnorm":
            assert sum(weights) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("balance", ["fixed", "uncertainty"])
def test_tasks_are_spread_over_processes(balance, data, source, tmp_path):
    given = several(data, tmp_path / "one", balance=balance, processes=2, task_temperature=3.0, epochs=1)
    one, two = (transfer(source, given.model_copy(update={"out": tmp_path / name})) for name in ("one", "two"))
    assert one.identity == two.identity


@pytest.mark.parametrize("balance", sorted(BALANCERS))
def test_tasks_are_balanced_in_bfloat16(balance, data, one_way, tmp_path):
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16 arithmetic")
    given = {"balance": balance, "lm_weight": 0.1, "epochs": 1}
    coarse, exact = (
        transfer(one_way, several(data, tmp_path / precision, precision=precision, **given))
        for precision in ("bfloat16", "float32")
    )
    apart = max(float((coarse.tensors[name] - exact.tensors[name]).abs().max()) for name in exact.tensors)
    assert 0 < apart < 0.1


@pytest.mark.parametrize("balance", sorted(BALANCERS))
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns_whatever_the_balance(balance, data, one_way, tmp_path):
    given = {"balance": balance, "lm_weight": 0.1, "l2_sp": 0.1, "freeze": "embedding", "epochs": 1}
    made = transfer(one_way, several(data, tmp_path / "t", **given)).tensors
    before = one_way.weights()
    embedding, layer = "encoder.embedding.weight", "encoder.stack.layers.0.fwd.weight_hh"
    assert torch.equal(made[embedding][: len(before[embedding])], before[embedding])
    assert not torch.equal(made[layer], before[layer])


@pytest.mark.parametrize(
    "given", [{"method": "multitask", "source_data": "x"}, {"lm_weight": 1.0}, {"method": "auto", "source_data": "x"}]
)
def test_a_frozen_encoder_learns_nothing_from_other_tasks(given):
    with pytest.raises(ConfigError, match="freeze = 'encoder' keeps what the tasks share as it is"):
        TransferOptions(data="x", out="y", freeze="encoder", **given)
    TransferOptions(data="x", out="y", freeze="encoder", **given | {"method": "lora"})


# Options


def test_options_are_the_same_from_flags_a_file_a_journey_and_python(data, source_folder, tmp_path, capsys):
    files = [str(data / "train.csv"), str(data / "three.csv")]
    training = ["--quiet", "--device", "cpu", "--epochs", "1", "--valid", "0.3", "--method", "multitask"]
    rows = ["--data", str(data / "three.csv"), "--test", str(data / "three_test.csv")]
    flags = [*rows, *training, "--source-data", files[0], "--source-weight", "0.5"]
    flags += ["--source-data", files[1], "--source-weight", "0.25"]
    assert main(["transfer", str(source_folder), *flags, "--out", str(tmp_path / "flags")]) == 0
    listed = f"source_data = {files}\nsource_weight = [0.5, 0.25]\n"
    (tmp_path / "options.toml").write_text(listed)
    more = [*rows, *training, "--config", str(tmp_path / "options.toml"), "--out", str(tmp_path / "file")]
    assert main(["transfer", str(source_folder), *more]) == 0
    found = {Checkpoint.load(tmp_path / name).identity for name in ("flags", "file")}
    given = several(data, tmp_path / "python", epochs=1).model_dump() | {"lr": 3e-3, "data": rows[1], "test": rows[3]}
    found.add(transfer(Checkpoint.load(source_folder), TransferOptions(**given)).identity)
    assert len(found) == 1
    stage = f'name = "t"\nverb = "transfer"\nfrom = "{source_folder}"\nmethod = "multitask"\ndata = "x.csv"\n'
    (tmp_path / "journey.toml").write_text(f"[[stage]]\n{stage}{listed}")
    (step,) = read_journey(tmp_path / "journey.toml").steps
    assert TransferOptions.parse(step.options | {"out": "x"}).source_data == tuple(files)
    assert tomllib.loads(listed)["source_data"] == files


def test_the_help_says_the_values_of_options_that_may_be_repeated(capsys):
    with pytest.raises(SystemExit):
        main(["transfer", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--source-weight X" in said
    assert "(default: text)" in said
    assert "()" not in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source_data": ("a", "b", "c"), "source_label": ("x", "y")}, "source_label was given 2 times, source_data 3"),
        ({"source_weight": ()}, "source_weight was given 0 times"),
        ({"balance": "gradnrom"}, "did you mean 'gradnorm'"),
        ({"balance": "pcgrad", "processes": 2}, "leave --processes at 1"),
        ({"balance": "gradnorm", "processes": 0}, "leave --processes at 1"),
        ({"balance": "gradnorm", "task_temperature": 1.0}, "--task-temperature at 0"),
        ({"source_weight": (0.5, -1.0), "source_data": ("a", "b")}, "source_weight"),
        ({"task_temperature": -1.0}, "task_temperature"),
        ({"task_temperature": 0.5}, "give 1 "),
        ({"lm_weight": -1.0}, "lm_weight"),
    ],
)
def test_wrong_options_are_refused(given, words):
    files = {"data": "x", "out": "x", "method": "multitask", "source_data": "a"}
    with pytest.raises(ConfigError, match=words):
        TransferOptions.parse(files | given)


def test_what_does_not_read_a_balance_is_not_refused_for_it():
    TransferOptions.parse({"data": "x", "out": "x", "method": "scratch", "balance": "pcgrad", "processes": 2})


def test_a_multitask_run_without_other_tasks_is_refused(data, source, one_way, tmp_path):
    with pytest.raises(ConfigError, match="--source-data FILE, or --lm-weight"):
        transfer(source, several(data, tmp_path / "t", source_data=(), source_weight=0.5))
    transfer(one_way, several(data, tmp_path / "t", source_data=(), source_weight=0.5, lm_weight=0.1, epochs=1))


def test_a_run_does_not_go_on_with_another_content_of_any_of_its_files(data, source, tmp_path):
    files = tuple(write_csv(tmp_path / f"{number}.csv", toy_rows(40, seed=number)) for number in (1, 2))
    given = several(data, tmp_path / "t", source_data=files, epochs=1)
    made = transfer(source, given)
    assert transfer(source, given.model_copy(update={"resume": True})).identity == made.identity
    write_csv(tmp_path / "2.csv", toy_rows(40, seed=3))
    with pytest.raises(ConfigError, match="the content of source_data isn't what"):
        transfer(source, given.model_copy(update={"resume": True}))
