"""Checkpoints on the Hugging Face hub: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION``.

A repository holds a checkpoint's files as they are, with the model card as its front page. What comes from there is
checked like every other folder: no pickle, and every file against the checksums that came with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from headwater.errors import CheckpointError, ConfigError, MissingDependency
from headwater.folder import CARD_FILE, SUMS_FILE, read_sums

PREFIX = "hf:"
_FRONT_PAGE = "README.md"


def fetch(place: str) -> Path:
    """Return the folder of a checkpoint from the hub, in the hub's own cache; what is there already isn't loaded again.

    Only the files that the checkpoint's list of checksums names are loaded.

    Args:
        place: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``, a branch, tag or commit.

    Raises:
        CheckpointError: The hub doesn't answer, or has no such repository or revision that may be read.
        MissingDependency: `huggingface_hub` isn't installed.
    """
    library = _library()
    name, _, revision = place.removeprefix(PREFIX).partition("@")
    with _hub_errors(library, place):
        api = library.HfApi()
        sums = Path(api.hf_hub_download(name, SUMS_FILE, revision=revision or None))
        # The list's own commit, so that a push in between can't mix two versions.
        commit = sums.parent.name
        files = [SUMS_FILE, *read_sums(sums.parent, "checkpoint")]
        return Path(api.snapshot_download(name, revision=commit, allow_patterns=files))


def push(folder: Path, place: str, *, private: bool) -> str:
    """Write a checkpoint's files into a repository of the hub, in one commit; return the commit's address.

    Args:
        folder: A checkpoint, as it was loaded and so checked.
        place: ``hf:OWNER/NAME``; made if it doesn't exist.
        private: Whether a new repository is only seen by its owner.

    Raises:
        CheckpointError: The hub doesn't answer, or refuses.
        MissingDependency: `huggingface_hub` isn't installed.
    """
    library = _library()
    name = place.removeprefix(PREFIX)
    files = {file: folder / file for file in (SUMS_FILE, *read_sums(folder, "checkpoint"))}
    files[_FRONT_PAGE] = folder / CARD_FILE
    operations = [library.CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()]
    with _hub_errors(library, place):
        api = library.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.create_commit(name, operations, commit_message="A Headwater checkpoint").commit_url)


def _library() -> ModuleType:
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingDependency("huggingface_hub", extra="hub", purpose=f"a checkpoint {PREFIX}OWNER/NAME") from error
    return huggingface_hub


@contextmanager
def _hub_errors(library: ModuleType, place: str) -> Iterator[None]:
    """Say in one line what the hub, the network or the name did."""
    errors = library.errors
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(
            f"{place!r} is no name on the hub: expected {PREFIX}OWNER/NAME, with @REVISION if wanted"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{place}: the hub can't be reached, and nothing of it was loaded before") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise CheckpointError(
            f"{place}: the hub has no such repository, revision or checkpoint in it that you may read: "
            "check the name, or log in with `hf auth login`"
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise CheckpointError(f"{place}: the hub can't be used: {str(error).splitlines()[0]}") from error
