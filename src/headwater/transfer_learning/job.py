"""What every transfer method works on: the source, the target's rows, and a model of the right shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.config import DataOptions, ValueColumns
from headwater.data.examples import Examples
from headwater.data.rows import Rows, read_rows
from headwater.errors import CheckpointError, ConfigError
from headwater.features.featurizer import FeatureOptions, Featurizer, fit_featurizer
from headwater.features.numeric import NumericOptions
from headwater.features.text import TextFeaturizer, TextOptions
from headwater.fitting import Splits, fit_task, task_objective, with_epochs
from headwater.model import FROZEN, EncoderOptions, SequenceModel
from headwater.records import Coverage, DataUse
from headwater.stage import Workspace
from headwater.tasks import Task
from headwater.tasks.language_modeling import LanguageModelingOptions
from headwater.trainer import ALWAYS, NEVER, FitResult, Objective, ParameterGroup, TrainOptions
from headwater.transfer_learning.language_model import LANGUAGE_MODELING, has_decoder
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.regularization import Anchor, ShrunkClassification
from headwater.transfer_learning.virtual_adversarial import VirtualAdversarial
from headwater.transfer_learning.vocabulary import Remapping, union_featurizer
from headwater.weights import Weights, load_weights, part


@dataclass
class Job:
    """One transfer.

    Attributes:
        source: What to start from.
        splits: The target's rows.
        options: How to transfer.
        workspace: Where to work.
        config: The target model's config.
        featurizer: The target's featurizer.
        model: The target model; holds the source's weights unless the method starts from scratch.
        coverage: What the source knew of the target's vocabulary; None from scratch, and where one of the two has none.
        new_input: Whether the model's input side can't be the source's, since that reads another modality or other
            channels: then the recurrent core alone is carried over.
        carried: The weights that the model has from the source.
        part: Names the state that an interrupted run continues from, where a stage does several jobs.
        source_uses: Rows beside the target's that the method has read.
        notes: What a reader should know of what was carried over, a sentence each.
    """

    source: Checkpoint
    splits: Splits
    options: TransferOptions
    workspace: Workspace
    config: ModelConfig
    featurizer: Featurizer
    model: SequenceModel
    coverage: Coverage | None
    carried: Weights
    part: str = ""
    new_input: bool = False
    source_uses: list[DataUse] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """The target's task, as it is trained."""
        if self.options.bss and self.carried and self.splits.labels:
            return ShrunkClassification(**self.config.task, shrinkage=self.options.bss)
        return self.config.make_task()

    @property
    def epochs(self) -> int:
        """Passes over the target's rows at most."""
        options, device = self.options, self.workspace.device
        examples = self.splits.train.encode(self.featurizer, self.splits.labels)
        main = task_objective(self.model, self.task, examples, options, options.seed, device)
        return with_epochs(options, main.steps_per_epoch * options.step_size).epochs

    def fit(
        self,
        groups: Sequence[ParameterGroup] = (ParameterGroup(("",)),),
        anchors: Sequence[Objective] = (),
        trained: nn.Module | None = None,
        together: Callable[[Objective], Sequence[Objective]] = lambda own: [own],
    ) -> FitResult:
        """Fit the model to the target's rows; anchors take the place of the pull to zero."""
        options = self.options.only(TrainOptions)
        if anchors:
            options = options.model_copy(update={"weight_decay": 0.0})
        return fit_task(
            self.model,
            self.task,
            self.featurizer,
            self.splits,
            options,
            self.workspace,
            part=self.part,
            seed=self.options.seed,
            groups=groups,
            others=[*anchors, *self.smoothness()],
            trained=trained,
            together=together,
        )

    def anchors(self) -> list[Objective]:
        """Return L2-SP, if it is asked for: a pull of what was carried over to where it was, of the rest to zero."""
        if not self.options.l2_sp:
            return []
        parameters = dict(self.model.named_parameters())
        new = {name: value for name, value in parameters.items() if name not in self.carried}
        old = {name: parameters[name] for name in self.carried}
        device = self.workspace.device
        where = {name: value.to(device) for name, value in self.carried.items()}
        pulls: list[Objective] = [Anchor(old, where, self.options.l2_sp)]
        if new:
            zeros = {name: torch.zeros_like(value, device=device) for name, value in new.items()}
            pulls.append(Anchor(new, zeros, self.options.l2_sp_head))
        return pulls

    def smoothness(self) -> list[Objective]:
        """Return virtual adversarial training, if it is asked for, on the target's rows and on others beside them."""
        options = self.options
        if not options.vat or not self.splits.labels:
            return []
        rows = list(self.splits.train.inputs)
        if options.vat_data:
            more = self.read_more(options.vat_data, text=options.text)
            self.source_uses.append(more.use("unlabelled"))
            rows += more.inputs
        examples = Examples(self.featurizer.encode_all(rows))
        return [VirtualAdversarial(self.model, examples, options, self.workspace.device)]

    def read_more(self, data: str, *, text: str, label: str | None = None) -> Rows:
        """Read rows that stand beside the target's; numbers are in columns of the same names."""
        values, features = self.options.only(ValueColumns), self.featurizer.options
        return read_rows(data, text=text, label=label, values=values, features=features)

    def layer_groups(self) -> list[str]:
        """Return the parameter names' beginnings from the head down to the input side, one a layer.

        A language model's embedding stands beside its head: its rows are the softmax weights.
        """
        depth = len(self.model.encoder.stack.layers)
        layers = [f"encoder.stack.layers.{number}." for number in reversed(range(depth))]
        if self.options.task == LANGUAGE_MODELING:
            return ["head.", *self._input_side(), *layers]
        return ["head.", *layers, *self._input_side()]

    def new_layers(self) -> list[str]:
        """Return the parameter names' beginnings of an input side that can't be the source's."""
        return self._input_side() if self.new_input else []

    def _input_side(self) -> list[str]:
        return [f"encoder.{name}." for name in self.model.encoder.input_side]

    def check_input_is_known(self) -> None:
        """Refuse a method that leaves the whole encoder as it is, where its input side is new.

        Raises:
            ConfigError: It is.
        """
        if self.new_input:
            raise ConfigError(
                f"method = {self.options.method!r} makes a head alone, and here the input side is new and must learn "
                "too: take --method init or finetune, with --freeze encoder if the recurrent layers are to stay as "
                "they are"
            )

    def learns(self, prefix: str) -> range:
        """Return the epochs in which a layer learns: none if the options keep it frozen; what is new always learns."""
        frozen = prefix.startswith(FROZEN[self.options.freeze]) and prefix not in self.new_layers()
        return NEVER if frozen else ALWAYS


def make_job(
    source: Checkpoint, splits: Splits, options: TransferOptions, workspace: Workspace, *, from_scratch: bool
) -> Job:
    """Prepare a transfer: fit the target's featurizer, build the model, carry the source's weights over."""
    featurizer = _featurizer(source, splits, options, from_scratch=from_scratch)
    same_head = has_decoder(source) if options.task == LANGUAGE_MODELING else source.labels == splits.labels
    if options.head == "source" and not same_head and not from_scratch:
        raise ConfigError(
            f"head = 'source' needs the same labels; the source has {', '.join(source.labels) or 'none'}, "
            f"the target {', '.join(splits.labels)}: use --head new"
        )
    new_input = needs_new_input(source, splits, options)
    config = ModelConfig(
        **featurizer.sizes,
        encoder=_encoder(source, featurizer, new_input=new_input),
        dropout=options.dropout(source.config.dropout),
        residual_layers=source.config.residual_layers,
        adapters=source.config.adapters,
        featurizer=featurizer.options,
        task=_task(source, splits, options),
    )
    torch.manual_seed(options.seed)
    model = config.build()
    job = Job(source, splits, options, workspace, config, featurizer, model, None, {}, new_input=new_input)
    if not from_scratch:
        keep = options.head == "source" if new_input else options.head != "new"
        _carry_over(job, head=same_head and keep)
    return job


def feature_options(source: Checkpoint, options: DataOptions) -> FeatureOptions:
    """Return how the target's rows are to be prepared: as the source's, as far as they are of its modality."""
    here = NumericOptions if options.values is not None else TextOptions
    known = source.config.featurizer.model_dump() if isinstance(source.config.featurizer, here) else {}
    wanted: dict[str, Any] = {name: getattr(options, name) for name in here.model_fields if hasattr(options, name)}
    if sorted(options.names) != sorted(known.get("columns", ())):  # the same channels must keep the source's order
        wanted["columns"] = options.names
    return here(**(known | {name: value for name, value in wanted.items() if value and value != "source"}))


def needs_new_input(source: Checkpoint, splits: Splits, options: DataOptions) -> bool:
    """Return whether the source's input side can't read the target's rows; a vocabulary can be remapped."""
    channels = np.asarray(splits.train.inputs[0]).shape[1] if options.values is not None else 0
    return channels != source.config.channels


def _featurizer(source: Checkpoint, splits: Splits, options: TransferOptions, *, from_scratch: bool) -> Featurizer:
    """Fit the target's featurizer; of text it knows the source's tokens too, unless the model starts from scratch."""
    prepared, known = feature_options(source, options), source.featurizer
    if not isinstance(prepared, TextOptions) or not isinstance(known, TextFeaturizer):
        return fit_featurizer(splits.train.inputs, prepared)
    reuse = known.tokenizer if prepared.tokenizer == known.options.tokenizer else None
    target = TextFeaturizer.fit(splits.train.texts, prepared, reuse)
    return target if from_scratch else union_featurizer(known, target)


def _encoder(source: Checkpoint, featurizer: Featurizer, *, new_input: bool) -> EncoderOptions:
    """Return the source's shape; numbers that its core has not read are projected to what it reads."""
    shape = source.config.encoder
    return shape.model_copy(update={"projection": featurizer.modality == "numeric"}) if new_input else shape


def _task(source: Checkpoint, splits: Splits, options: TransferOptions) -> dict[str, Any]:
    """Return the settings of the target's task."""
    if options.task == LANGUAGE_MODELING:
        tied = source.config.task.get("tied", True)
        return {"name": options.task, "tied": tied} | options.only(LanguageModelingOptions).model_dump()
    pooling = source.config.task.get("pooling", "concat")
    return {"name": options.task, "labels": splits.labels, "pooling": pooling}


def _carry_over(job: Job, *, head: bool) -> None:
    """Copy the source's weights into the model, and note what it knew of the vocabulary, or that it read other rows."""
    known, target = job.source.featurizer, job.featurizer
    beginnings = ("encoder.stack." if job.new_input else "encoder.", *(("head.",) if head else ()))
    kept = {name: value for name, value in job.source.weights().items() if name.startswith(beginnings)}
    if isinstance(known, TextFeaturizer) and isinstance(target, TextFeaturizer):
        embedding = kept.get("encoder.embedding.weight")
        if embedding is None:
            raise CheckpointError(f"{job.source.path} has no embedding: it can't be transferred to text")
        remapping = Remapping(known, target)
        kept["encoder.embedding.weight"] = remapping.rows(embedding)
        if head and has_decoder(job.source):
            kept |= {f"head.{name}": value for name, value in remapping.decoder(part(kept, "head.")).items()}
        job.coverage = remapping.coverage(job.splits.train.texts)
        job.notes += remapping.notes(job.coverage)
    load_weights(job.model, kept)
    job.carried = kept
    if job.new_input:
        job.notes.append(_crossing(job))


def _crossing(job: Job) -> str:
    """Return what was kept where the source has read other rows than the target's."""
    was, now = (f"numbers of {c.channels} channels" if c.channels else "text" for c in (job.source.config, job.config))
    kept = sum(value.numel() for name, value in job.carried.items() if name.startswith("encoder."))
    return (
        f"The source has read {was}, the target's rows are {now}: {kept:,} recurrent weights were kept, the input side "
        "is new."
    )
