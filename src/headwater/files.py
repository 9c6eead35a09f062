"""Writing files so that nothing is ever half written, and hashing them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from headwater.errors import OutputError

EXPANSION = 64
"""How many times its own size a packed file may unpack to, beside the first MiB."""
_UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ENOENT, errno.EINVAL, errno.ELOOP),
}
"""What a system answers to a path that can't be written."""


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of the bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, reading it in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what a disk can answer into an `OutputError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(nearest_folder(path)).free
            raise OutputError(
                f"the disk is full while writing {path} ({free / 2**20:.1f} MiB free): "
                "free some space, then run the same command again with --resume"
            ) from error
        if error.errno in _UNUSABLE:
            raise OutputError(f"can't write {path}: {error.strerror}; choose another --out") from error
        raise


def nearest_folder(path: Path) -> Path:
    """Return the path itself or the nearest ancestor of it that is a folder."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write so that a reader sees the old bytes or the new ones, never a part, even after a power cut.

    Raises:
        OutputError: The disk is full or the place can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file as `writing` does.

    Raises:
        OutputError: The disk is full or the place can't be written.
    """
    with writing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
