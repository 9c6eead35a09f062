"""The folders that stages write: their common files, and the checksums over all of them. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

from headwater.errors import CheckpointError
from headwater.files import sha256_file, write_atomic

CONFIG_FILE = "config.json"
LINEAGE_FILE = "lineage.json"
CARD_FILE = "card.md"
SUMS_FILE = "SHA256SUMS"


def seal(folder: Path) -> None:
    """Write the checksums of all the folder's files."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != SUMS_FILE and p.name[0] != ".")
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in names]
    write_atomic(folder / SUMS_FILE, "".join(lines))


def check_seal(folder: Path, *, what: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Check every file of a folder against `SHA256SUMS`.

    Args:
        folder: The folder.
        what: What it should be, for messages.
        needed: Files that must be there.
        optional: Files that are read if they are there, and so must be listed too.

    Raises:
        CheckpointError: A file is missing, damaged, or was never listed.
    """
    sums = read_sums(folder, what)
    for name in needed:
        if name not in sums:
            raise CheckpointError(f"{folder} is no {what}: {SUMS_FILE} lists no {name}")
    for name in optional:
        if name not in sums and (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} isn't listed in {SUMS_FILE}: it is no part of the {what}; remove it"
            )
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: copy the {what} again from where it came from")
        if sha256_file(path) != expected:
            raise CheckpointError(
                f"{path} is damaged (its checksum isn't the one in {SUMS_FILE}): "
                f"copy the {what} again from where it came from, or make it again"
            )


def read_sums(folder: Path, what: str) -> dict[str, str]:
    """Return the listed checksums by file name; no name leads out of the folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} isn't a folder: expected the folder of a {what}")
    try:
        listed = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder} is no {what}: it holds no readable {SUMS_FILE}") from error
    sums: dict[str, str] = {}
    for line in listed:
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line)
        if not match:
            raise CheckpointError(f"{folder / SUMS_FILE} is damaged: copy the {what} again from where it came from")
        sums[match[2]] = match[1]
    return sums
