"""What was asked for without effect, and what a reader must know of the rows, is said."""

import pytest
from helpers import toy_rows

from headwater.comparison import MeasureOptions
from headwater.data.rows import row_notes
from headwater.features.text import SPECIAL, TextFeaturizer, TextOptions
from headwater.federated.options import FederateOptions
from headwater.metalearning.options import MetalearnOptions
from headwater.pretraining import PretrainOptions
from headwater.transfer_learning.options import TransferOptions


@pytest.mark.parametrize(
    ("options", "given", "ignored", "when"),
    [
        (TransferOptions, {"method": "features", "freeze": "encoder"}, ["freeze"], "init or finetune or multitask"),
        (
            TransferOptions,
            {"method": "features", "lr": 0.1, "patience": 1, "control": False},
            ["lr", "patience"],
            "scratch or init",
        ),
        (TransferOptions, {"method": "scratch", "head": "source"}, ["head"], "init or finetune or multitask"),
        (TransferOptions, {"method": "init", "source_data": "x", "lr_decay": 2}, ["lr-decay", "source-data"], ""),
        (TransferOptions, {"method": "finetune", "freeze": "embedding", "lr": 0.1, "unfreeze": "at_once"}, [], ""),
        (TransferOptions, {"probe_share": 0.3}, ["probe-share"], "--unfreeze probe_first"),
        (TransferOptions, {"probe_share": 0.3, "unfreeze": "probe_first"}, [], ""),
        (TransferOptions, {"l2_sp_head": 0.3}, ["l2-sp-head"], "with --l2-sp"),
        (TransferOptions, {"method": "scratch", "l2_sp": 0.3, "bss": 0.1}, ["bss", "l2-sp"], "with --method init"),
        (TransferOptions, {"rank": 2, "lora_targets": "x"}, ["lora-targets", "rank"], "with --method lora"),
        (TransferOptions, {"method": "lora", "rank": 2, "bss": 1, "l2_sp": 1}, ["l2-sp"], "with --method init"),
        (
            TransferOptions,
            {"bottleneck": 2, "adapter_layers": "1"},
            ["adapter-layers", "bottleneck"],
            "--method adapters",
        ),
        (TransferOptions, {"method": "adapters", "bottleneck": 2, "bss": 1, "lr": 0.1, "vat": 1.0}, [], ""),
        (TransferOptions, {"vat_radius": 2.0, "vat_data": "x"}, ["vat-data", "vat-radius"], "with --vat only"),
        (TransferOptions, {"method": "scratch", "vat": 1.0, "vat_data": "x"}, [], ""),
        (TransferOptions, {"method": "features", "vat": 1.0, "control": False}, ["vat"], "with --method scratch or"),
        (TransferOptions, {"control_seeds": 2, "control": False}, ["control-seeds"], "with --control"),
        (TransferOptions, {"method": "scratch", "control_seeds": 2}, ["control-seeds"], "with --method init"),
        (TransferOptions, {"method": "scratch", "control": False}, [], ""),  # a journey says so for all its methods
        (TransferOptions, {"method": "features", "lr": 0.1, "control_seeds": 2}, [], ""),  # the twin reads the rate
        (TransferOptions, {"l2_sp": 0.3, "l2_sp_head": 0.3}, [], ""),
        (TransferOptions, {"bptt": 70, "ar": 2.0}, ["ar", "bptt"], "--task language_modeling"),
        (TransferOptions, {"task": "language_modeling", "tar": 1.0}, ["tar"], "with --bptt"),
        (TransferOptions, {"task": "language_modeling", "label": "x", "bss": 1}, ["bss"], "classification"),
        (TransferOptions, {"task": "language_modeling", "bptt": 70, "tar": 1.0}, [], ""),
        (TransferOptions, {"lm_data": "x", "lm_text": "y"}, ["lm-data", "lm-text"], "with --lm-weight"),
        (TransferOptions, {"lm_weight": 1, "lm_text": "y", "balance": "pcgrad"}, ["lm-text"], "with --lm-data"),
        (TransferOptions, {"method": "init", "balance": "pcgrad"}, ["balance"], "with --method multitask"),
        (TransferOptions, {"method": "features", "lm_weight": 1}, ["lm-weight"], "init or finetune or multitask"),
        (TransferOptions, {"lm_weight": 1, "gradnorm_alpha": 1}, ["gradnorm-alpha"], "with --balance gradnorm"),
        (TransferOptions, {"method": "features", "patience": 3}, [], ""),  # its default: nothing was expected of it
        (
            TransferOptions,
            {"task": "language_modeling", "vat": 1, "lm_weight": 1},
            ["lm-weight", "vat"],
            "classification",
        ),
        (
            TransferOptions,
            {"freeze": "encoder", "bss": 1, "lr_decay": 2},
            ["bss", "lr-decay"],
            "without --freeze encoder",
        ),
        (
            TransferOptions,
            {"method": "lora", "l2_sp": 1, "weight_decay": 1, "control": False},
            ["l2-sp"],
            "--method init",
        ),
        (FederateOptions, {"delta": 1e-5, "update_clip": 1.0}, ["delta", "update-clip"], "with --epsilon only"),
        (FederateOptions, {"delta": 1e-5, "epsilon": 1.0, "aggregator": "mean"}, [], ""),
        (FederateOptions, {"client": "c", "clients": 9}, ["clients"], "without --client"),
        (FederateOptions, {"partition": "iid", "alpha": 9}, ["alpha"], "--partition dirichlet"),
        (PretrainOptions, {"task": "language_modeling", "pooling": "max"}, ["pooling"], "--task classification"),
        (PretrainOptions, {"task": "language_modeling", "ar": 2.0}, ["ar"], "with --bptt"),
        (PretrainOptions, {"task": "language_modeling", "ar": 2.0, "bptt": 70}, [], ""),
        (PretrainOptions, {"bptt": 70, "tar": 1.0}, ["bptt", "tar"], "--task language_modeling"),
        (PretrainOptions, {"hidden_dropout": 0.5}, ["hidden-dropout"], "--layers 2"),
        (PretrainOptions, {"hidden_dropout": 0.5, "layers": 2}, [], ""),
        (MetalearnOptions, {"tasks": "t", "ways": 3, "inner_lr": 0.1}, ["ways"], "without --tasks only"),
        (MetalearnOptions, {"held_tasks": "a", "held_share": 0.1}, ["held-share"], "without --held-tasks only"),
        (
            MetalearnOptions,
            {"method": "prototypes", "clip": 0, "adapt_steps": 9},
            ["adapt-steps", "clip"],
            "fomaml only",
        ),
        (
            TransferOptions,
            {"method": "prototypes", "lr": 0.1, "head": "new", "control": False},
            ["head", "lr"],
            "with --method",
        ),
        (MeasureOptions, {"text": "review"}, ["text"], "with --data only"),
    ],
)
def test_an_option_that_was_given_without_effect_is_named(options, given, ignored, when):
    required = {} if options is MeasureOptions else {"data": "rows.csv", "out": "model"}
    notes = options.parse(required | given).notes()
    assert sorted(note.split()[0] for note in notes) == [f"--{name}" for name in ignored]
    assert all(when in note for note in notes)


def test_rows_that_are_cut_or_seen_in_training_are_counted():
    train, test = toy_rows(40), toy_rows(20, seed=1)
    words = {len(text.split()) for text in train.texts}
    most = sorted(words)[-2]
    cut = sum(len(text.split()) > most for text in train.texts)
    featurizer = TextFeaturizer(TextOptions(max_length=most), SPECIAL)
    (note,) = row_notes(featurizer, train, test)
    assert note.startswith(f"{cut} of 40 training rows ({cut / 40:.1%}) are longer than {most} tokens")
    repeated = test.take([0, 1, 2])
    seen = row_notes(TextFeaturizer(TextOptions(), SPECIAL), train.take([0]), train.take([0, 0, 1]))
    assert seen == ["2 of 3 rows to measure on have a text that stands among the training rows."]
    assert row_notes(TextFeaturizer(TextOptions(), SPECIAL), train, repeated) == []
