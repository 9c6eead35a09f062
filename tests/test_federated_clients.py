"""Many clients: the store on disk, its use in a federation, and what grows with the population."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import same_bits, toy_config, toy_examples, toy_model, toy_rows, toy_series, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.examples import Examples
from headwater.errors import DataError
from headwater.federated.aggregators import WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.options import FederateOptions
from headwater.federated.protocols import FederatedAlgorithm, Instruction
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.store import ClientStore, write_store
from headwater.federated.verb import federate
from headwater.model import DropoutOptions
from headwater.records import StageRecord
from headwater.weights import weights_of

CONFIG = toy_config(dropout=DropoutOptions())
POPULATION = {f"c{n}": toy_examples(6 + 4 * n, seed=20 + n) for n in range(5)}


def stored(path, clients):
    write_store(path, sorted(clients.items()))
    return ClientStore(path)


def same_rows(one, other):
    names = ("inputs", "lengths_N", "starts_N", "targets_N")
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in names
    )


# The store


@settings(max_examples=25, deadline=None)
@given(
    clients=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=4),
        min_size=1,
        max_size=8,
    ),
    labelled=st.booleans(),
)
def test_a_store_gives_back_what_was_written(clients, labelled, tmp_path_factory):
    made = {name: Examples(rows, range(len(rows)) if labelled else ()) for name, rows in clients.items()}
    store = stored(tmp_path_factory.mktemp("store") / "s.arrow", made)
    assert list(store.clients) == list(store) == sorted(made)
    assert len(store) == len(store.clients) == len(made)
    assert all(same_rows(store[name], rows) for name, rows in made.items())
    assert "no client of this name" not in store


def test_numbers_keep_their_channels(tmp_path):
    rows = toy_series(20)
    examples = Examples([np.asarray(row, np.float32) for row in rows.inputs])
    store = stored(tmp_path / "s.arrow", {"a": examples})
    assert same_rows(store["a"], examples)
    assert store["a"].inputs.shape[1] == 2


def test_names_are_a_sequence_that_a_sampler_can_index(tmp_path):
    store = stored(tmp_path / "s.arrow", {f"c{n:02d}": toy_examples(1) for n in range(30)})
    assert store.clients[-1] == store.clients[np.int64(29)] == "c29"
    assert store.clients[3:5] == ["c03", "c04"]
    with pytest.raises(IndexError):
        store.clients[30]
    assert Uniform(0.2, 0).sample(1, store.clients) == Uniform(0.2, 0).sample(1, list(store))


def test_many_batches_are_one_store(tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.federated.store._MOST_CLIENTS", 3)
    store = stored(tmp_path / "s.arrow", POPULATION | {f"d{n}": toy_examples(2, seed=n) for n in range(5)})
    assert list(store) == [*POPULATION, *(f"d{n}" for n in range(5))]
    assert all(same_rows(store[name], rows) for name, rows in POPULATION.items())


@pytest.mark.parametrize(
    ("clients", "why"),
    [
        ([], "without clients"),
        ([("b", toy_examples(2)), ("a", toy_examples(2))], "'a' comes after 'b'"),
        ([("a", toy_examples(2)), ("a", toy_examples(2))], "give each once"),
        ([("a", toy_examples(2)), ("b", Examples([np.ones((2, 3))]))], "'b' has rows of another kind"),
    ],
)
def test_what_makes_no_store_leaves_no_file(clients, why, tmp_path):
    with pytest.raises(DataError, match=why):
        write_store(tmp_path / "s.arrow", clients)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "s.arrow"
    write_store(path, sorted(POPULATION.items()))
    return path.read_bytes()


def read_all(path):
    store = ClientStore(path)
    return [store[name] for name in store.clients]


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_store_is_refused_or_read_and_never_ends_the_process(place, bit, cut, whole, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.arrow"
    place %= len(whole)
    flipped = bytes([whole[place] ^ 1 << bit])
    path.write_bytes(whole[:place] if cut else whole[:place] + flipped + whole[place + 1 :])
    try:
        rows = read_all(path)
    except (DataError, KeyError):  # a name that was changed is no longer where bisection looks for it
        return
    assert not cut
    assert all(len(one.inputs) == one.lengths_N.sum() for one in rows)


def test_a_foreign_file_is_refused(tmp_path):
    import pyarrow as pa

    with pytest.raises(DataError, match="can't be read as a store"):
        ClientStore(tmp_path / "none.arrow")
    write_csv(tmp_path / "rows.csv", toy_rows(5))
    with pytest.raises(DataError, match="can't be read as a store"):
        ClientStore(tmp_path / "rows.csv")
    table = pa.table({"client": ["a"], "inputs": [[1]]})
    for metadata, why in (({}, "no store of clients"), ({"headwater": "headwater clients 1"}, "damaged")):
        with (
            pa.OSFile(str(tmp_path / "foreign.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.replace_schema_metadata(metadata).schema) as file,
        ):
            file.write_table(table.replace_schema_metadata(metadata))
        with pytest.raises(DataError, match=why):
            ClientStore(tmp_path / "foreign.arrow")


# In a federation


def run(data, *, processes=1, rounds=3):
    local = LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 8, 0.3, clip=1.0)
    method = FederatedAlgorithm(
        aggregator=WeightedMean(),
        server_optimizer=ServerSGD(1.0, 0.9),
        sampler=Uniform(0.6, 7),
    )
    with LocalCohort(data, local, processes=processes) as cohort:
        state = FederationState(weights_of(toy_model(CONFIG)))
        return run_rounds(method, cohort, state, Stopping(rounds, keep_best=False), lambda _: {}, seed=3)[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_clients_of_a_store_train_the_same_bits_as_those_in_memory(processes, tmp_path):
    assert same_bits(run(stored(tmp_path / "s.arrow", POPULATION), processes=processes), run(POPULATION))


def test_a_round_reads_its_cohort_only(tmp_path, monkeypatch):
    store = stored(tmp_path / "s.arrow", {f"c{n:02d}": toy_examples(2, seed=n) for n in range(40)})
    read = []
    one = ClientStore.__getitem__
    monkeypatch.setattr(ClientStore, "__getitem__", lambda self, name: read.append(name) or one(self, name))
    named = []
    name_of = ClientStore.name
    monkeypatch.setattr(ClientStore, "name", lambda self, place: named.append(place) or name_of(self, place))
    local = LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 8, 0.3)
    clients = Uniform(0.1, 0).sample(1, LocalCohort(store, local).clients())
    list(LocalCohort(store, local).gather(Instruction(1, weights_of(local.model), 0), clients, ()))
    assert sorted(read) == sorted(clients)
    assert len(set(named)) == 4


def options(folder, out, /, **changes):
    given = {"data": str(folder / "train.csv"), "test": str(folder / "test.csv"), "client": "client", "out": out}
    fixed = {"quiet": True, "valid": 0.3, "device": "cpu", "rounds": 2, "participation": 0.5, "client_lr": 0.5}
    return FederateOptions(**fixed | given | changes)


def test_federate_with_a_store_makes_the_same_model_and_leaves_no_store(data, source, tmp_path):
    for name, count, seed in (("train.csv", 240, 1), ("test.csv", 90, 2)):
        rows = toy_rows(count, seed=seed, clients=6)
        numbers = [str(8 + int(client[1:])) for client in rows.clients]  # as words they stand in another order
        write_csv(tmp_path / name, replace(rows, clients=numbers))
    plain = federate(source, options(tmp_path, tmp_path / "plain"))
    made = federate(source, options(tmp_path, tmp_path / "store", store=True, processes=2))
    assert same_bits(made.tensors, plain.tensors)
    one, other = (StageRecord.load(tmp_path / name) for name in ("plain", "store"))
    assert one.rounds == other.rounds
    assert one.clients == other.clients
    assert one.controls == other.controls
    assert {"10", "9"} <= {row.client for row in one.clients}
    assert not list((tmp_path / "store").glob("**/*.arrow"))


def test_federate_records_scores_that_merge_over_clients_and_how_unlike_clients_are(data, source, tmp_path):
    federate(source, options(data, tmp_path / "f", rounds=1, controls=False))
    record = StageRecord.load(tmp_path / "f")
    assert 0 <= record.metrics["test"]["auc"] <= 1
    assert 0 <= record.metrics["test"]["ece"] <= 1
    assert sum(record.scores.rows) == record.metrics["test"]["n"] == 90
    assert sum(group.clients for group in record.spread.groups) == 6
    assert record.spread.labels == ["bad", "good"]
    accuracies = [row.metrics["accuracy"] for row in record.clients]
    (note,) = [note for note in record.notes if note.startswith("Over the 6 clients")]
    assert f"accuracy {np.mean(accuracies):.3f} on average, {min(accuracies):.3f} in the worst tenth" in note
