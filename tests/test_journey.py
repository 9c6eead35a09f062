"""Journeys: a file of stages is checked before anything runs, and the order of running changes no bit."""

from pathlib import Path

import pytest

from headwater import journey as module
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.errors import ConfigError, HeadwaterError, OutputError
from headwater.journey import demo_journey, read_journey, run_journey
from headwater.records import StageRecord
from headwater.verbs import VERBS

MATRIX = """
[defaults]
seed = 4
text = "text"

[[stage]]
name = "movies"
verb = "pretrain"
data = "a.csv"
epochs = 3

[[stage]]
name = "{method}-{rows}-s{seed}"
verb = "transfer"
from = "movies"
data = "b.csv"
control = false
matrix = { method = ["scratch", "init"], rows = [50, 0], seed = [0, 1] }

[[stage]]
name = "small"
verb = "compress"
from = "init-all-s1"
"""


def read(tmp_path, text, *changes):
    path = tmp_path / "trip.toml"
    path.write_text(text)
    return read_journey(path, changes)


def test_a_matrix_gives_a_stage_for_each_combination(tmp_path):
    journey = read(tmp_path, MATRIX)
    assert journey.name == "trip"
    names = [step.name for step in journey.steps]
    assert names == [
        "movies",
        *[f"{method}-{rows}-s{seed}" for method in ("scratch", "init") for rows in ("50", "all") for seed in (0, 1)],
        "small",
    ]
    chosen = journey.steps[4]
    assert (chosen.name, chosen.verb, chosen.start) == ("scratch-all-s1", "transfer", "movies")
    assert chosen.options == {
        "seed": 1,
        "text": "text",
        "data": "b.csv",
        "control": False,
        "method": "scratch",
        "rows": 0,
    }


def test_defaults_reach_the_stages_that_know_them(tmp_path):
    steps = read(tmp_path, MATRIX).steps
    assert steps[0].options == {"seed": 4, "text": "text", "data": "a.csv", "epochs": 3}
    assert steps[-1].options == {"seed": 4, "text": "text"}
    assert read(tmp_path, 'name = "tour"\n' + MATRIX).name == "tour"


@pytest.mark.parametrize(
    ("change", "stage", "key", "value"),
    [
        ("movies.epochs=2", 0, "epochs", 2),
        ("epochs=7", 0, "epochs", 7),  # goes before what the stage itself says
        ("movies.seed=9", 0, "seed", 9),
        ("lr=0.5", 1, "lr", 0.5),
        ("movies.bidirectional=false", 0, "bidirectional", False),
        ("movies.cell=gru", 0, "cell", "gru"),
        ('movies.cell="gru"', 0, "cell", "gru"),
        ("{method}-{rows}-s{seed}.epochs=1", 3, "epochs", 1),
    ],
)
def test_an_option_can_be_changed_for_all_stages_or_one(tmp_path, change, stage, key, value):
    assert read(tmp_path, MATRIX, change).steps[stage].options[key] == value


def test_a_change_takes_the_place_of_a_matrixs_values(tmp_path):
    steps = read(tmp_path, MATRIX, "rows=0", "{method}-{rows}-s{seed}.method=init").steps
    assert [step.name for step in steps] == ["movies", "init-all-s0", "init-all-s1", "small"]
    with pytest.raises(ConfigError, match="'init-all-s1' is no earlier stage"):  # a stage by that seed is gone
        read(tmp_path, MATRIX, "seed=9")


def test_a_change_of_one_stage_leaves_the_others_alone(tmp_path):
    steps = read(tmp_path, MATRIX, "movies.lr=0.5").steps
    assert [step.options.get("lr") for step in steps[:3]] == [0.5, None, None]


STAGE = '[[stage]]\nname = "a"\nverb = "pretrain"\ndata = "a.csv"\n'
NEXT = '[[stage]]\nname = "b"\nverb = "transfer"\nfrom = "a"\ndata = "b.csv"\n'
BAD = {
    "nothing": ("", ["at least one [[stage]]"]),
    "one table": ('[stage]\nname = "a"\n', ["at least one [[stage]]"]),
    "stages that are no tables": ("stage = [1]\n", ["at least one [[stage]]"]),
    "an unknown key": ("stages = 1\n" + STAGE, ["unknown key 'stages'", "did you mean 'stage'"]),
    "defaults that are no table": ("defaults = 3\n" + STAGE, ["[defaults]"]),
    "an unknown default": ("[defaults]\nepoch = 3\n" + STAGE, ["no stage has the option 'epoch'", "'epochs'"]),
    "no name": ('[[stage]]\nverb = "pretrain"\n', ["lacks 'name'"]),
    "no verb": ('[[stage]]\nname = "a"\n', ["lacks 'verb'"]),
    "an unknown verb": (STAGE.replace("pretrain", "pretrian"), ["did you mean 'pretrain'"]),
    "a verb that makes no folder": (STAGE.replace("pretrain", "evaluate"), ["a stage is one of"]),
    "an unknown option": (STAGE + "epoch = 3\n", ["stage 'a'", "did you mean 'epochs'"]),
    "a wrong value": (STAGE + 'epochs = "many"\n', ["stage 'a'", "epochs = 'many'"]),
    "a missing option": (STAGE.replace("data", "test"), ["'data' is missing"]),
    "an option of the journey itself": (STAGE + 'out = "x"\n', ["'out' is decided by the journey"]),
    "a matrix without lists": (STAGE + "matrix = { seed = 1 }\n", ["a list of values"]),
    "an option beside its matrix": (STAGE + "seed = 3\nmatrix = { seed = [1] }\n", ["seed = 3 would have no effect"]),
    "a matrix of a word": (STAGE + 'matrix = { cell = "gru" }\n', ["a list of values"]),
    "an empty matrix row": (STAGE + "matrix = { seed = [] }\n", ["a list of values"]),
    "a matrix that is no table": (STAGE + "matrix = 3\n", ["a list of values"]),
    "a name that lacks what varies": (STAGE + "matrix = { seed = [1, 2] }\n", ["'a' stands twice"]),
    "a name with an unknown part": (STAGE.replace('"a"', '"{seeed}"'), ["unknown part", "seeed"]),
    "the same name twice": (STAGE + STAGE, ["stands twice"]),
    "a name that leads elsewhere": (STAGE.replace('"a"', '"../a"'), ["no folder's name"]),
    "a hidden name": (STAGE.replace('"a"', '".a"'), ["no folder's name"]),
    "no letters for a name": (STAGE.replace('"a"', '""'), ["no folder's name"]),
    "a later stage as the start": (NEXT + STAGE, ["stage 'b'", "from = 'a' is no earlier stage"]),
    "an unknown start": (STAGE + NEXT.replace('"a"', '"aa"'), ["did you mean 'a'"]),
    "no start": (STAGE + NEXT.replace("from", "test"), ["add from = 'STAGE'"]),
    "no TOML": ("[[stage]\n", ["TOML"]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_journey_that_cannot_run_is_refused_before_it_runs(what, tmp_path, monkeypatch, capsys):
    text, parts = BAD[what]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert "trip.toml" in str(refused.value)
    for part in parts:
        assert part in str(refused.value)
    assert main(["run", "trip.toml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("headwater: error: ")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["trip.toml"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("epochs", "expected KEY=VALUE"),
        ("epoch=3", "did you mean 'epochs'"),
        ("movie.epochs=3", "did you mean 'movies'"),
        ("movies.epoch=3", "did you mean 'epochs'"),
        ("movies.epochs=many", "epochs = 'many'"),
    ],
)
def test_a_change_that_fits_nothing_is_refused(tmp_path, change, part):
    with pytest.raises(ConfigError, match=part):
        read(tmp_path, MATRIX, change)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_packaged_journeys_are_sound(language, quick):
    journey = demo_journey(language, quick=quick)
    verbs = [step.verb for step in journey.steps]
    assert verbs[-1] == "export"
    assert {"transfer", "federate", "personalize", "compress"} <= set(verbs)
    assert len({step.name for step in journey.steps}) == len(journey.steps)
    for step in journey.steps:
        options = VERBS[step.verb].options_class().parse(step.options | {"out": "x"})
        assert options.notes() == [], step.name  # it shows no option that has no effect
    if quick:
        assert len(journey.steps) <= len(demo_journey(language, quick=False).steps)


TINY = """
[defaults]
text = "text"
label = "label"
epochs = 1
valid = 0.3
device = "cpu"

[[stage]]
name = "first"
verb = "pretrain"
data = "{folder}/train.csv"
hidden_size = 4
embedding_size = 4

[[stage]]
name = "{{method}}"
verb = "transfer"
from = "first"
data = "{folder}/three.csv"
test = "{folder}/three_test.csv"
control = false
matrix = {{ method = ["init", "scratch"] }}

[[stage]]
name = "fed"
verb = "federate"
from = "init"
data = "{folder}/three.csv"
client = "client"
rounds = 2
participation = 0.5
controls = false

[[stage]]
name = "own"
verb = "personalize"
from = "fed"
data = "{folder}/three.csv"
client = "client"

[[stage]]
name = "small"
verb = "compress"
from = "own"
"""
STEPS = ("first", "init", "scratch", "fed", "own", "small")


@pytest.fixture(scope="module")
def travelled(data, tmp_path_factory):
    """A journey that has run, one stage after the other."""
    folder = tmp_path_factory.mktemp("journey")
    journey = read(folder, TINY.format(folder=data))
    records = run_journey(journey, folder / "one", jobs=1, quiet=True)
    assert [record.name for record in records] == list(STEPS)
    return journey, folder / "one"


def identities(out):
    return {name: Checkpoint.load(out / name).identity for name in STEPS}


def test_each_stage_starts_from_the_one_it_names(travelled):
    _, out = travelled
    found = identities(out)
    starts = {"init": "first", "scratch": "first", "fed": "init", "own": "fed", "small": "own"}
    for name, start in starts.items():
        assert StageRecord.load(out / name).parents[0].identity == found[start]
    lineage = Checkpoint.load(out / "small").lineage
    assert [stage.verb for stage in lineage.stages] == ["pretrain", "transfer", "federate", "personalize", "compress"]


@pytest.mark.e2e
def test_two_at_once_give_the_same_bits_as_one_after_the_other(travelled, tmp_path):
    journey, out = travelled
    records = run_journey(journey, tmp_path / "two", jobs=2, quiet=True)
    assert [record.name for record in records] == list(STEPS)
    assert identities(tmp_path / "two") == identities(out)
    for name in STEPS:
        assert StageRecord.load(tmp_path / "two" / name).metrics == StageRecord.load(out / name).metrics


def test_a_journey_that_was_interrupted_keeps_what_is_done(travelled, tmp_path, monkeypatch):
    journey, out = travelled
    done = []
    run_step = module._run_step

    def watched(step, *given):
        if step.name == "fed" and len(done) == 3:
            done.append("interrupted")
            raise KeyboardInterrupt
        run_step(step, *given)
        done.append(step.name)

    monkeypatch.setattr(module, "_run_step", watched)
    with pytest.raises(KeyboardInterrupt):
        run_journey(journey, tmp_path / "j", jobs=1, quiet=True)
    assert done == ["first", "init", "scratch", "interrupted"]
    with pytest.raises(ConfigError, match="--resume"):
        run_journey(journey, tmp_path / "j", jobs=1, quiet=True)
    before = {name: (tmp_path / "j" / name / "stage.json").read_bytes() for name in done[:3]}
    worked = []
    for verb in ("pretraining._work", "transfer_learning.verb._work"):
        monkeypatch.setattr(f"headwater.{verb}", lambda *_: worked.append(1))
    run_journey(journey, tmp_path / "j", resume=True, jobs=1, quiet=True)
    assert worked == []
    assert {name: (tmp_path / "j" / name / "stage.json").read_bytes() for name in done[:3]} == before
    assert identities(tmp_path / "j") == identities(out)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.e2e)])
def test_a_stage_that_fails_is_named_and_the_others_stay(jobs, data, tmp_path):
    text = TINY.format(folder=data).replace("three_test.csv", "nothing.csv")
    journey = read(tmp_path, text)
    with pytest.raises(HeadwaterError, match=r"stage '(init|scratch)': there is no file .*nothing.csv"):
        run_journey(journey, tmp_path / "j", jobs=jobs, quiet=True)
    Checkpoint.load(tmp_path / "j" / "first")
    assert not (tmp_path / "j" / "init").exists()
    assert not (tmp_path / "j" / "fed").exists()


def test_an_output_that_is_taken_is_refused(travelled, tmp_path):
    journey, _ = travelled
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        run_journey(journey, tmp_path / "file")
    with pytest.raises(OutputError, match="can't write"):
        run_journey(journey, tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="isn't empty"):
        run_journey(journey, tmp_path)
    with pytest.raises(ConfigError, match="jobs = -2"):
        run_journey(journey, tmp_path / "new", jobs=-2)


def test_a_journey_starts_from_a_checkpoints_folder_too(travelled, data, tmp_path):
    _, out = travelled
    stage = {"name": "t", "verb": "transfer", "from": f"{out}/first", "data": f"{data}/three.csv"}
    text = "[[stage]]\nepochs = 1\nvalid = 0.3\ncontrol = false\n" + "".join(
        f'{key} = "{value}"\n' for key, value in stage.items()
    )
    journey = read(tmp_path, text)
    run_journey(journey, tmp_path / "j", jobs=1, quiet=True)
    assert StageRecord.load(tmp_path / "j" / "t").parents[0].name == "first"


def test_the_command_runs_a_journey_and_makes_its_report(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = TINY.format(folder=data).split("[[stage]]")
    Path("trip.toml").write_text("[[stage]]".join(first[:2]))
    assert main(["run", "trip.toml", "--jobs", "1", "--quiet", "--set", "first.seed=5"]) == 0
    assert capsys.readouterr().out == "report: runs/trip/report.html\n"
    assert StageRecord.load(tmp_path / "runs" / "trip" / "first").seed == 5
    assert main(["run", "trip.toml", "--jobs", "1", "--quiet"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["run", "trip.toml", "--jobs", "1", "--quiet", "--resume"]) == 2
    assert "begun with seed = 5, now it is 0" in capsys.readouterr().err


def test_every_verb_of_a_journey_is_a_verb():
    assert set(module.STAGES) <= VERBS.keys()
