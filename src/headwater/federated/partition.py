"""Clients for rows that have none of their own: partitioners, each one way in which real clients differ.

A partitioner is fitted to the training rows. What comes of it is a rule that deals any rows, so that a client's test
rows are like its training rows.

Shapes: N rows, C clients, K labels, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from headwater.data.rows import Rows
from headwater.errors import ConfigError, DataError

Rule = Callable[[Rows, np.random.Generator], np.ndarray]
"""Rows to each one's client (N,), counted from 0; what is left to chance is drawn from the generator."""

_PASSES = 20
"""Of k-means: by then few rows still change their client."""
_STARTS = 5
"""Of k-means, the best of which is taken: one alone may well split a topic and join two others."""
_WORDS = 5000
"""The most frequent words are what rows are compared by."""
_WORD = r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+"
"""What stands between white space; Chinese characters, which have none between them, one by one."""


class Partitioner(Protocol):
    """A way to spread rows over clients."""

    clients: int

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule that is learned from the training rows.

        Raises:
            HeadwaterError: The rows lack what it goes by.
        """


def deal(partitioner: Partitioner, train: Rows, others: Sequence[Rows], rng: np.random.Generator) -> list[Rows]:
    """Return the training rows and others, each with its client: ``client-000``, ...; every client has a training row.

    Raises:
        ConfigError: There are fewer training rows than clients, or they lack what the partitioner goes by.
        DataError: It needs texts, and the rows are numbers.
    """
    clients = partitioner.clients
    if len(train) < clients:
        raise ConfigError(f"clients = {clients}: {train.source} has {len(train)} rows, one at most for each: lower it")
    rule = partitioner.fit(train, rng)
    names = [f"client-{number:0{len(str(clients - 1))}d}" for number in range(clients)]
    train_N = _with_rows(rule(train, rng), clients)
    dealt = replace(train, clients=[names[number] for number in train_N])
    return [
        dealt,
        *(
            replace(rows, clients=[names[number] for number in rule(rows, rng)]) if len(rows) else rows
            for rows in others
        ),
    ]


def _with_rows(clients_N: np.ndarray, clients: int) -> np.ndarray:
    """Give each client that went without a row, one after the other, the last one of who has the most by then."""
    clients_N, counts_C = clients_N.copy(), np.bincount(clients_N, minlength=clients)
    order_N, firsts_C = clients_N.argsort(kind="stable"), counts_C.cumsum() - counts_C
    # A client that has the most, m of them, gives its mth: so rows are given by their places, the highest first.
    places_N = np.empty_like(order_N)
    places_N[order_N] = np.arange(len(order_N)) - firsts_C[clients_N[order_N]]
    without = np.flatnonzero(counts_C == 0)
    clients_N[np.lexsort((clients_N, -places_N))[: len(without)]] = without
    return clients_N


@dataclass(frozen=True)
class Iid:
    """All clients alike: each row goes to any of them by the same chance, so sizes and labels vary a little."""

    clients: int

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule."""
        del rows, rng
        return _by_shares({}, _even(self.clients))


@dataclass(frozen=True)
class Dirichlet:
    """Each label is dealt by shares drawn from a Dirichlet distribution (Hsu et al. 2019, arXiv:1909.06335).

    Attributes:
        clients: How many.
        alpha: A small one gives clients that hold mostly one label; a large one is like `Iid`.
    """

    clients: int
    alpha: float

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule."""
        labels = _labels(rows, "dirichlet")
        shares = {label: rng.dirichlet(np.full(self.clients, self.alpha)) for label in labels}
        return _by_shares(shares, _even(self.clients))


@dataclass(frozen=True)
class Labels:
    """Each client holds a few labels only, and shares their rows evenly with who else holds them.

    (Li et al. 2022, "Federated Learning on Non-IID Data Silos", arXiv:2102.02079, section 4.1.)

    Attributes:
        clients: How many.
        labels_per_client: Labels of each.
    """

    clients: int
    labels_per_client: int

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule."""
        labels = _labels(rows, "labels")
        each = self.labels_per_client
        if not len(labels) <= self.clients * each or each > len(labels):
            raise ConfigError(
                f"labels_per_client = {each}: {self.clients} clients are to share {len(labels)} labels: "
                f"give {-(-len(labels) // self.clients)} to {len(labels)}"
            )
        holds_CK = np.zeros((self.clients, len(labels)))
        for client in range(self.clients):
            # Those that the fewest hold so far, chance among equals: so every label finds a client.
            rarest = np.lexsort((rng.random(len(labels)), holds_CK.sum(0)))[:each]
            holds_CK[client, rarest] = 1.0
        shares_CK = holds_CK / holds_CK.sum(0)
        return _by_shares(dict(zip(labels, shares_CK.T, strict=True)), _even(self.clients))


@dataclass(frozen=True)
class Quantity:
    """Clients of unequal size, alike in all else: sizes are drawn from a Dirichlet distribution.

    (Li et al. 2022, arXiv:2102.02079, section 4.3.)

    Attributes:
        clients: How many.
        alpha: The smaller, the more rows lie with few clients.
    """

    clients: int
    alpha: float

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule."""
        del rows
        return _by_shares({}, rng.dirichlet(np.full(self.clients, self.alpha)))


@dataclass(frozen=True)
class Length:
    """Clients whose rows are of like length, in characters or steps: the first client's are the shortest."""

    clients: int

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule."""
        del rng
        return _by_rank(_lengths, rows, self.clients)


@dataclass(frozen=True)
class Time:
    """Clients of different times, the first client's are the earliest; rows without times are in the file's order."""

    clients: int

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule: contiguous blocks; rows later than the last training row are the last client's."""
        del rng
        if not rows.times:
            return lambda rows, _: _blocks(np.arange(len(rows)) / len(rows), self.clients)
        return _by_rank(lambda rows: np.array(rows.times), rows, self.clients)


@dataclass(frozen=True)
class Vocabulary:
    """Clients that speak differently: texts in clusters by their words.

    Spherical k-means over TF-IDF (Dhillon & Modha 2001, "Concept decompositions for large sparse text data using
    clustering"), begun as k-means++ does. Written out here, since a library's threads add up in any order.
    """

    clients: int

    def fit(self, rows: Rows, rng: np.random.Generator) -> Rule:
        """Return the rule."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(token_pattern=_WORD, max_features=_WORDS, sublinear_tf=True)
        x_NV = words.fit_transform(rows.texts)
        found = [_centres(x_NV, self.clients, rng) for _ in range(_STARTS)]
        centres_CV = max(found, key=lambda centres_CV: float((x_NV @ centres_CV.T).max(1).sum()))

        def rule(rows: Rows, rng: np.random.Generator) -> np.ndarray:
            likeness_NC = np.asarray(words.transform(rows.texts) @ centres_CV.T)
            anybody_N = rng.integers(self.clients, size=len(rows))  # for texts that share no word with a client
            return np.where(likeness_NC.any(1), likeness_NC.argmax(1), anybody_N)

        return rule


def _centres(x_NV: Any, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Return unit vectors (C, V) that the sparse unit vectors are near to."""
    centres_CV = np.zeros((clusters, x_NV.shape[1]))
    far_N = np.ones(x_NV.shape[0])
    for cluster in range(clusters):
        chances = far_N / far_N.sum() if far_N.sum() else None
        centres_CV[cluster] = x_NV[[rng.choice(len(far_N), p=chances)]].toarray()[0]
        far_N = np.minimum(far_N, np.maximum(0.0, 1.0 - x_NV @ centres_CV[cluster]))
    for _ in range(_PASSES):
        nearest_N = (x_NV @ centres_CV.T).argmax(1)
        for cluster in np.unique(nearest_N):
            total_V = np.asarray(x_NV[nearest_N == cluster].sum(0))[0]
            centres_CV[cluster] = total_V / (np.linalg.norm(total_V) or 1.0)
    return centres_CV


def _by_rank(values: Callable[[Rows], np.ndarray], known: Rows, clients: int) -> Rule:
    """Return the rule by which a row goes to a block of the sorted training rows, drawn among those of its value."""
    known_N = np.sort(values(known))

    def rule(rows: Rows, rng: np.random.Generator) -> np.ndarray:
        found_N = values(rows)
        try:
            first_N, end_N = (np.searchsorted(known_N, found_N, side) for side in ("left", "right"))
        except TypeError as error:  # numbers and dates, or dates with and without a zone
            raise DataError(f"{rows.source}: its times can't be compared with those of {known.source}") from error
        places_N = first_N + rng.random(len(found_N)) * (end_N - first_N)
        return _blocks(places_N / len(known_N), clients)

    return rule


def _by_shares(shares: Mapping[str, np.ndarray], others_C: np.ndarray) -> Rule:
    """Return the rule that deals rows by the clients' shares in their label, those of other labels by `others_C`."""

    def rule(rows: Rows, rng: np.random.Generator) -> np.ndarray:
        drawn_N = rng.random(len(rows))
        clients_N = np.searchsorted(_ends(others_C), drawn_N, "right")
        labels_N = np.array(rows.labels)
        for label, share_C in shares.items():
            found_N = labels_N == label
            clients_N[found_N] = np.searchsorted(_ends(share_C), drawn_N[found_N], "right")
        return clients_N

    return rule


def _ends(share_C: np.ndarray) -> np.ndarray:
    """Return where the clients' parts of the unit interval end."""
    ends_C: np.ndarray = share_C.cumsum()
    ends_C /= ends_C[-1]
    return ends_C


def _even(clients: int) -> np.ndarray:
    return np.full(clients, 1 / clients)


def _blocks(places_N: np.ndarray, clients: int) -> np.ndarray:
    """Return the clients of places from 0 up to 1, in blocks of equal size."""
    return np.minimum((places_N * clients).astype(np.int64), clients - 1)


def _lengths(rows: Rows) -> np.ndarray:
    return np.array([len(row) for row in rows.inputs])


def _labels(rows: Rows, partition: str) -> Sequence[str]:
    """Return the distinct labels."""
    if not rows.labels:
        raise ConfigError(
            f"partition = {partition!r}: it goes by the rows' labels, and this task has none: "
            "use iid, quantity, length, time or vocabulary"
        )
    return sorted(set(rows.labels))
