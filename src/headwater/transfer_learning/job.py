"""What every transfer method works on: the source, the target's rows, and a model of the right shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.data.examples import Examples
from headwater.data.rows import read_rows
from headwater.errors import CheckpointError, ConfigError
from headwater.features.text import TextFeaturizer, TextOptions
from headwater.fitting import Splits, fit_task, task_objective, with_epochs
from headwater.model import SequenceModel
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
from headwater.weights import Weights, load_weights


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
        coverage: What the source knew of the target's vocabulary; None from scratch.
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
    featurizer: TextFeaturizer
    model: SequenceModel
    coverage: Coverage | None
    carried: Weights
    part: str = ""
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
        texts = list(self.splits.train.texts)
        if options.vat_data:
            more = read_rows(options.vat_data, text=options.text)
            self.source_uses.append(more.use("unlabelled"))
            texts += more.texts
        examples = Examples(self.featurizer.encode_all(texts))
        return [VirtualAdversarial(self.model, examples, options, self.workspace.device)]

    def layer_groups(self) -> list[str]:
        """Return the parameter names' beginnings from the head down to the embedding, one a layer.

        A language model's embedding stands beside its head: its rows are the softmax weights.
        """
        depth = len(self.model.encoder.stack.layers)
        layers = [f"encoder.stack.layers.{number}." for number in reversed(range(depth))]
        if self.options.task == LANGUAGE_MODELING:
            return ["head.", "encoder.embedding.", *layers]
        return ["head.", *layers, "encoder.embedding."]

    def learns(self, prefix: str) -> range:
        """Return the epochs in which a layer learns: none if the options keep it frozen throughout."""
        frozen = {"none": (), "embedding": ("encoder.embedding.",), "encoder": ("encoder.",)}[self.options.freeze]
        return NEVER if prefix.startswith(frozen) else ALWAYS


def make_job(
    source: Checkpoint, splits: Splits, options: TransferOptions, workspace: Workspace, *, from_scratch: bool
) -> Job:
    """Prepare a transfer: fit the target's featurizer, build the model, carry the source's weights over."""
    wanted: dict[str, Any] = {} if options.tokenizer == "source" else {"tokenizer": options.tokenizer}
    if options.max_length:
        wanted["max_length"] = options.max_length
    text_options = TextOptions(**(source.config.featurizer.model_dump() | wanted))
    reuse = source.featurizer.tokenizer if options.tokenizer in ("source", source.config.featurizer.tokenizer) else None
    target = TextFeaturizer.fit(splits.train.texts, text_options, reuse)
    featurizer = target if from_scratch else union_featurizer(source.featurizer, target)
    same_head = has_decoder(source) if options.task == LANGUAGE_MODELING else source.labels == splits.labels
    if options.head == "source" and not same_head and not from_scratch:
        raise ConfigError(
            f"head = 'source' needs the same labels; the source has {', '.join(source.labels) or 'none'}, "
            f"the target {', '.join(splits.labels)}: use --head new"
        )
    config = ModelConfig(
        encoder=source.config.encoder,
        vocabulary_size=len(featurizer.vocabulary),
        dropout=options.dropout(source.config.dropout),
        residual_layers=source.config.residual_layers,
        adapters=source.config.adapters,
        featurizer=featurizer.options,
        task=_task(source, splits, options),
    )
    torch.manual_seed(options.seed)
    model = config.build()
    job = Job(source, splits, options, workspace, config, featurizer, model, None, {})
    if not from_scratch:
        _carry_over(job, head=same_head and options.head != "new")
    return job


def _task(source: Checkpoint, splits: Splits, options: TransferOptions) -> dict[str, Any]:
    """Return the settings of the target's task."""
    if options.task == LANGUAGE_MODELING:
        return {"name": options.task} | options.only(LanguageModelingOptions).model_dump()
    pooling = source.config.task.get("pooling", "concat")
    return {"name": options.task, "labels": splits.labels, "pooling": pooling}


def _carry_over(job: Job, *, head: bool) -> None:
    """Copy the source's weights into the model, and note what it knew of the vocabulary."""
    weights = job.source.weights()
    embedding = weights.pop("encoder.embedding.weight", None)
    if embedding is None:
        raise CheckpointError(f"{job.source.path} has no embedding: only models of text can be transferred to text")
    kept = {name: value for name, value in weights.items() if head or name.startswith("encoder.")}
    remapping = Remapping(job.source.featurizer, job.featurizer)
    kept["encoder.embedding.weight"] = remapping.rows(embedding)
    if head and has_decoder(job.source):
        kept["head.bias"] = remapping.biases(kept["head.bias"])
    load_weights(job.model, kept)
    job.carried = kept
    job.coverage = remapping.coverage(job.splits.train.texts)
    job.notes += remapping.notes(job.coverage)
