"""What the documents show can be run: their commands, their Python and their journey, on toy rows."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from helpers import same_bits, toy_rows, write_csv

from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.journey import read_journey
from headwater.records import StageRecord
from headwater.weights import weights_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def toy_cards(tmp_path, monkeypatch):
    """Toy files in place of the cards, and the folder as the current one."""
    for name, count in {"movie_reviews-train": 300, "movie_reviews-test": 60, "amazon_reviews-test": 60}.items():
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed=count, clients=5))
    write_csv(tmp_path / "amazon_reviews-train.csv", toy_rows(260, seed=5, clients=5))
    monkeypatch.chdir(tmp_path)
    changes = {"--client review": "--client client", "--rows 200": "--rows 40", '"rows": 200': '"rows": 40'}  # quicker

    def toy(text):
        for old, new in changes.items():
            text = text.replace(old, new)
        return re.sub(r"card:(\w+)/(\w+)", r"\1-\2.csv", text)

    return toy


@pytest.mark.e2e
def test_the_readmes_path_runs_from_source_to_device(toy_cards, capsys):
    (commands,) = blocks(README, "bash")
    for line in toy_cards(commands).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "headwater"
        assert main(arguments) == 0, capsys.readouterr().err
    assert "label: " in capsys.readouterr().out
    assert StageRecord.load(Path("runs/hand/device")).verification.passed
    assert Path("runs/hand/report.html").stat().st_size > 10_000
    (python,) = blocks(README, "python")
    exec(compile(toy_cards(python), "README.md", "exec"), {})  # noqa: S102 - the document's own example
    assert "[[" in capsys.readouterr().out


def test_the_documents_journey_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = blocks((ROOT / "docs/journeys.md").read_text(encoding="utf-8"), "toml")
    Path("reviews.toml").write_text(text, encoding="utf-8")
    journey = read_journey(Path("reviews.toml"))
    assert len(journey.steps) == 1 + 2 * 2 * 3 + 1
    one_seed = read_journey(Path("reviews.toml"), ["seed=1"])
    assert [step.start for step in one_seed.steps if step.name == "shared"] == ["init-200-s1"]
    assert len(one_seed.steps) == 1 + 2 * 2 + 1
    assert tomllib.loads(text)["name"] == journey.name


@pytest.mark.e2e
def test_the_federations_journey_runs(source_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = blocks((ROOT / "docs/federated.md").read_text(encoding="utf-8"), "toml")
    text = text.replace("runs/movies", source_folder.as_posix()).replace('"author"', '"client"')
    Path("shared.toml").write_text(text.replace("rounds = 30", "rounds = 2\ncontrols = false"), encoding="utf-8")
    write_csv(tmp_path / "reviews.csv", toy_rows(520, seed=1, clients=6))
    assert main(["run", "shared.toml", "--jobs", "1"]) == 0
    records = [StageRecord.load(path.parent) for path in Path("runs/shared").glob("*/stage.json")]
    servers = {"weighted", "weighted+adam", "weighted+yogi"}
    others = {"weighted+top_k+int8", "scaffold+mean", "ditto+weighted"}
    assert {record.method for record in records} == servers | others
    assert len(records) == 3 * 3 + 3


def test_the_federations_example_runs(source_folder, tmp_path):
    (python,) = blocks((ROOT / "docs/federated.md").read_text(encoding="utf-8"), "python")
    names: dict = {}
    code = python.replace('"author"', '"client"').replace("Stopping(50)", "Stopping(3)")
    exec(compile(code, "federated.md", "exec"), names)  # noqa: S102 - the document's own example
    data = write_csv(tmp_path / "reviews.csv", toy_rows(60, clients=5))
    weights, why = names["scaffold"](source_folder, data)
    assert why == "reached the limit of 3 rounds"
    before = weights_of(Checkpoint.load(source_folder).model())
    assert weights.keys() == before.keys()
    assert not same_bits(weights, before)


def test_every_document_that_is_linked_is_there():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
