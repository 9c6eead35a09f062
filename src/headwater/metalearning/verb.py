"""The verb `metalearn`: many small tasks to a checkpoint that adapts to a new one with few rows."""

from __future__ import annotations

from typing import Any

import torch

from headwater.checkpoint import Checkpoint
from headwater.data.rows import row_notes
from headwater.features.featurizer import fit_featurizer
from headwater.metalearning import METHODS
from headwater.metalearning.adaptation import AdaptOptions, Learner
from headwater.metalearning.episodes import Episodes, read_episodes
from headwater.metalearning.measuring import META_LEARNED, NOT_ADAPTED, PLAIN_START, compare, mean_figures, measure
from headwater.metalearning.methods import Method
from headwater.metalearning.options import MetalearnOptions
from headwater.metalearning.outer_loop import OuterLoop
from headwater.model import SequenceModel
from headwater.records import EpisodeRow
from headwater.registry import lookup
from headwater.stage import Outcome, Workspace, run_stage
from headwater.tasks.classification import Classification
from headwater.tasks.representation import Representation
from headwater.weights import weights_of


def metalearn(source: Checkpoint | None, options: MetalearnOptions) -> Checkpoint:
    """Train a model over episodes of many tasks.

    Args:
        source: What to start from; without it a new model is drawn.
        options: Which tasks, and how to learn from them.

    Returns:
        The checkpoint, as written to ``options.out``: a classifier where all tasks have the same labels and the method
        learns a head, else an encoder without one.

    Raises:
        HeadwaterError: The data, the options or the output folder can't be used.
    """
    run_stage("metalearn", options, lambda workspace: _work(source, options, workspace), source)
    return Checkpoint.load(options.out)


def _work(source: Checkpoint | None, options: MetalearnOptions, workspace: Workspace) -> Outcome:
    train, held, notes = read_episodes(
        options, options.seed, source.featurizer.options if source else options.features()
    )
    start = _start(source, train, options)
    model = start.model().to(workspace.device)
    learner = Learner(model, start.featurizer, options.only(AdaptOptions), workspace.device, not train.labels)
    method: Method = lookup("headwater.meta_learning_methods", METHODS, options.method)()
    plain = weights_of(model)
    loop = OuterLoop(method, learner, train, options, workspace.state_file())
    loop.run(workspace.progress)
    learned = weights_of(model)
    workspace.progress.note(f"measuring on {options.test_episodes} episodes of held-out tasks")
    found = measure(method, learner, learned, plain, held, options.test_episodes, workspace.progress)
    figures = {name: mean_figures(values) for name, values in found.items()}
    facts: dict[str, Any] = {
        "method": options.method,
        "data": [train.used().use("train"), held.used().use("test")],
        "metrics": {"test": figures.pop(META_LEARNED)},
        "controls": {name: figures.pop(name) for name in (PLAIN_START, NOT_ADAPTED) if name in figures},
        "baselines": figures,
        "episodes": [
            EpisodeRow(accuracies={name: values[number]["accuracy"] for name, values in found.items()})
            for number in range(options.test_episodes)
        ],
        "curves": [loop.curve()],
        "stopped": f"reached {options.episodes} episodes",
        "notes": [
            compare(found, held),
            *notes,
            *row_notes(start.featurizer, train.used(), held.used()),
            *(options.notes_from_checkpoint() if source else []),
        ],
    }
    made = _made(start, model, head=method.head and bool(train.labels))
    return Outcome(made, facts, (source,) if source else ())


def _start(source: Checkpoint | None, train: Episodes, options: MetalearnOptions) -> Checkpoint:
    """Return the classifier that learning begins with."""
    labels = train.labels or tuple(f"class {number}" for number in range(1, options.ways + 1))
    if source:
        return source.for_labels(labels, options.seed)
    featurizer = fit_featurizer(train.used().inputs, options.features())
    task = Classification(labels=labels, pooling=options.pooling)
    config = options.config_for(featurizer, task.model_dump())
    torch.manual_seed(options.seed)
    return Checkpoint(config, featurizer, {}).with_model(config.build())


def _made(start: Checkpoint, model: SequenceModel, *, head: bool) -> Checkpoint:
    """Return the checkpoint of a model, without a head where none was learned."""
    if head:
        return start.with_model(model)
    task = Representation(pooling=start.config.task["pooling"])
    bare = SequenceModel(model.encoder, task.head(model.encoder, 0.0))
    return start.with_model(bare, config=start.config.model_copy(update={"task": task.model_dump()}))
