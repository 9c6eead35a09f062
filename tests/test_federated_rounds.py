"""Who takes part, who fails and when the server steps: samplers, the simulated world, buffered aggregation."""

import json
import math
import re
import shutil
import time
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import CheckpointError, ConfigError
from headwater.federated import SAMPLERS
from headwater.federated.aggregators import Mean, Median, WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.asynchronous import Buffered, discounted
from headwater.federated.client_updates import LocalTraining
from headwater.federated.conditions import ConditionOptions, World
from headwater.federated.options import FederateOptions
from headwater.federated.protocols import FederatedAlgorithm, Update
from headwater.federated.sampling import Poisson, RoundRobin, Uniform, Weighted
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.verb import _Federation, federate
from headwater.model import DropoutOptions
from headwater.records import StageRecord
from headwater.registry import made
from headwater.weights import weights_of

CLIENTS = [f"c{n:03d}" for n in range(200)]
CONFIG = toy_config(dropout=DropoutOptions())


class Names:
    """A lazy sequence of as many names as one likes, which refuses to be listed."""

    def __init__(self, count):
        self.count = count
        self.asked = 0

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        assert 0 <= place < self.count
        self.asked += 1
        return f"{place:07d}"

    def __iter__(self):
        raise AssertionError("made into a list")


def sampler(name, population, **options):
    given = {"participation": 0.1, "seed": 3, "cohort": 0, "over_select": 0.0} | options
    record = type("Options", (), given)
    available = {"available": options["available"]} if "available" in options else {}
    return made("headwater.samplers", SAMPLERS, name, record, rows_C=np.arange(1, population + 1), **available)


# Samplers


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@settings(max_examples=30)
@given(number=st.integers(1, 60), seed=st.integers(0, 5), cohort=st.integers(1, 40), count=st.integers(1, 40))
def test_a_round_is_sorted_without_repetition_and_the_same_each_time(name, number, seed, cohort, count):
    options = {"seed": seed, "cohort": cohort}
    chosen = sampler(name, count, **options).sample(number, CLIENTS[:count])
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(CLIENTS[:count])
    assert name == "poisson" or len(chosen) == min(cohort, count)
    assert chosen == sampler(name, count, **options).sample(number, CLIENTS[:count])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_round_of_a_million_is_quick_and_asks_for_the_names_of_its_cohort_only(name):
    chooser, names = sampler(name, 10**6, cohort=100), Names(10**6)
    chooser.sample(1, names)
    names.asked = 0
    begin = time.perf_counter()
    chosen = chooser.sample(2, names)
    assert time.perf_counter() - begin < 0.5
    assert names.asked <= 2 * len(chosen)
    assert 50 < len(chosen) < 150


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_only_those_who_are_available_are_drawn_and_others_take_their_place(name):
    chooser = sampler(name, 200, cohort=30, available=lambda moment, client: int(client[1:]) % 3 == moment % 3)
    for number in range(1, 8):
        chosen = chooser.sample(number, CLIENTS)
        assert {int(client[1:]) % 3 for client in chosen} == {number % 3}
        assert name == "poisson" or len(chosen) == 30
    nobody = sampler(name, 200, available=lambda *_: False)
    assert nobody.sample(1, CLIENTS) == []


@given(cohort=st.integers(1, 15), population=st.integers(1, 15), seed=st.integers(0, 9))
def test_round_robin_asks_everybody_before_anybody_twice(cohort, population, seed):
    counts = Counter()
    for number in range(1, 2 * population + 1):
        counts.update(RoundRobin(0.1, seed, cohort).sample(number, CLIENTS[:population]))
        asked = [counts[client] for client in CLIENTS[:population]]
        assert max(asked) - min(asked) <= 1


def test_weighted_draws_follow_the_rows():
    rows = np.array([1, 2, 3, 4])
    counts = Counter()
    for number in range(1, 4001):
        counts.update(Weighted(0.1, 0, 1, rows_C=rows).sample(number, CLIENTS[:4]))
    for client, expected in zip(CLIENTS, rows / 10, strict=False):
        assert counts[client] / 4000 == pytest.approx(expected, abs=0.03)
    # Of two without repetition: P(a and b) = p_a p_b / (1 - p_a) + p_b p_a / (1 - p_b).
    pairs = Counter(tuple(Weighted(0.1, 1, 2, rows_C=rows).sample(n, CLIENTS[:4])) for n in range(1, 4001))
    assert pairs["c002", "c003"] / 4000 == pytest.approx(0.12 / 0.7 + 0.12 / 0.6, abs=0.03)
    last = Counter(
        CLIENTS.index(c) for n in range(4000) for c in Weighted(0.1, 2, 3, rows_C=rows).sample(n, CLIENTS[:4])
    )
    assert last[0] / 4000 == pytest.approx(1 - left_out(rows / 10, 0), abs=0.03)


def left_out(chances, client):
    """Return the chance that a client is the last of all, summed over the orders of the others."""
    total = 0.0
    for order in permutations([other for other in range(len(chances)) if other != client]):
        rest, chance = 1.0, 1.0
        for other in order:
            chance, rest = chance * chances[other] / rest, rest - chances[other]
        total += chance
    return total


def test_over_selection_asks_for_more_and_a_cohort_is_a_number():
    assert len(Uniform(0.5, 0, 10, 0.1).sample(1, CLIENTS)) == 11
    assert len(Uniform(0.1, 0, 0, 0.3).sample(1, CLIENTS)) == 26
    assert len(Uniform(1.0, 0, 0, 0.5).sample(1, CLIENTS)) == 200
    sizes = [len(Poisson(0.5, 0, 10).sample(number, CLIENTS)) for number in range(1, 300)]
    assert np.mean(sizes) == pytest.approx(10, abs=0.6)


# The simulated world


def world(seed=1, load=lambda client: 1.0, wanted=0, **options):
    return World(ConditionOptions(**options), seed, load, wanted)


ODDS = st.fixed_dictionaries(
    {
        "speed_spread": st.sampled_from([0.0, 0.5, 2.0]),
        "dropout_rate": st.sampled_from([0.0, 0.3, 0.9]),
        "deadline": st.sampled_from([0.0, 0.5, 2.0]),
        "partial_work": st.booleans(),
    }
)


@given(
    odds=ODDS, number=st.integers(1, 99), seed=st.integers(0, 9), wanted=st.integers(0, 12), count=st.integers(0, 20)
)
def test_a_plan_accounts_for_everybody_by_round_and_name_alone(odds, number, seed, wanted, count):
    asked = CLIENTS[:count]
    plan = world(seed, wanted=wanted, **odds).plan(number, asked)
    assert [client for client in asked if client in plan.work] == list(plan.work)
    assert plan.work.keys() | plan.absent.keys() == set(asked)
    assert not plan.work.keys() & plan.absent.keys()
    assert all(0 < share <= 1 for share in plan.work.values())
    assert odds["partial_work"] or set(plan.work.values()) <= {1.0}
    assert all(plan.absent.values())
    assert len(plan.work) <= (wanted or count)
    assert not odds["deadline"] or plan.time <= odds["deadline"]
    again = world(seed, wanted=wanted, **odds).plan(number, asked[::-1])
    assert (dict(again.work), again.absent, again.time) == (dict(plan.work), plan.absent, plan.time)
    if not wanted and count:  # each is by itself
        alone = world(seed, **odds).plan(number, asked[:1])
        assert alone.work.get(asked[0]) == plan.work.get(asked[0])


def test_an_ideal_world_lets_all_do_everything():
    plan = world().plan(1, CLIENTS)
    assert dict(plan.work) == dict.fromkeys(CLIENTS, 1.0)
    assert (plan.absent, plan.time) == ({}, 1.0)


def test_speeds_are_log_normal_around_the_median_and_stay_with_the_client():
    spread = world(speed_spread=0.8)
    logs = [math.log(spread.slowness(f"client {n}")) for n in range(4000)]
    assert np.mean(logs) == pytest.approx(0, abs=0.05)
    assert np.std(logs) == pytest.approx(0.8, rel=0.05)
    assert spread.slowness("ann") == spread.slowness("ann") != world(2, speed_spread=0.8).slowness("ann")
    assert world(load=lambda client: 3.0).outcome(1, "ann").time == 3.0


def test_who_drops_out_has_nothing_to_do_with_who_did_before():
    odds = world(dropout_rate=0.3)
    absent = [odds.plan(number, CLIENTS).absent for number in range(1, 101)]
    out = np.array([[client in away for client in CLIENTS] for away in absent])
    assert out.mean() == pytest.approx(0.3, abs=0.01)
    chances = out.mean(0)
    assert chances.std() == pytest.approx(math.sqrt(0.21 / 100), rel=0.2)
    assert abs(np.corrcoef(out[0], out[1])[0, 1]) < 0.25
    assert set(odds.plan(1, CLIENTS).absent.values()) == {"dropped out"}


def test_a_deadline_cuts_the_slow_off_or_leaves_them_a_share_of_their_steps():
    options = {"speed_spread": 1.0, "deadline": 1.5}
    slow = {client for client in CLIENTS if world(**options).slowness(client) > 1.5}
    assert 30 < len(slow) < 110
    strict = world(**options).plan(1, CLIENTS)
    assert strict.absent.keys() == slow
    one = min(slow)
    assert strict.absent[one] == (
        f"too slow: would have taken {world(**options).slowness(one):.3g} times the median, the deadline is 1.5"
    )
    kind = world(**options, partial_work=True).plan(1, CLIENTS)
    assert not kind.absent
    for client, share in kind.work.items():
        assert share == pytest.approx(min(1.0, 1.5 / world(**options).slowness(client)))


def test_an_over_selected_round_takes_the_quickest_and_says_who_was_late():
    options = {"speed_spread": 1.0}
    asked = CLIENTS[:13]
    plan = world(wanted=10, **options).plan(1, asked)
    quickest = sorted(asked, key=world(**options).slowness)[:10]
    assert list(plan.work) == sorted(quickest)
    assert set(plan.absent.values()) == {"too late: the round was closed when 10 had answered"}
    assert plan.time == world(**options).slowness(quickest[-1])


@given(share=st.floats(0.01, 0.99), day=st.integers(1, 48), seed=st.integers(0, 5))
def test_a_client_is_available_for_its_share_of_each_day(share, day, seed):
    odds = world(seed, awake=share, day=day)
    for client in CLIENTS[:10]:
        days = [[odds.available(number, client) for number in range(first, first + day)] for first in (1, 1 + day)]
        assert days[0] == days[1]
        assert sum(days[0]) == pytest.approx(max(1, share * day), abs=1)
        assert any(days[0])


# Buffered aggregation


def population(clients=6):
    return {f"c{n}": toy_examples(6 + 4 * n, seed=20 + n) for n in range(clients)}


def local():
    return LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 8, 0.3, "sgd", 1.0)


def start_weights():
    return weights_of(toy_model(CONFIG))


def run(pace, conditions, *, rounds=4, share=1.0, state=None, aggregator=None, processes=1, clients=6, after=None):
    method = FederatedAlgorithm(
        aggregator=aggregator or WeightedMean(),
        server_optimizer=ServerSGD(1.0, 0.5),
        sampler=Uniform(share, 7),
    )
    state = state or FederationState(start_weights())
    with LocalCohort(population(clients), local(), processes=processes, conditions=conditions) as cohort:
        run_rounds(
            method, cohort, state, Stopping(rounds, keep_best=False), lambda _: {}, seed=7, pace=pace, after_round=after
        )
    return state


def buffered(conditions, buffer=3, concurrency=4):
    return Buffered(buffer, concurrency, Uniform(0.1, 7, available=conditions.available), conditions)


def test_with_everybody_in_the_buffer_it_is_synchronous_rounds():
    even = world()
    rounds, steps = run(None, even), run(buffered(even, 6, 6), even)
    assert same_bits(rounds.weights, steps.weights)
    assert [row.staleness for row in steps.records] == [0.0] * 4
    assert [row.model_copy(update={"staleness": None}) for row in steps.records] == rounds.records
    assert not same_bits(rounds.weights, start_weights())


def test_a_stale_update_counts_less_and_what_a_method_adds_does_not():
    like = {"w": torch.zeros(2)}
    update = Update("c", {"w": torch.tensor([2.0, 4.0]), "fednova/steps": torch.tensor(3.0)}, 1)
    assert discounted(update, 0, like) is update
    old = discounted(update, 3, like)
    assert old.delta["w"].tolist() == [1.0, 2.0]
    assert float(old.delta["fednova/steps"]) == 3.0


class Told:
    """A clock by a table of times."""

    def __init__(self, times, absent=()):
        self.times, self.absent = times, absent

    def available(self, moment, client):
        return True

    def outcome(self, round_number, client):
        outcome = world().outcome(round_number, client)
        return replace(outcome, time=self.times[client], absent="gone" if client in self.absent else "")

    def plan(self, round_number, clients):
        plan = world().plan(round_number, clients)
        absent = {client: "gone" for client in clients if client in self.absent}
        return replace(plan, work={c: 1.0 for c in plan.work if c not in absent}, absent=absent)


def test_the_server_steps_when_the_buffer_is_full_and_a_slow_client_comes_with_old_weights():
    clock = Told({"c0": 10.0, "c1": 3.0, "c2": 3.5})
    seen = []

    def update(instruction, client):
        seen.append((instruction.round, client.name))
        return Update(client.name, {n: torch.ones_like(v) for n, v in instruction.weights.items()}, 1)

    method = FederatedAlgorithm(aggregator=Mean(), server_optimizer=ServerSGD(1.0, 0.0), sampler=Uniform(1.0, 7))
    state = FederationState({"w": torch.zeros(1)})
    cohort = LocalCohort({f"c{n}": toy_examples(4) for n in range(3)}, update, conditions=clock)
    pace = Buffered(2, 3, Uniform(1.0, 7), clock)
    run_rounds(method, cohort, state, Stopping(4, keep_best=False), lambda _: {}, seed=7, pace=pace)
    # c1 and c2 fill the buffer until c0 comes at 10, with weights that are two steps old; c2 comes next, from step 3.
    assert seen == [(n, f"c{c}") for n, c in [(1, 1), (1, 2), (2, 1), (2, 2), (1, 0), (3, 1), (3, 2), (4, 1)]]
    assert [row.time for row in state.records] == [3.5, 7.0, 10.0, 13.0]
    assert [row.staleness for row in state.records] == [0.0, 0.0, 1.0, 0.5]
    expected = 2.0 + (1 / math.sqrt(3) + 1) / 2 + (1 / math.sqrt(2) + 1) / 2
    assert float(state.weights["w"]) == pytest.approx(expected)


def test_clients_that_fail_are_recorded_and_the_buffer_waits_for_others():
    times = {f"c{n}": 1.0 + n / 10 for n in range(6)}
    some, nobody = Told(times, ["c1", "c3"]), Told(times, times)
    steps = run(buffered(some), some)
    assert {name: reason for row in steps.records for name, reason in row.failed.items()} == {
        "c1": "gone",
        "c3": "gone",
    }
    assert all(row.clients - len(row.failed) == 3 for row in steps.records)
    everybody = run(buffered(nobody), nobody)  # nobody is left to ask, again and again
    assert [sorted(row.failed) for row in everybody.records] == [sorted(times)] * 4
    assert same_bits(everybody.weights, start_weights())


ODD = {"speed_spread": 1.0, "dropout_rate": 0.2, "awake": 0.6, "day": 4, "deadline": 3.0, "partial_work": True}


@pytest.mark.parametrize("aggregator", [WeightedMean(), Median()])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_number_of_processes_changes_no_bit_in_an_odd_world(aggregator, asynchronous):
    odd = world(**ODD)
    one, two = (
        run(buffered(odd) if asynchronous else None, odd, share=0.8, aggregator=aggregator, processes=processes)
        for processes in (1, 2)
    )
    assert same_bits(one.weights, two.weights)
    assert one.records == two.records
    assert any(row.failed for row in one.records)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_buffered_aggregation_that_is_saved_after_a_step_goes_on_with_the_same_bits(stop):
    odd = world(**ODD)
    whole = run(buffered(odd), odd, rounds=6)
    assert max(row.staleness for row in whole.records) > 0
    saved = []

    def save(state):
        tensors = {name: value.clone() for name, value in state.tensors().items()}
        saved.append((safetensors.torch.save(tensors), json.dumps(state.facts())))

    run(buffered(odd), odd, rounds=stop, after=save)
    tensors, facts = saved[-1]
    state = FederationState.of(safetensors.torch.load(tensors), json.loads(facts))
    resumed = run(buffered(odd), odd, rounds=6, state=state)
    assert same_bits(resumed.weights, whole.weights)
    assert resumed.records == whole.records
    assert same_bits(resumed.pace, whole.pace)


# The options and the verb

RUN = {"quiet": True, "valid": 0.3, "rounds": 4, "batch_size": 8, "device": "cpu", "controls": False}


def fed_options(folder, out, /, **changes):
    given = {"data": str(folder / "train.csv"), "test": str(folder / "test.csv"), "client": "client", "out": out}
    return FederateOptions(**RUN | given | changes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buffer": 2, "epsilon": 1.0, "aggregator": "mean"}, "depend on how many answer"),
        ({"over_select": 0.3, "epsilon": 1.0, "aggregator": "mean"}, "depend on how many answer"),
        ({"buffer": 2, "method": ["scaffold"]}, "scaffold's server"),
        ({"buffer": 2, "method": ["feddyn"]}, "feddyn's server"),
        ({"buffer": 2, "sampler": "poisson"}, "another --sampler"),
        ({"sampler": "round_robbin"}, "did you mean 'round_robin'"),
        ({"dropout_rate": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        FederateOptions.parse({"data": "x", "out": "y"} | options)


@pytest.mark.parametrize("name", ["cohort", "buffer"])
def test_more_clients_than_there_are_are_refused(name, data, source, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} = 7: there are 6 clients"):
        federate(source, fed_options(data, tmp_path / "f", **{name: 7}))
    assert not (tmp_path / "f").exists()


def test_the_learning_rate_of_the_options_falls(data, source, tmp_path):
    given = {"rounds": 2, "participation": 1.0}
    whole, falls = (
        federate(source, fed_options(data, tmp_path / str(decay), client_lr_decay=decay, **given))
        and StageRecord.load(tmp_path / str(decay)).rounds
        for decay in (1.0, 0.1)
    )
    assert falls[0] == whole[0]
    assert falls[1] != whole[1]
    with pytest.raises(ConfigError, match="leaves a learning rate of 0e\\+00 to the last round: raise it"):
        FederateOptions.parse({"data": "x", "out": "y", "rounds": 2000, "client_lr_decay": 0.1})


def test_rounds_in_which_nobody_answered_are_noted(data, source, tmp_path):
    made = federate(source, fed_options(data, tmp_path / "f", deadline=1e-4))
    (idle,) = [note for note in StageRecord.load(tmp_path / "f").notes if "too few answered" in note]
    assert idle == "In 4 of 4 rounds too few answered for a step: the model is the one that it began with."
    assert same_bits(weights_of(made.model()), weights_of(source.model()))


def test_clients_that_never_learn_are_noted_and_no_part_of_what_own_models_change(data, source, tmp_path):
    rows = toy_rows(90, seed=2, clients=8)
    write_csv(tmp_path / "test.csv", rows)
    given = {"test": str(tmp_path / "test.csv"), "participation": 1.0, "rounds": 1, "personal": "fedper"}
    federate(source, fed_options(data, tmp_path / "f", **given))
    notes = " ".join(StageRecord.load(tmp_path / "f").notes)
    assert "none to learn from, measured with the shared model: 2 of 8." in notes
    gained, lost, same = map(int, re.search(r"gained: (\d+), lost: (\d+), stayed as they were: (\d+)", notes).groups())
    assert gained + lost + same == 6


def test_what_clients_kept_may_not_be_lost(data, source, tmp_path, monkeypatch):
    given = {"method": ["scaffold"], "aggregator": "mean", "server_momentum": 0.0}
    after = _Federation.after_round

    def kill(self, state):
        after(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Federation, "after_round", kill)
        with pytest.raises(KeyboardInterrupt):
            federate(source, fed_options(data, tmp_path / "f", **given))
    shutil.rmtree(tmp_path / "f.partial" / ".clients")
    with pytest.raises(CheckpointError, match="what the clients had kept is gone"):
        federate(source, fed_options(data, tmp_path / "f", resume=True, **given))


def test_options_without_effect_are_noted():
    given = {"data": "x", "out": "y", "concurrency": 5, "participation": 0.5, "cohort": 3, "partial_work": True}
    notes = " ".join(FederateOptions(**given | {"day": 5}).notes())
    for flag, when in {
        "concurrency": "with --buffer",
        "participation": "without --cohort",
        "partial-work": "with --deadline",
        "day": "with --awake below 1",
    }.items():
        assert f"--{flag} was ignored: it has an effect {when} only." in notes
    assert "--cohort was ignored" in " ".join(FederateOptions(**given | {"buffer": 2}).notes())


ODD_RUN = {"speed_spread": 1.0, "dropout_rate": 0.3, "deadline": 1.5, "min_replies": 1}


@pytest.mark.parametrize(
    "changes",
    [
        ODD_RUN
        | {"cohort": 4, "over_select": 0.5, "sampler": "weighted", "aggregator": "mean", "method": ["scaffold"]},
        ODD_RUN | {"buffer": 2, "concurrency": 3, "method": ["moon"], "partial_work": True},
    ],
)
def test_a_run_in_an_odd_world_that_is_killed_and_resumed_has_the_same_bits(
    changes, data, source, tmp_path, monkeypatch
):
    whole = federate(source, fed_options(data, tmp_path / "whole", processes=1, **changes))
    after = _Federation.after_round

    def kill(self, state):
        after(self, state)
        if state.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Federation, "after_round", kill)
        with pytest.raises(KeyboardInterrupt):
            federate(source, fed_options(data, tmp_path / "f", **changes))
    resumed = federate(source, fed_options(data, tmp_path / "f", resume=True, processes=2, **changes))
    assert resumed.identity == whole.identity
    one, two = StageRecord.load(tmp_path / "whole"), StageRecord.load(tmp_path / "f")
    assert one.rounds == two.rounds
    assert any(row.failed for row in one.rounds)
    times = [row.time for row in one.rounds]
    assert times == sorted(times)
    assert times[0] > 0
