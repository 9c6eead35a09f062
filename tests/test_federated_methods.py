"""What methods change in the clients' training, and what they remember: FedProx, SCAFFOLD, FedNova, FedDyn, MOON."""

from dataclasses import replace

import pytest
import torch
from helpers import same_bits, toy_config, toy_examples, toy_model

from headwater.errors import ConfigError
from headwater.federated import AGGREGATORS, CODECS, METHODS
from headwater.federated.aggregators import Mean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.clip_and_noise import ClipAndNoise
from headwater.federated.codecs.base import decode, encode
from headwater.federated.codecs.options import CodecOptions
from headwater.federated.codecs.quantization import Ternary
from headwater.federated.codecs.transforms import EncodeUpdates
from headwater.federated.methods.feddyn import FedDyn
from headwater.federated.methods.fednova import FedNova
from headwater.federated.methods.fedprox import FedProx
from headwater.federated.methods.moon import Moon
from headwater.federated.methods.scaffold import Scaffold
from headwater.federated.options import FederateOptions
from headwater.federated.protocols import Client, FederatedAlgorithm, Instruction, expected
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.states import ClientStates
from headwater.federated.verb import federate
from headwater.metrics import ClassificationCounts
from headwater.model import DropoutOptions
from headwater.records import StageRecord
from headwater.registry import made
from headwater.tasks.classification import class_probabilities
from headwater.weights import add_scaled, l2_norm, load_weights, weights_of

CONFIG = toy_config(dropout=DropoutOptions())
NAMES = sorted(METHODS)
POPULATION = 5


class Settings:
    """Options that a method may read; the defaults are its own."""


def method_of(name):
    return made("headwater.local_methods", METHODS, name, Settings(), population=POPULATION)


def training(*methods, **changes):
    given = {"epochs": 2, "batch_size": 8, "lr": 0.1, "clip": 1.0} | changes
    return LocalTraining(toy_model(CONFIG), CONFIG.make_task(), methods=methods, **given)


def start():
    return weights_of(toy_model(CONFIG))


def population():
    return {f"c{n}": toy_examples(8 + 8 * n, seed=20 + n) for n in range(POPULATION)}


def measuring():
    model, valid = toy_model(CONFIG), toy_examples(30, seed=50)

    def evaluate(weights):
        load_weights(model, weights)
        return ClassificationCounts.of(class_probabilities(model, valid), valid.targets_N).figures()

    return evaluate


def federation(*names, rounds=3, processes=1, state=None, folder=None, share=0.6, after=None):
    methods = [method_of(name) for name in names]
    local = training(*methods)
    algorithm = FederatedAlgorithm(
        transforms=methods,
        aggregator=Mean(),
        server_optimizer=ServerSGD(),
        sampler=Uniform(share, 7),
    )
    state = state or FederationState(start())
    with LocalCohort(population(), local, processes=processes, states=folder) as cohort:
        stopping = Stopping(rounds, keep_best=False)
        weights, _ = run_rounds(algorithm, cohort, state, stopping, measuring(), seed=7, after_round=after)
    return weights, state


def distance(a, b):
    return l2_norm(add_scaled(a, b, -1.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_changes_the_second_round_and_learns(name):
    plain, _ = federation(rounds=6, share=1.0)
    changed, state = federation(name, rounds=6, share=1.0)
    assert changed.keys() == plain.keys()
    assert not same_bits(changed, plain)
    first, last = state.records[0], state.records[-1]
    assert last.losses[2] < first.losses[2]


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_processes_changes_no_bit(name):
    one, two = federation(name), federation(name, processes=2)
    assert same_bits(one[0], two[0])
    assert one[1].records == two[1].records
    assert same_bits(one[1].method, two[1].method)


@pytest.mark.parametrize("name", [*NAMES, "scaffold+moon"])
def test_a_federation_that_is_killed_in_a_round_and_resumed_ends_with_the_same_bits(name, tmp_path):
    names = name.split("+")
    whole, _ = federation(*names, rounds=4, share=1.0, folder=tmp_path / "whole")
    saved = []

    def save(state):
        saved.append((dict(state.tensors()), state.facts()))
        if state.round == 3:  # its clients have kept what they learned, but the round was never saved
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation(*names, rounds=4, share=1.0, folder=tmp_path / "killed", after=save)
    state = FederationState.of(*saved[1])
    assert state.round == 2
    resumed, _ = federation(*names, rounds=4, share=1.0, folder=tmp_path / "killed", state=state)
    assert same_bits(resumed, whole)


def test_a_strong_pull_keeps_clients_where_they_began():
    order = Instruction(1, start(), 0)
    moved = [
        l2_norm(training(FedProx(prox), epochs=4, clip=0.0)(order, Client("c", toy_examples(30))).delta)
        for prox in (0.0, 1.0, 9.0)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[2] < moved[0] / 3
    plain = training(epochs=4, clip=0.0)(order, Client("c", toy_examples(30)))
    assert moved[0] == pytest.approx(l2_norm(plain.delta))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_learning_rate_falls_from_round_to_round(optimizer):
    examples = toy_examples(8)

    def first_step(round_number):
        train = training(epochs=1, lr_decay=0.5, optimizer=optimizer)
        return train(Instruction(round_number, start(), 0), Client("c", examples)).delta

    moved = [l2_norm(first_step(round_number)) for round_number in (1, 2, 4)]
    assert moved == [pytest.approx(moved[0] * share, rel=0.2) for share in (1.0, 0.5, 0.125)]


def test_scaffold_keeps_the_mean_gradient_and_the_server_their_mean():
    method, examples = Scaffold(POPULATION), toy_examples(24)
    order = method.on_instruct(Instruction(1, start(), 0))
    client = Client("c", examples)
    update = training(method)(order, client)
    steps = 2 * 3
    for name in order.weights:
        gradient = -update.delta[name] / (steps * 0.1)  # the controls are zero in the first round
        torch.testing.assert_close(client.state[f"scaffold/{name}"], gradient)
        assert torch.equal(update.delta[f"scaffold/{name}"], client.state[f"scaffold/{name}"])
    assert update.delta.keys() == expected(order.weights, [method]).keys()
    left = method.on_aggregate(update.delta, order, replies=2)
    assert left.keys() == order.weights.keys()
    for name, value in method.state().items():
        torch.testing.assert_close(value, update.delta[f"scaffold/{name}"] * (2 / POPULATION))


def test_scaffold_corrects_each_step_by_the_difference_of_the_controls():
    method, like = Scaffold(POPULATION), start()
    method.restore({name: torch.full_like(value, 0.5) for name, value in like.items()})
    own = {f"scaffold/{name}": torch.full_like(value, 0.2) for name, value in like.items()}
    order = method.on_instruct(Instruction(1, like, 0))
    given = {"steps": 1, "clip": 0.0}
    corrected = training(method, **given)(order, Client("c", toy_examples(24), own))
    plain = training(**given)(order, Client("c", toy_examples(24)))
    for name in like:
        torch.testing.assert_close(corrected.delta[name], plain.delta[name] - 0.1 * 0.3, atol=1e-6, rtol=1e-4)


def test_fednova_counts_a_step_of_each_client_the_same():
    method, order = FedNova(), Instruction(1, start(), 0)
    short, long = (training(method, steps=steps)(order, Client("c", toy_examples(24))) for steps in (2, 6))
    whole = training(steps=6)(order, Client("c", toy_examples(24)))
    for name in order.weights:
        torch.testing.assert_close(long.delta[name] * 6, whole.delta[name])
    assert (float(short.delta["fednova/steps"]), float(long.delta["fednova/steps"])) == (2.0, 6.0)
    like = expected(order.weights, [method])
    average = method.on_aggregate(Mean()([short, long], like), order, 2)
    for name in order.weights:
        torch.testing.assert_close(average[name], 4 * (short.delta[name] + long.delta[name]) / 2)


def test_equal_clients_make_fednova_plain_averaging():
    method, order = FedNova(), Instruction(1, start(), 0)
    update = training(method)(order, Client("c", toy_examples(24)))
    average = method.on_aggregate(Mean()([update, update], expected(order.weights, [method])), order, 2)
    plain = training()(order, Client("c", toy_examples(24))).delta
    for name in plain:
        torch.testing.assert_close(average[name], plain[name], atol=1e-7, rtol=1e-5)


def test_feddyn_moves_by_its_own_equations():
    method, like = FedDyn(POPULATION, dyn=0.5), start()
    order = Instruction(1, like, 0)
    client = Client("c", toy_examples(24))
    update = training(method)(order, client)
    for name in like:
        torch.testing.assert_close(client.state[f"feddyn/{name}"], -0.5 * update.delta[name])
    moved = method.on_aggregate(update.delta, order, replies=2)
    for name in like:  # h = -dyn * 2 / 5 * delta, and the step is delta - h / dyn
        torch.testing.assert_close(moved[name], update.delta[name] * (1 + 2 / POPULATION))


def test_a_client_that_feddyn_has_bent_towards_its_own_minimum_stays():
    like, order = start(), Instruction(1, start(), 0)
    plain = training(steps=1, clip=0.0)(order, Client("c", toy_examples(8)))
    gradient = {f"feddyn/{name}": value / -0.1 for name, value in plain.delta.items()}
    bent = training(FedDyn(POPULATION), steps=1, clip=0.0)(order, Client("c", toy_examples(8), gradient))
    assert l2_norm(bent.delta) < 1e-5 < l2_norm(plain.delta)
    assert bent.delta.keys() == like.keys()


def test_moon_contrasts_from_the_second_round_on():
    order, client = Instruction(1, start(), 0), Client("c", toy_examples(24))
    first = training(Moon())(order, client)
    assert same_bits(first.delta, training()(order, Client("c", toy_examples(24))).delta)
    after = {name: value for name, value in client.state.items() if name.startswith("moon/")}
    for name, value in order.weights.items():
        torch.testing.assert_close(after[f"moon/{name}"], value + first.delta[name])
    plain = training()(replace(order, round=2), Client("c", toy_examples(24)))
    again = training(Moon())(replace(order, round=2), client)
    assert not same_bits(again.delta, plain.delta)


def test_methods_go_together():
    both, _ = federation("fedprox", "scaffold")
    assert not same_bits(both, federation("scaffold")[0])
    assert not same_bits(both, federation("fedprox")[0])


def test_a_clients_own_weights_stay_at_home_and_are_its_own():
    local = training(own=("head.",))
    begun = start()
    shared = {name: value for name, value in begun.items() if not name.startswith("head.")}
    order = Instruction(1, shared, 0)
    one, two = Client("one", toy_examples(24, seed=1)), Client("two", toy_examples(24, seed=2))
    for client in (one, two):
        assert local(order, client).delta.keys() == shared.keys()
    assert one.state.keys() == {"own/head.linear.weight", "own/head.linear.bias"}
    assert not same_bits(one.state, two.state)
    alone = Client("two", toy_examples(24, seed=2))
    training(own=("head.",))(order, alone)
    assert same_bits(alone.state, two.state)  # whoever came before has left nothing


def test_own_weights_may_learn_first_and_the_shared_ones_then_alone():
    begun = start()
    shared = {name: value for name, value in begun.items() if not name.startswith("head.")}
    client = Client("c", toy_examples(24))
    update = training(own=("head.",), own_epochs=2)(Instruction(1, shared, 0), client)
    head_only = training(own=("head.",), steps=6)
    frozen = Client("c", toy_examples(24))
    local = head_only(Instruction(1, shared, 0), frozen)
    assert not same_bits(update.delta, local.delta)
    assert all(bool(value.any()) for value in update.delta.values())
    assert not same_bits(client.state, frozen.state)


@pytest.mark.parametrize("work", [0.01, 0.5, 1.0])
def test_a_client_with_less_time_takes_fewer_steps_but_one(work):
    order = Instruction(1, start(), 0)
    update = training(FedNova())(order, Client("c", toy_examples(40), work=work))
    assert float(update.delta["fednova/steps"]) == max(1, round(work * 10))


def test_a_clients_state_is_that_of_the_round_before(tmp_path):
    states = ClientStates(tmp_path)
    value = {"a/b": torch.arange(3.0)}
    assert states.read("ann", 1) == {}
    for number in (1, 2, 5):
        states.write("ann", number, {"a/b": value["a/b"] + number})
    assert float(states.read("ann", 6)["a/b"][0]) == 5
    assert float(states.read("ann", 5)["a/b"][0]) == 2  # round 5 was killed, and is run again
    assert states.read("ann", 2) == {}  # what no round can ask for any more is gone
    assert states.read("bob/../ann", 9) == {}
    states.write("ann", 5, {"a/b": value["a/b"]})
    assert float(states.read("ann", 6)["a/b"][0]) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": ["scafold"]}, "did you mean 'scaffold'"),
        ({"method": ["moon", "moon"]}, "names one twice"),
        ({"method": "scaffold", "client_optimizer": "adamw"}, "--client-optimizer sgd"),
        ({"method": "fednova", "client_optimizer": "adamw"}, "--client-optimizer sgd"),
        ({"method": "moon", "bptt": 5, "task": "language_modeling"}, "leave --bptt at 0"),
        ({"method": "scaffold", "epsilon": 1.0, "aggregator": "mean"}, "only fedprox"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        FederateOptions.parse({"data": "x", "out": "y"} | given)


def test_an_option_without_its_method_is_said_to_have_no_effect():
    assert (
        "--prox was ignored: it has an effect with --method fedprox only."
        in FederateOptions.parse({"data": "x", "out": "y", "prox": 0.5}).notes()
    )
    assert not FederateOptions.parse({"data": "x", "out": "y", "prox": 0.5, "method": "fedprox"}).notes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "scaffold"}, "--aggregator mean"),
        ({"method": "feddyn", "server_momentum": 0.0}, "--aggregator mean"),
        ({"method": "feddyn", "aggregator": "mean"}, "--server-momentum 0"),
        ({"method": ["fedprox", "fednova"]}, "take one of them"),
        ({"method": ["scaffold", "feddyn"], "aggregator": "mean", "server_momentum": 0.0}, "by itself"),
        ({"method": ["feddyn", "fednova"], "aggregator": "mean", "server_momentum": 0.0}, "by itself"),
        ({"method": "scaffold", "aggregator": "mean", "codec": "top_k"}, "add --error-feedback"),
        ({"method": "moon", "freeze": "encoder"}, "they are the same"),
        ({"method": "scaffold", "aggregator": "mean", "min_replies": 2}, "leave --min-replies at 1"),
        ({"sampler": "weighted"}, "--aggregator mean"),
        ({"used_rows": True, "client_optimizer": "adamw"}, "adamw changes"),
        ({"used_rows": True, "codec": "rotation"}, "rotation changes"),
        ({"used_rows": True, "codec": "low_rank"}, "low_rank changes"),
        ({"used_rows": True, "codec": "random_k"}, "random_k changes"),
        ({"method": "feddyn", "aggregator": "mean", "server_momentum": 0.0, "server_lr": 0.5}, "--server-lr 1"),
        ({"epsilon": 1.0, "aggregator": "mean", "deadline": 2.0}, "give --local-steps"),
        ({"personal": "ifca", "codec": "int8"}, "leave --codec out"),
        ({"personal": "fedper", "aggregator": "validation"}, "no whole model"),
        ({"personal": "pfedme", "pull": 0.0}, "--pull above 0"),
        ({"codec": ["top_k", "sparse_rows"]}, "put sparse_rows first"),
        ({"epsilon": 1.0, "aggregator": "mean", "min_replies": 2}, "leave them out"),
    ],
)
def test_what_would_give_wrong_results_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        FederateOptions.parse({"data": "x", "out": "y"} | given)


def test_fednova_leaves_what_other_methods_send_as_it_is():
    scaffold, nova = Scaffold(POPULATION), FedNova()
    order = scaffold.on_instruct(Instruction(1, start(), 0))
    alone = training(scaffold)(order, Client("c", toy_examples(24)))
    both = training(scaffold, nova)(order, Client("c", toy_examples(24)))
    aggregate = nova.on_aggregate(both.delta, order, 1)
    assert aggregate.keys() == alone.delta.keys()
    for name, value in alone.delta.items():
        torch.testing.assert_close(aggregate[name], value)


def test_a_client_that_diverges_goes_on_from_what_it_kept_before(tmp_path):
    method = Scaffold(POPULATION)
    feedback = EncodeUpdates([Ternary()], True, [method])
    local = training(method, lr=0.1, clip=0.0)
    order = method.on_instruct(Instruction(1, start(), 0))
    with LocalCohort({"c": toy_examples(24)}, local, states=tmp_path) as cohort:
        list(cohort.gather(order, ["c"], [method, feedback]))
        kept = cohort.client("c").state
        local.lr = 1e30
        assert list(cohort.gather(replace(order, round=2), ["c"], [method, feedback])) == []
        assert "lower --client-lr" in cohort.replies.refused["c"]
        assert same_bits(cohort.client("c").state, kept)
    assert any(name.startswith("feedback/") for name in kept)
    assert any(name.startswith("scaffold/") for name in kept)


class Hostile(LocalTraining):
    """A client that sends what it likes."""

    def __init__(self, honest, change):
        self.honest, self.change = honest, change

    def __call__(self, instruction, client):
        return self.change(self.honest(instruction, client))


HOSTILE = {
    "numbers whose squares overflow": lambda u: replace(
        u, delta={name: torch.full((2,), 1e154, dtype=torch.float64) for name in u.delta}
    ),
    "shapes that would be broadcast": lambda u: replace(
        u, delta={name: torch.zeros(2000, *(1,) * value.dim()) for name, value in u.delta.items()}
    ),
    "figures that are no numbers": lambda u: replace(u, metrics={"loss": "high"}),
    "figures that are no finite numbers": lambda u: replace(u, metrics={"loss": float("nan")}),
    "figures that no float holds": lambda u: replace(u, metrics={"loss": 10**400}),
    "figures that can't be averaged": lambda u: replace(u, metrics={"loss": -1.7e308}),
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
@pytest.mark.parametrize("aggregator", ["norm_bound", "mean", "median"])
@pytest.mark.parametrize("private", [False, True])
def test_a_hostile_client_is_refused_and_ends_nothing(what, aggregator, private):
    local = training()
    clients = population()

    class Mixed:
        def __call__(self, instruction, client):
            train = Hostile(local, HOSTILE[what]) if client.name == "c1" else local
            return train(instruction, client)

    clip = [ClipAndNoise(1.0, 0.1, 5.0, 0)] if private else []
    algorithm = FederatedAlgorithm(
        transforms=clip,
        aggregator=made("headwater.aggregators", AGGREGATORS, aggregator, Settings()),
        server_optimizer=ServerSGD(),
        sampler=Uniform(1.0, 7),
    )
    state = FederationState(start())
    with LocalCohort(clients, Mixed()) as cohort:
        run_rounds(algorithm, cohort, state, Stopping(1, keep_best=False), measuring(), seed=7)
    assert list(state.records[0].failed) == ["c1"]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_codecs_that_change_which_rows_are_used_are_refused_with_used_rows(name):
    options = {"data": "x", "out": "y", "used_rows": True, "codec": name}
    delta = torch.zeros(40, 8)
    delta[3:9] = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 6)[:, None]
    stack = [made("headwater.codecs", CODECS, name, CodecOptions(codec=[name]))]
    came = decode(encode({"w": delta}, stack, "key"), {"w": delta}, stack, "key")["w"]
    assert came[3:9].any()
    if not torch.equal(came.any(1), delta.any(1)):
        with pytest.raises(ConfigError, match=f"{name} changes which"):
            FederateOptions.parse(options)
    else:
        FederateOptions.parse(options)


@pytest.mark.parametrize("codec", ["int8", "sparse_rows"])
def test_used_rows_go_through_codecs(codec, data, source, tmp_path):
    given = {"data": str(data / "train.csv"), "test": str(data / "test.csv"), "client": "client", "quiet": True}
    given |= {"rounds": 2, "valid": 0.3, "controls": False, "device": "cpu", "used_rows": True, "codec": codec}
    federate(source, FederateOptions(out=tmp_path / "f", **given))
    assert [row.failed for row in StageRecord.load(tmp_path / "f").rounds] == [{}, {}]


def test_more_replies_than_can_come_are_refused(data, source, tmp_path):
    given = {"data": str(data / "train.csv"), "client": "client", "quiet": True, "valid": 0.3, "cohort": 3}
    with pytest.raises(ConfigError, match="min_replies = 4: a step is made of 3 answers at most"):
        federate(source, FederateOptions(out=tmp_path / "f", min_replies=4, **given))
