"""Synthetic records for the tests of the report. Every figure here is made up; none was measured."""

import hashlib
from pathlib import Path

import numpy as np

from headwater.records import (
    ClientGroup,
    ClientRow,
    Confusion,
    Coverage,
    Curve,
    DataUse,
    EpisodeRow,
    Example,
    Latency,
    Parent,
    Privacy,
    RoundRow,
    Scores,
    Spread,
    StageRecord,
    Verification,
)

TEST_ROWS = 600
CLIENTS = 40
METHODS = ("scratch", "features", "init", "finetune", "multitask")
SKILL = {
    50: dict(zip(METHODS, (0.62, 0.68, 0.71, 0.73, 0.62), strict=True)),
    200: dict(zip(METHODS, (0.71, 0.73, 0.77, 0.775, 0.715), strict=True)),
    0: dict(zip(METHODS, (0.835, 0.79, 0.84, 0.842, 0.833), strict=True)),
}
TFIDF = {50: 0.66, 200: 0.742, 0: 0.828}
VERSIONS = {"headwater": "0.1.0", "python": "3.11.9", "numpy": "2.1.0", "torch": "2.6.0"}
FINGERPRINT = hashlib.sha256(b"synthetic test rows").hexdigest()


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def correct_digits(skill, *, seed, rows=TEST_ROWS):
    """Digits of a model with this accuracy; models share what is hard, as real ones do."""
    hardness = np.random.default_rng(7).uniform(size=rows)
    noise = np.random.default_rng(seed).normal(0, 0.12, size=rows)
    order = np.argsort(hardness + noise)
    right = np.zeros(rows, dtype=int)
    right[order[: round(skill * rows)]] = 1
    return "".join(map(str, right))


def figures(accuracy, rows=TEST_ROWS):
    return {"accuracy": accuracy, "macro_f1": accuracy - 0.012, "loss": 1.35 - accuracy, "n": float(rows)}


def record(name, verb, *, minute, **facts):
    base = {
        "identity": "" if verb == "export" else sha(name),
        "config": {"out": f"runs/{name}", "seed": 0, "epochs": 12, "lr": 0.002},
        "started": f"2025-01-15T09:{minute:02d}:00+00:00",
        "wall_seconds": 42.0 + minute,
        "versions": VERSIONS,
    }
    return StageRecord(name=name, verb=verb, **{**base, **facts})


def parent(name, verb):
    return Parent(name=name, verb=verb, identity=sha(name))


def target_data(rows=4000):
    return [
        DataUse(role="train", path="card:synthetic-shop/train", sha256=sha("train"), rows=rows),
        DataUse(role="valid", path="card:synthetic-shop/train", sha256=sha("train"), rows=400),
        DataUse(role="test", path="card:synthetic-shop/test", sha256=sha("test"), rows=TEST_ROWS),
    ]


def pretrain():
    epochs = list(range(1, 13))
    loss = [0.62 * 0.82**epoch + 0.24 for epoch in epochs]
    curves = {
        "train loss": loss,
        "valid loss": [y + 0.05 + 0.004 * x for x, y in zip(epochs, loss, strict=True)],
        "train accuracy": [0.93 - 0.33 * 0.75**x for x in epochs],
        "valid accuracy": [0.862 - 0.25 * 0.7**x for x in epochs],
    }
    return record(
        "pretrain", "pretrain", minute=1,
        data=[DataUse(role="train", path="data/synthetic-films.csv.gz", sha256=sha("films"), rows=25000)],
        model={"cell": "lstm", "hidden": 128, "layers": 1, "parameters": 1_412_386},
        metrics={"valid": figures(0.861, 2500)},
        curves=[Curve(name=name, x_label="epoch", x=epochs, y=y) for name, y in curves.items()],
        stopped="no better epoch for 3 epochs",
        sizes={"model.safetensors": 5_649_544, "vocab.json": 312_411},
    )  # fmt: skip


def transfer(method, rows, seed, *, minute=12):
    skill = SKILL[rows][method]
    digits = correct_digits(skill + 0.006 * (seed - 1), seed=100 * seed + 7 * len(method) + rows)
    accuracy = digits.count("1") / len(digits)
    scratch = method == "scratch"
    return record(
        f"transfer-{method}-{rows or 'all'}-s{seed}", "transfer", minute=minute, method=method, seed=seed,
        config={"method": method, "rows": rows, "seed": seed, "epochs": 12, "lr": 0.002},
        parents=[] if scratch else [parent("pretrain", "pretrain")],
        data=target_data(rows or 4000),
        metrics={"test": figures(accuracy)},
        baselines={"majority": figures(0.52), "tfidf_logistic_regression": figures(TFIDF[rows])},
        curves=[Curve(name="valid accuracy", x_label="epoch", x=[1, 2, 3, 4], y=[0.55, 0.6, 0.62, 0.63])],
        coverage=None if scratch else coverage(),
        confusion=Confusion(labels=["negative", "positive"], counts=[[250, 50], [60, 240]]),
        sizes={"model.safetensors": 5_649_544, "vocab.json": 208_100},
        correct=digits, test_fingerprint=FINGERPRINT,
    )  # fmt: skip


def language_model(*, minute=20):
    perplexities = {"test": 88.2, "before": 214.0}
    return record(
        "transfer-language", "transfer", minute=minute, method="finetune",
        config={"method": "finetune", "task": "language_modeling"},
        parents=[parent("pretrain", "pretrain")],
        metrics={name: {"accuracy": 0.99, "loss": 4.5, "perplexity": value, "n": 5210.0}
                 for name, value in perplexities.items()},
        baselines={"unigram": {"accuracy": 0.05, "loss": 6.4, "perplexity": 601.0, "n": 5210.0}},
    )  # fmt: skip


def coverage():
    return Coverage(
        target_types=8120,
        copied=5110,
        folded=420,
        composed=990,
        new=1600,
        types_share=0.803,
        tokens_share=0.956,
    )


def matrix():
    return [
        transfer(method, rows, seed, minute=10 + index)
        for index, rows in enumerate((50, 200, 0))
        for method in METHODS
        for seed in range(3)
    ]


def federate(name, method, top, *, minute, private=False, rounds=30):
    rng = np.random.default_rng(minute)
    rows = [
        RoundRow(
            round=number, clients=8 + int(rng.integers(-2, 3)), bytes_down=23_100_000, bytes_up=23_400_000,
            metrics=figures(float(top - 0.24 * 0.86**number + rng.normal(0, 0.004))),
            losses=[share * (0.4 + 0.9**number) for share in (0.5, 0.8, 1.0, 1.2, 1.9)],
            failed={"ann": "too slow"} if number % 5 == 0 else {},
        )
        for number in range(1, rounds + 1)
    ]  # fmt: skip
    clients = [
        ClientRow(
            client=f"shop-{index:02d}", train_rows=int(60 + rng.integers(0, 80)), test_rows=25,
            metrics={
                "accuracy": float(np.clip(round(25 * rng.normal(top, 0.07)) / 25, 0, 1)),
                "accuracy_alone": float(np.clip(round(25 * rng.normal(0.66, 0.09)) / 25, 0, 1)),
            },
        )
        for index in range(CLIENTS)
    ]  # fmt: skip
    sizes = [139 - 2 * index for index in range(CLIENTS)]
    groups = [
        ClientGroup(clients=1, rows=size, labels=[size // (2 + n % 7), size - size // (2 + n % 7)], length=60.0 + n)
        for n, size in enumerate(sizes)
    ]
    privacy = Privacy(
        epsilon=5.2, delta=1e-5, noise_multiplier=1.1, clip=0.8, sampling_rate=0.2, rounds=rounds,
        population=CLIENTS, accountant="dp-accounting RDP", note="Neighbouring: one client added or removed.",
    )  # fmt: skip
    return record(
        name, "federate", minute=minute, method=method,
        config={"aggregator": method, "rounds": rounds, "clients": CLIENTS, "lr": 0.05},
        parents=[parent("transfer-finetune-all-s0", "transfer")],
        data=target_data(), metrics={"test": figures(rows[-1].metrics["accuracy"])},
        scores=Scores(
            roc=[Curve(name="positive", x_label="false positives", x=[n / 50 for n in range(51)],
                       y=[(n / 50) ** 0.2 for n in range(51)])],
            auc_error=0.0004, rows=[60, 120, 180, 240],
            reliability=Curve(name="accuracy", x_label="probability",
                              x=[0.6, 0.72, 0.85, 0.97], y=[0.55, 0.7, 0.8, 0.9]),
        ),
        controls={"alone": figures(0.664), "central": figures(0.852)},
        rounds=rows, clients=clients, spread=Spread(labels=["bad", "good"], length_unit="characters", groups=groups),
        privacy=privacy if private else None,
        stopped=f"all {rounds} rounds done", sizes={"model.safetensors": 5_649_544, "vocab.json": 208_100},
        correct=correct_digits(top, seed=minute), test_fingerprint=FINGERPRINT,
        notes=["With 40 clients the noise costs accuracy; more clients would help."] if private else [],
    )  # fmt: skip


def personalize(source="federate-fedavg"):
    rng = np.random.default_rng(5)
    clients = []
    for index in range(CLIENTS):
        before = float(np.clip(round(25 * rng.normal(0.83, 0.07)) / 25, 0, 1))
        after = float(np.clip(before + rng.choice([-2, -1, 0, 0, 1, 1, 2, 3]) / 25, 0, 1))
        metrics = {"accuracy_before": before, "accuracy_after": after}
        clients.append(ClientRow(client=f"shop-{index:02d}", train_rows=100, test_rows=25, metrics=metrics))
    return record(
        "personalize", "personalize", minute=40, method="head", parents=[parent(source, "federate")],
        data=target_data(), metrics={"before": figures(0.831), "after": figures(0.846)}, clients=clients,
    )  # fmt: skip


def verification(difference, *, tolerance, agreement):
    return Verification(
        passed=True,
        batches=10,
        rows=TEST_ROWS,
        max_difference=difference,
        tolerance=tolerance,
        agreement=agreement,
    )


def compress(source="federate-fedavg"):
    return record(
        "compress-int8", "compress", minute=45, method="int8", parents=[parent(source, "federate")],
        metrics={"before": figures(0.838), "test": figures(0.837)},
        sizes={"model.int8.safetensors": 1_441_000, "vocab.json": 208_100},
        latency=[
            Latency(runtime="torch fp32", batch=1, length=32, median_us=1840, p90_us=2210),
            Latency(runtime="torch int8", batch=1, length=32, median_us=1120, p90_us=1395),
        ],
        verification=verification(0.0123, tolerance=0.05, agreement=0.995),
        correct=correct_digits(0.837, seed=45), test_fingerprint=FINGERPRINT,
    )  # fmt: skip


def export():
    return record(
        "export-onnx", "export", minute=50, method="onnx", parents=[parent("compress-int8", "compress")],
        metrics={"test": figures(0.837)},
        confusion=Confusion(labels=["negative", "positive"], counts=[[262, 38], [60, 240]]),
        sizes={"model.onnx": 1_462_300, "vocab.json": 208_100},
        latency=[
            Latency(runtime="torch int8", batch=1, length=32, median_us=1130, p90_us=1402),
            Latency(runtime="onnxruntime int8", batch=1, length=32, median_us=402, p90_us=455),
        ],
        verification=verification(2.4e-7, tolerance=1e-5, agreement=1.0),
        examples=examples(), correct=correct_digits(0.837, seed=45), test_fingerprint=FINGERPRINT,
    )  # fmt: skip


def examples():
    return [
        Example(
            tokens=["the", "delivery", "was", "late", "again", "but", "the", "soup", "tasted", "wonderful"],
            weights=[0.02, 0.1, 0.0, -1.4, -0.5, 0.6, 0.03, 0.2, 0.35, 2.3],
            label="positive", predicted="positive", probability=0.874,
        ),
        Example(
            tokens=["味道", "很", "不错", "但是", "送餐", "太", "慢", "了"],
            weights=[-0.1, -1.1, 0.0, 0.7, 0.3, 0.9, 1.9, 0.2],
            label="positive", predicted="negative", probability=0.613,
        ),
    ]  # fmt: skip


def metalearn():
    drawn = np.random.default_rng(5)
    skills = {
        "meta_learned": 0.72,
        "plain_start": 0.6,
        "not_adapted": 0.65,
        "majority": 0.5,
        "tfidf_logistic_regression": 0.58,
    }
    episodes = [
        EpisodeRow(accuracies={name: float(drawn.binomial(20, skill) / 20) for name, skill in skills.items()})
        for _ in range(100)
    ]
    return record("tasks", "metalearn", minute=29, method="reptile", episodes=episodes)


def journey():
    """A whole journey: every section of the report has its facts."""
    return [
        pretrain(), *matrix(), language_model(), metalearn(),
        federate("federate-fedavg", "fedavg", 0.838, minute=30),
        federate("federate-fedprox", "fedprox", 0.832, minute=31),
        federate("federate-median", "median", 0.812, minute=32),
        federate("federate-private", "fedavg", 0.771, minute=33, private=True),
        personalize(), compress(), export(),
    ]  # fmt: skip


def save(records, folder: Path):
    """Write each record into a folder of its own below this one."""
    for one in records:
        one.save(folder / one.name)
    return folder
