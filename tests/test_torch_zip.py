"""A file of torch.save is read without running its pickle: what it holds comes out, anything else is an error."""

import os
import pickle
import pickletools
import zipfile

import pytest
import torch
from foreign_weights import Network, change_member, save
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from headwater.errors import CheckpointError
from headwater.pretrained import torch_zip
from headwater.pretrained.torch_zip import load_torch_zip, named_tensors, run_program

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def no_storage(*_):
    raise AssertionError("the pickle asks for a storage")


def run(program):
    return run_program(program, no_storage)


def test_tensors_come_out_as_torch_put_them_in(tmp_path):
    tensors = {str(kind): torch.arange(12).reshape(3, 4).to(kind) for kind in TYPES}
    base = torch.randn(5, 6)
    tensors |= {"view": base[1:4, ::2], "turned": base.T, "scalar": torch.tensor(3.0), "empty": torch.empty(0, 2)}
    loaded = load_torch_zip(save(tensors, tmp_path))
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


def test_a_modules_parameters_come_out_as_tensors(tmp_path):
    network = Network(nn.GRU)
    loaded = load_torch_zip(save(dict(network.named_parameters()), tmp_path))
    assert all(torch.equal(loaded[name], value) for name, value in network.named_parameters())
    assert all(type(value) is torch.Tensor for value in loaded.values())


def test_a_shared_storage_is_read_once(tmp_path):
    base = torch.randn(1000)
    parts = {"whole": base, "tied": base} | {f"part{n}": base[20 * n : 20 * n + 20] for n in range(50)}
    loaded = load_torch_zip(save(parts, tmp_path))
    assert all(torch.equal(loaded[name], value) for name, value in parts.items())


def test_tensors_that_share_a_storage_many_times_are_refused(tmp_path):
    base = torch.randn(1000)
    with pytest.raises(CheckpointError, match=r"weights\.pt: its tensors together are more than 4 times as large"):
        load_torch_zip(save({f"part{n}": base[n:] for n in range(50)}, tmp_path))


def test_plain_values_are_what_pickle_makes_of_them():
    values = {"a": [1, 255, 65535, -1, 2**40, 0.5, None, True, False, "é"], "b": {"c": (), 3: (1,), "d": (1, 2)}}
    values["e"] = ((1, 2, 3), (1, 2, 3, 4), [[]], values["a"])
    assert run(pickle.dumps(values, protocol=2)) == values


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch ran",), "posix.system"),
        (eval, ("open('ran', 'w')",), "__builtin__.eval"),
        (getattr, (os, "system"), "__builtin__.getattr"),
        (torch.load, ("ran",), "torch.serialization.load"),
        (nn.Linear, (2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_function_that_a_pickle_names_is_never_called(function, arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(Network(nn.LSTM).state_dict(), tmp_path)
    if arguments[0] is os:
        arguments = ("os", "system")
    change_member(path, "data.pkl", lambda _: pickle.dumps({"x": Calls(function, *arguments)}, protocol=2))
    with pytest.raises(CheckpointError, match=rf"weights\.pt: its pickle names '{named}', which is never called"):
        load_torch_zip(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("program", "instruction"),
    [
        (b"cos\nsystem\n", "names 'os.system'"),
        (b"(S'touch ran'\nios\nsystem\n.", "STRING"),
        (b"(Vtouch ran\nios\nsystem\n.", "UNICODE"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(U\x01acos\nsystem\no.", "SHORT_BINSTRING"),
        (b"\x82\x01.", "EXT1"),
        (b")\x81.", "NEWOBJ"),
        (b"\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
        (b"Pos.system\n.", "PERSID"),
        (pickle.dumps({"x": bytearray(b"1")}, protocol=5), "FRAME"),
    ],
)
def test_an_instruction_that_no_state_dict_needs_is_refused(program, instruction):
    with pytest.raises(CheckpointError, match=instruction):
        run(program)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"R.",
        b"t.",
        b"h\x05.",
        b"}u.",
        b"}NNs.",
        b"}(K\x01u.",
        b"})Ns.",
        b"]KKs.",
        b"}Na.",
        b"NNb.",
        b"ccollections\nOrderedDict\n(K\x01tR.",
        b"ccollections\nOrderedDict\nNR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01\x85K\x01\x85tR.",
        b"ctorch._utils\n_rebuild_parameter\n(NK\x01}tR.",
        b"ctorch._utils\n_rebuild_parameter\n)R.",
        b"NQ.",
        b"(U\x07storagectorch\nFloatStorage\nNNNtQ.",
        b"X\xff\xff\xff\x7fa.",
    ],
)
def test_a_damaged_program_is_refused(program):
    with pytest.raises(CheckpointError, match="its pickle"):
        run(program)


def test_a_program_that_runs_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(torch_zip, "INSTRUCTIONS_LIMIT", 10)
    assert run(b"]" + b"Na" * 4 + b".") == [None] * 4
    with pytest.raises(CheckpointError, match="its pickle has more than 10 instructions"):
        run(b"]" + b"Na" * 5 + b".")


def rebuilt(size, stride, offset=0, count=6):
    """Run the program of one tensor over a storage of `count` numbers."""
    program = pickle.dumps((size, stride, offset), protocol=2)
    size_at, stride_at, offset_at = run(program)
    return torch_zip._rebuild(torch.arange(count), offset_at, size_at, stride_at, False, {})


def test_a_tensor_lies_inside_its_storage():
    assert rebuilt((2, 3), (3, 1)).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(CheckpointError, match="more numbers than its storage"):
        rebuilt((10**9, 10**9), (0, 0))
    with pytest.raises(CheckpointError, match="more numbers than its storage"):
        rebuilt((7,), (1,))
    for size, stride, offset in [
        ((2, 3), (3, 1), 1),
        ((2, 3), (4, 1), 0),
        ((2,), (-1,), 3),
        ((2,), (1,), -1),
        ((-2,), (1,), 0),
        ((2,), (1, 1), 0),
        (("a" * 1000, 10**12), (1, 1), 0),
        ((2.0,), (1,), 0),
        ((1,) * 9, (1,) * 9, 0),
    ]:
        with pytest.raises((RuntimeError, TypeError)):  # the machine's errors, which `run_program` words
            rebuilt(size, stride, offset)


def nested(levels, inner):
    for _ in range(levels):
        inner = {"a": inner, "b": inner}
    return inner


def test_dicts_that_hold_themselves_or_too_much_are_refused():
    endless = {}
    endless["again"] = endless
    for value in (endless, nested(15, {"x": 1, "y": 2, "z": 3} | dict.fromkeys(map(str, range(100)))), nested(17, {})):
        with pytest.raises(CheckpointError, match="too deep"):
            named_tensors(value)
    with pytest.raises(CheckpointError, match="no dict of tensors"):
        named_tensors([1])
    many = ()
    for _ in range(64):
        many = (many, many)
    with pytest.raises(CheckpointError, match="is damaged"):  # and not hashed, which would take for ever
        run(b"}" + pickle.dumps(many, protocol=2)[2:-1] + b"Ns.")
    with pytest.raises(CheckpointError, match="a key of more than"):
        run(pickle.dumps({"x" * 1001: 1}, protocol=2))


def test_other_archives_are_refused(tmp_path):
    path = save(Network(nn.GRU).state_dict(), tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}

    def written(compression=zipfile.ZIP_STORED, **changes):
        made = {name: changes.get(name.rpartition("/")[2], data) for name, data in members.items()}
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in made.items():
                if data is not None:
                    archive.writestr(name, data)
        return path

    load_torch_zip(written())
    cases = [
        (written, {"compression": zipfile.ZIP_DEFLATED}, "is packed, or has"),
        (written, {"byteorder": b"big"}, "big-endian"),
        (written, {"data.pkl": None}, "has 0 members data.pkl"),
        (written, {"0": None}, "is damaged"),
        (written, {"0": b""}, "a storage has 0 bytes"),
        (written, {"0": b"1234"}, "a storage has 4 bytes"),
        (written, {"data.pkl": pickle.dumps(7, protocol=2)}, "no dict of tensors"),
    ]
    for write, changes, message in cases:
        write(**changes)
        with pytest.raises(CheckpointError, match=message):
            load_torch_zip(path)
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"isn't a whole zip file.*torch before 1\.6"):
        load_torch_zip(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file as torch writes it, its pickle, and the numbers of its storages."""
    path = save(Network(nn.GRU, layers=2, both=True).state_dict(), tmp_path_factory.mktemp("whole"))
    with zipfile.ZipFile(path) as archive:
        (program,) = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    return path, program


edits = st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4)


def edited(data, changes):
    for place, put, drop in changes:
        start = place % (len(data) + 1)
        data = data[:start] + put + data[start + drop :]
    return data


@given(changes=edits)
def test_a_changed_pickle_gives_tensors_or_an_error(changes, whole):
    _, program = whole

    def storage(key, dtype, count):
        if not 0 <= count <= 1000:
            raise CheckpointError(f"no storage {key!r} of {count}")
        return torch.zeros(count, dtype=dtype)

    try:
        found = named_tensors(run_program(edited(program, changes), storage))
    except CheckpointError:
        return
    assert all(type(value) is torch.Tensor for value in found.values())


INSTRUCTIONS = [
    *(b"]", b"}", b")", b"(", b"N", b"\x88", b"\x89", b"K\x07", b"M\x07\x00", b"J\xff\xff\xff\xff", b"\x8a\x01\x07"),
    *(b"G" + bytes(8), b"X\x01\x00\x00\x00k", b"X\x07\x00\x00\x00storage", b"\x80\x02"),
    *(b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"\x87"),
    *(b"q\x00", b"h\x00", b"r\x01\x00\x00\x00", b"j\x01\x00\x00\x00"),
    *(b"R", b"b", b"Q", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"),
]


def test_every_instruction_that_is_carried_out_is_drawn():
    drawn = {opcode.name for data in INSTRUCTIONS for opcode, _, _ in pickletools.genops(data + b".")}
    assert drawn == set(torch_zip._INSTRUCTIONS)


@given(program=st.lists(st.sampled_from(INSTRUCTIONS), max_size=30))
def test_any_instructions_make_a_plain_value_or_an_error(program):
    try:
        run(b"".join(program) + b".")
    except CheckpointError as error:
        assert "its pickle" in str(error)  # noqa: PT017 - not raising is right as well


@given(changes=edits)
def test_a_changed_file_gives_tensors_or_an_error(changes, whole, tmp_path_factory):
    path, _ = whole
    changed = tmp_path_factory.getbasetemp() / "changed.pt"
    changed.write_bytes(edited(path.read_bytes(), changes))
    try:
        found = load_torch_zip(changed)
    except CheckpointError as error:
        assert "changed.pt" in str(error)  # noqa: PT017 - not raising is right as well
        return
    assert all(type(value) is torch.Tensor for value in found.values())
