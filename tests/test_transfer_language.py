"""A language model carried over to another text: the outcome is a language model, its decoder is remapped too."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, same_bits, toy_rows, write_csv
from test_transfer import TRAINING, featurizer

from headwater import trainer
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.errors import ConfigError
from headwater.features.text import SPECIAL, TextFeaturizer
from headwater.fitting import read_splits
from headwater.generation import GenerateOptions, generate
from headwater.pretraining import PretrainOptions, pretrain
from headwater.progress import Progress
from headwater.records import StageRecord
from headwater.stage import Workspace
from headwater.transfer_learning.job import make_job
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer
from headwater.transfer_learning.vocabulary import Remapping

EMBEDDING, BIAS = "encoder.embedding.weight", "head.bias"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of a source's text, and of a target's that has words of its own."""
    folder = tmp_path_factory.mktemp("texts")
    write_csv(folder / "source.csv", toy_rows(240, seed=1))
    for name, count, seed in (("target", 240, 2), ("test", 60, 3)):
        rows = toy_rows(count, seed=seed)
        write_csv(folder / f"{name}.csv", replace(rows, inputs=[text.replace("film", "Novel") for text in rows.texts]))
    return folder


@pytest.fixture(scope="module")
def lm_folder(texts, tmp_path_factory):
    """The folder of a language model of source.csv."""
    given = TINY | {"data": str(texts / "source.csv"), "epochs": 6, "bidirectional": False, "layers": 2}
    out = tmp_path_factory.mktemp("lm") / "lm"
    pretrain(PretrainOptions(**given, task="language_modeling", out=out))
    return out


@pytest.fixture
def lm(lm_folder):
    """The checkpoint in it."""
    return Checkpoint.load(lm_folder)


def options(texts, out, /, **changes):
    given = {"data": str(texts / "target.csv"), "test": str(texts / "test.csv"), "out": out, "epochs": 4}
    return TransferOptions(**TRAINING | given | {"task": "language_modeling"} | changes)


def job_of(source, given):
    workspace = Workspace(given.out, torch.device("cpu"), Progress("test", quiet=True))
    splits = read_splits(given, given.seed, labelled=False)
    return make_job(source, splits, given, workspace, from_scratch=given.method == "scratch")


def test_new_tokens_take_the_mean_bias_and_shared_ones_their_own():
    source, target = featurizer("good", "film", "电", "影"), featurizer("film", "unheard", "GOOD", "电影")
    bias = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 6.0])
    made = Remapping(source, target).decoder({"bias": bias})["bias"]
    assert made.tolist() == [9.0, 8.0, 7.0, 6.0, 2.0, 3.0, 1.0, 3.0]


@pytest.mark.parametrize("bptt", [0, 8])
@pytest.mark.parametrize("method", ["scratch", "init", "finetune", "lora"])
def test_the_outcome_is_a_language_model_that_beats_the_unigrams(method, bptt, texts, lm, tmp_path):
    more = {"rank": 2} if method == "lora" else {}
    made = transfer(lm, options(texts, tmp_path / "t", method=method, bptt=bptt, batch_size=16, epochs=12, **more))
    record = StageRecord.load(tmp_path / "t")
    after, trivial = record.metrics["test"], record.baselines["unigram"]
    assert made.config.task == {"name": "language_modeling", "tied": True, "bptt": bptt, "ar": 0.0, "tar": 0.0}
    assert record.method == method
    assert after["n"] == trivial["n"]
    assert after["perplexity"] < trivial["perplexity"]
    assert ("before" in record.metrics) == (record.coverage is not None) == (method != "scratch")
    if method != "scratch":
        assert after["perplexity"] < record.metrics["before"]["perplexity"]
        assert record.metrics["before"]["n"] == after["n"]
    words = {"novel0"} if method == "scratch" else {"novel0", "film0"}
    assert {"novel0", "film0"} & set(made.featurizer.vocabulary) == words
    assert generate(made, GenerateOptions(prompt="scene0", length=3))[0].startswith("scene0")


def test_what_is_made_for_classifiers_leaves_a_language_model_as_it_is(texts, lm, tmp_path):
    plain, asked = (
        transfer(
            lm, options(texts, tmp_path / str(weight), method="init", epochs=1, bptt=8, vat=weight, lm_weight=weight)
        )
        for weight in (0.0, 1.0)
    )
    assert same_bits(plain.tensors, asked.tensors)
    ignored = {note.split()[0] for note in StageRecord.load(tmp_path / "1.0").notes if "was ignored" in note}
    assert ignored == {"--vat", "--lm-weight"}


def test_the_decoder_and_its_bias_are_carried_over(texts, lm, tmp_path):
    job = job_of(lm, options(texts, tmp_path / "t", method="init"))
    old, new = lm.weights(), dict(job.model.named_parameters())
    known = len(lm.featurizer.vocabulary)
    assert len(new[BIAS]) == len(new[EMBEDDING]) == len(job.featurizer.vocabulary) > known
    for name in (BIAS, EMBEDDING):
        assert torch.equal(new[name][:known], old[name]), name
        assert torch.allclose(new[name][known:], old[name][len(SPECIAL) :].mean(0)), name
    for name in old.keys() - {BIAS, EMBEDDING}:
        assert torch.equal(new[name], old[name]), name
    # The softmax reads the rows that the encoder embeds with.
    assert job.model.head._embedding[0] is job.model.encoder.embedding


def test_the_figures_before_are_those_of_the_source_where_it_knows_all_words(texts, lm, tmp_path):
    given = {"data": str(texts / "source.csv"), "test": str(texts / "source.csv"), "epochs": 1}
    transfer(lm, options(texts, tmp_path / "t", method="init", **given))
    record = StageRecord.load(tmp_path / "t")
    assert record.coverage.new == 0
    examples = toy_rows(240, seed=1).encode(lm.featurizer, ("bad", "good"))
    own = lm.config.make_task().count(lm.model(), examples, 64).figures()
    assert record.metrics["before"] == pytest.approx(own)


def test_a_decoder_made_anew_knows_nothing(texts, lm, tmp_path):
    job = job_of(lm, options(texts, tmp_path / "t", method="init", head="new"))
    assert not job.model.head.bias.any()
    assert torch.equal(job.model.encoder.embedding.weight[5], lm.weights()[EMBEDDING][5])
    assert not torch.equal(job.model.head.project.weight, lm.weights()["head.project.weight"])
    transfer(lm, options(texts, tmp_path / "t", method="init", head="new", epochs=1))
    assert "before" not in StageRecord.load(tmp_path / "t").metrics


def test_the_softmax_weights_thaw_right_after_the_head(texts, lm, tmp_path):
    job = job_of(lm, options(texts, tmp_path / "t"))
    layers = [f"encoder.stack.layers.{number}." for number in (1, 0)]
    assert job.layer_groups() == ["head.", "encoder.embedding.", *layers]


def test_epochs_are_counted_by_the_windows_of_streams(texts, lm, tmp_path):
    rows, streams = (job_of(lm, options(texts, tmp_path / "t", bptt=bptt, epochs=0)).epochs for bptt in (0, 2))
    assert rows > streams > 0


def test_a_frozen_encoder_keeps_its_bits(texts, lm, tmp_path):
    made = transfer(lm, options(texts, tmp_path / "t", freeze="encoder", method="init"))
    known, old = len(lm.featurizer.vocabulary), lm.weights()
    for name, value in made.tensors.items():
        if name.startswith("encoder."):
            assert torch.equal(value[:known] if name == EMBEDDING else value, old[name]), name
    assert not torch.equal(made.tensors[BIAS][:known], old[BIAS])


def test_the_same_seed_gives_the_same_bits(texts, lm, tmp_path):
    one, two = (transfer(lm, options(texts, tmp_path / name, bptt=6, epochs=1)) for name in "ab")
    assert same_bits(one.tensors, two.tensors)


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a run in the middle."""


def test_an_interrupted_transfer_ends_with_the_same_bits(texts, lm, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"bptt": 8, "epochs": 2, "patience": 0}
    whole = transfer(lm, options(texts, tmp_path / "whole", **given))
    step = trainer._Run.train_step

    def stopping(run):
        if run.step == 7:
            raise Stop
        return step(run)

    monkeypatch.setattr(trainer._Run, "train_step", stopping)
    with pytest.raises(Stop):
        transfer(lm, options(texts, tmp_path / "killed", **given))
    monkeypatch.setattr(trainer._Run, "train_step", step)
    torch.manual_seed(99)
    resumed = transfer(lm, options(texts, tmp_path / "killed", **given, resume=True))
    assert resumed.identity == whole.identity
    records = [StageRecord.load(tmp_path / name) for name in ("whole", "killed")]
    assert records[0].metrics == records[1].metrics


def test_a_backward_source_stays_backward(texts, lm, tmp_path):
    turned = TextFeaturizer(
        lm.featurizer.options.model_copy(update={"direction": "backward"}), lm.featurizer.vocabulary
    )
    job = job_of(
        replace(lm, featurizer=turned, config=lm.config.model_copy(update={"featurizer": turned.options})),
        options(texts, tmp_path / "t"),
    )
    assert job.featurizer.tokens("scene0 plot1") == ["plot1", "scene0"]


def test_the_tuned_model_becomes_a_classifier(data, texts, lm, tmp_path):
    tuned = transfer(lm, options(texts, tmp_path / "lm", epochs=1))
    classifier = transfer(
        tuned, TransferOptions(**TRAINING | {"data": str(data / "train.csv"), "out": tmp_path / "c", "epochs": 2})
    )
    assert classifier.labels == ("bad", "good")
    assert [stage.verb for stage in classifier.lineage.stages] == ["pretrain", "transfer", "transfer"]


@pytest.mark.parametrize("method", ["auto", "features", "multitask"])
def test_methods_that_make_classifiers_are_refused_before_anything_is_read(method):
    with pytest.raises(
        ConfigError, match=f"method = '{method}' makes classifiers.*finetune, init, lora, adapters or scratch"
    ):
        TransferOptions.parse({"data": "nowhere.csv", "out": "t", "method": method, "task": "language_modeling"})


def test_a_source_that_reads_ahead_is_refused(texts, source, tmp_path):
    with pytest.raises(ConfigError, match="reads in both directions.*--no-bidirectional"):
        transfer(source, options(texts, tmp_path / "t"))
    assert not any(tmp_path.iterdir())


def test_a_source_without_a_decoder_needs_a_new_one(data, texts, tmp_path):
    given = TINY | {"data": str(data / "train.csv"), "bidirectional": False, "epochs": 1}
    classifier = pretrain(PretrainOptions(**given, out=tmp_path / "c"))
    for head in ("auto", "source"):
        with pytest.raises(ConfigError, match="is a classification model, without a decoder.*--head new"):
            transfer(classifier, options(texts, tmp_path / "t", head=head))
    made = transfer(classifier, options(texts, tmp_path / "t", head="new", epochs=1))
    assert made.config.task["name"] == "language_modeling"
    assert not (tmp_path / "t.partial").exists()
    transfer(classifier, options(texts, tmp_path / "s", method="scratch", epochs=1))


def test_rows_too_few_to_hold_out_are_learned_from_all_the_same(texts, lm, tmp_path):
    few = write_csv(tmp_path / "few.csv", toy_rows(40, seed=8))
    transfer(lm, options(texts, tmp_path / "t", data=few, test=None, epochs=1))
    record = StageRecord.load(tmp_path / "t")
    assert (record.metrics, record.baselines) == ({}, {})
    assert "was not measured" in record.notes[-1]


def test_the_command_prints_the_perplexity_beside_what_it_was(texts, lm_folder, tmp_path, capsys):
    given = ["--task", "language_modeling", "--data", str(texts / "target.csv"), "--test", str(texts / "test.csv")]
    assert main(["transfer", str(lm_folder), *given, "--epochs", "1", "--quiet", "--out", str(tmp_path / "t")]) == 0
    said = capsys.readouterr().out
    for name in ("test", "before", "unigram"):
        assert any(line.startswith(f"{name} ") and "perplexity" in line for line in said.splitlines()), name
