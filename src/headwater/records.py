"""What a stage leaves behind: `stage.json`, the one thing that reports are made from.

No torch is needed to read or write a record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headwater.errors import CheckpointError, DataError
from headwater.files import write_atomic

Metrics = dict[str, float]
"""Named figures; classification has at least `accuracy`, `macro_f1`, `loss` (nats) and `n` (rows)."""

STAGE_FILE = "stage.json"


class Record(BaseModel):
    """The base of all records: no unknown keys, the docstring under a field says what it holds."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Parent(Record):
    """A checkpoint that a stage started from."""

    name: str
    """Its folder's name."""
    verb: str
    identity: str
    """SHA-256 over its weights, config and featurizer."""


class DataUse(Record):
    """One file of rows that a stage read."""

    role: Literal["train", "valid", "test", "source", "unlabelled"]
    path: str
    sha256: str
    """Of the bytes of the file as it was read."""
    rows: int
    """Rows used, after choosing and dropping."""


class Curve(Record):
    """Something measured along the way, one point a step, an epoch or a round."""

    name: str
    """What the y axis shows, such as `valid accuracy`."""
    x_label: str
    x: list[float]
    y: list[float]
    chosen: float | None = None
    """The value of x that was chosen by the curve, such as the learning-rate finder's rate."""


class Confusion(Record):
    """Counts of rows by true label (rows) and predicted label (columns)."""

    labels: list[str]
    counts: list[list[int]]


class Scores(Record):
    """How well a classifier's probabilities rank, and how far they can be believed."""

    roc: list[Curve]
    """True positives by false positives, of each label against the others (of two, the second): the most frequent."""
    auc_error: float
    """How far `auc` may be off, since it is computed from binned scores."""
    reliability: Curve
    """Accuracy by the mean probability of the predicted label, a point a bin."""
    rows: list[int]
    """Of each of those points."""


class ClientRow(Record):
    """One client's figures."""

    client: str
    train_rows: int
    test_rows: int
    metrics: Metrics
    """Such as `accuracy`, `accuracy_before`, `accuracy_after`, `accuracy_alone`."""


class ClientGroup(Record):
    """Clients that stand together where a federation's clients are sorted by their training rows."""

    clients: int
    rows: int
    """Of all of them."""
    labels: list[int] = []
    """Their rows by label; empty where rows have none."""
    length: float
    """Mean over their rows."""


class Spread(Record):
    """How a federation's training rows lie over its clients."""

    labels: list[str] = []
    length_unit: str
    """What a row's length is counted in: `characters` or `steps`."""
    groups: list[ClientGroup]
    """The largest clients first; each is a group of its own where they are few."""


class RoundRow(Record):
    """One federated round."""

    round: int
    """Counted from 1."""
    clients: int
    """How many were asked."""
    bytes_down: int
    """Bytes that a wire carries from the server to all clients of the round."""
    bytes_up: int
    """Bytes that a wire carries from the clients to the server."""
    metrics: Metrics
    """On the held-out rows, after the round; empty where it was not measured."""
    losses: list[float] = []
    """Of the clients' training: the least, the lower quartile, the median, the upper quartile and the largest."""
    failed: dict[str, str] = {}
    """Why, by the names of those whose update was not taken in."""
    time: float = 0.0
    """Simulated time since the beginning, in times that the median client needs for a round."""
    staleness: float | None = None
    """Of buffered aggregation: how many steps the server had taken since a client was given its weights, on average."""
    epsilon: float | None = None
    """Privacy spent so far, never too low; of a long private federation known for some of the rounds only."""


class EpisodeRow(Record):
    """One episode of tasks that were never learned from."""

    accuracies: dict[str, float]
    """After adapting to the same few rows: `meta_learned`, `plain_start`, `majority`, `tfidf_logistic_regression`; and
    `not_adapted`, the learned model as it is, where it has a head."""


class Privacy(Record):
    """What a federation promises to each client."""

    epsilon: float
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise over the clipping norm."""
    clip: float
    """Largest L2 norm of one client's update."""
    sampling_rate: float
    """Chance of each client to take part in a round (Poisson sampling)."""
    rounds: int
    population: int
    """Clients in all."""
    unit: str = "client"
    accountant: str
    """The library and method that computed epsilon."""
    note: str = ""


COVERAGE_KINDS = ("copied", "folded", "normalized", "converted", "composed", "pieced", "new")
"""Where a target's token starts from, the best first; what each means is said of the fields of `Coverage`."""


class Coverage(Record):
    """How much of the target's vocabulary the source knows."""

    target_types: int
    """Distinct tokens of the target vocabulary, special ones left out."""
    copied: int
    """Types found as they are."""
    folded: int
    """Types found in another case."""
    normalized: int = 0
    """Types found in another form of the same characters (Unicode's NFKC)."""
    converted: int = 0
    """Types found in traditional or simplified Chinese characters."""
    composed: int
    """Types built as the mean of their characters' rows."""
    pieced: int = 0
    """Types built as the mean of the rows that the source's tokenizer splits them into."""
    new: int
    """Types that start from the mean row."""
    types_share: float
    """Known types (all but the new ones) over all."""
    tokens_share: float
    """The same, weighted by how often each occurs in the training rows."""
    tokens: dict[str, int] = {}
    """Running tokens of the training rows by kind; empty in records of before they were counted."""


class Latency(Record):
    """How long one call takes; a ratio of two rows of one stage can be compared, a single time only with care."""

    runtime: str
    batch: int
    length: int
    """Steps a row."""
    median_us: float
    """Microseconds a call."""
    p90_us: float
    threads: int = 1


class Gain(Record):
    """A transfer's accuracy less that of its twin from scratch, means over the seeds, on the same test rows."""

    mean: float
    low: float
    """The lower end of its 95 % interval."""
    high: float
    """The upper end."""
    seeds: int
    """For how many both were trained."""
    verdict: str
    """`gain`, `loss`, or `no gain shown` where the interval covers zero."""


class Verification(Record):
    """How an artifact compares with the model it was made from."""

    passed: bool
    batches: int
    rows: int
    max_difference: float
    """Largest absolute difference of a class probability."""
    tolerance: float
    agreement: float
    """Share of rows with the same predicted label."""


class Example(Record):
    """A row with each token's weight in the prediction."""

    tokens: list[str]
    weights: list[float]
    """Fall of the predicted label's log-odds when the token is replaced by the unknown one; positive supports it."""
    label: str
    predicted: str
    probability: float


class StageRecord(Record):
    """The facts of one stage."""

    format: Literal[1] = 1
    name: str
    """The folder's name, for showing; two journeys may share it."""
    identity: str = ""
    """The checkpoint's own, as the stages that start from it name it in `parents`; empty for what is no checkpoint."""
    verb: str
    method: str = ""
    """The transfer method, the aggregator, the compression method or the export target."""
    config: dict[str, Any]
    """Every option, defaults too."""
    seed: int = 0
    parents: list[Parent] = []
    data: list[DataUse] = []
    started: str
    """UTC, ISO 8601."""
    wall_seconds: float
    """Of all attempts, where the run was interrupted and resumed; work that was lost with an attempt is not counted."""
    versions: dict[str, str]
    device: str = "cpu"
    threads: int = 1
    model: dict[str, Any] = {}
    """Cell, sizes, parameters: a summary for reading."""
    metrics: dict[str, Metrics] = {}
    """By what was measured: `test`, or `valid` where no test rows were given; `before`, `after`."""
    baselines: dict[str, Metrics] = {}
    """`majority`, `tfidf_logistic_regression`, `summary_logistic_regression`, `unigram`: what the model must beat to be
    worth anything."""
    controls: dict[str, Metrics] = {}
    """`alone` (each client by itself) and `central` (all rows in one place); `scratch` of a transfer; `plain_start` and
    `not_adapted` of meta-learning."""
    gain: Gain | None = None
    """Of a transfer over the `scratch` among its controls."""
    curves: list[Curve] = []
    confusion: Confusion | None = None
    scores: Scores | None = None
    clients: list[ClientRow] = []
    rounds: list[RoundRow] = []
    spread: Spread | None = None
    episodes: list[EpisodeRow] = []
    stopped: str = ""
    """Why training or the federation ended."""
    privacy: Privacy | None = None
    coverage: Coverage | None = None
    sizes: dict[str, int] = {}
    """Bytes of each file that a device needs, by name."""
    latency: list[Latency] = []
    verification: Verification | None = None
    examples: list[Example] = []
    correct: str = Field(default="", pattern="^[01]*$")
    """One digit a test row, 1 where the prediction is right: what paired intervals are computed from."""
    test_fingerprint: str = ""
    """SHA-256 of the test rows in order: two stages can be paired only where it is equal."""
    notes: list[str] = []
    """Verdicts and warnings, a sentence each."""

    def save(self, folder: Path) -> None:
        """Write `stage.json` into the folder.

        Raises:
            DataError: A figure isn't finite, which JSON can't say.
        """
        text = self.model_dump_json(indent=1) + "\n"
        try:
            self.model_validate_json(text)
        except ValidationError as error:
            where, _ = _first(error)
            raise DataError(f"{where} isn't a finite number: a training diverged, lower its learning rate") from error
        write_atomic(folder / STAGE_FILE, text)

    @classmethod
    def load(cls, folder: Path) -> StageRecord:
        """Read `stage.json` from the folder.

        Raises:
            CheckpointError: There is none, or it isn't one that this version wrote.
        """
        path = folder / STAGE_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} holds no {STAGE_FILE}: give a folder that a stage has written") from error
        except ValidationError as error:
            where, why = _first(error)
            message = f"{path} isn't a record of this version ({where}: {why}): run the stage again"
            raise CheckpointError(message) from error


def _first(error: ValidationError) -> tuple[str, str]:
    """Return where a record isn't one, and why."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"]
