"""Pinned archives: fetched by pip into the cache, verified each time, read without unpacking."""

import gzip
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from headwater.data import fetch
from headwater.errors import DataError, OutputError
from headwater.files import sha256_bytes


def tar_of(members, kind="w:gz"):
    """Pack `{name: bytes or TarInfo}`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=kind) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def zip_of(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


ARCHIVE = tar_of({"thing-1.0/data.txt": b"hello\n"})
PIN = sha256_bytes(ARCHIVE)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Replace pip by a script; the returned list holds a line for each call."""
    calls = tmp_path / "calls"

    def use(script):
        head = f"import sys, pathlib; open({str(calls)!r}, 'a').write('x'); to = pathlib.Path(sys.argv[2]); "

        def command(kind, package, requirements, folder):
            return [sys.executable, "-c", head + script, str(requirements), str(folder)]

        monkeypatch.setattr(fetch, "_pip_command", command)
        return lambda: len(calls.read_text()) if calls.exists() else 0

    return use


def giving(tmp_path, content, name="thing-1.0.tar.gz"):
    (tmp_path / "served").write_bytes(content)
    source = str(tmp_path / "served")
    return f"to.mkdir(); (to / {name!r}).write_bytes(pathlib.Path({source!r}).read_bytes())"


def test_the_archive_is_fetched_once_and_kept(cache, pip, tmp_path):
    calls = pip(giving(tmp_path, ARCHIVE))
    path = fetch.fetch_sdist("thing", "1.0", PIN)
    assert path == cache / "sdists" / "thing-1.0.tar.gz"
    assert path.read_bytes() == ARCHIVE
    assert fetch.fetch_sdist("thing", "1.0", PIN) == path
    assert calls() == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_pip_is_told_the_hash_and_to_take_source_alone(cache, monkeypatch):
    seen = {}

    def run(command, **options):
        requirements = command[command.index("--requirement") + 1]
        seen.update(command=command, requirements=Path(requirements).read_text(), options=options)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: stop here")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(DataError, match="stop here"):
        fetch.fetch_sdist("thing", "1.0", PIN)
    assert seen["requirements"] == f"thing==1.0 --hash=sha256:{PIN}\n"
    assert seen["command"][:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps"} < set(seen["command"])
    assert seen["command"][seen["command"].index("--no-binary") + 1] == "thing"
    assert not seen["options"].get("shell")


def test_a_wheel_is_fetched_as_one_and_kept(cache, pip, tmp_path, monkeypatch):
    served = zip_of({"thing/data.npy": b"numbers"})
    calls = pip(giving(tmp_path, served, "thing-1.0-py3-none-any.whl"))
    asked = fetch._pip_command
    flags = []
    monkeypatch.setattr(fetch, "_pip_command", lambda kind, *rest: (flags.append(kind.flag), asked(kind, *rest))[1])
    path = fetch.fetch_wheel("thing", "1.0", sha256_bytes(served))
    assert path == cache / "wheels" / "thing-1.0.whl"
    assert fetch.fetch_wheel("thing", "1.0", sha256_bytes(served)) == path
    assert (calls(), flags) == (1, ["--only-binary"])
    assert fetch.read_member(path, "thing/data.npy", 7) == b"numbers"


def test_a_file_placed_by_hand_needs_no_pip(cache, pip):
    calls = pip("sys.exit(1)")
    (cache / "sdists").mkdir(parents=True)
    (cache / "sdists" / "thing-1.0.tar.gz").write_bytes(ARCHIVE)
    assert fetch.fetch_sdist("thing", "1.0", PIN).read_bytes() == ARCHIVE
    assert calls() == 0


def test_a_damaged_file_is_fetched_again(cache, pip, tmp_path):
    calls = pip(giving(tmp_path, ARCHIVE))
    path = fetch.fetch_sdist("thing", "1.0", PIN)
    path.write_bytes(ARCHIVE[:-1])
    assert fetch.fetch_sdist("thing", "1.0", PIN).read_bytes() == ARCHIVE
    assert calls() == 2


def test_a_damaged_file_offline_is_named(cache, pip):
    pip("sys.exit('ERROR: no route')")
    (cache / "sdists").mkdir(parents=True)
    place = cache / "sdists" / "thing-1.0.tar.gz"
    place.write_bytes(b"damaged")
    with pytest.raises(DataError) as error:
        fetch.fetch_sdist("thing", "1.0", PIN)
    assert f"{place} is there but has another SHA-256" in str(error.value)
    assert place.read_bytes() == b"damaged"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit('noise\\nERROR: no such host\\nmore noise')", "pip says 'no such host'"),
        ("sys.exit('/bin/python: No module named pip')", "ensurepip"),
        (
            "sys.exit('ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE FILE')",
            "doesn't have the pinned SHA-256",
        ),
        ("sys.exit(1)", "no word from pip"),
        ("to.mkdir()", "pip left 0 files"),
        ("to.mkdir(); (to / 'thing-1.0.tar.gz').write_bytes(b'other')", f"pinned is {PIN}"),
    ],
)
def test_what_went_wrong_and_where_to_place_the_file(cache, pip, script, reason):
    pip(script)
    with pytest.raises(DataError) as error:
        fetch.fetch_sdist("thing", "1.0", PIN)
    assert reason in str(error.value)
    assert str(cache / "sdists" / "thing-1.0.tar.gz") in str(error.value)
    assert PIN in str(error.value)
    assert list((cache / "sdists").iterdir()) == []


def test_a_slow_download_ends(cache, pip, monkeypatch):
    pip("import time; time.sleep(60)")
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.2)
    with pytest.raises(DataError, match="timed out"):
        fetch.fetch_sdist("thing", "1.0", PIN)


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set HEADWATER_CACHE"):
        fetch.fetch_sdist("thing", "1.0", PIN)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HEADWATER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fetch.cache_root() == tmp_path / ".cache" / "headwater"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.cache_root() == tmp_path / "xdg" / "headwater"
    monkeypatch.setenv("HEADWATER_CACHE", "~/own")
    assert fetch.cache_root() == tmp_path / "own"


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_member_is_read_up_to_its_limit(pack, tmp_path):
    content = b"0123456789"
    packed = pack({"other": b"x" * 5000, "a/data.txt": content})
    (tmp_path / "thing").write_bytes(packed)
    assert fetch.read_member(packed, "a/data.txt", 10) == content
    assert fetch.read_member(tmp_path / "thing", "a/data.txt", 10) == content
    with pytest.raises(DataError, match="larger than 9 bytes"):
        fetch.read_member(packed, "a/data.txt", 9)
    with pytest.raises(DataError, match=r"no member 'a/dota.txt' \(did you mean 'a/data.txt'\?\)"):
        fetch.read_member(packed, "a/dota.txt", 10)


def test_an_archive_inside_an_archive():
    outer = tar_of({"inner.zip": zip_of({"text": b"deep"})})
    assert fetch.read_member(fetch.read_member(outer, "inner.zip", 1000), "text", 1000) == b"deep"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_not_a_regular_file_is_refused(kind):
    info = tarfile.TarInfo("data")
    info.type, info.linkname = kind, "secret"
    with pytest.raises(DataError, match="isn't a regular file"):
        fetch.read_member(tar_of({"secret": b"secret", "data": info}), "data", 100)


def test_a_link_in_a_zip_is_refused():
    info = zipfile.ZipInfo("data")
    info.external_attr = 0o120777 << 16
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="isn't a regular file"):
        fetch.read_member(packed.getvalue(), "data", 100)


def test_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(fetch, "UNPACKED_LIMIT", 2**20)
    bomb = tar_of({"zeros": bytes(2**22), "data": b"x"})
    assert len(bomb) < 2**14
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes"):
        fetch.read_member(bomb, "data", 100)
    with pytest.raises(DataError, match="larger than 100 bytes"):
        fetch.read_member(zip_of({"zeros": bytes(2**22)}), "zeros", 100)


def test_a_header_that_claims_a_huge_size_is_refused(monkeypatch):
    monkeypatch.setattr(fetch, "UNPACKED_LIMIT", 2**20)
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    packed = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**22))
    with pytest.raises(DataError, match="unpacks to more than"):
        fetch.read_member(packed, "data", 100)


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"", b"PK", b"not an archive", ARCHIVE[:40], ARCHIVE[:-20], b"\x1f\x8b" + bytes(50)),
        *(gzip.compress(b"no tar" * 200), zip_of({"a": b"b" * 99})[:-30], b"PK\x03\x04" + bytes(100)),
    ],
)
def test_damaged_archives_are_data_errors(damaged):
    with pytest.raises(DataError):
        fetch.read_member(damaged, "thing-1.0/other.txt", 100)


def test_a_missing_archive(tmp_path):
    with pytest.raises(DataError, match="there is no archive gone"):
        fetch.read_member(tmp_path / "gone", "data", 100)
