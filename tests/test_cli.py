"""The command line: bad input ends with one line that helps, exit code 2 and nothing that looks finished."""

import errno
import json
import os
import re
import shutil

import pytest
from helpers import toy_rows, write_csv
from small_models import personal, sentences, small_checkpoint, write_rows

from headwater import files
from headwater.checkpoint import Checkpoint
from headwater.cli import flag_of, main
from headwater.errors import ConfigError
from headwater.folder import seal
from headwater.verbs import EITHER, MODEL, STAGES, VERBS

FAST = ["--quiet", "--epochs", "1", "--hidden-size", "4", "--embedding-size", "4", "--valid", "0.3"]


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """A working folder with good and bad files."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "test.csv"):
        shutil.copy(data / name, name)
    good = (data / "train.csv").read_text()
    files_ = {
        "empty.csv": b"",
        "header.csv": b"text,label\n",
        "one.csv": b"text,label\n" + b"fine film,good\n" * 30,
        "latin.csv": "text,label\ncaf\u00e9,good\n".encode("latin-1"),
        "wide.csv": good.encode("utf-16"),
        "blank.csv": (good + " ,good,c1\n").encode(),
        "ragged.csv": (good + "a,b,c,d\n").encode(),
        "strange.csv": (good + "a film,god,c1\n").encode(),
        "train.xlsx": b"PK",
        "train.csv.gz": b"\x1f\x8bnothing",
        "unknown.toml": b"epoch = 3\n",
        "broken.toml": b"epochs = \n",
        "wrong.toml": b'epochs = "three"\n',
    }
    for name, content in files_.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    return tmp_path


def refused(capsys, arguments, *parts):
    """Run a command that must be refused; return what it said."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("headwater: error: ")
    assert "Traceback" not in said.err + said.out
    assert said.out == ""
    for part in parts:
        assert part in said.err
    return said.err


PRETRAIN = {
    "a column that is not there": (["--data", "train.csv", "--label", "lable"], ["'lable'", "did you mean 'label'"]),
    "an empty file": (["--data", "empty.csv"], ["empty.csv is empty"]),
    "a header without rows": (["--data", "header.csv"], ["no rows"]),
    "one class only": (["--data", "one.csv"], ["all 30 rows have the label 'good'"]),
    "a label that only the test rows have": (
        ["--data", "train.csv", "--test", "strange.csv"],
        ["strange.csv, row 241", "'god' was never seen", "did you mean 'good'"],
    ),
    "another encoding": (["--data", "latin.csv"], ["isn't UTF-8", "line 2", "iconv"]),
    "another wide encoding": (["--data", "wide.csv"], ["UTF-16"]),
    "a blank row": (["--data", "blank.csv"], ["row 241", "is blank"]),
    "a row with too many fields": (["--data", "ragged.csv"], ["row 241", "4 fields where the header has 3"]),
    "no such file": (["--data", "trian.csv"], ["did you mean 'train.csv'"]),
    "a folder as the file": (["--data", "full"], ["full"]),
    "an unknown kind of file": (["--data", "train.xlsx"], ["unknown suffix '.xlsx'"]),
    "a broken packed file": (["--data", "train.csv.gz"], ["gzip"]),
    "an unknown card": (["--data", "card:nothing/train"], ["nothing"]),
    "an unknown option": (["--data", "train.csv", "--epoch", "3"], ["'--epoch'", "did you mean '--epochs'"]),
    "a shortened option": (["--data", "train.csv", "--hidden", "3"], ["'--hidden'"]),
    "a word too many": (["--data", "train.csv", "more"], ["'more'"]),
    "a missing option": ([], ["'data' is missing"]),
    "an option without its value": (["--data"], ["expected one argument"]),
    "a word for a number": (["--data", "train.csv", "--epochs", "many"], ["epochs = 'many'"]),
    "a number out of range": (["--data", "train.csv", "--batch-size", "0"], ["batch_size = '0'"]),
    "an unknown choice": (["--data", "train.csv", "--optimizer", "adam"], ["optimizer = 'adam'", "adamw"]),
    "an unknown cell": (["--data", "train.csv", "--cell", "ltsm"], ["did you mean 'lstm'"]),
    "more rows than there are": (["--data", "train.csv", "--rows", "9999"], ["240 rows where 9999", "--rows"]),
    "fewer rows than labels": (["--data", "train.csv", "--rows", "1"], ["--rows"]),
    "no vectors": (["--data", "train.csv", "--vectors", "none.txt"], ["none.txt"]),
    "an unknown key in a file": (
        ["--config", "unknown.toml", "--data", "train.csv"],
        ["unknown.toml", "did you mean 'epochs'"],
    ),
    "a file that is no TOML": (["--config", "broken.toml", "--data", "train.csv"], ["broken.toml", "TOML"]),
    "a wrong value in a file": (["--config", "wrong.toml", "--data", "train.csv"], ["wrong.toml", "epochs = 'three'"]),
    "no such options file": (["--config", "none.toml", "--data", "train.csv"], ["none.toml doesn't exist"]),
    "words that are all rare": (["--data", "train.csv", "--min-count", "9999"], ["--min-count"]),
    "a loss that explodes": (
        ["--data", "train.csv", "--lr", "1e30", "--clip", "1e30", "--epochs", "9"],
        ["lower --lr"],
    ),
}


@pytest.mark.parametrize("what", PRETRAIN)
def test_bad_input_is_refused(what, place, capsys):
    given, parts = PRETRAIN[what]
    before = sorted(path.name for path in place.iterdir())
    refused(capsys, ["pretrain", *FAST, *given, "--out", "model"], *parts)
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("full", "holds something else"),
        ("test.csv", "is a file"),
        ("test.csv/model", "can't write"),
        (".", "give it a name"),
    ],
)
def test_an_output_that_is_taken_is_refused(out, part, place, capsys):
    before = sorted(place.rglob("*"))
    refused(capsys, ["pretrain", *FAST, "--data", "train.csv", "--out", out], part)
    assert sorted(place.rglob("*")) == before
    assert refused(capsys, ["pretrain", *FAST, "--data", "train.csv"], "'out' is missing")


def test_a_result_is_not_overwritten(place, capsys):
    command = ["pretrain", *FAST, "--data", "train.csv", "--out", "model"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-1].endswith("s: model")
    identity = Checkpoint.load("model").identity
    refused(capsys, command, "already holds the result of a 'pretrain'")
    assert main([*command, "--resume"]) == 0
    assert Checkpoint.load("model").identity == identity


def test_a_full_disk_is_said_in_one_line_and_can_be_resumed(place, capsys, monkeypatch):
    command = ["pretrain", *FAST, "--data", "train.csv", "--out", "model"]
    with monkeypatch.context() as patch:
        count, whole = 0, os.fsync

        def sync(number):
            nonlocal count
            count += 1
            if count > 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(number)

        patch.setattr(files.os, "fsync", sync)
        refused(capsys, command, "disk is full", "MiB free", "--resume")
    assert not (place / "model").exists()
    assert not list(place.rglob("*.tmp"))
    assert main([*command, "--resume"]) == 0
    Checkpoint.load("model")


# Checkpoints that can't be used


@pytest.fixture
def model(place):
    checkpoint = small_checkpoint()
    checkpoint.save(place / "model")
    write_rows(place / "rows.csv", sentences(40), ["bad", "good"] * 20)
    return place / "model"


USING = {
    "transfer": ["transfer", "model", "--data", "train.csv", "--out", "new", "--quiet"],
    "fine-tune": ["fine-tune", "model", "--data", "train.csv", "--out", "new", "--quiet"],
    "metalearn": ["metalearn", "model", "--data", "train.csv", "--tasks", "client", "--out", "new", "--quiet"],
    "reshape": ["reshape", "model", "--hidden-size", "9", "--out", "new", "--quiet"],
    "federate": ["federate", "model", "--data", "train.csv", "--client", "client", "--out", "new", "--quiet"],
    "personalize": ["personalize", "model", "--data", "train.csv", "--client", "client", "--out", "new", "--quiet"],
    "compress": ["compress", "model", "--out", "new", "--quiet"],
    "export": ["export", "model", "--out", "new", "--quiet"],
    "push": ["push", "model", "--to", "hf:nobody/nothing"],
    "evaluate": ["evaluate", "model", "--data", "rows.csv"],
    "predict": ["predict", "model", "--text", "w1 w2"],
    "generate": ["generate", "model", "--prompt", "w1 w2"],
}


def test_every_verb_that_takes_a_model_is_tested_here():
    assert USING.keys() == {name for name, verb in VERBS.items() if verb.subject in (MODEL, EITHER)}


@pytest.mark.parametrize("verb", sorted(USING))
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json", "lineage.json", "card.md"])
def test_a_damaged_checkpoint_is_refused_by_every_verb(verb, name, model, capsys):
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    refused(capsys, USING[verb], f"{name} is damaged", "copy the checkpoint again")
    assert not list(model.parent.glob("new*"))


@pytest.mark.parametrize("verb", sorted(USING))
def test_a_checkpoint_of_another_version_is_refused_by_every_verb(verb, model, capsys):
    config = model / "config.json"
    config.write_text(config.read_text().replace("headwater.checkpoint/1", "headwater.checkpoint/9"))
    seal(model)
    refused(capsys, USING[verb], "headwater.checkpoint/9", "this version reads")
    assert not list(model.parent.glob("new*"))


@pytest.mark.parametrize("verb", sorted(USING))
@pytest.mark.parametrize("subject", ["nothing", "train.csv", "full"])
def test_what_is_no_checkpoint_is_refused_by_every_verb(verb, subject, model, capsys):
    arguments = [subject if argument == "model" else argument for argument in USING[verb]]
    refused(capsys, arguments, subject)
    assert not list(model.parent.glob("new*"))


@pytest.mark.parametrize("verb", sorted(name for name in USING if not VERBS[name].optional))
def test_the_checkpoint_must_be_given(verb, model, capsys):
    arguments = [argument for argument in USING[verb] if argument != "model"]
    refused(capsys, arguments, "required: CHECKPOINT", "--help")


REFUSED = {
    "an unknown method": ([*USING["transfer"], "--method", "fintune"], ["did you mean 'finetune'"]),
    "multitask without the source's rows": ([*USING["transfer"], "--method", "multitask"], ["--source-data"]),
    "the head of other labels": ([*USING["transfer"], "--head", "source"], ["--head new"]),
    "an unknown aggregator": ([*USING["federate"], "--aggregator", "medain"], ["did you mean 'median'"]),
    "privacy with the median": (
        [*USING["federate"], "--epsilon", "1", "--aggregator", "median"],
        ["--aggregator mean", "'median'"],
    ),
    "privacy with a target": (
        [*USING["federate"], "--epsilon", "1", "--aggregator", "mean", "--target", "0.9"],
        ["leave target and patience at 0"],
    ),
    "a client column that is not there": ([*USING["federate"], "--client", "clint"], ["did you mean 'client'"]),
    "labels that the model does not know": (
        ["evaluate", "model", "--data", "strange.csv"],
        ["'god' was never seen"],
    ),
    "text from a classifier": (USING["generate"], ["--task language_modeling"]),
    "nothing to predict": (["predict", "model"], ["--text"]),
    "a file without a table to write": (["predict", "model", "--data", "rows.csv"], ["--out"]),
    "a table without a file": (["predict", "model", "--text", "w1", "--out", "new.csv"], ["--data"]),
    "a table that exists": (["predict", "model", "--data", "rows.csv", "--out", "train.csv"], ["exists already"]),
    "a client without a model": (["predict", "model", "--text", "w1", "--client", "ann"], ["ann"]),
    "an unknown pretrained model": (["transfer", "pretrained:lca", *USING["transfer"][2:]], ["lca"]),
    "an unknown verb": (["pretrian"], ["unknown command 'pretrian'", "did you mean 'pretrain'"]),
    "a flag where a verb belongs": (["--quiet"], ["unknown command '--quiet'"]),
    "a report of nothing": (["report", "nowhere"], ["nowhere"]),
    "a journey that is not there": (["run", "none.toml"], ["none.toml doesn't exist"]),
    "a journey without stages": (["run", "wrong.toml"], ["unknown key 'epochs'"]),
    "an unknown language": (["demo", "--language", "xx"], ["xx"]),
    "a word for the number of jobs": (["demo", "--jobs", "many"], ["many"]),
    "a negative number of jobs": (["demo", "--jobs", "-1"], ["jobs = -1"]),
    "a journey into a file": (["demo", "--out", "train.csv"], ["train.csv is a file"]),
    "a journey into a full folder": (["demo", "--out", "full"], ["isn't empty", "--resume"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_use_of_a_model_is_refused(what, model, capsys):
    given, parts = REFUSED[what]
    before = sorted(model.parent.rglob("*"))
    refused(capsys, given, *parts)
    assert sorted(model.parent.rglob("*")) == before


# What is printed


def test_debug_shows_where_an_error_was_raised(place, capsys):
    assert main(["pretrain", "--data", "empty.csv", "--out", "model", "--debug"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "table.py" in said
    assert said.splitlines()[-1].startswith("headwater: error: empty.csv is empty")


def test_an_error_of_our_own_is_said_in_one_line_too(place, capsys, monkeypatch):
    def broken(*_):
        raise ValueError("two\nlines")

    monkeypatch.setattr("headwater.pretraining.pretrain", broken)
    assert main(["pretrain", "--data", "train.csv", "--out", "model"]) == 1
    assert capsys.readouterr().err == "headwater: internal error: ValueError: two lines (--debug shows where)\n"
    assert main(["--debug", "pretrain", "--data", "train.csv", "--out", "model"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(place, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("headwater.pretraining.pretrain", interrupted)
    assert main(["pretrain", "--data", "train.csv", "--out", "model"]) == 130
    assert capsys.readouterr().err == "headwater: interrupted; the same command with --resume continues\n"
    monkeypatch.setattr("headwater.prediction.predict", interrupted)
    assert main(["predict", "model", "--text", "w1"]) == 130
    assert capsys.readouterr().err == "headwater: interrupted\n"  # there is nothing to resume


def test_evaluate_prints_one_flat_object(model, capsys):
    assert main(["evaluate", "model", "--data", "rows.csv", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    figures = json.loads(said.out)
    assert figures.keys() == {"accuracy", "macro_f1", "loss", "n", "auc", "ece"}
    assert figures["n"] == 40
    assert all(isinstance(value, int | float) for value in figures.values())
    assert main(["evaluate", "model", "--data", "rows.csv"]) == 0
    assert f"accuracy: {figures['accuracy']:.6g}" in capsys.readouterr().out


def test_evaluate_with_clients_stays_flat(model, capsys):
    write_rows(model.parent / "rows.csv", sentences(40), ["bad", "good"] * 20, ["ann", "bob"] * 20)
    checkpoint = Checkpoint.load(model)
    shutil.rmtree(model)
    object.__setattr__(checkpoint, "personal", personal(checkpoint, "ann"))
    checkpoint.save(model)
    assert main(["evaluate", "model", "--data", "rows.csv", "--client", "client", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() >= {"accuracy", "macro_f1", "loss", "n", "clients"}
    assert not any(isinstance(value, dict | list) for value in figures.values())


def test_options_may_come_from_a_file_and_flags_go_before_it(model, capsys):
    (model.parent / "e.toml").write_text('data = "nowhere.csv"\nthreads = 1\n')
    assert main(["evaluate", "model", "--config", "e.toml", "--data", "rows.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 40
    (model.parent / "p.toml").write_text("hidden-size = 5\nbidirectional = false\nepochs = 1\n")
    command = ["pretrain", "--config", "p.toml", "--data", "train.csv", "--out", "new", *FAST[:3], "--bidirectional"]
    assert main(command) == 0
    encoder = Checkpoint.load("new").config.encoder
    assert (encoder.hidden_size, encoder.bidirectional) == (5, True)


def test_predict_prints_the_label_and_each_probability(model, capsys):
    assert main(["predict", "model", "--text", "w1 w2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("label: ")
    assert all(label in said for label in ("bad", "fair", "good"))


@pytest.mark.parametrize("text", ["-w1 w2", "-help is what w1 needs", "--w1", "- w1", "-w1"])
def test_a_text_may_begin_with_a_dash(text, model, capsys):
    assert main(["predict", "model", "--text", text]) == 0
    apart = capsys.readouterr().out
    assert main(["predict", "model", f"--text={text}"]) == 0
    assert capsys.readouterr().out == apart


def help_of(capsys, *command):
    """Return the help text of each option of a command, on one line."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    blocks = re.split(r"\n  (?=-)|\n\n", capsys.readouterr().out)
    return {re.search(r"--[\w-]+", block)[0]: " ".join(block.split()) for block in blocks if block.startswith("-")}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_tells_every_option_and_its_default(verb, capsys):
    said = help_of(capsys, verb)
    for name, info in VERBS[verb].options_class().model_fields.items():
        text = said[flag_of(name)]
        words = " ".join(info.description.split())
        assert words[:30] in text
        if info.is_required():
            assert text.endswith("(required)")
        elif isinstance(info.default, bool):
            assert text.endswith(f"(default: {'on' if info.default else 'off'})")
        elif info.default not in (None, "", ()):
            default = info.default[0] if isinstance(info.default, tuple) else info.default
            assert text.endswith(f"(default: {default})")


def required_of(config):
    given = {name: "here" for name, info in config.model_fields.items() if info.is_required()}
    return given | ({"to": "hf:owner/name"} if "to" in given else {})


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_options_default_may_be_written_out(verb):
    config = VERBS[verb].options_class()
    required = required_of(config)
    for name, info in config.model_fields.items():
        if isinstance(info.default, int | float | str) and info.default != "":
            given = config.parse({**required, name: str(info.default)})
            assert getattr(given, name) == info.default


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1e300"])
def test_numbers_that_are_none_or_out_of_reach_are_refused(verb, value):
    config = VERBS[verb].options_class()
    required = required_of(config)
    for name, info in config.model_fields.items():
        if isinstance(info.default, float):
            with pytest.raises(ConfigError, match=name):
                config.parse({**required, name: value})


def test_help_shows_a_default_of_zero_and_of_one(capsys):
    said = help_of(capsys, "pretrain")
    for flag, default in (("--seed", 0), ("--layers", 1), ("--clip", 1.0), ("--weight-dropout", 0.0), ("--threads", 1)):
        assert said[flag].endswith(f"(default: {default})")


@pytest.mark.parametrize("command", ["report", "run", "demo"])
def test_the_other_commands_have_help_too(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"headwater {command}" in capsys.readouterr().out


def test_the_top_lists_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in (*VERBS, "report", "run", "demo"):
        assert f"\n  {name} " in said
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("headwater ")


def test_every_stage_has_an_output_and_can_be_resumed():
    for name in STAGES:
        assert {"out", "resume", "seed", "quiet"} <= VERBS[name].options_class().model_fields.keys()


def test_a_label_called_nan_is_a_word(place, capsys):
    rows = toy_rows(240, labels=("bad", "good"))
    names = {"bad": "nan", "good": "1"}
    object.__setattr__(rows, "labels", [names[label] for label in rows.labels])
    write_csv(place / "nan.csv", rows)
    assert main(["pretrain", *FAST, "--data", "nan.csv", "--out", "model"]) == 0
    assert Checkpoint.load("model").labels == ("1", "nan")
