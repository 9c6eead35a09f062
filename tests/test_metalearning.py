"""Meta-learning: episodes that never leak, steps that are those of the papers, and a start that new tasks gain from."""

import copy
from dataclasses import replace
from itertools import product
from types import MappingProxyType

import numpy as np
import pytest
import torch
from helpers import (
    NO_DROPOUT,
    same_bits,
    toy_config,
    toy_featurizer,
    toy_model,
    toy_rows,
    write_csv,
)

from headwater import trainer
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.data.rows import Rows
from headwater.errors import ConfigError, DataError
from headwater.federated.client_updates import LocalTraining
from headwater.federated.protocols import Client, Instruction
from headwater.metalearning import METHODS
from headwater.metalearning.adaptation import AdaptOptions, Learner
from headwater.metalearning.episodes import Episode, EpisodeOptions, read_episodes
from headwater.metalearning.methods import FirstOrderMAML, Prototypes, Reptile
from headwater.metalearning.options import MetalearnOptions
from headwater.metalearning.outer_loop import OuterLoop
from headwater.metalearning.verb import metalearn
from headwater.pretraining import PretrainOptions, pretrain
from headwater.progress import Progress
from headwater.records import StageRecord
from headwater.tasks.prototypes import prototype_head
from headwater.weights import weights_of

CPU = torch.device("cpu")
QUIET = Progress("test", quiet=True)
SMALL = MappingProxyType(
    {"embedding_size": 8, "hidden_size": 8, "quiet": True, "device": "cpu", "episodes": 12, "test_episodes": 4}
    | {"shots": 2, "queries": 3, "inner_steps": 3, "adapt_steps": 4}
    | NO_DROPOUT.model_dump()
)


def combined(count, *, seed=0):
    """Rows of 16 classes, each told by two words among others that say nothing."""
    rng = np.random.default_rng(seed)
    kinds = list(product(("cat", "dog", "cow", "hen"), ("red", "blue", "green", "white")))
    chosen = [kinds[n % len(kinds)] for n in range(count)]
    texts = [" ".join(rng.permutation([*kind, *rng.choice(list("abcdefgh"), 4)])) for kind in chosen]
    return Rows(texts, ["-".join(kind) for kind in chosen], [], "toy", "0" * 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of rows: tasks.csv with a column of six tasks, classes.csv with sixteen labels."""
    folder = tmp_path_factory.mktemp("rows")
    write_csv(folder / "tasks.csv", toy_rows(360, seed=1, clients=6))
    write_csv(folder / "classes.csv", combined(16 * 12))
    return folder


def given(place, out, /, *, tasks=True, **changes):
    """Options of a run over tasks, or over classes."""
    where = {"tasks": "client", "data": str(place / "tasks.csv")} if tasks else {"data": str(place / "classes.csv")}
    return MetalearnOptions(**SMALL | where | ({} if tasks else {"ways": 3}) | {"out": out} | changes)


def learner(*, new_head=False, seed=0, **adapt):
    options = AdaptOptions(**{"inner_lr": 0.5, "clip": 0.0, "inner_steps": 3, "batch_size": 100} | adapt)
    return Learner(toy_model(toy_config(), seed), toy_featurizer(), options, CPU, new_head=new_head)


def episode(*, shots=4, queries=6, seed=0):
    rows = toy_rows(shots + queries, seed=seed)
    return Episode(rows, ("bad", "good"), np.arange(shots), np.arange(shots, shots + queries), seed=5)


def descended(model, rows, steps, lr):
    """Take full-batch steps by torch's own optimizer."""
    model = copy.deepcopy(model)
    tokens, lengths, targets = padded(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens, lengths), targets).backward()
        optimizer.step()
    return model


def padded(rows):
    examples = rows.encode(toy_featurizer(), ("bad", "good"))
    tokens, lengths = examples.padded(np.arange(len(examples)))
    return torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(examples.targets_N)


def close(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=1e-6, rtol=1e-4)


# The steps


def test_reptile_goes_from_the_start_towards_the_adapted_weights():
    one, small = learner(), episode()
    before = weights_of(one.model)
    after = weights_of(descended(one.model, small.both(), 3, 0.5))
    direction, _ = Reptile().direction(one, small)
    close(direction, {name: before[name] - after[name] for name in before})
    assert same_bits(weights_of(one.model), before)


def test_reptile_is_federated_averaging_with_one_client():
    one, small = learner(inner_steps=1), episode()
    direction, _ = Reptile().direction(one, small)
    model = toy_model(toy_config())
    client = LocalTraining(model, toy_config().make_task(), epochs=1, batch_size=100, lr=0.5)
    update = client(
        Instruction(1, weights_of(model), 0), Client("c", small.both().encode(toy_featurizer(), ("bad", "good")))
    )
    close(direction, {name: -value for name, value in update.delta.items()})


def test_first_order_maml_follows_the_queries_gradient_at_the_adapted_weights():
    one, small = learner(), episode()
    before = weights_of(one.model)
    adapted = descended(one.model, small.support(), 3, 0.5)
    tokens, lengths, targets = padded(small.query())
    loss = torch.nn.functional.cross_entropy(adapted(tokens, lengths), targets)
    expected = dict(zip(before, torch.autograd.grad(loss, list(adapted.parameters())), strict=True))
    direction, said = FirstOrderMAML().direction(one, small)
    close(direction, expected)
    assert said == pytest.approx(float(loss.detach()), rel=1e-5)
    assert same_bits(weights_of(one.model), before)


def test_prototypes_follow_the_gradient_of_the_distances_softmax():
    one, small = learner(), episode()
    model = copy.deepcopy(one.model)

    def states(rows):
        tokens, lengths, targets = padded(rows)
        y, _ = model.encoder(tokens, lengths)
        return model.head.pooled(y, lengths), targets

    (support, labels), (query, targets) = states(small.support()), states(small.query())
    means = torch.stack([support[labels == number].mean(0) for number in (0, 1)])
    loss = -(-torch.cdist(query, means).square()).log_softmax(1)[torch.arange(len(targets)), targets].mean()
    loss.backward()
    direction, said = Prototypes().direction(one, small)
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if name.startswith("head.") else parameter.grad
        torch.testing.assert_close(direction[name], expected, atol=1e-6, rtol=1e-4)
    assert said == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_head_of_class_means_is_the_softmax_of_their_distances():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 7, generator=generator, dtype=torch.float64) + 3
    targets = torch.arange(30) % 4
    weight, bias = prototype_head(rows, targets, 4)
    means = torch.stack([rows[targets == number].mean(0) for number in range(4)])
    others = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    expected = (-torch.cdist(others, means).square()).softmax(1)
    torch.testing.assert_close((others @ weight.T + bias).softmax(1), expected)


@pytest.mark.parametrize(("method", "optimizer"), [(Reptile(), None), (FirstOrderMAML(), torch.optim.Adam)])
def test_a_step_follows_the_mean_direction_of_its_episodes(method, optimizer, place, tmp_path):
    options = given(place, tmp_path / "m", episodes=3, meta_batch=3, outer_lr=0.25, clip=0.0)
    episodes, _, _ = read_episodes(options, 0)
    one = learner()
    parameters = {name: torch.nn.Parameter(value) for name, value in weights_of(one.model).items()}
    directions = [method.direction(one, episodes[number])[0] for number in range(3)]
    for name, parameter in parameters.items():
        parameter.grad = torch.stack([direction[name] for direction in directions]).mean(0)
    if optimizer:
        optimizer(parameters.values(), lr=0.25).step()
    OuterLoop(method, one, episodes, options, None).run(QUIET)
    close(
        weights_of(one.model),
        {n: (p if optimizer else p - 0.25 * p.grad).detach() for n, p in parameters.items()},
    )


def test_the_outer_rate_falls_to_zero_along_a_line(place, tmp_path):
    options = given(place, tmp_path / "m", episodes=8, meta_batch=3, outer_lr=0.5)
    loop = OuterLoop(Reptile(), learner(), read_episodes(options, 0)[0], options, None)
    rates, step = [], loop.optimizer.step
    loop.optimizer.step = lambda: (rates.append(loop.optimizer.param_groups[0]["lr"]), step())
    loop.run(QUIET)
    assert rates == pytest.approx([0.5, 0.5 * 5 / 8, 0.5 * 2 / 8])


def test_with_a_new_head_nothing_depends_on_the_order_of_the_classes():
    one, small = learner(new_head=True, adapt_steps=4), episode(queries=7)
    labels, probabilities = Reptile().probabilities(one, small)
    swapped, others = Reptile().probabilities(one, replace(small, labels=labels[::-1]))
    assert swapped == labels[::-1]
    np.testing.assert_allclose(probabilities, others[:, ::-1], atol=1e-6)
    assert not any(name.startswith("head.") for name in Reptile().direction(one, small)[0])


# Episodes


@pytest.mark.parametrize("tasks", [True, False])
def test_an_episode_follows_from_the_seed_and_its_number(tasks, place):
    options = given(place, "x", tasks=tasks)
    first, second = (read_episodes(options, 3)[0] for _ in range(2))
    one, same, other = first[7], second[7], first[8]
    assert (one.labels, one.seed) == (same.labels, same.seed)
    assert one.support().texts == same.support().texts
    assert one.query().texts == same.query().texts
    assert one.both().texts != other.both().texts
    assert one.both().texts != read_episodes(options, 4)[0][7].both().texts


@pytest.mark.parametrize("tasks", [True, False])
def test_episodes_have_the_rows_asked_for_and_never_one_twice(tasks, place):
    options = given(place, "x", tasks=tasks, shots=2, queries=5)
    for episodes in read_episodes(options, 0)[:2]:
        for one in (episodes[number] for number in range(20)):
            support, query = one.support().labels, one.query().labels
            assert len(set(support)) == (2 if tasks else 3)
            assert all(support.count(label) == 2 and query.count(label) == 5 for label in set(support))
            assert len({*one.support_S, *one.query_Q}) == len(one.support_S) + len(one.query_Q)
            if tasks:
                assert len(set(one.both().clients)) == 1
                assert one.labels == ("bad", "good")
            else:
                assert set(one.labels) == set(support)


def test_held_out_tasks_are_never_learned_from(place):
    train, held, notes = read_episodes(given(place, "x", held_tasks="c2, c4"), 0)
    assert set(held.used().clients) == {"c2", "c4"}
    assert set(train.used().clients) == {"c0", "c1", "c3", "c5"}
    assert {client for n in range(50) for client in train[n].both().clients} == {"c0", "c1", "c3", "c5"}
    assert notes == ["4 tasks to learn from; to measure by: c2, c4."]


def test_held_out_classes_are_never_learned_from(place):
    train, held, _ = read_episodes(given(place, "x", tasks=False, held_share=0.3), 0)
    assert len(set(held.used().labels)) == 5
    assert not set(train.used().labels) & set(held.used().labels)
    assert {label for n in range(50) for label in train[n].labels} == set(train.used().labels)
    other = read_episodes(given(place, "x", tasks=False, held_share=0.3), 1)[1]
    assert set(held.used().labels) != set(other.used().labels)


def test_the_vocabulary_is_that_of_the_tasks_learned_from(tmp_path):
    rows = toy_rows(120, clients=3)
    texts = [f"{text} only{client}" for text, client in zip(rows.texts, rows.clients, strict=True)]
    write_csv(tmp_path / "rows.csv", replace(rows, inputs=texts))
    options = MetalearnOptions(
        **SMALL, tasks="client", data=str(tmp_path / "rows.csv"), held_tasks="c1", out=tmp_path / "m"
    )
    words = metalearn(None, options).featurizer.vocabulary
    assert {"onlyc0", "onlyc2"} <= set(words)
    assert "onlyc1" not in words


def test_labels_with_too_few_rows_are_left_out_and_counted(tmp_path):
    rows = combined(16 * 12)
    write_csv(tmp_path / "rows.csv", rows.take(np.arange(16 * 4 + 13)))  # three labels have 4 rows, the others 5
    train, held, notes = read_episodes(EpisodeOptions(data=str(tmp_path / "rows.csv"), shots=2, queries=3), 0)
    assert len(set(train.used().labels) | set(held.used().labels)) == 13
    assert notes[1].startswith("3 labels have fewer than 5 rows")


REFUSED = {
    "too few tasks": (True, {"data": "two.csv"}, r"1 tasks have 5 rows of each of two labels at least"),
    "too few rows": (True, {"queries": 90}, r"0 tasks have 92 rows .* lower --shots, --queries$"),
    "too many ways": (False, {"ways": 9}, r"16 labels have 5 rows.* from 9 .* by 9 others.* or --ways"),
    "an unknown task": (True, {"held_tasks": "c1,d2"}, r"'d2' is none of the tasks .* there are: c0, c1"),
    "an unknown label": (False, {"held_tasks": "cat-rde"}, r"'cat-rde' is none of the labels .*mean 'cat-red'"),
    "all tasks held out": (True, {"held_tasks": "c0,c1,c2,c3,c4"}, "name 1 to 4 of them"),
    "too few labels held out": (False, {"held_tasks": "cat-red,dog-red"}, "name 3 to 13 of them"),
    "no such column": (True, {"label": "lable"}, "did you mean 'label'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_gives_no_episodes_is_refused(what, place, tmp_path):
    tasks, changes, message = REFUSED[what]
    if changes.get("data"):
        write_csv(tmp_path / "two.csv", toy_rows(40, clients=1))
        changes = {"data": str(tmp_path / "two.csv")}
    with pytest.raises(DataError, match=message):
        metalearn(None, given(place, tmp_path / "out" / "m", tasks=tasks, **changes))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": "1"}, "ways = '1'"),
        ({"shots": "0"}, "shots = '0'"),
        ({"held_share": "1"}, "held_share = '1'"),
        ({"inner_lr": "0"}, "inner_lr = '0'"),
        ({"method": "reptil"}, "did you mean 'reptile'"),
        ({"test_episodes": "1"}, "test_episodes = '1'"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MetalearnOptions.parse({"data": "x.csv", "out": "m"} | changes)


def test_a_loss_that_explodes_is_told(place, tmp_path):
    with pytest.raises(DataError, match="lower --inner-lr or --outer-lr"):
        metalearn(None, given(place, tmp_path / "m", inner_lr=1e38, clip=0, outer_lr=1e38))


# The verb


def verdict_of(record):
    (note,) = (note for note in record.notes if note.startswith("After adapting"))
    return note


@pytest.mark.parametrize("tasks", [True, False])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_leaves_a_checkpoint_and_figures_beside_its_controls(method, tasks, place, tmp_path):
    made = metalearn(None, given(place, tmp_path / "m", tasks=tasks, method=method))
    record = StageRecord.load(tmp_path / "m")
    assert record.method == method
    assert made.labels == (("bad", "good") if tasks and method != "prototypes" else ())
    assert record.metrics["test"]["n"] == 4 * 3 * (2 if tasks else 3)
    assert record.controls.keys() == {"plain_start"} | ({"not_adapted"} if made.labels else set())
    assert record.baselines.keys() == {"majority", "tfidf_logistic_regression"}
    assert record.baselines["majority"]["accuracy"] == pytest.approx(1 / 2 if tasks else 1 / 3)
    for name, figures in (record.metrics | record.controls | record.baselines).items():
        own = [row.accuracies["meta_learned" if name == "test" else name] for row in record.episodes]
        assert np.mean(own) == pytest.approx(figures["accuracy"])
    assert [use.role for use in record.data] == ["train", "test"]
    assert "paired bootstrap of 4 episodes of" in verdict_of(record)
    (curve,) = record.curves
    assert (curve.name, curve.x[-1], len(curve.y)) == ("episode loss", 12, 12)


def test_the_learned_model_as_it_is_stands_beside_the_adapted_ones(place, tmp_path):
    options = given(place, tmp_path / "m", held_tasks="c3", test_episodes=3)
    made = metalearn(None, options)
    held = read_episodes(options, 0)[1]
    queries = [held[number].query() for number in range(3)]
    hits = [made.probabilities(rows).argmax(1) == rows.targets(made.labels) for rows in queries]
    assert StageRecord.load(tmp_path / "m").controls["not_adapted"]["accuracy"] == pytest.approx(np.mean(hits))


ENOUGH = {
    "reptile": {"episodes": 90, "outer_lr": 1.0, "inner_lr": 0.5},
    "fomaml": {"episodes": 40, "outer_lr": 0.02},
    "prototypes": {"episodes": 40, "outer_lr": 0.02},
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_was_learned_over_tasks_is_worth_more_than_the_plain_start(method, place, tmp_path):
    metalearn(None, given(place, tmp_path / "m", method=method, test_episodes=16, **ENOUGH[method]))
    record = StageRecord.load(tmp_path / "m")
    assert verdict_of(record).endswith(": gain.")
    assert record.metrics["test"]["accuracy"] > record.controls["plain_start"]["accuracy"] + 0.1


def test_class_means_learned_over_classes_tell_new_classes_apart(place, tmp_path):
    options = given(
        place, tmp_path / "m", tasks=False, method="prototypes", episodes=120, outer_lr=0.02, test_episodes=16
    )
    metalearn(None, options)
    record = StageRecord.load(tmp_path / "m")
    assert verdict_of(record).endswith(": gain.")
    assert record.metrics["test"]["accuracy"] > record.controls["plain_start"]["accuracy"] + 0.1


def test_the_plain_start_is_the_source_where_there_is_one(place, data, tmp_path):
    source = pretrain(
        PretrainOptions(
            data=str(data / "train.csv"), out=tmp_path / "s", embedding_size=8, hidden_size=8, epochs=6, lr=0.02,
            valid=0.3, quiet=True, pooling="mean",
        )
    )  # fmt: skip
    made = metalearn(source, given(place, tmp_path / "m", method="prototypes", embedding_size=9))
    record = StageRecord.load(tmp_path / "m")
    assert record.controls["plain_start"]["accuracy"] > 0.85
    assert [parent.identity for parent in record.parents] == [source.identity]
    assert [stage.verb for stage in made.lineage.stages] == ["pretrain", "metalearn"]
    assert made.config.encoder == source.config.encoder
    assert made.config.task == {"name": "representation", "pooling": "mean"}
    assert made.featurizer.vocabulary == source.featurizer.vocabulary
    assert any(
        note.startswith("--embedding-size was ignored: it has an effect without a CHECKPOINT") for note in record.notes
    )
    kept = metalearn(source, given(place, tmp_path / "kept", method="reptile"))
    assert (kept.labels, kept.config.task["pooling"]) == (source.labels, "mean")


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a run in the middle."""


@pytest.mark.parametrize(("method", "tasks"), [("reptile", True), ("fomaml", False), ("prototypes", True)])
def test_an_interrupted_run_ends_with_the_same_bits(method, tasks, place, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    options = {"tasks": tasks, "method": method, "meta_batch": 2, "embedding_dropout": 0.2, "head_dropout": 0.3}
    whole = metalearn(None, given(place, tmp_path / "whole", **options))
    step, taken = OuterLoop._step, []

    def stopping(loop):
        taken.append(len(loop.losses))
        if taken == [0, 2, 4, 6]:
            raise Stop
        step(loop)

    monkeypatch.setattr(OuterLoop, "_step", stopping)
    with pytest.raises(Stop):
        metalearn(None, given(place, tmp_path / "killed", **options))
    with pytest.raises(Exception, match="add --resume to continue it"):
        metalearn(None, given(place, tmp_path / "killed", **options))
    torch.manual_seed(99)
    taken.clear()
    resumed = metalearn(None, given(place, tmp_path / "killed", **options, resume=True))
    assert taken == [6, 8, 10]
    assert resumed.identity == whole.identity
    records = [StageRecord.load(tmp_path / name) for name in ("whole", "killed")]
    for name in ("metrics", "controls", "baselines", "episodes", "curves", "notes"):
        assert getattr(records[0], name) == getattr(records[1], name), name


def test_the_seed_decides(place, tmp_path):
    made = [metalearn(None, given(place, tmp_path / f"m{n}", seed=seed)) for n, seed in enumerate((5, 5, 6))]
    assert made[0].identity == made[1].identity != made[2].identity


def test_a_journey_goes_from_episodes_to_a_device(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = "\n".join(f"{key} = {str(value).lower()}" for key, value in SMALL.items() if key not in ("quiet", "device"))
    write_csv(tmp_path / "new.csv", toy_rows(30, seed=9, labels=("bad", "fair", "good")))
    write_csv(tmp_path / "new_test.csv", toy_rows(60, seed=10, labels=("bad", "fair", "good")))
    (tmp_path / "trip.toml").write_text(
        f'[[stage]]\nname = "tasks"\nverb = "metalearn"\nmethod = "prototypes"\ndata = "{place / "tasks.csv"}"\n'
        f'tasks = "client"\n{shape}\n'
        '[[stage]]\nname = "new"\nverb = "transfer"\nfrom = "tasks"\nmethod = "prototypes"\ndata = "new.csv"\n'
        'test = "new_test.csv"\n'
        '[[stage]]\nname = "device"\nverb = "export"\nfrom = "new"\ndata = "new_test.csv"\n'
    )
    assert main(["run", "trip.toml", "--jobs", "1", "--quiet", "--out", "trip"]) == 0
    assert StageRecord.load(tmp_path / "trip" / "device").verification.passed
    new = Checkpoint.load(tmp_path / "trip" / "new")
    encoder = Checkpoint.load(tmp_path / "trip" / "tasks").tensors
    known = len(encoder["encoder.embedding.weight"])
    assert torch.equal(new.tensors["encoder.embedding.weight"][:known], encoder["encoder.embedding.weight"])
    page = (tmp_path / "trip" / "report.html").read_text("utf-8")
    assert "Few rows of a new task" in page
    assert "Meta-learned" in page


def test_a_fresh_model_needs_no_checkpoint_on_the_command_line(place, tmp_path, capsys):
    flags = [
        word for key, value in SMALL.items() if key != "quiet" for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    rows = ["--data", str(place / "tasks.csv"), "--tasks", "client", "--held-tasks", "c3", "--quiet"]
    assert main(["metalearn", *flags, *rows, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "plain_start" in said
    assert "majority" in said
    assert "1 held-out task;" in said
    assert main(["metalearn", str(tmp_path / "a"), *flags, *rows, "--out", str(tmp_path / "b")]) == 0
    assert main(["metalearn", str(tmp_path / "none"), *flags, *rows, "--out", str(tmp_path / "c")]) == 2
    assert "none" in capsys.readouterr().err
