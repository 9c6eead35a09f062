"""Numpy's archives give arrays of numbers; objects, false sizes and bombs are errors."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.data.arrays import parse_npy
from headwater.errors import CheckpointError
from headwater.pretrained.numpy_archive import load_numpy_archive


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_out_as_numpy_put_them_in(save, tmp_path):
    plain = np.arange(6, dtype=np.float64).reshape(2, 3)
    arrays = {"plain": plain, "columns": np.asfortranarray(plain), "half": plain.astype(np.float16)}
    arrays |= {"foreign": plain.astype(">f4"), "none": np.zeros((0, 2)), "one": np.float32(3), "whole": np.arange(3)}
    save(tmp_path / "a.npz", **arrays, words=np.array(["a", "b"]))
    loaded = load_numpy_archive(tmp_path / "a.npz")
    assert loaded.keys() == arrays.keys()
    for name, value in arrays.items():
        assert loaded[name].dtype == (torch.int64 if name == "whole" else torch.float32)
        assert np.array_equal(loaded[name].numpy(), value)


@pytest.mark.parametrize("kind", ["u1", ">i2", "<u4", ">i8"])
def test_whole_numbers_keep_their_type(kind):
    made = parse_npy(npy(np.arange(5, dtype=kind)))
    assert made.tolist() == [0, 1, 2, 3, 4]
    assert made.dtype == np.dtype(kind).newbyteorder("=")


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", allow_pickle=True, x=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match=r"a\.npz: it holds pickled objects"):
        load_numpy_archive(tmp_path / "a.npz")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2**20, dtype=np.float32))
    with pytest.raises(CheckpointError, match=r"a\.npz: it unpacks to more than 64 times its size"):
        load_numpy_archive(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("old", "new"), [(b"(2, 3)", b"(2, 9)"), (b"(2, 3)", b"(-2,3)"), (b"<f8", b"<f4"), (b"(2, 3)", b"[2, 3]")]
)
def test_a_header_that_does_not_fit_is_refused(old, new, tmp_path):
    data = npy(np.ones((2, 3))).replace(old, new)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(CheckpointError, match=r"a\.npz"):
        load_numpy_archive(tmp_path / "a.npz")


WHOLE = npy(np.ones((2, 3), dtype=np.float32))


@given(place=st.integers(0, len(WHOLE)), put=st.binary(max_size=4), drop=st.integers(0, 4))
def test_a_changed_array_is_numbers_or_an_error(place, put, drop, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", WHOLE[:place] + put + WHOLE[place + drop :])
    try:
        found = load_numpy_archive(path)
    except CheckpointError as error:
        assert "changed.npz" in str(error)  # noqa: PT017 - not raising is right as well
        return
    assert all(value.numel() <= len(WHOLE) for value in found.values())


def test_an_array_by_itself():
    assert parse_npy(npy(np.ones(2))).tolist() == [1.0, 1.0]
    assert parse_npy(npy(np.array(["a"]))).tolist() == ["a"]
