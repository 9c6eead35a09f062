"""Federated learning: one wire for simulation and deployment, equal bits, honest accounting."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import join, same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv
from hypothesis import given
from hypothesis import strategies as st

from headwater.data.batches import Shuffler
from headwater.data.rows import Rows, label_set
from headwater.descent import sgd_step
from headwater.errors import ConfigError, DataError, FederationError
from headwater.evaluation import Evaluation
from headwater.federated import AGGREGATORS, PARTITIONERS
from headwater.federated.aggregators import FixedMean, Mean, Median, WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining, client_seed
from headwater.federated.clip_and_noise import ClipAndNoise
from headwater.federated.controls import measure_alone
from headwater.federated.measuring import Measure
from headwater.federated.options import FederateOptions
from headwater.federated.personalization import Head, PersonalizeOptions, fit_head, personalize
from headwater.federated.population import read_population
from headwater.federated.protocols import (
    Client,
    FederatedAlgorithm,
    Instruction,
    Replies,
    Update,
    UpdateTransform,
    expected,
)
from headwater.federated.sampling import Poisson, Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.verb import _Federation, federate
from headwater.federated.wire import Wire, received
from headwater.metrics import ClassificationCounts
from headwater.model import DropoutOptions
from headwater.privacy.accounting import epsilon_by_round, epsilon_spent, noise_for
from headwater.records import Privacy, StageRecord
from headwater.registry import lookup
from headwater.tasks.classification import class_probabilities
from headwater.weights import add_scaled, l2_norm, load_weights, weights_of

CPU = torch.device("cpu")
LIKE = {"a": torch.zeros(3, 2), "b": torch.zeros(4)}
NAMES = sorted(AGGREGATORS)


def drawn(seed, like=LIKE):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in like.items()}


def updates(count, *, first=0):
    return [Update(f"c{n}", drawn(first + n), rows=1 + 3 * n) for n in range(count)]


WIRE = Wire()
instruction_size, pack_instruction, pack_update = WIRE.instruction_size, WIRE.pack_instruction, WIRE.pack_update
unpack_instruction, update_size = WIRE.unpack_instruction, WIRE.update_size


def unpack_update(message, *, client, instruction):
    update = WIRE.unpack_update(message, client=client, instruction=instruction, like=instruction.weights)
    return received(update, instruction, (), instruction.weights)


def close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=atol, rtol=1e-5)


ROOM = {
    "norm_bound": {"norm_bound": 1e6},
    "centered_clipping": {"clip_radius": 1e6},
    "validation": {"accuracy": lambda _: 0.5},
}
"""What the rules for all aggregators hold with: far from a bound, and where the server finds all clients alike."""


def aggregate(name, given):
    aggregator = lookup("headwater.aggregators", AGGREGATORS, name)(**ROOM.get(name, {}))
    moment = aggregator.on_receive if isinstance(aggregator, UpdateTransform) else lambda update, _: update
    return aggregator((moment(update, Instruction(1, LIKE, 0)) for update in given), LIKE)


# Aggregators


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 5, 6])
def test_the_order_of_the_clients_changes_nothing_but_rounding(name, count):
    given = updates(count)
    shuffled = [given[n] for n in np.random.default_rng(0).permutation(count)]
    close(aggregate(name, given), aggregate(name, shuffled))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_single_client_is_returned_as_it_is(name, rows):
    only = Update("c", drawn(1), rows)
    close(aggregate(name, [only]), only.delta)


@pytest.mark.parametrize("name", NAMES)
def test_equal_clients_agree_on_themselves(name):
    close(aggregate(name, [Update(f"c{n}", drawn(1), rows=4) for n in range(5)]), drawn(1))


@pytest.mark.parametrize("name", NAMES)
def test_an_aggregator_scales_with_its_updates_and_leaves_them_alone(name):
    given = updates(5)
    doubled = [replace(u, delta={n: 2 * v for n, v in u.delta.items()}) for u in given]
    close(aggregate(name, doubled), {n: 2 * v for n, v in aggregate(name, given).items()})
    for update, other in zip(given, updates(5), strict=True):
        assert same_bits(update.delta, other.delta)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_no_direction(name):
    assert same_bits(aggregate(name, []), LIKE)


@pytest.mark.parametrize("name", NAMES)
def test_clients_without_rows_do_not_divide_by_zero(name):
    made = aggregate(name, [replace(update, rows=0) for update in updates(2)])
    assert all(bool(value.isfinite().all()) for value in made.values())


def test_the_mean_counts_clients_and_the_weighted_mean_counts_rows():
    one, two = Update("a", drawn(1), 1), Update("b", drawn(2), 3)
    close(Mean()([one, two], LIKE), {n: (one.delta[n] + two.delta[n]) / 2 for n in LIKE})
    close(WeightedMean()([one, two], LIKE), {n: (one.delta[n] + 3 * two.delta[n]) / 4 for n in LIKE})
    tenfold = [replace(update, rows=10 * update.rows) for update in (one, two)]
    close(WeightedMean()(tenfold, LIKE), WeightedMean()([one, two], LIKE))


@pytest.mark.parametrize(("honest", "outliers"), [(3, 2), (4, 3), (6, 1)])
def test_the_median_holds_against_a_minority(honest, outliers):
    good = updates(honest)
    bad = [Update(f"x{n}", {name: torch.full_like(v, 1e9) for name, v in LIKE.items()}, 10**6) for n in range(outliers)]
    made = Median()(good + bad, LIKE)
    for name, value in made.items():
        stacked = torch.stack([update.delta[name] for update in good])
        assert ((value >= stacked.min(0).values) & (value <= stacked.max(0).values)).all()
    assert float(Mean()(good + bad, LIKE)["b"].max()) > 1e7


def test_the_median_equals_numpys():
    for count in (4, 5):
        given = updates(count)
        expected = np.median(np.stack([update.delta["a"].numpy() for update in given]), axis=0)
        np.testing.assert_allclose(Median()(given, LIKE)["a"].numpy(), expected, atol=1e-7)


def test_the_fixed_mean_divides_by_the_number_expected():
    made = FixedMean(4.0)(updates(2), LIKE)
    close(made, {n: (drawn(0)[n] + drawn(1)[n]) / 4 for n in LIKE})


# The wire

INSTRUCTION = Instruction(round=3, weights=drawn(9), seed=11)


def test_an_instruction_is_unpacked_as_it_was_packed():
    got = unpack_instruction(pack_instruction(INSTRUCTION))
    assert (got.round, got.seed) == (3, 11)
    assert same_bits(got.weights, INSTRUCTION.weights)


@given(
    client=st.text(max_size=12).filter(lambda text: text.isprintable()),
    rows=st.integers(0, 10**9),
    seed=st.integers(0, 9),
)
def test_an_update_is_unpacked_as_it_was_packed(client, rows, seed):
    update = Update(client, drawn(seed), rows, {"loss": 0.1 + seed})
    got = unpack_update(pack_update(update), client=client, instruction=INSTRUCTION)
    assert (got.client, got.rows, got.metrics) == (client, rows, {"loss": 0.1 + seed})
    assert same_bits(got.delta, update.delta)


def test_a_message_holds_no_more_than_numbers_and_a_header():
    size = sum(value.numel() * 4 for value in LIKE.values())
    assert size < len(pack_update(Update("c", drawn(0), 1))) < size + 600


GOOD = Update("ann", drawn(4), 5)
REFUSED = {
    "another name": replace(GOOD, delta={"a": GOOD.delta["a"], "c": GOOD.delta["b"]}),
    "a weight too few": replace(GOOD, delta={"a": GOOD.delta["a"]}),
    "a weight too many": replace(GOOD, delta=GOOD.delta | {"c": torch.zeros(1)}),
    "another shape": replace(GOOD, delta=GOOD.delta | {"b": torch.zeros(5)}),
    "not a number": replace(GOOD, delta=GOOD.delta | {"b": torch.tensor([1.0, math.nan, 0.0, 0.0])}),
    "infinite": replace(GOOD, delta=GOOD.delta | {"b": torch.tensor([1.0, math.inf, 0.0, 0.0])}),
    "a foreign client": replace(GOOD, client="bob"),
    "fewer rows than none": replace(GOOD, rows=-1),
    "another type": replace(GOOD, delta={name: value.double() for name, value in GOOD.delta.items()}),
}


@pytest.mark.parametrize("why", sorted(REFUSED))
def test_an_update_that_is_not_one_is_refused_with_client_round_and_stage(why):
    message = pack_update(REFUSED[why])
    with pytest.raises(FederationError, match="client 'ann', round 3, receive") as caught:
        unpack_update(message, client="ann", instruction=INSTRUCTION)
    assert (caught.value.client, caught.value.round_number, caught.value.stage) == ("ann", 3, "receive")


WHOLE = pack_update(GOOD)


@pytest.mark.parametrize(
    "message",
    [b"", b"\x00", b"garbage" * 9, WHOLE[:40], WHOLE[:-4], b"\xff" * 8 + WHOLE[8:], safetensors.torch.save(drawn(4))],
)
def test_bytes_that_are_no_update_are_refused(message):
    with pytest.raises(FederationError, match="not an update"):
        unpack_update(message, client="ann", instruction=INSTRUCTION)


@pytest.mark.parametrize("facts", ["[]", '{"client": "ann"}', '{"client": "ann", "rows": "x", "metrics": {}}', "{"])
def test_an_update_with_a_broken_header_is_refused(facts):
    message = safetensors.torch.save(GOOD.delta, {"facts": facts})
    with pytest.raises(FederationError, match="not an update"):
        unpack_update(message, client="ann", instruction=INSTRUCTION)


def test_the_wire_carries_no_pickle():
    header = json.loads(WHOLE[8 : 8 + int.from_bytes(WHOLE[:8], "little")])
    assert header.keys() == {"__metadata__", "a", "b"}


# Clients, rounds, cohorts

CONFIG = toy_config(dropout=DropoutOptions())
SHARED = ("encoder.stack.", "head.")


def local(*, epochs=1, batch_size=8, optimizer="sgd", lr=0.3, config=CONFIG):
    return LocalTraining(toy_model(config), config.make_task(), epochs, batch_size, lr, optimizer, 1.0, CPU)


def population(clients=5):
    return {f"c{n}": toy_examples(6 + 4 * n, seed=20 + n) for n in range(clients)}


def start_weights(prefixes=("",)):
    return {name: value for name, value in weights_of(toy_model(CONFIG)).items() if name.startswith(tuple(prefixes))}


def algorithm(*, transforms=(), aggregator=None, share=0.6, momentum=0.9):
    return FederatedAlgorithm(
        transforms=transforms,
        aggregator=aggregator or WeightedMean(),
        server_optimizer=ServerSGD(1.0, momentum),
        sampler=Uniform(share, 7),
    )


def measuring(config=CONFIG):
    model, valid = toy_model(config), toy_examples(30, seed=50)

    def evaluate(weights):
        load_weights(model, weights)
        return ClassificationCounts.of(class_probabilities(model, valid), valid.targets_N).figures()

    return evaluate


class Deployed:
    """Clients that share nothing but bytes: each has its own model, and they answer out of order."""

    def __init__(self, data):
        self.devices = {client: (local(), examples) for client, examples in data.items()}
        self.bytes_down = self.bytes_up = 0
        self.replies = Replies()

    def clients(self):
        return sorted(self.devices)

    def gather(self, instruction, clients, transforms):
        request = pack_instruction(instruction)
        inbox = {}
        for client in sorted(clients, reverse=True):
            torch.manual_seed(len(inbox))  # each device has drawn something else before
            train, examples = self.devices[client]
            heard = unpack_instruction(bytes(request))
            device = Client(client, examples)
            update = train(heard, device)
            for transform in transforms:
                update = transform.on_client(update, heard, device)
            inbox[client] = bytes(pack_update(update))
            self.bytes_down += len(request)
            self.bytes_up += len(inbox[client])
        self.replies = Replies()
        for client in sorted(inbox):
            like = expected(instruction.weights, transforms)
            answer = WIRE.unpack_update(inbox[client], client=client, instruction=instruction, like=like)
            answer = received(answer, instruction, transforms, like)
            self.replies.metrics[client] = answer.metrics
            yield answer


PRIVATE = ClipAndNoise(clip=0.1, noise_multiplier=0.5, expected=3.0, seed=7)


@pytest.mark.parametrize("transforms", [(), (PRIVATE,)])
@pytest.mark.parametrize("prefixes", [("",), SHARED])
def test_the_simulated_cohort_equals_a_deployed_one_to_the_bit(transforms, prefixes):
    data = population()
    runs = []
    for cohort in (LocalCohort(data, local()), Deployed(data)):
        state = FederationState(start_weights(prefixes))
        method = algorithm(transforms=transforms)
        weights, _ = run_rounds(method, cohort, state, Stopping(4, keep_best=False), measuring(), seed=7)
        runs.append((weights, state.records, cohort.bytes_down, cohort.bytes_up))
    assert same_bits(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert runs[0][2] == sum(record.bytes_down for record in runs[0][1]) > 0
    assert not same_bits(runs[0][0], start_weights(prefixes))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_client_with_all_rows_and_plain_averaging_is_central_training(optimizer):
    rows = join(list(population().values()))
    lr = 0.3 if optimizer == "sgd" else 0.01
    train = local(epochs=3, optimizer=optimizer, lr=lr)
    method = algorithm(aggregator=Mean(), momentum=0.0)
    state = FederationState(start_weights())
    weights, _ = run_rounds(
        method, LocalCohort({"all": rows}, train), state, Stopping(1, keep_best=False), measuring(), seed=7
    )
    central = local(epochs=3, optimizer=optimizer, lr=lr)
    update = central(Instruction(1, start_weights(), 7), Client("all", rows))
    assert same_bits(weights, add_scaled(start_weights(), update.delta))
    # The same by hand, in torch alone; the detour over a difference rounds once.
    model = toy_model(CONFIG)
    task, seed = CONFIG.make_task(), client_seed(7, 1, "all")
    torch.manual_seed(seed)
    batches = Shuffler(rows, 8, seed)
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    stepper = kinds[optimizer](model.parameters(), lr=lr, fused=True)
    model.train()
    for step in range(3 * batches.steps_per_epoch):
        stepper.zero_grad()
        task.loss(model, batches[step]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
    for name, value in weights_of(model).items():
        torch.testing.assert_close(weights[name], value, atol=3e-7, rtol=0)
    assert not same_bits(weights, start_weights())


def test_a_client_learns_only_what_is_shared():
    train = local()
    shared = start_weights(["head."])
    update = train(Instruction(1, shared, 0), Client("c", toy_examples(20)))
    assert update.delta.keys() == shared.keys()
    after = weights_of(train.model)
    assert same_bits({n: v for n, v in after.items() if n not in shared}, start_weights(["encoder."]))
    assert all(bool((value != 0).any()) for value in update.delta.values())
    assert update.rows == 20
    assert math.isfinite(update.metrics["loss"])


def test_a_clients_answer_does_not_depend_on_who_came_before():
    train, instruction = local(), Instruction(2, start_weights(), 1)
    alone = train(instruction, Client("c1", toy_examples(20, seed=3))).delta
    train(instruction, Client("c0", toy_examples(30, seed=4)))
    assert same_bits(train(instruction, Client("c1", toy_examples(20, seed=3))).delta, alone)
    assert not same_bits(train(instruction, Client("c2", toy_examples(20, seed=3))).delta, alone)


@pytest.mark.parametrize("transforms", [(), (PRIVATE,)])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_federation_saved_between_two_rounds_ends_with_the_same_bits(transforms, stop):
    data = population()
    whole = FederationState(start_weights())
    expected, why = run_rounds(
        algorithm(transforms=transforms), LocalCohort(data, local()), whole, Stopping(5), measuring(), seed=7
    )
    saved = []

    def save(state):
        tensors = {name: value.clone() for name, value in state.tensors().items()}
        saved.append((safetensors.torch.save(tensors), json.dumps(state.facts())))

    run_rounds(
        algorithm(transforms=transforms),
        LocalCohort(data, local()),
        FederationState(start_weights()),
        Stopping(stop),
        measuring(),
        seed=7,
        after_round=save,
    )
    tensors, facts = saved[-1]
    state = FederationState.of(safetensors.torch.load(tensors), json.loads(facts))
    weights, again = run_rounds(
        algorithm(transforms=transforms), LocalCohort(data, local()), state, Stopping(5), measuring(), seed=7
    )
    assert same_bits(weights, expected)
    assert (state.records, again) == (whole.records, why)


def scripted(scores):
    scores = iter(scores)
    return lambda _: {"accuracy": next(scores), "loss": 1.0}


@pytest.mark.parametrize(
    ("stopping", "rounds", "best", "why"),
    [
        (Stopping(9, target=0.7), 3, 3, "reached the target accuracy 0.7 in round 3"),
        (Stopping(9, patience=2), 5, 3, "converged: no better held-out accuracy for 2 rounds"),
        (Stopping(4), 4, 3, "reached the limit of 4 rounds"),
        (Stopping(4, keep_best=False), 4, 4, "reached the limit of 4 rounds"),
    ],
)
def test_a_federation_ends_at_a_target_a_plateau_or_the_limit(stopping, rounds, best, why):
    kept = []
    state = FederationState(start_weights())
    weights, reason = run_rounds(
        algorithm(),
        LocalCohort(population(), local()),
        state,
        stopping,
        scripted([0.5, 0.6, 0.7, 0.65, 0.6, 0.9, 0.9, 0.9, 0.9]),
        seed=7,
        after_round=lambda now: kept.append(now.weights),
    )
    assert reason == why
    assert [record.round for record in state.records] == list(range(1, rounds + 1))
    assert same_bits(weights, kept[best - 1])


def test_an_interruption_does_not_make_a_federation_more_patient():
    state = FederationState(start_weights())
    method, cohort = algorithm(), LocalCohort(population(), local())
    run_rounds(method, cohort, state, Stopping(2, patience=2), scripted([0.7, 0.6]), seed=7)
    again = FederationState.of(state.tensors(), json.loads(json.dumps(state.facts())))
    _, why = run_rounds(algorithm(), cohort, again, Stopping(9, patience=2), scripted([0.5, 0.9]), seed=7)
    assert why == "converged: no better held-out accuracy for 2 rounds"
    assert [record.round for record in again.records] == [1, 2, 3]


def test_clients_and_labels_come_in_one_order_whatever_the_order_of_the_rows():
    names = ["10", "9", "1.5", "ann", "inf", "nan", "-2", "Infinity"]
    orders = set()
    for shift in range(len(names)):
        turned = names[shift:] + names[:shift]
        rows = Rows(["x"] * 16, (turned + turned[::-1]), (turned[::-1] + turned), "toy", "0")
        orders.add((tuple(rows.by_client()), label_set(rows)))
    expected = ("-2", "1.5", "9", "10", "Infinity", "ann", "inf", "nan")
    assert orders == {(expected, expected)}


def test_a_federation_whose_loss_is_no_number_ends_with_a_way_out():
    with pytest.raises(FederationError, match="round 1.*--client-lr"):
        run_rounds(
            algorithm(),
            LocalCohort(population(), local()),
            FederationState(start_weights()),
            Stopping(3),
            lambda _: {"accuracy": 0.5, "loss": math.nan},
            seed=7,
        )


@pytest.mark.parametrize("aggregator", [WeightedMean(), Mean(), FixedMean(3.0), Median()])
@pytest.mark.parametrize("transforms", [(), (PRIVATE,)])
def test_the_number_of_processes_changes_no_bit(aggregator, transforms):
    data = {f"c{n:02}": toy_examples(6 + n % 5, seed=20 + n) for n in range(19)}  # more clients than lanes
    runs = []
    for processes in (1, 2, 3):
        with LocalCohort(data, local(), processes=processes) as cohort:
            state = FederationState(start_weights())
            method = algorithm(aggregator=aggregator, transforms=transforms, share=0.95)
            weights, _ = run_rounds(method, cohort, state, Stopping(2, keep_best=False), measuring(), seed=7)
        runs.append((weights, state.records))
    assert not same_bits(runs[0][0], start_weights())
    for weights, records in runs[1:]:
        assert same_bits(weights, runs[0][0])
        assert records == runs[0][1]


def test_what_a_model_was_used_for_before_changes_nothing():
    data, start = toy_examples(9), start_weights()
    fresh, used = local(), local()
    for parameter in used.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    updates = [train(Instruction(1, start, 0), Client("c", data)) for train in (fresh, used)]
    assert same_bits(updates[0].delta, updates[1].delta)


def test_batches_in_order_are_those_of_the_rows_at_hand():
    train = LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 4, 0.3, shuffle=False)
    other = LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 4, 0.3, shuffle=False)
    order = Instruction(1, start_weights(), 0)
    train(order, Client("c", toy_examples(9, seed=1)))
    again, alone = (
        train(order, Client("c", toy_examples(5, seed=2))),
        other(order, Client("c", toy_examples(5, seed=2))),
    )
    assert same_bits(again.delta, alone.delta)


def test_an_aggregator_with_a_call_of_its_own_is_called():
    class Nothing(Mean):
        def __call__(self, updates, like):
            assert len(list(updates)) == 5
            return {name: torch.zeros_like(value) for name, value in like.items()}

    start = start_weights()
    with LocalCohort(population(), local(), processes=2) as cohort:
        method = algorithm(aggregator=Nothing(), share=1.0, momentum=0.0)
        weights, _ = run_rounds(method, cohort, FederationState(start), Stopping(1), measuring(), seed=7)
    assert same_bits(weights, start)


def test_a_cohort_takes_other_weights_and_nobody_and_needs_a_process():
    data = population(3)
    with LocalCohort(data, local(), processes=2) as cohort:
        for prefixes in (("",), SHARED):
            start = start_weights(prefixes)
            assert cohort.average(Instruction(1, start, 0), sorted(data), (), Mean()).keys() == start.keys()
        nobody = cohort.average(Instruction(1, start, 0), [], (), Mean())
    assert all(not value.any() for value in nobody.values())
    with pytest.raises(ValueError, match="0 processes"):
        LocalCohort(data, local(), processes=0)


def test_a_users_own_client_update_runs_in_processes_too():
    start = start_weights()
    here = os.getpid()

    def update(instruction, client):  # a function that nothing could import
        assert os.getpid() != here
        rows = len(client.examples)
        return Update(client.name, {n: torch.full_like(v, rows) for n, v in instruction.weights.items()}, 1)

    data = population(3)
    with LocalCohort(data, update, processes=2) as cohort:
        average = cohort.average(Instruction(1, start, 0), sorted(data), (), Mean())
    mean = sum(len(examples) for examples in data.values()) / 3
    assert all(bool((value == mean).all()) for value in average.values())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cohort_goes_on_after_somebody_stopped_listening(processes):
    data, order = population(4), Instruction(1, start_weights(), 0)
    with LocalCohort(data, local(), processes=processes) as cohort:
        for update in cohort.gather(order, sorted(data), ()):
            assert update.client == "c0"
            break
        assert [update.client for update in cohort.gather(order, sorted(data), ())] == sorted(data)


@given(
    rows=st.integers(0, 10**6),
    client=st.text(max_size=20),
    metrics=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_the_counted_bytes_are_those_of_the_message(rows, client, metrics):
    update = Update(client, drawn(0), rows, metrics)
    assert update_size(update) == len(pack_update(update))
    instruction = Instruction(rows, drawn(0), rows)
    assert instruction_size(instruction) == len(pack_instruction(instruction))


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_step_is_that_of_torchs_sgd(clip):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Embedding(5, 3, sparse=sparse), torch.nn.Linear(3, 2)] for sparse in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        other.load_state_dict(one.state_dict())
    tokens = torch.tensor([1, 3, 3, 1, 1])
    groups = [[p for module in modules for p in module.parameters()] for modules in (ours, theirs)]
    for modules in (ours, theirs):
        modules[1](modules[0](tokens)).square().sum().backward()
    sgd_step(groups[0], 0.1, clip)
    if clip:
        torch.nn.utils.clip_grad_norm_(groups[1], clip)
    torch.optim.SGD(groups[1], lr=0.1).step()
    for one, other in zip(*groups, strict=True):
        torch.testing.assert_close(one, other)
        assert one.grad is None


def test_without_shuffling_the_rows_are_taken_in_their_order():
    seen = []

    class Watching(type(CONFIG.make_task())):
        def loss(self, model, batch):
            seen.append(batch.lengths_B.tolist())
            return super().loss(model, batch)

    examples = toy_examples(10)
    task = Watching(**CONFIG.make_task().model_dump())
    train = LocalTraining(toy_model(CONFIG), task, 2, 4, 0.1, shuffle=False)
    train(Instruction(1, start_weights(), 0), Client("c", examples))
    lengths = examples.lengths_N.tolist()
    assert seen == [lengths[:4], lengths[4:8], lengths[8:]] * 2
    assert not train.model.encoder.embedding.sparse


class Broken:
    """A client update that some clients' training diverges in."""

    def __init__(self, *names):
        self.names = names

    def __call__(self, instruction, client):
        value = math.nan if client.name in self.names else 1.0
        return Update(client.name, {n: torch.full_like(v, value) for n, v in instruction.weights.items()}, 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_client_that_diverges_is_named(processes):
    def run(*names):
        state = FederationState(start_weights())
        with LocalCohort(population(), Broken(*names), processes=processes) as cohort:
            method = algorithm(share=1.0, momentum=0.0, aggregator=Mean())
            return run_rounds(method, cohort, state, Stopping(1, keep_best=False), measuring(), seed=7)[0], state

    weights, state = run("c1", "c3")
    assert list(state.records[0].failed) == ["c1", "c3"]
    assert "lower --client-lr" in state.records[0].failed["c1"]
    close(weights, {name: value + 1 for name, value in start_weights().items()})
    with pytest.raises(FederationError, match="client 'c0', round 1, receive: .*lower --client-lr"):
        run(*population())


class InTurn:
    """One client a round, in the order given."""

    def __init__(self, names):
        self.names = names

    def sample(self, round_number, clients):
        return [self.names[round_number - 1]]


@pytest.mark.parametrize(
    ("order", "fails"), [("01010", None), ("0111", 4), ("1", 1)], ids=["by chance", "three in a row", "at once"]
)
def test_rounds_of_refused_answers_make_nothing_until_there_are_three_in_a_row(order, fails):
    state, names = FederationState(start_weights()), [f"c{number}" for number in order]
    method = replace(algorithm(aggregator=Mean(), momentum=0.0), sampler=InTurn(names))
    with LocalCohort(population(), Broken("c1")) as cohort:

        def run():
            run_rounds(method, cohort, state, Stopping(len(order), keep_best=False), measuring(), seed=7)

        if fails:
            with pytest.raises(FederationError, match=f"client 'c1', round {fails}, receive"):
                run()
        else:
            run()
    taken = sum(not row.failed for row in state.records)
    assert taken == order[: fails or None].count("0")
    close(state.weights, {name: value + taken for name, value in start_weights().items()})


def test_plain_steps_add_and_momentum_keeps_a_share_of_the_last():
    plain, heavy = ServerSGD(0.5), ServerSGD(1.0, 0.9)
    assert float(plain.step({"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)})["w"]) == 2.0
    assert plain.state() == {}
    w = heavy.step({"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)})
    assert heavy.state() == {"w": torch.tensor(1.0)}
    w = heavy.step(w, {"w": torch.tensor(1.0)})
    assert float(w["w"]) == pytest.approx(1.0 + 1.9)
    other = ServerSGD(1.0, 0.9)
    other.restore(heavy.state())
    assert same_bits(other.step(w, {"w": torch.tensor(1.0)}), heavy.step(w, {"w": torch.tensor(1.0)}))


# Samplers

CLIENTS = [f"c{n:03d}" for n in range(200)]


@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 9), number=st.integers(1, 50), count=st.integers(1, 40))
def test_a_uniform_round_is_a_sorted_share_without_repetition(share, seed, number, count):
    chosen = Uniform(share, seed).sample(number, CLIENTS[:count])
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(CLIENTS[:count])
    assert len(chosen) == max(min(2, count), round(share * count))
    assert chosen == Uniform(share, seed).sample(number, CLIENTS[:count])


def test_rounds_and_seeds_choose_different_clients_each_about_as_often():
    sampler = Uniform(0.1, 0)
    rounds = [sampler.sample(number, CLIENTS) for number in range(1, 201)]
    assert len({tuple(chosen) for chosen in rounds}) == 200
    assert rounds[0] != Uniform(0.1, 1).sample(1, CLIENTS)
    counts = [sum(client in chosen for chosen in rounds) for client in CLIENTS]
    assert 5 <= min(counts) <= 20 <= max(counts) <= 40


def test_poisson_rounds_vary_in_size_around_the_rate():
    sampler = Poisson(0.05, 0)
    sizes = [len(sampler.sample(number, CLIENTS)) for number in range(1, 401)]
    assert np.mean(sizes) == pytest.approx(10, abs=0.6)
    assert np.var(sizes) == pytest.approx(200 * 0.05 * 0.95, rel=0.25)
    assert sampler.sample(3, CLIENTS) == Poisson(0.05, 0).sample(3, CLIENTS)
    assert Poisson(1e-9, 0).sample(1, CLIENTS) == []
    assert Poisson(1.0, 0).sample(1, CLIENTS) == CLIENTS


# Privacy


def test_clipping_bounds_an_update_and_leaves_a_small_one_alone():
    transform = ClipAndNoise(clip=0.5, noise_multiplier=1.0, expected=10.0, seed=0)
    large, small = Update("c", drawn(0), 3), Update("c", {n: 1e-3 * v for n, v in drawn(0).items()}, 3)

    def sent(update, instruction):
        return transform.on_client(update, instruction, Client("c", None))

    for moment in (sent, transform.on_receive):
        clipped = moment(large, INSTRUCTION)
        assert l2_norm(clipped.delta) == pytest.approx(0.5, rel=1e-6)
        scale = 0.5 / l2_norm(large.delta)
        close(clipped.delta, {n: v * scale for n, v in large.delta.items()})
        assert same_bits(moment(small, INSTRUCTION).delta, small.delta)
    zero = Update("c", LIKE, 3)
    assert same_bits(sent(zero, INSTRUCTION).delta, LIKE)


def test_noise_has_the_stated_deviation_and_is_new_in_each_round():
    transform = ClipAndNoise(clip=0.5, noise_multiplier=2.0, expected=10.0, seed=0)
    like = {"w": torch.zeros(40_000), "v": torch.zeros(10_000)}
    noise = transform.on_aggregate(like, INSTRUCTION, 3)
    for value in noise.values():
        assert float(value.std()) == pytest.approx(0.1, rel=0.03)
        assert abs(float(value.mean())) < 0.005
    assert same_bits(transform.on_aggregate(like, INSTRUCTION, 3), noise)
    other = transform.on_aggregate(like, replace(INSTRUCTION, round=4), 3)["w"]
    assert abs(float(torch.corrcoef(torch.stack([other, noise["w"]]))[0, 1])) < 0.03
    assert not torch.equal(replace(transform, seed=1).on_aggregate(like, INSTRUCTION, 3)["w"], noise["w"])


def test_noise_does_not_depend_on_the_order_of_the_weights():
    one = PRIVATE.on_aggregate(drawn(0), INSTRUCTION, 3)
    two = PRIVATE.on_aggregate(dict(reversed(drawn(0).items())), INSTRUCTION, 3)
    assert same_bits(one, two)


def gaussian_epsilon(noise, delta):
    """Return the exact epsilon of one Gaussian release (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""

    def phi(value):
        return math.erfc(-value / math.sqrt(2)) / 2

    def spent(epsilon):
        return phi(0.5 / noise - epsilon * noise) - math.exp(epsilon) * phi(-0.5 / noise - epsilon * noise)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "delta"), [(1.0, 1e-5), (2.0, 1e-4), (5.0, 1e-6)])
def test_one_round_of_everybody_spends_what_one_gaussian_spends(noise, delta):
    spent = epsilon_spent(noise_multiplier=noise, sampling_rate=1.0, rounds=1, delta=delta)
    assert spent == pytest.approx(gaussian_epsilon(noise, delta), rel=1e-3)
    # Gaussians compose exactly: k rounds are one with the noise over the root of k.
    four = epsilon_spent(noise_multiplier=2 * noise, sampling_rate=1.0, rounds=4, delta=delta)
    assert four == pytest.approx(gaussian_epsilon(noise, delta), rel=1e-3)


def test_more_noise_fewer_rounds_and_rarer_sampling_spend_less():
    base = {"noise_multiplier": 2.0, "sampling_rate": 0.1, "rounds": 10, "delta": 1e-4}
    spent = epsilon_spent(**base)
    assert epsilon_spent(**base | {"noise_multiplier": 2.5}) < spent
    assert epsilon_spent(**base | {"rounds": 5}) < spent
    assert epsilon_spent(**base | {"sampling_rate": 0.05}) < spent
    assert epsilon_spent(**base | {"delta": 1e-3}) < spent
    assert epsilon_spent(**base | {"rounds": 0}) == 0.0
    assert epsilon_spent(**base | {"noise_multiplier": 0.0}) == math.inf


def test_the_calibrated_noise_keeps_within_epsilon_and_hardly_below():
    settings = {"sampling_rate": 0.1, "rounds": 20, "delta": 1e-3}
    noise = noise_for(1.0, **settings)
    assert 0.93 < epsilon_spent(noise_multiplier=noise, **settings) <= 1 + 1e-6
    assert epsilon_spent(noise_multiplier=0.95 * noise, **settings) > 1


def test_epsilon_grows_round_by_round_up_to_what_is_promised():
    noise, rate, rounds, delta = 2.0, 0.1, 40, 1e-4
    spent = epsilon_spent(noise_multiplier=noise, sampling_rate=rate, rounds=rounds, delta=delta)
    privacy = Privacy(
        epsilon=spent, delta=delta, noise_multiplier=noise, clip=1.0, sampling_rate=rate, rounds=rounds,
        population=100, accountant="",
    )  # fmt: skip
    course = epsilon_by_round(privacy, most=4)
    assert list(course) == [10, 20, 30, 40]
    assert list(course.values()) == sorted(course.values())
    assert spent - 1e-9 <= course[40] < 1.01 * spent
    assert list(epsilon_by_round(privacy.model_copy(update={"rounds": 3}))) == [1, 2, 3]


def test_an_epsilon_that_no_noise_keeps_is_refused():
    with pytest.raises(ConfigError, match="raise --epsilon"):
        noise_for(1e-9, sampling_rate=0.9, rounds=1000, delta=1e-9)


@pytest.mark.parametrize("aggregator", ["median", "weighted"])
def test_privacy_needs_a_bounded_aggregator(aggregator):
    with pytest.raises(ConfigError, match="--aggregator mean"):
        FederateOptions.parse({"data": "x", "out": "y", "epsilon": 1.0, "aggregator": aggregator})


@pytest.mark.parametrize("stop", [{"target": 0.9}, {"patience": 3}])
def test_privacy_does_not_stop_by_the_clients_rows(stop):
    with pytest.raises(ConfigError, match="leak"):
        FederateOptions.parse({"data": "x", "out": "y", "epsilon": 1.0, "aggregator": "mean"} | stop)


# The verbs

RUN = {"quiet": True, "valid": 0.3, "rounds": 4, "participation": 0.5, "batch_size": 8, "device": "cpu"}


def fed_options(folder, out, /, **changes):
    given = {"data": str(folder / "train.csv"), "test": str(folder / "test.csv"), "client": "client", "out": out}
    return FederateOptions(**RUN | given | changes)


PRIVATE_RUN = {"epsilon": 5.0, "aggregator": "mean", "rounds": 4, "delta": 0.01, "controls": False}


def test_federate_reports_its_rounds_clients_and_controls(data, source, tmp_path):
    made = federate(source, fed_options(data, tmp_path / "f"))
    record = StageRecord.load(tmp_path / "f")
    assert made.labels == ("bad", "good")
    assert [row.round for row in record.rounds] == [1, 2, 3, 4]
    assert all(row.clients == 3 and row.bytes_up > 0 and row.bytes_down > 0 for row in record.rounds)
    assert [row.client for row in record.clients] == [f"c{n}" for n in range(6)]
    assert sum(row.test_rows for row in record.clients) == 90
    assert record.controls.keys() == {"central", "alone"}
    pooled = sum(row.metrics["accuracy"] * row.test_rows for row in record.clients) / 90
    assert record.metrics["test"]["accuracy"] == pytest.approx(pooled)
    assert record.metrics["test"]["accuracy"] > record.baselines["majority"]["accuracy"]


def test_a_client_that_diverges_alone_is_named_and_keeps_the_starts_answers(source):
    task, model = source.config.make_task(), source.model()
    rows = toy_rows(60, seed=3, clients=3)
    measure = Measure(rows, task, source.featurizer, source.labels)
    start, before = weights_of(model), measure(model)
    clients = {name: measure.examples.take(found) for name, found in measure.by_client.items()}
    local = LocalTraining(model, task, 1, 8, 1e38)
    alone, diverged = measure_alone(local, clients, start, before, measure.by_client, 0, 1)
    assert diverged == list(clients)
    assert alone.figures() == before.figures()


def test_clients_that_diverged_alone_are_named_in_the_record(data, source, tmp_path, monkeypatch):
    kept = "headwater.federated.verb.measure_alone"
    monkeypatch.setattr(kept, lambda *given: (given[3], [f"c{n}" for n in range(12)]))
    federate(source, fed_options(data, tmp_path / "f", rounds=1))
    said = "Clients that diverged alone, and keep the start's answers: 12 (c0, c1, c2, c3, c4, c5, c6, c7 and others)."
    assert said in StageRecord.load(tmp_path / "f").notes


@pytest.mark.parametrize(
    "changes", [{}, PRIVATE_RUN, {"server_momentum": 0.0, "freeze": "embedding", "aggregator": "median"}]
)
def test_a_federation_that_is_killed_after_a_round_and_resumed_has_the_same_bits(
    changes, data, source, tmp_path, monkeypatch
):
    monkeypatch.setattr("headwater.federated.verb.noise_for", lambda *_, **__: 1.5)  # finding it takes seconds
    monkeypatch.setattr("headwater.federated.verb.epsilon_spent", lambda **_: 5.0)
    whole = federate(source, fed_options(data, tmp_path / "whole", **changes))
    after = _Federation.after_round

    def kill(self, state):
        after(self, state)
        if state.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Federation, "after_round", kill)
        with pytest.raises(KeyboardInterrupt):
            federate(source, fed_options(data, tmp_path / "f", **changes))
    assert not (tmp_path / "f").exists()
    torch.manual_seed(99)
    resumed = federate(source, fed_options(data, tmp_path / "f", resume=True, **changes))
    assert resumed.identity == whole.identity
    one, two = StageRecord.load(tmp_path / "whole"), StageRecord.load(tmp_path / "f")
    for part in ("rounds", "metrics", "controls", "clients", "curves", "stopped", "privacy"):
        assert getattr(one, part) == getattr(two, part), part


def test_a_private_federation_says_what_it_spent(data, source, tmp_path):
    given = PRIVATE_RUN | {"epsilon": 1.0, "rounds": 2}
    made = federate(source, fed_options(data, tmp_path / "f", **given))
    record = StageRecord.load(tmp_path / "f")
    privacy = record.privacy
    first, last = (row.epsilon for row in record.rounds)
    assert 0 < first < last == pytest.approx(privacy.epsilon, rel=1e-2)
    assert 0.93 < privacy.epsilon <= 1 + 1e-6
    assert (privacy.rounds, privacy.population, privacy.delta, privacy.sampling_rate) == (2, 6, 0.01, 0.5)
    again = epsilon_spent(noise_multiplier=privacy.noise_multiplier, sampling_rate=0.5, rounds=2, delta=0.01)
    assert privacy.epsilon == pytest.approx(again)
    assert made.lineage.stages[-1].privacy == privacy


@pytest.mark.parametrize(("freeze", "kept"), [("embedding", "encoder.embedding."), ("encoder", "encoder.")])
def test_what_is_frozen_is_never_sent_and_keeps_its_bits(freeze, kept, data, source, tmp_path):
    made = federate(source, fed_options(data, tmp_path / "f", freeze=freeze, controls=False))
    whole = federate(source, fed_options(data, tmp_path / "w", controls=False))
    for name, value in source.tensors.items():
        assert torch.equal(made.tensors[name], value) == name.startswith(kept), name
    sent = [StageRecord.load(tmp_path / name).rounds[0].bytes_up for name in ("f", "w")]
    frozen = sum(value.numel() * 4 for name, value in source.tensors.items() if name.startswith(kept))
    assert sent[1] - sent[0] >= 3 * frozen
    assert whole.identity != made.identity


def test_other_labels_get_a_new_head(data, source, tmp_path):
    given = fed_options(data, tmp_path / "f", data=str(data / "three.csv"), test=str(data / "three_test.csv"), rounds=2)
    assert federate(source, given).labels == ("bad", "fair", "good")


def test_rows_without_a_client_column_are_dealt(data, tmp_path):
    for partition in sorted(PARTITIONERS):
        given = fed_options(data, tmp_path / "f", client=None, partition=partition, clients=7, rounds=1)
        people = read_population(given, 0)
        assert len(set(people.train.clients)) == 7
        assert set(people.test.clients) <= set(people.train.clients)
        again = read_population(given, 0)
        assert list(again.train.clients) == list(people.train.clients)
        other = read_population(given, 1).train
        assert (list(other.inputs), list(other.clients)) != (list(people.train.inputs), list(people.train.clients))


def test_one_client_is_no_federation(data, source, tmp_path):
    rows = toy_rows(240)
    write_csv(tmp_path / "one.csv", replace(rows, clients=["me"] * 240))
    with pytest.raises(DataError, match="one client only, 'me'"):
        federate(source, fed_options(data, tmp_path / "f", data=str(tmp_path / "one.csv")))


def test_an_unknown_aggregator_is_refused_before_anything_is_read(source, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'median'"):
        federate(source, FederateOptions(data="nowhere.csv", out=tmp_path / "f", aggregator="medain"))


def test_merged_figures_equal_pooled_figures_over_clients(data, source):
    rows = read_population(fed_options(data, data / "x"), 0).test
    probabilities = class_probabilities(source.model(), rows.encode(source.featurizer, source.labels))
    evaluation = Evaluation.of(rows, source.labels, probabilities)
    parts = [evaluation.counts(found) for found in rows.by_client().values()]
    merged = parts[0]
    for part in parts[1:]:
        merged += part
    assert merged.figures() == pytest.approx(evaluation.figures())
    assert merged.figures()["n"] == 90


# Personalization


def personal_options(folder, out, /, **changes):
    given = {"data": str(folder / "train.csv"), "test": str(folder / "test.csv"), "client": "client", "out": out}
    return PersonalizeOptions(**{"quiet": True, "valid": 0.3, "device": "cpu"} | given | changes)


def test_a_huge_strength_keeps_the_shared_head_and_a_small_one_fits_the_clients(data, source, tmp_path):
    names = ("head.linear.weight", "head.linear.bias")
    held = personalize(source, personal_options(data, tmp_path / "held", strength=1e9))
    free = personalize(source, personal_options(data, tmp_path / "free", strength=1e-2))
    assert held.personal.keys() == free.personal.keys() == {f"c{n}" for n in range(6)}
    for client in held.personal:
        for name in names:
            torch.testing.assert_close(held.personal[client][name], source.tensors[name], atol=1e-5, rtol=0)
        assert not torch.allclose(free.personal[client][names[0]], source.tensors[names[0]], atol=1e-2)
    record = StageRecord.load(tmp_path / "held")
    assert record.metrics["after"]["accuracy"] == record.metrics["before"]["accuracy"]
    assert "Clients that gained: 0, lost: 0, stayed as they were: 6." in record.notes
    assert [(use.role, use.rows) for use in record.data] == [("train", 240), ("test", 90)]  # none idly held out
    assert same_bits(held.tensors, source.tensors)


def test_a_clients_head_is_the_minimum_of_what_it_says_it_minimizes():
    generator = torch.Generator().manual_seed(0)
    shared = Head(torch.randn(3, 4, generator=generator).double(), torch.randn(3, generator=generator).double())
    x = torch.randn(20, 4, generator=generator).double()
    y = torch.arange(20) % 3
    head = fit_head(shared, x.numpy(), y.numpy(), 0.3)
    weight, bias = head.weight_KF.clone().requires_grad_(), head.bias_K.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")
    scale = 0.3 * float(x.square().sum(1).mean())
    loss = loss + scale / 2 * ((weight - shared.weight_KF).square().sum() + (bias - shared.bias_K).square().sum())
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert float(gradient.abs().max()) < 1e-3


def test_a_client_with_other_tastes_gains_from_its_own_head(source, tmp_path):
    rows = toy_rows(300, seed=5)
    clients = ["upside" if n % 4 < 2 else "plain" for n in range(300)]
    flipped = {"bad": "good", "good": "bad"}
    labels = [
        flipped[label] if client == "upside" else label for label, client in zip(rows.labels, clients, strict=True)
    ]
    mixed = replace(rows, labels=labels, clients=clients)
    write_csv(tmp_path / "train.csv", mixed.take(range(200)))
    write_csv(tmp_path / "test.csv", mixed.take(range(200, 300)))
    personalize(source, personal_options(tmp_path, tmp_path / "p"))
    record = StageRecord.load(tmp_path / "p")
    upside = next(row for row in record.clients if row.client == "upside")
    assert upside.metrics["accuracy_after"] > upside.metrics["accuracy_before"] + 0.2
