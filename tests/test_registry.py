"""A family is its table and the entry points of other packages, wherever an option names a member of it."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from helpers import TINY, toy_rows, write_csv

from headwater import registry
from headwater.cells import CELLS
from headwater.checkpoint import Checkpoint
from headwater.compression import COMPRESSORS
from headwater.compression.verb import CompressOptions
from headwater.deployment import EXPORT_TARGETS
from headwater.deployment.verb import ExportOptions
from headwater.errors import ConfigError
from headwater.features.tokenizers import TOKENIZERS, WordTokenizer
from headwater.federated import AGGREGATORS, ATTACKS, PARTITIONERS, SAMPLERS, SERVER_OPTIMIZERS
from headwater.federated.options import FederateOptions
from headwater.metalearning import METHODS as META_METHODS
from headwater.metalearning.options import MetalearnOptions
from headwater.pretraining import TRAINABLE, PretrainOptions, pretrain
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.balancing import BALANCERS
from headwater.transfer_learning.options import TransferOptions

NAMES = [
    (PretrainOptions, "cell", CELLS, "ltsm", "lstm"),
    (PretrainOptions, "tokenizer", TOKENIZERS, "wrod", "word"),
    (PretrainOptions, "task", TRAINABLE, "clasification", "classification"),
    (TransferOptions, "method", METHODS, "fintune", "finetune"),
    (TransferOptions, "tokenizer", TOKENIZERS, "soruce", "source"),
    (TransferOptions, "balance", BALANCERS, "gradnrom", "gradnorm"),
    (MetalearnOptions, "method", META_METHODS, "reptil", "reptile"),
    (FederateOptions, "aggregator", AGGREGATORS, "medain", "median"),
    (FederateOptions, "server_optimizer", SERVER_OPTIMIZERS, "adamm", "adam"),
    (FederateOptions, "attack", ATTACKS, "sing_flip", "sign_flip"),
    (FederateOptions, "partition", PARTITIONERS, "dirichelt", "dirichlet"),
    (FederateOptions, "sampler", SAMPLERS, "unifrom", "uniform"),
    (CompressOptions, "method", COMPRESSORS, "int4", "int8"),
    (ExportOptions, "target", EXPORT_TARGETS, "onxx", "onnx"),
]


class ShoutingTokenizer(WordTokenizer):
    """Words in capitals: another package's tokenizer."""

    def split(self, text):
        return [word.upper() for word in super().split(text)]


@dataclass
class Reader:
    """Another package's member of any family, which reads some options."""

    trim: float = 0.0
    prox: float = 0.0
    keep: float = 0.0
    pull: float = 0.0


@pytest.fixture
def plug_in(monkeypatch):
    """Let two entry points stand in every group."""

    def points(group):
        names = {"shouting": ShoutingTokenizer, "reader": Reader}
        return EntryPoints([EntryPoint(name, f"{__name__}:{cls.__name__}", group) for name, cls in names.items()])

    monkeypatch.setattr(registry, "entry_points", points)


@pytest.mark.parametrize(("options", "option", "table", "wrong", "right"), NAMES)
def test_an_unknown_name_is_refused_with_the_nearest_one(options, option, table, wrong, right):
    with pytest.raises(ConfigError, match=rf"here: unknown name '{wrong}' .*\(did you mean '{right}'\?\); known: "):
        options.parse({"data": "nowhere.csv", "out": "x", option: wrong}, source="here")


@pytest.mark.parametrize(("options", "option", "table", "wrong", "right"), NAMES)
def test_the_help_of_an_option_lists_its_names(options, option, table, wrong, right):
    assert all(f"`{name}`" in options.model_fields[option].description for name in table)


@pytest.mark.parametrize(("options", "option", "table", "wrong", "right"), NAMES)
def test_a_plug_ins_name_is_taken_wherever_a_member_is_named(options, option, table, wrong, right, plug_in):
    assert getattr(options.parse({"data": "x", "out": "x", option: "shouting"}), option) == "shouting"
    with pytest.raises(ConfigError, match=r"known: .*, reader, shouting"):
        options.parse({"data": "x", "out": "x", option: "nothing like it"})


def test_a_plug_ins_method_may_read_any_option(plug_in):
    given = {"data": "x", "out": "x", "method": "shouting", "freeze": "encoder", "lr": 0.1}
    assert TransferOptions.parse(given).notes() == []


@pytest.mark.parametrize(
    ("family", "option"), [("aggregator", "trim"), ("method", "prox"), ("codec", "keep"), ("personal", "pull")]
)
def test_an_option_that_a_plug_in_has_a_field_for_is_not_said_to_be_ignored(family, option, plug_in):
    given = {"data": "x", "out": "x", option: 0.25}
    assert FederateOptions.parse(given | {family: "reader"}).notes() == []
    assert f"--{option} was ignored" in FederateOptions.parse(given | {family: "shouting"}).notes()[0]


def test_a_plug_ins_tokenizer_goes_from_the_option_into_the_checkpoint(tmp_path, plug_in):
    data = write_csv(tmp_path / "rows.csv", toy_rows(80))
    given = {k: v for k, v in TINY.items() if k != "valid"} | {"epochs": 1, "lowercase": False}
    pretrain(PretrainOptions(**given, data=data, out=tmp_path / "m", tokenizer="shouting"))
    loaded = Checkpoint.load(tmp_path / "m")
    assert loaded.config.featurizer.tokenizer == "shouting"
    assert loaded.featurizer.tokens("a superb film1") == ["A", "SUPERB", "FILM1"]
