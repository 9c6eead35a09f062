"""Personalized federations: each client ends with a model of its own, and what is its own stays with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv

from headwater.checkpoint import Checkpoint
from headwater.errors import ConfigError
from headwater.federated import PERSONALIZERS
from headwater.federated.aggregators import WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.options import FederateOptions
from headwater.federated.personal.base import own_or_shared
from headwater.federated.personal.ditto import Ditto
from headwater.federated.personal.ifca import Ifca
from headwater.federated.personal.perfedavg import PerFedAvg
from headwater.federated.personal.pfedme import PFedMe
from headwater.federated.personalization import PersonalizeOptions, personalize
from headwater.federated.protocols import Client, FederatedAlgorithm, Instruction, Update
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerAdam, ServerSGD, ServerYogi
from headwater.federated.simulation import LocalCohort
from headwater.federated.verb import _Federation, differing, federate
from headwater.model import DropoutOptions
from headwater.prediction import EvaluateOptions, evaluate, load_predictor
from headwater.records import StageRecord
from headwater.registry import made
from headwater.report.federation import personal_stage
from headwater.weights import add_scaled, load_weights, weights_of

NAMES = sorted(PERSONALIZERS)
WITH_OWN_WEIGHTS = ("fedper", "fedrep")
CONFIG = toy_config(dropout=DropoutOptions())  # what is drawn must not depend on who drew before
PLAIN = toy_config()
HEADS = {"head.linear.weight", "head.linear.bias"}


def local(config=CONFIG, **changes):
    return replace(LocalTraining(toy_model(config), config.make_task(), 1, 8, 0.3, clip=1.0), **changes)


def close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], atol=atol, rtol=1e-4)


def distance(a, b):
    return sum(float((a[key] - value).square().sum()) for key, value in b.items())


def personalizer(name, train=None, **options):
    given = FederateOptions(data="x", out="y", personal=name, **options)
    return made("headwater.personalizers", PERSONALIZERS, name, given, local=train or local())


def algorithm(learner, *, momentum=0.0):
    return FederatedAlgorithm(
        transforms=[learner],
        aggregator=WeightedMean(),
        server_optimizer=ServerSGD(1.0, momentum),
        sampler=Uniform(0.7, 7),
    )


def begin():
    return weights_of(toy_model(CONFIG))


def clients():
    return {f"c{n}": toy_examples(4 + 6 * n, seed=20 + n) for n in range(4)}


def run(learner, cohort, rounds, state=None):
    state = state or FederationState(learner.start(begin()))
    run_rounds(algorithm(learner), cohort, state, Stopping(rounds, keep_best=False), lambda _: {}, seed=7)
    return state


# Conformance of every method


@pytest.mark.parametrize("name", NAMES)
def test_a_client_sends_the_shared_weights_and_nothing_of_its_own(name):
    learner = personalizer(name)
    shared = learner.start(begin())
    client = Client("c", toy_examples(20))
    update = learner(Instruction(1, shared, 0), client)
    assert update.delta.keys() <= shared.keys()
    assert all(update.delta[key].shape == shared[key].shape for key in update.delta)
    assert any(bool((value != 0).any()) for value in update.delta.values())
    if name in WITH_OWN_WEIGHTS:
        assert not HEADS & update.delta.keys()
        assert {key.removeprefix("own/") for key in client.state} == HEADS
    assert learner.personal(shared, client).keys() == begin().keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_clients_answer_and_model_do_not_depend_on_who_came_before(name):
    learner = personalizer(name)
    shared = learner.start(begin())

    def answer(seed):
        client = Client(f"c{seed}", toy_examples(20, seed=seed))
        update = learner(Instruction(2, shared, 1), client)
        return update.delta | {f"own/{key}": value for key, value in learner.personal(shared, client).items()}

    alone = answer(3)
    assert not same_bits(answer(4), alone)
    assert same_bits(answer(3), alone)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_client_does_changes_nothing_that_it_was_given(name):
    learner = personalizer(name)
    shared = learner.start(begin())
    client = Client("c", toy_examples(20))
    learner(Instruction(1, shared, 0), client)
    kept = {key: value.clone() for key, value in client.state.items()}
    old = dict(client.state)
    learner(Instruction(2, shared, 0), client)
    learner.personal(shared, client)
    assert same_bits(shared, learner.start(begin()))
    assert same_bits(old, kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_processes_and_an_interruption_change_no_bit(name, tmp_path):
    data = clients()
    learner = personalizer(name)
    with LocalCohort(data, learner, processes=2, states=tmp_path / "two") as cohort:
        two = run(learner, cohort, 3).weights
        theirs = {client: learner.personal(two, cohort.client(client)) for client in data}
    learner = personalizer(name)
    one = LocalCohort(data, learner, states=tmp_path / "one")
    half = run(learner, one, 2)
    saved = safetensors.torch.save({key: value.clone() for key, value in half.tensors().items()}), half.facts()
    run(learner, one, 3, half)  # a round whose end was never saved
    learner = personalizer(name)
    again = LocalCohort(data, learner, states=tmp_path / "one")
    state = run(learner, again, 3, FederationState.of(safetensors.torch.load(saved[0]), saved[1]))
    assert same_bits(state.weights, two)
    for client, own in theirs.items():
        assert same_bits(learner.personal(state.weights, again.client(client)), own)


def test_a_single_client_with_fedper_learns_as_if_it_were_alone():
    learner = personalizer("fedper")
    data = {"only": toy_examples(30, seed=3)}
    cohort = LocalCohort(data, learner)
    weights = run(learner, cohort, 3).weights
    plain, expected = local(), begin()
    for number in (1, 2, 3):
        expected = add_scaled(expected, plain(Instruction(number, expected, 7), Client("only", data["only"])).delta)
    close(learner.personal(weights, cohort.client("only")), expected)


def test_fedreps_shared_weights_learn_under_a_head_that_was_fitted_first():
    learner = personalizer("fedrep", own_epochs=2)
    shared, client = learner.start(begin()), Client("c", toy_examples(20))
    learner(Instruction(1, shared, 0), client)
    train = local(epochs=2)
    head_alone = train(Instruction(1, {key: begin()[key] for key in HEADS}, 0), Client("c", toy_examples(20))).delta
    close(
        {key: client.state[f"own/{key}"] for key in head_alone}, {key: begin()[key] + head_alone[key] for key in HEADS}
    )


def test_dittos_shared_model_is_that_without_and_its_own_is_held_by_the_pull():
    instruction, rows = Instruction(1, begin(), 0), toy_examples(40)
    plain = local(PLAIN, epochs=20)(instruction, Client("c", rows)).delta
    moved = []
    for pull in (0.0, 0.5, 3.0):
        learner, client = Ditto(local(PLAIN, epochs=20), pull), Client("c", rows)
        assert same_bits(learner(instruction, client).delta, plain)
        own = learner.personal(begin(), client)
        moved.append(distance(own, begin()))
        if not pull:
            close(own, add_scaled(begin(), plain), atol=1e-5)
    assert moved[0] > moved[1] > moved[2] > 0


def test_apfls_model_is_a_mixture_whose_share_is_learned_within_its_bounds():
    learner, shared = personalizer("apfl", local(PLAIN), mixing=0.25), begin()
    client = Client("c", toy_examples(40))
    delta = learner(Instruction(1, shared, 0), client).delta
    close(delta, local(PLAIN)(Instruction(1, shared, 0), Client("c", toy_examples(40))).delta)
    assert 0 <= float(client.state["apfl/mixing"]) <= 1
    assert float(client.state["apfl/mixing"]) != 0.25
    ours = {key: client.state[f"apfl/own/{key}"] for key in shared}
    assert not same_bits(ours, shared)
    for share, expected in ((0.0, shared), (1.0, ours)):
        mixed = replace(client, state=client.state | {"apfl/mixing": torch.tensor(share)})
        assert same_bits(learner.personal(shared, mixed), expected)


def test_pfedme_moves_towards_the_clients_own_model_by_the_rate_times_the_pull():
    rows = toy_examples(8)  # one batch, so one step
    moved = [
        personalizer("pfedme", local(PLAIN, lr=lr), pull=0.5)(Instruction(1, begin(), 0), Client("c", rows)).delta
        for lr in (0.3, 0.6)
    ]
    close(moved[1], {key: 2 * value for key, value in moved[0].items()})
    held, free = (
        personalizer("pfedme", local(PLAIN, epochs=20), pull=pull).personal(begin(), Client("c", toy_examples(40)))
        for pull in (3.0, 1e-9)
    )
    assert 0 < distance(held, begin()) < distance(free, begin())
    alone = local(PLAIN, epochs=20)(Instruction(0, begin(), 0), Client("c", toy_examples(40))).delta
    close(free, add_scaled(begin(), alone), atol=1e-5)


@pytest.mark.parametrize("name", ["pfedme", "perfedavg"])
def test_of_what_is_learned_in_two_loops_the_outer_rate_falls(name):
    rows, later = toy_examples(8), Instruction(3, begin(), 0)
    falls = personalizer(name, local(PLAIN, lr_decay=0.5))(later, Client("c", rows)).delta
    quarter = personalizer(name, local(PLAIN, lr=0.3 / 4))(later, Client("c", rows)).delta
    close(falls, quarter)


def test_perfedavg_without_adapting_is_plain_descent_and_its_model_is_a_few_steps_away():
    rows = toy_examples(8)
    learner = personalizer("perfedavg", local(PLAIN), inner_lr=1e-12)
    moved = learner(Instruction(1, begin(), 0), Client("c", rows)).delta
    close(moved, local(PLAIN)(Instruction(1, begin(), 0), Client("c", rows)).delta)
    five = personalizer("perfedavg", inner_steps=5).personal(begin(), Client("c", rows))
    direct = local(steps=5)(Instruction(0, begin(), 0), Client("c", rows)).delta
    assert same_bits(five, add_scaled(begin(), direct))


# IFCA


def test_ifca_finds_two_planted_clusters():
    data = {f"c{n}": toy_examples(40, seed=n) for n in range(4)}
    for name in ("c1", "c3"):
        data[name].targets_N = 1 - data[name].targets_N
    train = local(epochs=4, lr=0.5)
    learner = Ifca(train)
    cohort = LocalCohort(data, learner)
    method = replace(algorithm(learner), sampler=Uniform(1.0, 0))
    state = FederationState(learner.start(begin()))
    run_rounds(method, cohort, state, Stopping(8, keep_best=False), lambda _: {}, seed=7)
    chosen = [learner.choice(state.weights, cohort.client(name)) for name in sorted(data)]
    assert chosen in ([0, 1, 0, 1], [1, 0, 1, 0])
    for name, examples in data.items():
        load_weights(train.model, learner.personal(state.weights, cohort.client(name)))
        assert train.task.count(train.model, examples, 64).figures()["accuracy"] > 0.9


def test_ifcas_models_move_by_the_mean_of_those_who_chose_them():
    learner = Ifca(local(), clusters=3)
    weights = learner.start({"a": torch.arange(4.0)})
    assert len({tuple(value.tolist()) for value in weights.values()}) == 3
    instruction = Instruction(1, weights, 0)
    sent = [
        Update("a", {"cluster0.a": torch.full((4,), 1.0)}, 1),
        Update("b", {"cluster0.a": torch.full((4,), 4.0)}, 3),
        Update("c", {"cluster2.a": torch.full((4,), 7.0)}, 6),
    ]
    taken = [learner.on_receive(update, instruction) for update in sent]
    like = weights | learner.added(weights)
    moved = learner.on_aggregate(WeightedMean()(taken, like), instruction, 3)
    expected = {"cluster0.a": 3.25, "cluster1.a": 0.0, "cluster2.a": 7.0}
    assert moved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(moved[name], torch.full((4,), value))
    assert same_bits(learner.shared(weights), {"a": weights["cluster2.a"]})
    other = Ifca(local(), clusters=3)
    other.restore(learner.state())
    assert same_bits(other.shared(weights), learner.shared(weights))


@pytest.mark.parametrize("server", [ServerSGD(), ServerSGD(1.0, 0.9), ServerAdam(), ServerYogi()])
def test_an_ifca_model_that_nobody_took_moves_by_the_servers_momentum_alone(server):
    learner = Ifca(local())
    weights = learner.start({"a": torch.arange(4.0)})
    for took in (0, 1):
        instruction = Instruction(1 + took, weights, 0)
        update = learner.on_receive(Update("c", {f"cluster{took}.a": torch.ones(4)}, 1), instruction)
        mean = WeightedMean()([update], weights | learner.added(weights))
        weights = server.step(weights, learner.on_aggregate(mean, instruction, 1))
        moved = {name: not torch.equal(value, instruction.weights[name]) for name, value in weights.items()}
        assert moved == {"cluster0.a": not took or bool(server.momentum), "cluster1.a": bool(took)}


@pytest.mark.parametrize("names", [(), ("cluster0.a", "cluster1.a"), ("cluster7.a",)])
def test_ifca_refuses_an_update_that_is_not_for_one_model(names):
    learner = Ifca(local())
    weights = learner.start({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="one was to be trained"):
        learner.on_receive(Update("c", {name: torch.ones(2) for name in names}, 1), Instruction(1, weights, 0))


# The verbs


@pytest.fixture(scope="module")
def tastes(tmp_path_factory):
    """A folder of rows of four clients, two of which call good what the others call bad."""
    rows = toy_rows(360, seed=5)
    owners = [f"c{n // 2 % 4}" for n in range(360)]
    other = {"bad": "good", "good": "bad"}
    labels = [other[label] if owner < "c2" else label for label, owner in zip(rows.labels, owners, strict=True)]
    mixed = replace(rows, labels=labels, clients=owners)
    folder = tmp_path_factory.mktemp("tastes")
    write_csv(folder / "train.csv", mixed.take(range(240)))
    write_csv(folder / "test.csv", mixed.take(range(240, 360)))
    return folder


def where(folder, out):
    rows = {"data": str(folder / "train.csv"), "test": str(folder / "test.csv"), "client": "client"}
    return rows | {"out": out, "quiet": True, "device": "cpu", "valid": 0.3}


TASTES = {"participation": 1.0, "server_momentum": 0.0, "batch_size": 8, "client_lr": 0.5, "controls": False}
ENOUGH = {
    "fedper": {},
    "fedrep": {"rounds": 2},
    "ditto": {"pull": 0.1},
    "apfl": {"mixing": 0.8, "client_lr": 1.0},
    "pfedme": {"client_lr": 1.0, "rounds": 2},
    "perfedavg": {"local_epochs": 1, "rounds": 4},
    "ifca": {},
}


@pytest.mark.parametrize("name", NAMES)
def test_clients_of_opposite_tastes_are_served_by_models_of_their_own(name, tastes, source, tmp_path):
    changes = {"rounds": 3, "local_epochs": 2, "personal": name, "processes": 1}
    changes = TASTES | changes | ENOUGH[name]
    made_here = federate(source, FederateOptions(**where(tastes, tmp_path / "f") | changes))
    record = StageRecord.load(tmp_path / "f")
    assert record.metrics["test"]["accuracy"] > max(record.metrics["shared"]["accuracy"], 0.52) + 0.1
    assert record.method == f"{name}+weighted"
    for row in record.clients:
        assert row.metrics.keys() == {"accuracy_before", "accuracy", "accuracy_after"}
    pooled = sum(row.metrics["accuracy_after"] * row.test_rows for row in record.clients) / 120
    assert pooled == pytest.approx(record.metrics["test"]["accuracy"])
    # The checkpoint holds these models: whoever uses it finds the figures of the record.
    assert set(made_here.personal) == {"c0", "c1", "c2", "c3"}
    if name in WITH_OWN_WEIGHTS:
        assert all(own.keys() == HEADS for own in made_here.personal.values())
    rows = EvaluateOptions(data=str(tastes / "test.csv"), client="client")
    assert evaluate(tmp_path / "f", rows)["accuracy"] == pytest.approx(record.metrics["test"]["accuracy"])
    one, other = (load_predictor(tmp_path / "f", client=client).probabilities(["lovely"]) for client in ("c0", "c3"))
    assert not (one == other).all()
    assert personal_stage(record)["gained"] > 0
    assert any("worst tenth" in note for note in record.notes)


@pytest.mark.parametrize("name", ["fedrep", "ifca"])
def test_a_personal_federation_killed_and_resumed_has_the_same_bits(name, tastes, source, tmp_path, monkeypatch):
    changes = TASTES | {"participation": 0.5, "rounds": 3, "personal": name, "processes": 2}

    def options(out, **more):
        return FederateOptions(**where(tastes, tmp_path / out) | changes | more)

    whole = federate(source, options("whole"))
    after = _Federation.after_round

    def kill(self, state):
        if state.round == 2:  # its clients have kept their states; the server hasn't
            raise KeyboardInterrupt
        after(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(_Federation, "after_round", kill)
        with pytest.raises(KeyboardInterrupt):
            federate(source, options("f"))
    resumed = federate(source, options("f", resume=True, processes=1))
    assert resumed.identity == whole.identity
    one, two = StageRecord.load(tmp_path / "whole"), StageRecord.load(tmp_path / "f")
    for part in ("rounds", "metrics", "clients", "curves"):
        assert getattr(one, part) == getattr(two, part), part
    assert not list(Path(tmp_path / "f").glob(".*"))


def test_privacy_is_of_what_leaves_and_the_notes_say_so(tastes, source, tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.federated.verb.noise_for", lambda *_, **__: 1.5)
    monkeypatch.setattr("headwater.federated.verb.epsilon_spent", lambda **_: 5.0)
    changes = TASTES | {"personal": "fedper", "epsilon": 5.0, "aggregator": "mean", "rounds": 1, "delta": 0.01}
    federate(source, FederateOptions(**where(tastes, tmp_path / "f") | changes))
    notes = StageRecord.load(tmp_path / "f").notes
    assert any("neither clipped nor noised" in note for note in notes)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -1e25])
def test_a_client_whose_training_diverged_keeps_the_shared_weights(broken):
    shared = {"a": torch.zeros(2), "b": torch.ones(3)}
    ann, bob = {"b": torch.full((3,), 1e15)}, {"b": torch.tensor([1.0, broken, 1.0])}
    diverged = []
    kept = dict(own_or_shared([("ann", ann), ("bob", bob)], shared, diverged))
    assert diverged == ["bob"]
    assert same_bits(kept["ann"], ann)
    assert same_bits(kept["bob"], {"b": shared["b"]})
    assert kept["bob"]["b"].data_ptr() != shared["b"].data_ptr()  # several such clients are written to one file


@pytest.mark.parametrize("kind", [PFedMe, PerFedAvg])
def test_a_model_that_diverges_after_the_last_round_is_none_and_the_record_says_whose(
    kind, tastes, source, tmp_path, monkeypatch
):
    found = kind.personal

    def personal(self, weights, client):
        return add_scaled(found(self, weights, client), weights, float("inf") if client.name == "c2" else 0.0)

    monkeypatch.setattr(kind, "personal", personal)
    changes = TASTES | {"rounds": 1, "personal": kind.__name__.lower(), "processes": 1}
    kept = federate(source, FederateOptions(**where(tastes, tmp_path / "f") | changes))
    assert same_bits(kept.personal["c2"], {name: kept.tensors[name] for name in kept.personal["c2"]})
    assert not same_bits(kept.personal["c1"], kept.personal["c2"])
    record = StageRecord.load(tmp_path / "f")
    assert "Clients whose own model diverged, and who keep the shared one: 1 (c2)." in record.notes
    (row,) = (row for row in record.clients if row.client == "c2")
    assert row.metrics["accuracy_after"] == row.metrics["accuracy"]


@pytest.mark.parametrize("method", ["fine_tune", "probe_fine_tune"])
def test_personalizing_at_too_large_a_rate_leaves_a_whole_stage_of_shared_models(method, tastes, source, tmp_path):
    given = where(tastes, tmp_path / "p") | {"method": method, "lr": 3e38, "epochs": 1}
    kept = personalize(source, PersonalizeOptions(**given))
    assert kept.personal.keys() == {"c0", "c1", "c2", "c3"}
    assert all(same_bits(own, source.tensors) for own in kept.personal.values())
    record = StageRecord.load(tmp_path / "p")
    assert record.metrics["after"] == pytest.approx(record.metrics["before"], rel=1e-6)
    assert "Clients whose own model diverged, and who keep the shared one: 4 (c0, c1, c2, c3)." in record.notes


def test_a_checkpoint_holds_of_the_clients_models_the_weights_in_which_any_differs():
    shared = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.ones(3)}
    personal = {"ann": shared | {"a": torch.ones(2)}, "bob": shared | {"b": torch.zeros(2)}}
    kept = differing(personal, shared)
    assert all(same_bits(kept[client], {name: own[name] for name in "ab"}) for client, own in personal.items())
    assert differing({"ann": shared, "bob": dict(shared)}, shared) == {}


REFUSED = {
    "pfedme trains in its own way": {"personal": "pfedme", "method": ["fedprox"]},
    "--client-optimizer sgd": {"personal": "apfl", "client_optimizer": "adamw"},
    "would leak": {"personal": "ifca", "epsilon": 1.0, "aggregator": "mean"},
    "'median' can't": {"personal": "ifca", "aggregator": "median"},
    "streams have none": {"personal": "perfedavg", "task": "language_modeling", "bptt": 5},
    "did you mean 'ditto'": {"personal": "dito"},
    "greater than or equal to 2": {"personal": "ifca", "clusters": 1},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(why):
    with pytest.raises(ConfigError, match=why):
        FederateOptions.parse({"data": "x", "out": "y"} | REFUSED[why])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"own": ["tail."]}, "no weights begin so"),
        ({"own": ["encoder.embedding."], "freeze": "embedding"}, "frozen"),
        ({"own": ["head.", "encoder."]}, "nothing is left to share"),
    ],
)
def test_own_weights_that_make_no_federation_are_refused(changes, why, tastes, source, tmp_path):
    options = FederateOptions(**where(tastes, tmp_path / "f") | {"personal": "fedper"} | changes)
    with pytest.raises(ConfigError, match=why):
        federate(source, options)
    assert not (tmp_path / "f").exists()


def test_an_option_that_no_method_reads_is_noted(tastes):
    options = FederateOptions.parse(where(tastes, "y") | {"personal": "ditto", "pull": 0.5, "clusters": 3})
    assert options.notes() == ["--clusters was ignored: it has an effect with --personal ifca only."]


@pytest.mark.parametrize("method", ["head", "fine_tune", "probe_fine_tune"])
def test_personalize_serves_clients_of_other_tastes(method, tastes, source, tmp_path):
    given = {"method": method, "epochs": 4, "lr": 0.5, "batch_size": 8}
    options = PersonalizeOptions(**where(tastes, tmp_path / "p") | given)
    made_here = personalize(source, options)
    record = StageRecord.load(tmp_path / "p")
    assert record.method == method
    assert record.metrics["after"]["accuracy"] > record.metrics["before"]["accuracy"] + 0.2
    names = HEADS if method == "head" else source.tensors.keys()
    assert all(own.keys() == names for own in made_here.personal.values())
    assert same_bits(made_here.tensors, source.tensors)
    rows = EvaluateOptions(data=str(tastes / "test.csv"), client="client")
    assert evaluate(tmp_path / "p", rows)["accuracy"] == pytest.approx(record.metrics["after"]["accuracy"])
    again = personalize(source, PersonalizeOptions(**where(tastes, tmp_path / "again") | given))
    assert again.identity == made_here.identity


def test_personalizing_again_starts_from_the_shared_model_and_says_so(tastes, source, tmp_path):
    first = personalize(source, PersonalizeOptions(**where(tastes, tmp_path / "p")))
    second = personalize(Checkpoint.load(tmp_path / "p"), PersonalizeOptions(**where(tastes, tmp_path / "again")))
    assert second.identity == first.identity
    assert any("left behind" in note for note in StageRecord.load(tmp_path / "again").notes)
