"""Several tasks on one encoder: hard parameter sharing (Caruana 1997)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from headwater.checkpoint import Checkpoint
from headwater.data.examples import Examples
from headwater.data.rows import label_set
from headwater.errors import ConfigError
from headwater.features.featurizer import text_featurizer
from headwater.model import SequenceModel
from headwater.registry import lookup
from headwater.tasks import Task
from headwater.tasks.classification import Classification
from headwater.tasks.language_modeling import LanguageModeling
from headwater.trainer import FitResult, Objective, ParameterGroup, TaskObjective
from headwater.transfer_learning.balancing import BALANCERS
from headwater.transfer_learning.balancing.base import Balancer
from headwater.transfer_learning.job import Job
from headwater.transfer_learning.language_model import has_decoder
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.task_sampling import Drawn, Draws
from headwater.transfer_learning.vocabulary import Remapping
from headwater.weights import load_weights, part


@dataclass(frozen=True)
class TaskBeside:
    """A task that is learned beside the target's, with a head of its own.

    Attributes:
        name: For showing.
        weight: What it counts where the target's counts 1.
        objective: What a step learns of it.
    """

    name: str
    weight: float
    objective: TaskObjective


def check_tasks(source: Checkpoint, options: TransferOptions) -> None:
    """Refuse tasks that the source's encoder can't learn, before anything is read or trained.

    Raises:
        ConfigError: A language model is asked for, and the rows are numbers or the encoder reads ahead.
    """
    if options.lm_weight and options.values is not None and "lm_weight" not in options.unread():
        raise ConfigError(
            f"lm_weight = {options.lm_weight:g}: a language model predicts tokens, and the target's rows are numbers: "
            "leave --lm-weight at 0"
        )
    if options.lm_weight and source.config.encoder.bidirectional and "lm_weight" not in options.unread():
        raise ConfigError(
            f"lm_weight = {options.lm_weight:g}: to predict the next token an encoder must not read ahead, and the "
            "source's reads in both directions: start from a model that was pre-trained with --no-bidirectional, "
            "or leave --lm-weight at 0"
        )


def source_tasks(job: Job) -> list[TaskBeside]:
    """Return the classification of each file of `--source-data`."""
    if job.options.source_data and job.new_input:
        raise ConfigError("method = 'multitask' needs rows of the source that the target's model can read: take init")
    tasks = []
    for file, text, label, weight in job.options.sources():
        rows = job.read_more(file, text=text, label=label)
        job.source_uses.append(rows.use("source"))
        task = Classification(labels=label_set(rows))
        objective = _objective(job, task, rows.encode(job.featurizer, task.labels))
        tasks.append(TaskBeside(file, weight, objective))
    return tasks


def language_model(job: Job) -> list[TaskBeside]:
    """Return the language model of `--lm-weight` beside a classifier; of a source that is one it has the head too."""
    options = job.options
    if not options.lm_weight or not job.splits.labels:
        return []
    rows = job.splits.train
    if options.lm_data:
        rows = job.read_more(options.lm_data, text=options.lm_text)
        job.source_uses.append(rows.use("unlabelled"))
    examples = Examples(job.featurizer.encode_all(rows.texts))
    objective = _objective(job, LanguageModeling(tied=job.source.config.task.get("tied", True)), examples)
    _start_from_the_sources_head(job, objective.model.head)
    return [TaskBeside("language model", options.lm_weight, objective)]


def fit_beside(job: Job, groups: Sequence[ParameterGroup], tasks: Sequence[TaskBeside]) -> FitResult:
    """Fit the job's model to its own task and others, all held to the source as the options say.

    Args:
        job: What is fitted.
        groups: Of the job's model.
        tasks: Beside the target's; without any it is an ordinary fit.
    """
    if not tasks:
        return job.fit(groups, job.anchors())
    options = job.options
    make = lookup("headwater.balancers", BALANCERS, options.balance)
    balancer: Balancer = make([1.0, *(task.weight for task in tasks)], job.model.encoder, options, options.seed)
    heads = nn.ModuleList([task.objective.model.head for task in tasks])
    trained = nn.ModuleDict({"target": job.model, "heads": heads, "balancer": balancer.learned})
    inside = [replace(group, prefixes=tuple(f"target.{prefix}" for prefix in group.prefixes)) for group in groups]
    beside = [ParameterGroup(("heads.",))]
    if len(balancer.learned):
        beside.append(ParameterGroup(("balancer.",), decays=False))

    def together(own: Objective) -> Sequence[Objective]:
        objectives = balancer.objectives([own, *(task.objective for task in tasks)])
        if not options.task_temperature:
            return objectives
        rows = [len(job.splits.train), *(len(task.objective.examples) for task in tasks)]
        draws = Draws(rows, own.steps_per_epoch, options.task_temperature, options.seed)
        return [Drawn(objective, draws, number) for number, objective in enumerate(objectives)]

    result = job.fit([*inside, *beside], job.anchors(), trained, together)
    notes = balancer.notes(["target", *(task.name for task in tasks)])
    return replace(result, notes=(*result.notes, *notes))


def _objective(job: Job, task: Task, examples: Examples) -> TaskObjective:
    encoder, options, device = job.model.encoder, job.options, job.workspace.device
    model = SequenceModel(encoder, task.head(encoder, job.config.dropout.head_dropout)).to(device)
    return TaskObjective(model, task, examples, options.batch_size, options.seed, device, options.accumulate)


def _start_from_the_sources_head(job: Job, head: nn.Module) -> None:
    """Take over the decoder of a source that is a language model."""
    if not has_decoder(job.source):
        return
    known, target = text_featurizer(job.source.featurizer), text_featurizer(job.featurizer)
    load_weights(head, Remapping(known, target).decoder(part(job.source.weights(), "head.")))
