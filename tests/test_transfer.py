"""Transfer: what the source knows is carried over row by row, and each method trains what it says it trains."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import TINY, same_bits, toy_rows, write_csv

from headwater.checkpoint import Checkpoint
from headwater.errors import CheckpointError, ConfigError, DataError
from headwater.features.text import SPECIAL, TextFeaturizer, TextOptions
from headwater.fitting import read_splits
from headwater.pretraining import PretrainOptions, pretrain
from headwater.progress import Progress
from headwater.records import StageRecord
from headwater.stage import Workspace
from headwater.trainer import _Run
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.job import make_job
from headwater.transfer_learning.methods import finetune
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.unfreezing import chain_thaw, probe_first
from headwater.transfer_learning.verb import transfer
from headwater.transfer_learning.vocabulary import union_featurizer
from headwater.weights import weights_of

TRAINING = {key: value for key, value in TINY.items() if key not in ("embedding_size", "hidden_size")}


def featurizer(*words, **options):
    return TextFeaturizer(TextOptions(lowercase=False, **options), (*SPECIAL, *words))


def options(folder, out, /, **changes):
    given = {
        "data": str(folder / "three.csv"),
        "test": str(folder / "three_test.csv"),
        "out": out,
        "epochs": 4,
        "control": False,
    }
    return TransferOptions(**TRAINING | given | {"source_data": str(folder / "train.csv")} | changes)


def job_of(source, given):
    workspace = Workspace(given.out, torch.device("cpu"), Progress("test", quiet=True))
    return make_job(source, read_splits(given, given.seed), given, workspace, from_scratch=given.method == "scratch")


def test_the_union_keeps_the_sources_numbers_and_adds_the_new_tokens():
    source, target = featurizer("a", "b"), featurizer("b", "c", vocabulary_size=10)
    both = union_featurizer(source, target)
    assert both.vocabulary == (*SPECIAL, "a", "b", "c")
    assert both.encode("a b c d") == [4, 5, 6, 1]
    assert both.options.vocabulary_size >= 7


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("labels", ["same", "other"])
def test_every_method_is_no_worse_than_chance(method, labels, data, source, tmp_path):
    same = {"data": str(data / "train.csv"), "test": str(data / "test.csv")} if labels == "same" else {}
    checkpoint = transfer(source, options(data, tmp_path / "t", method=method, epochs=6, **same))
    record = StageRecord.load(tmp_path / "t")
    assert checkpoint.labels == (("bad", "good") if labels == "same" else ("bad", "fair", "good"))
    assert record.metrics["test"]["accuracy"] >= record.baselines["majority"]["accuracy"]
    assert record.metrics["test"]["n"] == 90
    assert record.method == method
    assert ("zero_shot" in record.metrics) == (labels == "same" and method != "scratch")
    assert (record.coverage is None) == (method == "scratch")
    assert [parent.identity for parent in record.parents] == [source.identity]
    assert [stage.verb for stage in checkpoint.lineage.stages] == ["pretrain", "transfer"]


FROZEN = [
    ("features", "none"),
    ("init", "encoder"),
    ("finetune", "encoder"),
    ("prototypes", "none"),
]


@pytest.mark.parametrize(("method", "freeze"), FROZEN)
def test_a_frozen_encoder_keeps_its_bits(method, freeze, data, source, tmp_path):
    made = transfer(source, options(data, tmp_path / "t", method=method, freeze=freeze))
    known = len(source.featurizer.vocabulary)
    for name, value in source.weights().items():
        if name.startswith("encoder."):
            kept = made.tensors[name][:known] if "embedding" in name else made.tensors[name]
            assert torch.equal(kept, value), name
    assert made.tensors["head.linear.weight"].shape[0] == 3


@pytest.mark.parametrize("method", ["init", "finetune", "multitask"])
@pytest.mark.parametrize("freeze", ["none", "embedding"])
def test_a_frozen_embedding_keeps_its_bits_while_the_layers_learn(method, freeze, data, source, tmp_path):
    made = transfer(source, options(data, tmp_path / "t", method=method, freeze=freeze))
    before = source.weights()
    embedding, layer = "encoder.embedding.weight", "encoder.stack.layers.0.fwd.weight_hh"
    kept = made.tensors[embedding][: len(before[embedding])]
    assert torch.equal(kept, before[embedding]) == (freeze == "embedding")
    assert not torch.equal(made.tensors[layer], before[layer])


UNFREEZE = {  # of four epochs: those in which the head, the layer and the embedding learn
    "gradual": ({0, 1, 2, 3}, {1, 2, 3}, {2, 3}),
    "chain_thaw": ({0, 3}, {2, 3}, {1, 3}),
    "probe_first": ({0, 1, 2, 3}, {2, 3}, {2, 3}),
    "at_once": ({0, 1, 2, 3},) * 3,
}


@pytest.mark.parametrize("unfreeze", UNFREEZE)
def test_fine_tuning_thaws_layer_by_layer(unfreeze, data, source, tmp_path, monkeypatch):
    given = options(data, tmp_path / "t", method="finetune", unfreeze=unfreeze, patience=0)
    kept = [weights_of(job_of(source, given).model)]
    finish = _Run.finish_epoch
    monkeypatch.setattr(
        _Run, "finish_epoch", lambda run, *given: (kept.append(weights_of(run.trained)), finish(run, *given))
    )
    transfer(source, given)
    parts = ("head.linear.bias", "encoder.stack.layers.0.fwd.weight_hh", "encoder.embedding.weight")
    for name, epochs in zip(parts, UNFREEZE[unfreeze], strict=True):
        changed = {epoch for epoch, (a, b) in enumerate(pairwise(kept)) if not torch.equal(a[name], b[name])}
        assert changed == epochs, name


def test_phases_of_a_chain_are_equally_long_and_the_last_takes_the_rest():
    assert [set(epochs) for epochs in chain_thaw(3, 11)] == [
        {0, 1, 6, 7, 8, 9, 10},
        {4, 5, 6, 7, 8, 9, 10},
        {2, 3, 6, 7, 8, 9, 10},
    ]
    assert [set(epochs) for epochs in chain_thaw(1, 3)] == [{0, 1, 2}]


@pytest.mark.parametrize(("share", "epochs", "alone"), [(0.5, 10, 5), (0.0, 10, 1), (0.99, 10, 9), (0.5, 2, 1)])
def test_the_head_probes_alone_for_its_share_but_neither_never_nor_always(share, epochs, alone):
    assert probe_first(2, epochs, share) == [range(epochs), range(alone, epochs)]


@pytest.mark.parametrize(("unfreeze", "epochs", "least"), [("chain_thaw", 3, 4), ("probe_first", 1, 2)])
def test_too_few_epochs_for_all_phases_are_refused(unfreeze, epochs, least, data, source, tmp_path):
    with pytest.raises(ConfigError, match=f"--epochs {least}"):
        transfer(source, options(data, tmp_path / "t", unfreeze=unfreeze, epochs=epochs))
    assert not any(tmp_path.iterdir())


def test_a_chain_leaves_out_what_stays_frozen(data, source, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("headwater.transfer_learning.job.fit_task", lambda *given, groups, **more: seen.extend(groups))
    finetune(job_of(source, options(data, tmp_path / "t", unfreeze="chain_thaw", freeze="embedding", epochs=3)))
    assert [set(group.epochs) for group in seen] == [{0, 2}, {1, 2}, set()]


def test_lower_layers_learn_at_smaller_rates(data, source, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("headwater.transfer_learning.job.fit_task", lambda *given, groups, **more: seen.append(groups))
    finetune(job_of(source, options(data, tmp_path / "t", lr_decay=2.0)))
    assert [group.lr_factor for group in seen[0]] == [1.0, 0.5, 0.25]
    assert [group.prefixes for group in seen[0]] == [("head.",), ("encoder.stack.layers.0.",), ("encoder.embedding.",)]


@pytest.mark.parametrize(
    ("file", "head", "kept"),
    [
        ("train.csv", "auto", True),
        ("train.csv", "source", True),
        ("train.csv", "new", False),
        ("three.csv", "auto", False),
    ],
)
def test_the_head_is_kept_for_the_same_labels_unless_a_new_one_is_asked(file, head, kept, data, source, tmp_path):
    job = job_of(source, options(data, tmp_path / "t", data=str(data / file), test=None, head=head))
    weight = job.model.head.linear.weight.detach()
    assert torch.equal(weight[:2], source.weights()["head.linear.weight"]) == kept
    assert len(weight) == len(job.splits.labels)


def test_the_sources_head_needs_the_sources_labels(data, source, tmp_path):
    with pytest.raises(ConfigError, match="--head new"):
        transfer(source, options(data, tmp_path / "t", head="source"))


def test_multitask_needs_the_sources_rows(data, source, tmp_path):
    with pytest.raises(ConfigError, match="--source-data"):
        transfer(source, options(data, tmp_path / "t", method="multitask", source_data=()))


def test_multitask_learns_the_sources_task_too(data, source, tmp_path):
    light = transfer(source, options(data, tmp_path / "a", method="multitask", source_weight=0.01))
    heavy = transfer(source, options(data, tmp_path / "b", method="multitask", source_weight=5.0))
    alone = transfer(source, options(data, tmp_path / "c", method="init"))
    assert len({light.identity, heavy.identity, alone.identity}) == 3
    assert not any("source" in name for name in heavy.tensors)


def test_scratch_carries_nothing_over(data, source, tmp_path):
    other = replace(source, tensors={name: value + 1 for name, value in source.tensors.items()})
    one = transfer(source, options(data, tmp_path / "a", method="scratch"))
    two = transfer(other, options(data, tmp_path / "b", method="scratch"))
    assert same_bits(one.tensors, two.tensors)
    assert one.config.encoder == source.config.encoder


def test_a_model_that_broke_in_its_last_step_is_not_written(data, source, tmp_path):
    given = options(data, tmp_path / "t", epochs=1, batch_size=120, method="init", lr=1e30)
    with pytest.raises(DataError, match="the weights became infinite or not a number after 2 steps"):
        transfer(source, given)
    assert not (tmp_path / "t").exists()


def test_dropout_is_the_sources_unless_changed(data, source, tmp_path):
    made = transfer(source, options(data, tmp_path / "t", epochs=1, method="init", head_dropout=0.6))
    assert made.config.dropout == source.config.dropout.model_copy(update={"head_dropout": 0.6})


def test_the_same_seed_gives_the_same_model_and_another_another(data, source, tmp_path):
    seeds = [
        transfer(source, options(data, tmp_path / f"t{n}", seed=seed)).identity for n, seed in enumerate((5, 5, 6))
    ]
    assert seeds[0] == seeds[1] != seeds[2]


def test_an_unknown_method_is_refused_before_anything_is_read(source, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'finetune'"):
        transfer(source, TransferOptions(data="nowhere.csv", out=tmp_path / "t", method="fintune"))
    assert not any(tmp_path.iterdir())


def test_a_language_model_can_be_the_source(data, tmp_path):
    lm = pretrain(
        PretrainOptions(
            **TINY | {"data": str(data / "train.csv"), "out": tmp_path / "lm", "bidirectional": False},
            task="language_modeling",
        )
    )
    assert StageRecord.load(tmp_path / "lm").metrics["valid"]["perplexity"] > 1
    made = transfer(lm, options(data, tmp_path / "t", method="features"))
    assert made.labels == ("bad", "fair", "good")
    assert torch.equal(
        made.tensors["encoder.stack.layers.0.fwd.weight_hh"], lm.tensors["encoder.stack.layers.0.fwd.weight_hh"]
    )


def test_a_finished_transfer_that_named_rows_without_reading_them_is_kept_on_resume(data, source, tmp_path):
    given = {"data": write_csv(tmp_path / "rows.csv", toy_rows(60, seed=6)), "test": None, "method": "features"}
    made = transfer(source, options(data, tmp_path / "t", **given))
    assert transfer(source, options(data, tmp_path / "t", **given, resume=True)).identity == made.identity
    write_csv(tmp_path / "rows.csv", toy_rows(60, seed=7))
    with pytest.raises(ConfigError, match="the content of data isn't what"):
        transfer(source, options(data, tmp_path / "t", **given, resume=True))


def test_another_tokenizer_remaps_the_vocabulary(data, source, tmp_path):
    made = transfer(source, options(data, tmp_path / "t", tokenizer="char", method="init", epochs=1))
    assert made.config.featurizer.tokenizer == "char"
    assert {"a", "b"} <= set(made.featurizer.vocabulary)


def test_few_rows_are_drawn_evenly_and_none_held_out(data, source, tmp_path):
    transfer(source, options(data, tmp_path / "t", rows=30, method="init", epochs=1, patience=1))
    record = StageRecord.load(tmp_path / "t")
    assert [(use.role, use.rows) for use in record.data] == [("train", 30), ("test", 90)]
    ignored, too_few = (note for note in record.notes if "ignored" in note)
    assert ignored.startswith("--source-data")
    assert "--valid and --patience" in too_few


def test_fewer_rows_than_labels_are_refused(data, source, tmp_path):
    for method in ("init", "features"):
        with pytest.raises(DataError, match="--rows"):
            transfer(source, options(data, tmp_path / "t", rows=2, method=method))


def test_a_label_that_only_the_test_rows_have_is_told_before_the_training(data, source, tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.transfer_learning.verb.make_job", lambda *_, **__: pytest.fail("it has begun"))
    rows = toy_rows(40, labels=("bad", "good"))
    write_csv(tmp_path / "test.csv", replace(rows, labels=[*rows.labels[:-1], "god"]))
    with pytest.raises(DataError, match=r"row 40: the label 'god' was never seen.*did you mean 'good'"):
        transfer(source, options(data, tmp_path / "t", data=str(data / "train.csv"), test=str(tmp_path / "test.csv")))


def test_a_source_without_an_embedding_is_refused(data, source, tmp_path):
    bare = {name: value for name, value in source.tensors.items() if "embedding" not in name}
    with pytest.raises(CheckpointError, match="embedding"):
        transfer(replace(source, tensors=bare), options(data, tmp_path / "t"))


def test_words_of_the_sources_only_stay_known(data, source, tmp_path):
    write_csv(tmp_path / "few.csv", toy_rows(40, seed=8))
    given = options(data, tmp_path / "t", data=str(tmp_path / "few.csv"), test=None, method="features")
    made = transfer(source, given)
    assert made.featurizer.vocabulary[: len(source.featurizer.vocabulary)] == source.featurizer.vocabulary
    assert "was not measured" in StageRecord.load(tmp_path / "t").notes[-1]
    assert Checkpoint.load(tmp_path / "t").identity == made.identity
