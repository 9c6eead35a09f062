"""Fixtures that several files share."""

import pytest
from helpers import TINY, toy_rows, write_csv

from headwater.checkpoint import Checkpoint
from headwater.pretraining import PretrainOptions, pretrain


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of toy files: train.csv and test.csv of two labels with clients, three.csv of three labels."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "train.csv", toy_rows(240, seed=1, clients=6))
    write_csv(folder / "test.csv", toy_rows(90, seed=2, clients=6))
    write_csv(folder / "three.csv", toy_rows(240, seed=3, labels=("bad", "fair", "good"), clients=6))
    write_csv(folder / "three_test.csv", toy_rows(90, seed=4, labels=("bad", "fair", "good"), clients=6))
    return folder


@pytest.fixture(scope="session")
def source_folder(data, tmp_path_factory):
    """The folder of a checkpoint that was pre-trained on train.csv; not to be changed."""
    out = tmp_path_factory.mktemp("source") / "source"
    pretrain(PretrainOptions(**TINY | {"data": str(data / "train.csv"), "out": out, "epochs": 4}))
    return out


@pytest.fixture
def source(source_folder):
    """The checkpoint in it."""
    return Checkpoint.load(source_folder)
