"""The checkpoint: a folder that carries a model from stage to stage.

=====================  ==============================================================================
``model.safetensors``  the weights (never pickle); int8 values with their scales when compressed
``personal.safetensors``  each client's own weights, when personalized
``config.json``        encoder, task, featurizer options, dropout, compression
``vocabulary.json``    the fitted featurizer of text (and ``tokenizer.json`` for byte-pair pieces), or of numbers:
``standardization.json``
``lineage.json``       the stages it came through: parents by hash, data fingerprints, seeds, figures
``card.md``            the same for people
``stage.json``         the facts of the stage that wrote it
``SHA256SUMS``         a checksum of every other file, in the form that ``sha256sum -c`` reads
=====================  ==============================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from headwater import hub
from headwater.config import Config
from headwater.data.rows import Rows
from headwater.errors import CheckpointError, ConfigError
from headwater.features.featurizer import FEATURE_FILES, FeatureOptions, Featurizer, load_featurizer
from headwater.features.numeric import NumericOptions
from headwater.files import sha256_bytes, write_atomic
from headwater.folder import CARD_FILE, CONFIG_FILE, LINEAGE_FILE, check_seal, seal
from headwater.inference import Predictor
from headwater.lineage import Lineage
from headwater.model import MOST_UNITS, DropoutOptions, EncoderOptions, NumberEncoder, SequenceModel, TokenEncoder
from headwater.tasks import Task, task_class
from headwater.tasks.classification import Classification, torch_runner
from headwater.weights import Weights, load_weights

FORMAT: Final = "headwater.checkpoint/1"
MODEL_FILE = "model.safetensors"
PERSONAL_FILE = "personal.safetensors"
SCALE_SUFFIX = ".scale"
_SEPARATOR = "\x1f"


class ModelConfig(Config):
    """What `config.json` holds: everything needed to build the model again."""

    format: Literal["headwater.checkpoint/1"] = FORMAT
    encoder: EncoderOptions
    vocabulary_size: Annotated[int, Field(ge=0)] = 0
    """Of a model that reads tokens."""
    channels: Annotated[int, Field(ge=0)] = 0
    """Of a model that reads numbers."""
    dropout: DropoutOptions
    featurizer: FeatureOptions
    task: dict[str, Any]
    """The task's own settings; `name` says which task."""
    residual_layers: tuple[int, ...] = ()
    """Numbers of the layers that add what they read to their outputs; reshaping inserts such ones."""
    adapters: dict[int, Annotated[int, Field(ge=1, le=MOST_UNITS)]] = {}
    """Units of the adapter behind each layer that has one, by the layer's number from 0; transfer puts them in."""
    compression: str = ""
    """How the weights are stored: the compressor's name, empty for float32."""

    @model_validator(mode="after")
    def _one_modality(self) -> Self:
        numeric = isinstance(self.featurizer, NumericOptions)
        if numeric != bool(self.channels) or numeric == bool(self.vocabulary_size):
            raise ValueError(
                f"a vocabulary of {self.vocabulary_size} and {self.channels} channels for a featurizer of "
                f"{'numbers' if numeric else 'text'}"
            )
        if numeric and not self.encoder.projection and self.encoder.embedding_size != self.channels:
            raise ValueError(f"{self.channels} channels for layers that read {self.encoder.embedding_size}")
        return self

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        if any(not 1 <= number < self.encoder.layers for number in self.residual_layers):
            raise ValueError(f"residual layers {self.residual_layers} of {self.encoder.layers}: the first is number 1")
        if any(not 0 <= number < self.encoder.layers for number in self.adapters):
            raise ValueError(f"adapters behind layers {list(self.adapters)} of {self.encoder.layers}: the first is 0")
        return self

    def make_task(self) -> Task:
        """Return the task with its settings."""
        return task_class(str(self.task.get("name"))).parse(self.task, source=f"{CONFIG_FILE}, task")

    def build(self) -> SequenceModel:
        """Return a freshly drawn model; the global torch generator decides the weights."""
        shape = (self.encoder, self.dropout, self.residual_layers, self.adapters)
        numeric, tokens = self.channels, self.vocabulary_size
        encoder = NumberEncoder(numeric, *shape) if numeric else TokenEncoder(tokens, *shape)
        return SequenceModel(encoder, self.make_task().head(encoder, self.dropout.head_dropout))


@dataclass(frozen=True)
class Checkpoint:
    """A model with everything that a device needs to use it and a person to trust it.

    Attributes:
        config: What to build.
        featurizer: The fitted featurizer.
        tensors: The weights as they are stored: float32, or int8 values beside float32 scales (``NAME.scale``).
        lineage: The stages it came through.
        personal: Each client's own weights, for the parameters that were personalized.
        path: The folder it was loaded from.
    """

    config: ModelConfig
    featurizer: Featurizer
    tensors: Weights
    lineage: Lineage = field(default_factory=Lineage)
    personal: Mapping[str, Weights] = field(default_factory=dict)
    path: Path | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier, in the order of their numbers; empty for other tasks."""
        return tuple(self.config.task.get("labels", ()))

    @property
    def identity(self) -> str:
        """SHA-256 over weights, config and featurizer: equal exactly if the models are."""
        digest = hashlib.sha256()
        for name, content in sorted(self._model_files().items()):
            digest.update(f"{name} {sha256_bytes(content)}\n".encode())
        return digest.hexdigest()

    def weights(self, client: str | None = None) -> Weights:
        """Return the float32 weights: int8 values times their scales, a client's own in place of the shared.

        Raises:
            CheckpointError: The checkpoint knows no such client.
        """
        decoded = {
            name: value.float() * self.tensors[name + SCALE_SUFFIX] if name + SCALE_SUFFIX in self.tensors else value
            for name, value in self.tensors.items()
            if not name.endswith(SCALE_SUFFIX)
        }
        if client is None:
            return decoded
        if client not in self.personal:
            raise CheckpointError(f"the checkpoint holds no model of client {client!r}; it has {len(self.personal)}")
        return decoded | self.personal[client]

    def model(self, client: str | None = None) -> SequenceModel:
        """Return the model with these weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            model = self.config.build()
        model.load_state_dict(self.weights(client))
        return model.eval()

    def predictor(self, client: str | None = None) -> Predictor:
        """Return the predictor of a classifier, of one client's own model if asked.

        Raises:
            ConfigError: The model is no classifier.
            CheckpointError: The checkpoint knows no such client.
        """
        return self._predictor(self.model(client))

    def probabilities(self, rows: Rows) -> np.ndarray:
        """Return each row's class probabilities (N, K), by its client's own model where there is one.

        Raises:
            ConfigError: The model is no classifier.
        """
        model, shared = self.model(), self.weights()
        predictor = self._predictor(model)
        own = {client: found for client, found in rows.by_client().items() if client in self.personal}
        rest = np.setdiff1d(np.arange(len(rows)), np.concatenate([*own.values(), np.empty(0, dtype=np.int64)]))
        probabilities_NK = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        probabilities_NK[rest] = predictor.probabilities(rows.take(rest).inputs)
        for client, found in own.items():
            load_weights(model, shared | self.personal[client])
            probabilities_NK[found] = predictor.probabilities(rows.take(found).inputs)
        return probabilities_NK

    def _predictor(self, model: SequenceModel) -> Predictor:
        if not self.labels:
            raise ConfigError(
                f"a {self.config.task['name']} model has no labels to predict: "
                "transfer it to labelled rows first, and use that checkpoint"
            )
        return Predictor(self.labels, self.featurizer, tuple(sorted(self.personal)), torch_runner(model))

    def with_model(self, model: SequenceModel, **changes: Any) -> Checkpoint:
        """Return a checkpoint of the same make with another model's weights."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        return replace(self, tensors=tensors, personal={}, path=None, **changes)

    def for_labels(self, labels: tuple[str, ...], seed: int) -> Checkpoint:
        """Return a classifier of these labels, in float32, with a head drawn from the seed if it has other labels."""
        if self.labels == labels:
            return self.plain()
        task = Classification(labels=labels, pooling=self.config.task.get("pooling", "concat"))
        config = self.config.model_copy(update={"task": task.model_dump(), "compression": ""})
        torch.manual_seed(seed)
        model = config.build()
        load_weights(model, {name: value for name, value in self.weights().items() if name.startswith("encoder.")})
        return Checkpoint(config, self.featurizer, {}, self.lineage).with_model(model)

    def plain(self) -> Checkpoint:
        """Return a fresh copy of the same model: int8 values are decoded, clients' own weights left behind."""
        config = self.config.model_copy(update={"compression": ""})
        return replace(self, config=config, tensors=self.weights(), personal={})

    def parameter_count(self) -> int:
        """Return how many numbers the model has."""
        return sum(value.numel() for name, value in self.tensors.items() if not name.endswith(SCALE_SUFFIX))

    def save(self, folder: Path) -> None:
        """Write the folder's files; each appears whole or not at all, the checksums last.

        Raises:
            OutputError: The disk is full or the folder can't be written.
        """
        for name, content in self._model_files().items():
            write_atomic(folder / name, content)
        self.save_papers(folder)
        seal(folder)

    def save_papers(self, folder: Path) -> None:
        """Write where the model came from, for programs and for people.

        Raises:
            OutputError: The disk is full or the folder can't be written.
        """
        write_atomic(folder / LINEAGE_FILE, self.lineage.model_dump_json(indent=1) + "\n")
        card = self.lineage.card(self.config.model_dump(mode="json"), self.parameter_count())
        write_atomic(folder / CARD_FILE, card)

    def preparation_files(self) -> dict[str, str]:
        """Return what a device needs beside the weights to prepare rows: file name to content."""
        return {CONFIG_FILE: self.config.model_dump_json(indent=1) + "\n"} | self.featurizer.files()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file that a device needs, the shared model's without the clients' own."""
        return {name: len(content) for name, content in self._model_files().items() if name != PERSONAL_FILE}

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint folder, checking every file against its checksum.

        Args:
            path: The folder, or a repository of the Hugging Face hub: ``hf:OWNER/NAME``, with ``@REVISION`` if wanted.

        Raises:
            CheckpointError: The folder is no checkpoint, is damaged, or of another version; or the hub can't be used.
            MissingDependency: The hub is wanted and `huggingface_hub` isn't installed.
        """
        folder = hub.fetch(str(path)) if str(path).startswith(hub.PREFIX) else Path(path)
        needed = (MODEL_FILE, CONFIG_FILE, LINEAGE_FILE)
        check_seal(folder, what="checkpoint", needed=needed, optional=(PERSONAL_FILE, *FEATURE_FILES))
        config = read_model_config(folder)
        featurizer = load_featurizer(folder, config.featurizer)
        tensors = _read_tensors(folder / MODEL_FILE)
        shapes = _check_fit(folder, config, featurizer, tensors)
        personal: dict[str, Weights] = {}
        if (folder / PERSONAL_FILE).exists():
            for key, value in _read_tensors(folder / PERSONAL_FILE).items():
                client, _, name = key.partition(_SEPARATOR)
                if tuple(value.shape) != shapes.get(name):
                    raise CheckpointError(
                        f"{folder}: {PERSONAL_FILE} has {tuple(value.shape)} for {name!r} of client {client!r} where "
                        f"{CONFIG_FILE} says {shapes.get(name, 'none')}: copy the whole folder again"
                    )
                personal.setdefault(client, {})[name] = value
        return cls(config, featurizer, tensors, Lineage.load(folder / LINEAGE_FILE), personal, folder)

    def _model_files(self) -> dict[str, bytes]:
        files = {MODEL_FILE: safetensors.torch.save(self.tensors)}
        files |= {name: content.encode() for name, content in self.preparation_files().items()}
        if self.personal:
            flat = {f"{client}{_SEPARATOR}{n}": v for client, w in self.personal.items() for n, v in w.items()}
            files[PERSONAL_FILE] = safetensors.torch.save(flat)
        return files


def read_model_config(folder: Path) -> ModelConfig:
    """Read `config.json`.

    Raises:
        CheckpointError: It isn't one of this version.
    """
    path = folder / CONFIG_FILE
    try:
        raw = json.loads(path.read_bytes())
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"{path} is of format {found!r}, this version reads {FORMAT!r}: "
                "use the version of headwater that wrote it, or make the checkpoint again"
            )
        return ModelConfig.model_validate(raw)
    except (OSError, ValueError, ValidationError, ConfigError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{path} isn't the config of a checkpoint of this version: {first}") from error


def _read_tensors(path: Path) -> Weights:
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except Exception as error:  # the library raises several kinds
        raise CheckpointError(f"{path} isn't a file of tensors: {error}; copy the checkpoint again") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(f"{path}: {name!r} holds numbers that aren't finite: make the checkpoint again")
    return tensors


def _check_scales(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuse int8 values without their scales, scales of another shape, and either without being compressed."""
    for name, value in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = tensors.get(name + SCALE_SUFFIX)
        wanted = (value.shape[0], *[1] * (value.ndim - 1))
        packed = value.dtype == torch.int8
        fits = scale is not None and tuple(scale.shape) == wanted and scale.is_floating_point()
        if (packed and not (fits and config.compression)) or (not packed and scale is not None):
            raise CheckpointError(
                f"{folder}: {name!r} is stored as {value.dtype} and its scale as "
                f"{tuple(scale.shape) if scale is not None else 'nothing'}, where int8 values need a scale of {wanted} "
                "and others none: make the checkpoint again"
            )


def _check_fit(
    folder: Path, config: ModelConfig, featurizer: Featurizer, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Refuse parts that don't belong together; return the shape of each of the model's tensors."""
    for name, size in featurizer.sizes.items():
        if size != getattr(config, name):
            raise CheckpointError(
                f"{folder}: the featurizer has the {name.replace('_', ' ')} {size} but the model was built for "
                f"{getattr(config, name)}: they come from two different checkpoints; copy the whole folder again"
            )
    _check_scales(folder, config, tensors)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in config.build().state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items() if not name.endswith(SCALE_SUFFIX)}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise CheckpointError(
                f"{folder}: {MODEL_FILE} has {given.get(name, 'no')} for {name!r} where {CONFIG_FILE} says "
                f"{wanted.get(name, 'none')}: they come from two different checkpoints; copy the whole folder again"
            )
    return wanted
