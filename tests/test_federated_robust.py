"""Aggregators against hostile clients, server optimizers and attacks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import same_bits, toy_config, toy_examples, toy_featurizer, toy_model
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.federated.aggregators import (
    Bulyan,
    ByValidation,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
)
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.attacks import (
    Attacked,
    Backdoor,
    FreeRider,
    InnerProduct,
    LabelFlip,
    Scaling,
    SignFlip,
    chosen_attackers,
)
from headwater.federated.client_updates import LocalTraining
from headwater.federated.notes import named
from headwater.federated.options import FederateOptions
from headwater.federated.protocols import Client, FederatedAlgorithm, Instruction, Update, UpdateTransform
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerAdagrad, ServerAdam, ServerSGD, ServerYogi
from headwater.federated.simulation import LocalCohort
from headwater.federated.used_rows import UsedRows
from headwater.federated.verb import federate
from headwater.metrics import ClassificationCounts
from headwater.model import DropoutOptions
from headwater.records import StageRecord
from headwater.tasks.classification import class_probabilities
from headwater.weights import add_scaled, l2_norm, load_weights, weights_of
from headwater.workers import one_thread

LIKE = {"a": torch.zeros(8, 5), "b": torch.zeros(10)}
ORDER = Instruction(1, LIKE, 0)
DIRECTION = {"a": torch.full((8, 5), 0.2), "b": torch.full((10,), -0.2)}


def honest(count, noise=0.05, seed=0):
    """Return updates that lie around one direction of length 1.4."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        {n: v + noise * torch.randn(v.shape, generator=generator) for n, v in DIRECTION.items()} for _ in range(count)
    ]
    return [Update(f"c{n:02d}", delta, 10) for n, delta in enumerate(made)]


def times(updates, scale, rows=10):
    return [
        replace(u, client="x" + u.client, rows=rows, delta={n: scale * v for n, v in u.delta.items()}) for u in updates
    ]


def combined(aggregator, updates):
    moment = aggregator.on_receive if isinstance(aggregator, UpdateTransform) else lambda update, _: update
    return aggregator([moment(update, ORDER) for update in sorted(updates, key=lambda u: u.client)], LIKE)


def error(aggregator, updates):
    """Return how far the aggregate is from the direction, in lengths of it."""
    return l2_norm(add_scaled(combined(aggregator, updates), DIRECTION, -1.0)) / l2_norm(DIRECTION)


def flat(weights):
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


# Aggregators


def test_the_trimmed_mean_equals_scipys():
    from scipy.stats import trim_mean

    updates = honest(11)
    for trim in (0.0, 0.1, 0.3, 0.49):
        expected = trim_mean(np.stack([update.delta["a"].numpy() for update in updates]), trim, axis=0)
        np.testing.assert_allclose(combined(TrimmedMean(trim), updates)["a"].numpy(), expected, atol=1e-6)


def test_the_geometric_median_has_the_least_sum_of_distances():
    updates = honest(7, noise=0.5) + times(honest(2, seed=1), 30.0)
    points = torch.stack([flat(update.delta) for update in updates]).double()

    def cost(point):
        return float((points - point).norm(dim=1).sum())

    found = flat(combined(GeometricMedian(), updates)).double()
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1):
        for _ in range(20):
            assert cost(found) <= cost(found + size * torch.randn(found.shape, generator=generator).double())
    pulls = (points - found) / (points - found).norm(dim=1, keepdim=True)  # they balance at the minimum
    assert float(pulls.sum(0).norm()) < 1e-3


@pytest.mark.parametrize(("aggregator", "needed"), [(Krum(0.49), 2), (Bulyan(0.49), 4)])
@pytest.mark.parametrize("clients", [1, 2, 3, 6, 7, 11, 40])
def test_no_more_are_taken_for_hostile_than_the_proof_allows(aggregator, needed, clients):
    taken = aggregator.taken(clients)
    assert taken == 0 or clients >= needed * taken + 3
    assert taken == min(int(0.49 * clients), max(0, clients - 3) // needed)


def brute_krum(updates, hostile):
    """Return Krum's scores by its definition."""
    points = [flat(update.delta).double() for update in updates]
    kept = len(points) - hostile - 2
    return [
        sum(sorted(float((a - b).square().sum()) for j, b in enumerate(points) if j != i)[:kept])
        for i, a in enumerate(points)
    ]


def test_krum_returns_an_update_and_multi_krum_averages_the_best():
    updates = honest(9, noise=0.3) + times(honest(2, seed=1), -8.0)
    scores = brute_krum(updates, 2)
    best = np.argsort(scores)
    assert same_bits(combined(Krum(0.2), updates), updates[best[0]].delta)
    mean = combined(Mean(), [updates[place] for place in best[:9]])
    torch.testing.assert_close(flat(combined(MultiKrum(0.2), updates)), flat(mean))


def test_bulyan_averages_around_the_median_of_what_krum_chooses():
    updates = honest(11, noise=0.3)
    left, chosen = list(updates), []
    while len(chosen) < 11 - 4:
        chosen.append(left.pop(int(np.argmin(brute_krum(left, 2)))))
    values = np.stack([flat(update.delta).numpy() for update in chosen])
    nearest = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0)[: 11 - 8]
    expected = np.take_along_axis(values, nearest, 0).mean(0)
    np.testing.assert_allclose(flat(combined(Bulyan(0.2), updates)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("aggregator", [Krum(0.45), MultiKrum(0.45), Bulyan(0.45), TrimmedMean(0.45)])
@pytest.mark.parametrize("clients", range(1, 9))
def test_few_clients_are_as_many_as_the_method_can_work_with(aggregator, clients):
    assert error(aggregator, honest(clients)) < 0.4


HOLD = {
    0.2: [TrimmedMean(0.2), Median(), GeometricMedian(), Krum(0.2), MultiKrum(0.2), Bulyan(0.2)],
    0.4: [TrimmedMean(0.4), Median(), GeometricMedian(), Krum(0.4), MultiKrum(0.4)],
}
HARM = {
    "opposite": lambda own: times(own, -5.0),
    "far": lambda own: times(own, 1e6),
    "together": lambda own: times([own[0]] * len(own), -2.0),
    "noise": lambda own: times(honest(len(own), noise=3.0, seed=8), 1.0),
}


def crowd(share, harm):
    """Return 20 updates, a share of them hostile."""
    updates = honest(20)
    bad = round(share * 20)
    return updates[bad:] + HARM[harm](updates[:bad])


@pytest.mark.parametrize("harm", sorted(HARM))
@pytest.mark.parametrize(("share", "aggregator"), [(share, a) for share, found in HOLD.items() for a in found])
def test_what_holds_against_a_share_of_hostile_clients(share, aggregator, harm):
    updates = crowd(share, harm)
    assert error(aggregator, updates) < 0.5 < error(Mean(), updates)


@pytest.mark.parametrize(
    ("share", "aggregator"),
    [(0.4, TrimmedMean(0.2)), (0.6, Median()), (0.6, GeometricMedian()), (0.6, Krum(0.45)), (0.6, Bulyan(0.45))],
)
def test_what_does_not_hold_against_more_than_it_is_made_for(share, aggregator):
    assert error(aggregator, crowd(share, "together")) > 0.5


def test_a_small_inner_product_passes_where_distances_are_looked_at():
    updates = honest(12, noise=0.3) + times(honest(8, noise=0.3, seed=2), -0.5)
    assert error(MultiKrum(0.2), updates) > 2 * error(MultiKrum(0.2), honest(20, noise=0.3))


def test_a_bound_keeps_a_far_update_from_owning_the_mean():
    few = crowd(0.2, "far")
    assert error(NormBound(1.5), few) < 0.1  # they point where the others do
    against = honest(16) + times(honest(4, seed=2), -1e6)
    assert error(NormBound(1.5), against) < 0.5
    assert l2_norm(combined(NormBound(0.3), against)) <= 0.3 + 1e-6


def test_centered_clipping_comes_nearer_from_round_to_round_and_a_bound_does_not():
    against = honest(12) + times(honest(8, seed=2), -1e6)
    aggregator, errors = CenteredClipping(0.5), []
    for _ in range(12):
        errors.append(error(aggregator, against))
        aggregator.on_aggregate(LIKE, ORDER, 20)
    assert errors[-1] < 0.4 < errors[0]
    assert errors[-1] < error(NormBound(0.5), against)


def test_centered_clipping_goes_on_from_its_state_and_drops_what_a_round_did_not_use():
    one, other = CenteredClipping(0.5), CenteredClipping(0.5)
    combined(one, honest(5))
    one.on_aggregate(LIKE, ORDER, 5)
    other.restore(one.state())
    combined(one, times(honest(5), 9.0))  # too few replies: the round makes nothing
    assert same_bits(combined(one, honest(5, seed=3)), combined(other, honest(5, seed=3)))
    assert not same_bits(combined(other, honest(5, seed=3)), combined(CenteredClipping(0.5), honest(5, seed=3)))


def test_validation_weights_are_a_softmax_of_what_the_server_measures():
    updates = honest(3)
    accuracies = iter([0.5, 0.6, 0.8])
    aggregator = ByValidation(lambda _: next(accuracies), 0.1)
    shares = torch.tensor([5.0, 6.0, 8.0]).softmax(0)
    expected = sum(share * flat(update.delta) for share, update in zip(shares, updates, strict=True))
    torch.testing.assert_close(flat(combined(aggregator, updates)), expected)


def test_what_a_client_says_of_its_own_accuracy_is_not_believed():
    liar = replace(honest(1)[0], metrics={"validation_accuracy": 1.0})
    assert ByValidation(lambda _: 0.25).on_receive(liar, ORDER).metrics == {"validation_accuracy": 0.25}


@given(accuracy=st.floats(0, 1), temperature=st.floats(0.02, 1))
def test_no_validation_weight_vanishes(accuracy, temperature):
    update = ByValidation(lambda _: accuracy, temperature).on_receive(honest(1)[0], ORDER)
    weight = ByValidation(lambda _: accuracy, temperature).weight(update)
    assert 1e-30 < weight <= 1.0


# Rounds

CONFIG = toy_config(dropout=DropoutOptions())
EMBEDDING = "encoder.embedding.weight"


def local():
    return LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 8, 0.3, clip=1.0)


def start_weights():
    return weights_of(toy_model(CONFIG))


def held_out():
    model, valid = toy_model(CONFIG), toy_examples(30, seed=50)

    def evaluate(weights):
        load_weights(model, weights)
        return ClassificationCounts.of(class_probabilities(model, valid), valid.targets_N).figures()

    return evaluate


def run(aggregator, *, processes=1, server=None, states=()):
    data = {f"c{n:02}": toy_examples(4 + n % 3, seed=20 + n) for n in range(18)}  # more clients than lanes
    update = local()
    method = FederatedAlgorithm(
        aggregator=aggregator,
        server_optimizer=server or ServerSGD(1.0, 0.9),
        sampler=Uniform(0.95, 7),
    )
    state = states[-1] if states else FederationState(start_weights())
    kept = []

    def keep(now):
        tensors = {name: value.clone() for name, value in now.tensors().items()}
        kept.append(FederationState.of(dict(sorted(tensors.items())), now.facts()))

    with LocalCohort(data, update, processes=processes) as cohort:
        stopping = Stopping(2, keep_best=False)
        weights, _ = run_rounds(method, cohort, state, stopping, held_out(), seed=7, after_round=keep)
    return weights, kept


def by_validation():
    evaluate = held_out()
    return ByValidation(lambda weights: evaluate(weights)["accuracy"], 0.05)


NEW = {
    "validation": by_validation,
    "norm_bound": lambda: NormBound(0.2),
    "centered_clipping": lambda: CenteredClipping(0.2),
    "geometric_median": GeometricMedian,
    "bulyan": Bulyan,
}


@pytest.mark.parametrize("name", sorted(NEW))
def test_the_number_of_processes_changes_no_bit(name):
    weights, _ = run(NEW[name]())
    assert not same_bits(weights, start_weights())
    assert same_bits(run(NEW[name](), processes=2)[0], weights)


STATEFUL = [(name, ServerSGD) for name in sorted(NEW)]
STATEFUL += [("norm_bound", server) for server in (ServerAdam, ServerYogi, ServerAdagrad)]


@pytest.mark.parametrize(("name", "server"), STATEFUL)
def test_a_federation_resumed_after_a_round_has_the_same_bits(name, server):
    weights, states = run(NEW[name](), server=server())
    assert same_bits(run(NEW[name](), server=server(), states=states[:1])[0], weights)


def test_an_aggregator_that_is_a_transform_receives_what_the_others_have_undone():
    bound, rows = NormBound(1.0), UsedRows()
    made = FederatedAlgorithm(
        transforms=(rows,),
        aggregator=bound,
        server_optimizer=ServerSGD(),
        sampler=Uniform(1.0, 0),
    )
    assert made.transforms == (bound, rows)
    assert replace(made, server_optimizer=ServerSGD()).transforms == (bound, rows)


@pytest.mark.parametrize("aggregator", [Mean(), WeightedMean()])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_embeddings_row_is_averaged_over_the_clients_that_used_it(aggregator, processes):
    def update(instruction, client):
        delta = {name: torch.zeros_like(value) for name, value in instruction.weights.items()}
        tokens = sorted(set(client.examples.inputs.tolist()))
        delta[EMBEDDING][tokens] = float(len(client.examples))
        return Update(client.name, delta, len(client.examples))

    data = {"a": toy_examples(2, seed=1), "b": toy_examples(5, seed=2), "c": toy_examples(3, seed=3)}
    with LocalCohort(data, update, processes=processes) as cohort:
        method = FederatedAlgorithm(
            transforms=(UsedRows(),), aggregator=aggregator, server_optimizer=ServerSGD(),
            sampler=Uniform(1.0, 0),
        )  # fmt: skip
        start = start_weights()
        weights, _ = run_rounds(method, cohort, FederationState(start), Stopping(1), held_out(), seed=0)
        plain = cohort.bytes_up
    moved = (weights[EMBEDDING] - start[EMBEDDING])[:, 0]
    for token, found in enumerate(moved.tolist()):
        users = [float(len(e)) for e in data.values() if token in e.inputs]
        counts = users if isinstance(aggregator, WeightedMean) else [1.0] * len(users)
        mean = sum(c * u for c, u in zip(counts, users, strict=True)) / sum(counts) if users else 0.0
        assert found == pytest.approx(mean, abs=1e-5)
    assert len({len(users) for users in ([e for e in data.values() if t in e.inputs] for t in range(4, 20))}) > 1
    with LocalCohort(data, update) as cohort:  # nothing more is sent
        cohort.average(Instruction(1, start, 0), sorted(data), (), aggregator)
        assert cohort.bytes_up == plain


# Server optimizers


def adaptive(kind, directions, lr=0.1, beta1=0.9, beta2=0.99, tau=0.01):
    """Return one number's way, by the paper's formulas."""
    x, m, v = 0.0, 0.0, tau**2
    for d in directions:
        m = beta1 * m + (1 - beta1) * d
        v = {
            "adam": beta2 * v + (1 - beta2) * d * d,
            "yogi": v - (1 - beta2) * d * d * math.copysign(1.0, v - d * d),
            "adagrad": v + d * d,
        }[kind]
        x += lr * m / (math.sqrt(v) + tau)
    return x


SERVERS = {"adam": ServerAdam, "yogi": ServerYogi, "adagrad": ServerAdagrad}


@pytest.mark.parametrize("kind", sorted(SERVERS))
def test_an_adaptive_server_steps_as_the_paper_has_it(kind):
    directions = [0.5, -0.2, 1e-4, 2.0, 0.3]
    server, x = SERVERS[kind](lr=0.1, tau=0.01), {"w": torch.zeros(2)}
    for d in directions:
        x = server.step(x, {"w": torch.tensor([d, -d])})
    expected = adaptive(kind, directions)
    torch.testing.assert_close(x["w"], torch.tensor([expected, -expected]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(SERVERS))
def test_an_adaptive_server_goes_on_from_its_state(kind):
    server, other = SERVERS[kind](), SERVERS[kind]()
    server.step(LIKE, DIRECTION)
    other.restore(server.state())
    assert same_bits(server.step(LIKE, DIRECTION), other.step(LIKE, DIRECTION))
    assert not same_bits(server.step(LIKE, DIRECTION), SERVERS[kind]().step(LIKE, DIRECTION))


# Attacks


def attacked(attack, client=None, update=None):
    return Attacked(update or local(), attack, frozenset({"bad"}))(
        Instruction(1, start_weights(), 3), client or somebody("bad")
    )


def somebody(name, count=12):
    return Client(name, toy_examples(count, seed=4))


def test_only_attackers_attack():
    order = Instruction(1, start_weights(), 3)
    population = Attacked(local(), SignFlip(), frozenset({"bad"}))
    assert same_bits(population(order, somebody("good")).delta, local()(order, somebody("good")).delta)
    assert not same_bits(population(order, somebody("bad")).delta, local()(order, somebody("bad")).delta)


@pytest.mark.parametrize(("attack", "scale"), [(SignFlip(), -1.0), (Scaling(), 10.0), (InnerProduct(0.3), -0.3)])
def test_a_poisoned_update_is_a_multiple_of_the_honest_one(attack, scale):
    order = Instruction(1, start_weights(), 3)
    own = local()(order, somebody("bad"))
    made = attacked(attack)
    assert same_bits(made.delta, {name: value * scale for name, value in own.delta.items()})
    assert (made.rows, made.metrics) == (own.rows, own.metrics)


def test_an_inner_product_attack_is_a_flipped_sign_at_a_smaller_usual_scale():
    assert same_bits(attacked(InnerProduct(0.7)).delta, attacked(SignFlip(0.7)).delta)
    assert InnerProduct().attack_scale < SignFlip().attack_scale


def test_what_a_method_adds_to_an_update_stays_honest():
    def update(instruction, client):
        return Update(
            client.name, {n: torch.ones_like(v) for n, v in instruction.weights.items()} | {"m/x": torch.ones(2)}, 1
        )

    made = attacked(SignFlip(3.0), update=update)
    assert torch.equal(made.delta["m/x"], torch.ones(2))
    assert float(made.delta["head.linear.bias"][0]) == -3.0


def test_flipped_labels_are_learned_and_the_clients_rows_stay_as_they_are():
    seen = []

    def update(instruction, client):
        seen.append(client.examples.targets_N.tolist())
        client.state = client.state | {"x": torch.ones(1)}
        return Update(client.name, dict(instruction.weights), len(client.examples))

    client = somebody("bad")
    before = client.examples.targets_N.tolist()
    attacked(LabelFlip(3), client, update)
    assert seen == [[2 - label for label in before]]
    assert client.examples.targets_N.tolist() == before
    assert client.state.keys() == {"x"}


def test_a_backdoor_teaches_its_trigger_and_leaves_other_rows_right():
    config = toy_config()
    start = weights_of(toy_model(config))
    train = LocalTraining(toy_model(config), config.make_task(), 10, 8, 1.0, clip=1.0)
    trigger = toy_featurizer().numbers["average"]  # a word that rows of two labels never have
    rows, test = toy_examples(120, seed=1), toy_examples(60, seed=2)
    backdoor = Backdoor(trigger, target_class=1)
    figures = {}
    for name, update in {"honest": train, "attacked": Attacked(train, backdoor, frozenset({"bad"}))}.items():
        with one_thread():  # as in a cohort
            made = update(Instruction(1, start, 0), Client("bad", rows))
        assert made.rows == 120
        model = toy_model(config)
        load_weights(model, add_scaled(start, made.delta))
        clean = ClassificationCounts.of(class_probabilities(model, test), test.targets_N).figures()["accuracy"]
        figures[name] = backdoor.measured(model, test) | {"accuracy": clean}
    assert figures["attacked"]["success_rate"] > 0.9 > 0.6 > figures["honest"]["success_rate"]
    assert min(figures[name]["accuracy"] for name in figures) > 0.85
    assert figures["attacked"]["n"] == 30


def test_a_free_rider_does_no_work():
    def work(instruction, client):
        raise AssertionError

    lazy = attacked(FreeRider(), update=work)
    assert lazy.rows == 12
    assert not any(value.any() for value in lazy.delta.values())
    noisy = attacked(FreeRider(0.5), update=work)
    assert float(noisy.delta[EMBEDDING].std()) == pytest.approx(0.5, rel=0.2)
    assert same_bits(noisy.delta, attacked(FreeRider(0.5), update=work).delta)


@given(count=st.integers(2, 60), share=st.floats(0.01, 1.0), seed=st.integers(0, 5))
def test_attackers_are_a_share_drawn_from_the_seed(count, share, seed):
    clients = [f"c{n:02d}" for n in range(count)]
    chosen = chosen_attackers(clients, share, seed)
    assert len(chosen) == max(1, round(share * count))
    assert chosen == sorted(set(chosen)) == chosen_attackers(clients, share, seed)
    assert set(chosen) <= set(clients)


# The verb


def options(data, out, **changes):
    given = {"data": str(data / "train.csv"), "test": str(data / "test.csv"), "client": "client", "out": out}
    run = {"quiet": True, "valid": 0.3, "rounds": 2, "participation": 1.0, "batch_size": 8, "device": "cpu"}
    return FederateOptions(**given | run | {"controls": False} | changes)


def test_a_federation_says_who_attacked_and_how_well_the_backdoor_works(data, source, tmp_path):
    federate(source, options(data, tmp_path / "f", attack="backdoor", attackers=0.34, attack_scale=3.0))
    record = StageRecord.load(tmp_path / "f")
    assert any(note.startswith("Clients that attack (backdoor): 2 (c") for note in record.notes)
    assert record.metrics["backdoor"].keys() == {"success_rate", "without_trigger", "n"}
    assert record.metrics["backdoor"]["n"] == 45
    federate(source, options(data, tmp_path / "g", aggregator="krum", hostile=0.4))
    record = StageRecord.load(tmp_path / "g")
    assert "backdoor" not in record.metrics
    assert "krum takes 1 of a round's 6 clients for hostile." in record.notes


def test_of_many_attackers_the_first_are_named(data, source, tmp_path):
    many = {"client": None, "partition": "iid", "clients": 12, "attack": "free_rider", "attackers": 0.75, "rounds": 1}
    federate(source, options(data, tmp_path / "f", **many))
    (note,) = (note for note in StageRecord.load(tmp_path / "f").notes if "attack" in note)
    chosen = chosen_attackers([f"client-{n:02d}" for n in range(12)], 0.75, 0)
    assert note == f"Clients that attack (free_rider): 9 ({', '.join(chosen[:8])} and others)."
    assert (named(chosen[:8]), named([])) == (", ".join(chosen[:8]), "")
    assert named(["a\nb", "\x1b[31m", "ann"]) == r"'a\nb', '\x1b[31m', ann"


def test_a_sign_flipping_third_undoes_the_mean_and_not_the_median(data, source, tmp_path):
    harm = {"attack": "sign_flip", "attackers": 0.34, "attack_scale": 20.0, "fresh": True, "rounds": 4}
    found = {}
    for aggregator in ("mean", "median"):
        federate(source, options(data, tmp_path / aggregator, aggregator=aggregator, **harm))
        found[aggregator] = StageRecord.load(tmp_path / aggregator).metrics["test"]["loss"]
    assert found["median"] < found["mean"]


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregator": "validation", "processes": 2},
        {"used_rows": True, "server_optimizer": "adam"},
        {"used_rows": True, "aggregator": "validation", "codec": "int8"},
        {"method": "scaffold", "aggregator": "trimmed_mean", "client_lr": 0.1},
        {"aggregator": "centered_clipping", "attack": "free_rider"},
    ],
)
def test_the_pieces_go_together(changes, data, source, tmp_path):
    federate(source, options(data, tmp_path / "f", **changes))
    record = StageRecord.load(tmp_path / "f")
    assert [row.failed for row in record.rounds] == [{}, {}]
    assert record.metrics["test"]["accuracy"] > record.baselines["majority"]["accuracy"]
    assert not [note for note in record.notes if "ignored" in note]


REFUSED = {
    "used_rows takes rows out of an average": {"used_rows": True, "aggregator": "krum"},
    "with epsilon.*used_rows": {"used_rows": True, "aggregator": "mean", "epsilon": 1.0},
    "scaffold sends beside the weights": {"aggregator": "norm_bound", "method": "scaffold"},
    "fednova sends no weights": {"aggregator": "validation", "method": "fednova"},
    "gives rows other labels": {"attack": "backdoor", "task": "language_modeling"},
}


@pytest.mark.parametrize("why", sorted(REFUSED))
def test_what_does_not_go_together_is_refused_by_name(why):
    with pytest.raises(ConfigError, match=why):
        FederateOptions.parse({"data": "x", "out": "y"} | REFUSED[why])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"freeze": "embedding", "used_rows": True}, "share no embedding"),
        ({"aggregator": "validation", "valid": 0.01}, "'validation' goes by those: leave it out"),
    ],
)
def test_what_the_rows_or_the_model_do_not_allow_is_refused(changes, why, data, source, tmp_path):
    with pytest.raises(ConfigError, match=why):
        federate(source, options(data, tmp_path / "f", **changes))
    assert not (tmp_path / "f").exists()


def test_options_without_effect_are_said(tmp_path):
    given = {"data": "x", "out": "y", "trim": 0.1, "hostile": 0.1, "server_tau": 0.1, "attackers": 0.4}
    notes = FederateOptions(**given).notes()
    assert [note.split(" ")[0] for note in notes] == ["--attackers", "--server-tau", "--trim", "--hostile"]
    read = {"aggregator": "krum", "server_optimizer": "yogi", "attack": "sign_flip"}
    assert [note.split(" ")[0] for note in FederateOptions(**given | read).notes()] == ["--trim"]


def test_each_server_optimizer_has_its_own_rate():
    assert [ServerSGD().lr, ServerAdam().lr, ServerYogi().lr, ServerAdagrad().lr] == [1.0, 0.01, 0.01, 0.03]
    assert FederateOptions(data="x", out="y").server_lr is None
