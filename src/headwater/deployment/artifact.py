"""The artifact: a folder that a device runs without torch.

===================  =================================================================
``model.onnx``       the model, under the name of its target's file
``config.json``      as in the checkpoint
``vocabulary.json``  as in the checkpoint, or its ``standardization.json`` (and ``tokenizer.json``)
``artifact.json``    target, runtime, labels, the checkpoint's identity, verification
``lineage.json``, ``card.md``, ``stage.json``, ``SHA256SUMS``  as in the checkpoint
===================  =================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from headwater.deployment import export_target
from headwater.errors import CheckpointError
from headwater.features.featurizer import FEATURE_FILES, FeatureOptions, Featurizer, load_featurizer
from headwater.folder import CONFIG_FILE, LINEAGE_FILE, check_seal
from headwater.inference import Predictor
from headwater.lineage import Lineage
from headwater.records import Record, Verification

ARTIFACT_FILE = "artifact.json"


class ArtifactRecord(Record):
    """What `artifact.json` holds."""

    format: Literal["headwater.artifact/1"] = "headwater.artifact/1"
    target: str
    runtime: str
    """The package that runs the model."""
    runtime_version: str
    """The version that it was verified with."""
    settings: dict[str, str]
    """What the runtime is told when it opens the model."""
    labels: tuple[str, ...]
    """The labels, in the order of their numbers."""
    client: str | None = None
    """Whose own model it is."""
    checkpoint: str
    """The identity of the checkpoint that it was made from."""
    verification: Verification


class _Preparation(BaseModel):
    """The part of `config.json` that says how rows are prepared."""

    featurizer: FeatureOptions


@dataclass(frozen=True)
class Artifact:
    """An exported model.

    Attributes:
        record: What it is.
        featurizer: Prepares rows in the way of the checkpoint.
        model: The bytes of the model's file.
        lineage: The stages it came through.
        path: Its folder.
    """

    record: ArtifactRecord
    featurizer: Featurizer
    model: bytes
    lineage: Lineage
    path: Path

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Read an artifact folder, checking every file against its checksum.

        Raises:
            CheckpointError: The folder is no artifact, is damaged, or of another version.
        """
        folder = Path(path)
        needed = (ARTIFACT_FILE, CONFIG_FILE, LINEAGE_FILE)
        check_seal(folder, what="artifact", needed=needed, optional=FEATURE_FILES)
        try:
            record = ArtifactRecord.model_validate_json((folder / ARTIFACT_FILE).read_bytes())
            options = _Preparation.model_validate_json((folder / CONFIG_FILE).read_bytes()).featurizer
        except ValidationError as error:
            raise CheckpointError(
                f"{folder} isn't an artifact of this version ({error.errors()[0]['msg']}): "
                "use the version of headwater that wrote it, or export the checkpoint again"
            ) from error
        file = export_target(record.target).file
        check_seal(folder, what="artifact", needed=(file,))
        featurizer = load_featurizer(folder, options)
        return cls(record, featurizer, (folder / file).read_bytes(), Lineage.load(folder / LINEAGE_FILE), folder)

    def predictor(self, threads: int = 1) -> Predictor:
        """Return the predictor, in the runtime and with the settings that were verified.

        Raises:
            CheckpointError: The runtime can't read the model.
        """
        run = export_target(self.record.target).open(self.model, self.record.settings, threads)
        clients = () if self.record.client is None else (self.record.client,)
        return Predictor(self.record.labels, self.featurizer, clients, run)
