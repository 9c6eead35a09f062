"""Partitioners: every row has one client, every client has a row, and each differs in what it is named for."""

import re
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import toy_rows, toy_series, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.rows import Rows
from headwater.data.series import moments
from headwater.errors import ConfigError, DataError
from headwater.federated import PARTITIONERS
from headwater.federated.options import FederateOptions
from headwater.federated.partition import _with_rows, deal
from headwater.federated.population import Population, read_population
from headwater.registry import made

UNLABELLED = sorted(set(PARTITIONERS) - {"dirichlet", "labels"})


def partitioner(name, /, **options):
    given = FederateOptions(data="-", out="-", partition=name, **{"clients": 8} | options)
    return made("headwater.partitioners", PARTITIONERS, name, given)


def dealt(name, train, test=None, /, *, seed=0, **options):
    dealt = deal(partitioner(name, **options), train, [test] if test else [], np.random.default_rng(seed))
    return dealt[0], dealt[1] if test else None


def shares(rows, what):
    """Return a table of shares, clients by values: each line sums to 1."""
    clients, values = np.array(rows.clients), np.array(what)
    table = [
        [np.mean(values[clients == client] == value) for value in np.unique(values)] for client in np.unique(clients)
    ]
    return np.array(table)


def sizes(rows):
    return np.array([len(found) for found in rows.by_client().values()])


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(PARTITIONERS)),
    count=st.integers(12, 60),
    clients=st.integers(2, 12),
    alpha=st.sampled_from([0.01, 0.5, 100.0]),
    seed=st.integers(0, 5),
)
def test_every_row_has_one_client_and_no_client_is_lost(name, count, clients, alpha, seed):
    train, test = toy_rows(count, seed=seed), toy_rows(17, seed=9, labels=("bad", "fair"))
    given = {"clients": clients, "alpha": alpha, "seed": seed}
    made_train, made_test = dealt(name, train, test, **given)
    assert replace(made_train, clients=()) == replace(train, clients=())
    assert len(made_train.clients) == count
    names = {f"client-{number:0{len(str(clients - 1))}d}" for number in range(clients)}
    assert set(made_train.clients) == names
    assert len(made_test.clients) == 17
    assert set(made_test.clients) <= names
    again, _ = dealt(name, train, None, **given)
    assert again.clients == made_train.clients


@given(clients=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 1000))
def test_who_went_without_a_row_gets_the_last_one_of_who_has_the_most(clients, more, seed):
    dealt_N = np.random.default_rng(seed).zipf(1.5, clients + more) % clients
    expected_N = dealt_N.copy()
    for client in sorted(set(range(clients)) - set(dealt_N)):
        largest = np.bincount(expected_N, minlength=clients).argmax()
        expected_N[np.flatnonzero(expected_N == largest)[-1]] = client
    assert _with_rows(dealt_N, clients).tolist() == expected_N.tolist()


def test_rows_for_many_clients_are_found_without_a_look_at_all_of_them_for_each():
    begun = time.process_time()
    given_N = _with_rows(np.zeros(200_000, np.int64), 200_000)
    assert time.process_time() - begun < 5  # where each looks at all rows it is minutes
    assert np.unique(given_N).tolist() == list(range(200_000))


@pytest.mark.parametrize("name", sorted(set(PARTITIONERS) - {"time"}))
def test_another_seed_deals_otherwise(name):
    rows = toy_rows(200)
    assert dealt(name, rows)[0].clients != dealt(name, rows, seed=1)[0].clients


@pytest.mark.parametrize("name", sorted(PARTITIONERS))
def test_rows_without_labels_are_dealt_or_refused_with_what_to_use(name):
    rows = replace(toy_rows(80), labels=[])
    if name in UNLABELLED:
        assert len(sizes(dealt(name, rows)[0])) == 8
    else:
        with pytest.raises(ConfigError, match="this task has none: use iid, quantity, length, time or vocabulary"):
            dealt(name, rows)


@pytest.mark.parametrize("name", sorted(PARTITIONERS))
def test_numbers_are_dealt_too_where_no_words_are_asked_for(name):
    rows = toy_series(80)
    if name == "vocabulary":
        with pytest.raises(DataError, match="read as numbers"):
            dealt(name, rows)
    else:
        assert len(sizes(dealt(name, rows)[0])) == 8


def test_fewer_rows_than_clients_are_refused():
    with pytest.raises(ConfigError, match="clients = 8: toy has 5 rows"):
        dealt("iid", toy_rows(5))


def test_iid_clients_are_alike():
    rows, _ = dealt("iid", toy_rows(4000))
    assert sizes(rows) == pytest.approx(500, abs=90)
    assert shares(rows, rows.labels) == pytest.approx(0.5, abs=0.08)


def test_dirichlet_spreads_labels_the_more_unevenly_the_smaller_alpha():
    rows = toy_rows(4000)
    made_rows = [dealt("dirichlet", rows, alpha=alpha)[0] for alpha in (1000.0, 1.0, 0.05)]
    uneven = [shares(one, one.labels)[:, 0].std() for one in made_rows]
    assert uneven == sorted(uneven)
    assert uneven[0] < 0.05
    assert uneven[-1] > 0.3


@pytest.mark.parametrize("each", [1, 2, 3])
def test_each_client_holds_as_many_labels_as_asked_and_every_label_a_client(each):
    train, test = (toy_rows(count, labels=("bad", "fair", "good")) for count in (900, 300))
    rows, others = dealt("labels", train, test, labels_per_client=each)
    held = {client: {rows.labels[row] for row in found} for client, found in rows.by_client().items()}
    assert {len(labels) for labels in held.values()} == {each}
    assert set.union(*held.values()) == {"bad", "fair", "good"}
    for client, found in others.by_client().items():
        assert {others.labels[row] for row in found} <= held[client]


@pytest.mark.parametrize(("each", "clients"), [(4, 8), (1, 2)])
def test_labels_that_cannot_be_shared_out_are_refused(each, clients):
    with pytest.raises(ConfigError, match=f"give {1 if clients == 8 else 2} to 3"):
        dealt("labels", toy_rows(90, labels=("bad", "fair", "good")), labels_per_client=each, clients=clients)


def test_quantity_makes_sizes_uneven_and_labels_not():
    rows = toy_rows(4000)
    even, uneven = (dealt("quantity", rows, alpha=alpha)[0] for alpha in (1000.0, 0.5))
    assert sizes(even).max() < 2 * sizes(even).min()
    assert sizes(uneven).max() > 5 * sizes(uneven).min()
    large = sizes(uneven) > 200
    assert shares(uneven, uneven.labels)[large] == pytest.approx(0.5, abs=0.1)


def test_length_gives_like_rows_to_one_client_and_equally_many_to_each():
    train, test = dealt("length", toy_rows(800), toy_rows(400, seed=1))
    for rows, least in ((train, 80), (test, 20)):
        lengths = [[len(rows.texts[row]) for row in found] for found in rows.by_client().values()]
        for shorter, longer in pairwise(lengths):
            assert max(shorter) <= min(longer)
        assert min(map(len, lengths)) >= least


def test_time_gives_blocks_of_the_files_order():
    train, test = dealt("time", toy_rows(83), toy_rows(40, seed=1))
    assert train.clients == sorted(train.clients)
    assert test.clients == sorted(test.clients)
    assert set(sizes(train)) == {10, 11}
    assert set(sizes(test)) == {5}


@pytest.mark.parametrize("shape", ["{}", "2024-01-01T00:{:02}:00+01:00"])
def test_time_goes_by_a_column_and_deals_other_rows_by_the_training_rows_times(shape):
    def rows(minutes):
        times = moments([shape.format(minute) for minute in minutes], "toy", "when")
        return replace(toy_rows(len(minutes)), times=times)

    shuffled = np.random.default_rng(0).permutation(40)
    train, test = dealt("time", rows(shuffled), rows([0, 25, 59]), clients=4)
    assert train.clients == [f"client-{minute // 10}" for minute in shuffled]
    assert test.clients == ["client-0", "client-2", "client-3"]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["1", "soon"], "line of data 2: the column 'when' holds 'soon' where a number was expected"),
        (["2024-01-31", "soon"], "line of data 2: the column 'when' holds 'soon' where a number or a date"),
        (["2024-01-31", "2024-01-31T00:00+01:00"], "line of data 2: '2024-01-31T00:00+01:00' and '2024-01-31' can't"),
    ],
)
def test_times_that_have_no_order_are_refused(times, said):
    with pytest.raises(DataError, match=re.escape(said)):
        moments(times, "toy", "when")


def test_times_of_other_rows_are_to_be_of_the_same_kind():
    rows = [replace(toy_rows(2), times=moments(times, "toy", "when")) for times in (["1", "2"], ["2024-01-31"] * 2)]
    with pytest.raises(DataError, match="its times can't be compared with those of toy"):
        dealt("time", *rows, clients=2)


def test_rows_are_dealt_by_the_column_of_the_file(tmp_path):
    rows = toy_rows(700)
    days = [f"2024-{1 + n // 28:02}-{1 + n % 28:02}" for n in np.random.default_rng(0).permutation(700) // 3]
    write_csv(tmp_path / "rows.csv", replace(rows, clients=days))
    given = {"data": str(tmp_path / "rows.csv"), "test": str(tmp_path / "rows.csv"), "clients": 7, "out": "-"}
    options = FederateOptions(**given, partition="time", partition_column="client")
    population = read_population(options, 0)
    for part in (population.train, population.valid, population.test):
        last = [max(part.times[row] for row in found) for found in part.by_client().values()]
        first = [min(part.times[row] for row in found) for found in part.by_client().values()]
        assert len(last) == 7
        assert all(before <= after for before, after in zip(last[:-1], first[1:], strict=True))
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text().replace(days[400], "soon"))
    with pytest.raises(DataError, match=f"line of data {1 + days.index(days[400])}: .* holds 'soon'"):
        read_population(options, 0)
    unread = FederateOptions(**given, partition="iid", partition_column="nowhere")
    assert len(read_population(unread, 0).test) == 700


def test_vocabulary_tells_topics_apart_on_new_rows_too():
    rng = np.random.default_rng(0)
    topics = [[f"{topic}{number}" for number in range(9)] for topic in "abcd"]

    def rows(count):
        of = [int(rng.integers(4)) for _ in range(count)]
        texts = [" ".join([*rng.choice(topics[topic], 6), "the", "and"]) for topic in of]
        return Rows(texts, [str(topic) for topic in of], [], "toy", "0" * 64)

    train, test = dealt("vocabulary", rows(300), rows(100), clients=4)
    for made_rows in (train, test):
        purity = [
            np.bincount(np.array(made_rows.labels)[found].astype(int)).max() for found in made_rows.by_client().values()
        ]
        assert sum(purity) >= 0.95 * len(made_rows)


def test_texts_without_a_known_word_are_nobodys_in_particular():
    texts = ["cheap and fast", "cheap fast", "slow but kind", "kind but slow"] * 10
    known, unknown = (Rows(some, [], [], "toy", "0" * 64) for some in (texts, [f"word{n}" for n in range(40)]))
    _, test = dealt("vocabulary", known, unknown, clients=2)
    assert min(sizes(test)) >= 10


def test_chinese_is_compared_by_its_characters():
    texts = ["味道很好", "很好的味道", "送餐太慢", "太慢了送餐"] * 10
    rows, _ = dealt("vocabulary", Rows(texts, [], [], "toy", "0" * 64), clients=2)
    assert len({rows.clients[0], rows.clients[1]}) == 1
    assert len({rows.clients[0], rows.clients[2]}) == 2


def spread(rows, labels=("bad", "good")):
    return Population(rows, rows.take([]), rows, "test", labels).spread()


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(PARTITIONERS)), clients=st.integers(2, 12), labelled=st.booleans())
def test_the_picture_of_a_population_counts_every_row_once(name, clients, labelled):
    rows, _ = dealt(name, toy_rows(60), clients=clients)
    rows = rows if labelled else replace(rows, labels=[])
    found = spread(rows, ("bad", "good") if labelled else ())
    assert [group.rows for group in found.groups] == sorted(sizes(rows), reverse=True)
    assert [sum(group.labels) for group in found.groups] == [group.rows if labelled else 0 for group in found.groups]
    total = sum(group.length * group.rows for group in found.groups)
    assert total == pytest.approx(sum(map(len, rows.texts)))
    assert found.labels == (["bad", "good"] if labelled else [])


def test_very_many_clients_are_drawn_in_groups():
    rows, _ = dealt("quantity", toy_rows(900), clients=250)
    groups = spread(rows).groups
    assert len(groups) == 100
    assert sum(group.clients for group in groups) == 250
    assert sum(group.rows for group in groups) == 900
    means = [group.rows / group.clients for group in groups]
    assert means == sorted(means, reverse=True)


def test_numbers_are_as_long_as_their_steps():
    found = spread(dealt("length", toy_series(80))[0], ("falls", "rises"))
    assert found.length_unit == "steps"
    assert {round(group.length) for group in found.groups} <= set(range(3, 10))
