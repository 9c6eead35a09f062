"""The transfer methods: each trains the job's model in place.

Shapes: N rows, F pooled features, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from headwater.errors import ConfigError
from headwater.tasks.classification import PooledLinear, pooled_states
from headwater.trainer import NEVER, FitResult, ParameterGroup
from headwater.transfer_learning.job import Job
from headwater.transfer_learning.low_rank import low_rank
from headwater.transfer_learning.multitask import fit_beside, language_model, source_tasks
from headwater.transfer_learning.unfreezing import at_once, chain_thaw, gradual, probe_first


def scratch(job: Job) -> FitResult:
    """Train the whole model from random weights: the control."""
    return job.fit()


def init(job: Job) -> FitResult:
    """Parameter initialization: start from the source's weights, train all of them alike."""
    return fit_beside(job, _alike(job), language_model(job))


def finetune(job: Job) -> FitResult:
    """Discriminative rates (Howard and Ruder 2018, arXiv:1801.06146, section 3.2), layers thawed in some order.

    Each layer below the head learns with a rate smaller by a factor, in the epochs that `--unfreeze` gives it; a new
    input side as the head does.
    """
    new = job.new_layers()
    layers = [prefix for prefix in job.layer_groups() if prefix not in new]
    learning = [prefix for prefix in layers if job.learns(prefix) is not NEVER]
    unfreeze, epochs = job.options.unfreeze, job.epochs
    if unfreeze == "probe_first":
        times = probe_first(len(learning), epochs, job.options.probe_share)
    else:
        times = {"gradual": gradual, "chain_thaw": chain_thaw, "at_once": at_once}[unfreeze](len(learning), epochs)
    thawed = dict(zip(learning, times, strict=True))
    groups = [
        ParameterGroup((prefix,), job.options.lr_decay**-depth, thawed.get(prefix, NEVER))
        for depth, prefix in enumerate(layers)
    ]
    groups += [ParameterGroup((prefix,)) for prefix in new]
    return fit_beside(job, groups, language_model(job))


def features(job: Job) -> None:
    """Feature extraction: the frozen encoder's pooled states, and logistic regression as the head.

    The regression's strength is chosen by cross-validation on the training rows; its scaling and weights are then
    written into the linear head, so that the result is an ordinary checkpoint.
    """
    job.check_input_is_known()
    examples = job.splits.train.encode(job.featurizer, job.splits.labels)
    pooled_NF = pooled_states(job.model, examples)
    chosen = max((0.001, 0.01, 0.1, 1.0), key=lambda strength: _score(pooled_NF, examples.targets_N, strength))
    scaler, regression = (piece for _, piece in _shallow(chosen).fit(pooled_NF, examples.targets_N).steps)
    weight_KF = regression.coef_ / scaler.scale_
    bias_K = regression.intercept_ - weight_KF @ scaler.mean_
    if len(bias_K) == 1:  # two classes: the library keeps the second one's log-odds only
        weight_KF, bias_K = np.concatenate([0 * weight_KF, weight_KF]), np.array([0.0, bias_K[0]])
    head = job.model.head
    assert isinstance(head, PooledLinear)  # noqa: S101 - transfer makes classifiers
    head.linear.weight.data = torch.from_numpy(weight_KF).float()
    head.linear.bias.data = torch.from_numpy(bias_K).float()


def multitask(job: Job) -> FitResult:
    """Hard parameter sharing (Caruana 1997): one encoder learns the target's task and others at once."""
    tasks = [*source_tasks(job), *language_model(job)]
    if not tasks:
        raise ConfigError(
            "method = 'multitask' learns other tasks too: add --source-data FILE, or --lm-weight for a language model"
        )
    return fit_beside(job, _alike(job), tasks)


def lora(job: Job) -> FitResult:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): they and the head learn, the rest stays frozen.

    So do the gates of residual layers: as long as one is zero, as in a layer just inserted, that layer can't learn.

    The adapters are merged into the weights in the end, so that the result is an ordinary checkpoint.
    """
    options, model = job.options, job.model
    whole = sum(value.numel() for value in model.parameters())
    targets = [target.strip() for target in options.lora_targets.split(",")]
    if "embedding" not in model.encoder.input_side:  # numbers have none
        targets = [target for target in targets if target != "embedding"] or targets
    with low_rank(model.encoder, targets, options.rank, options.lora_alpha) as adapters:
        gates = [f"encoder.stack.layers.{number}.gate" for number in job.config.residual_layers]
        learning = ("head.", *gates, *job.new_layers(), *(f"encoder.{name}" for name in adapters))
        trained = sum(value.numel() for name, value in model.named_parameters() if name.startswith(learning))
        result = job.fit([ParameterGroup(learning), ParameterGroup(("",), epochs=NEVER)])
    parts = f"{len(adapters)} adapters{', the gates of residual layers' * bool(gates)} and the head"
    note = f"{trained:,} weights were trained, of a model of {whole:,}: {parts}."
    return replace(result, notes=(*result.notes, note))


def _alike(job: Job) -> list[ParameterGroup]:
    return [ParameterGroup((prefix,), epochs=job.learns(prefix)) for prefix in job.layer_groups()]


def _shallow(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _score(pooled_NF: np.ndarray, targets_N: np.ndarray, strength: float) -> float:
    folds = min(5, int(np.bincount(targets_N).min()))
    if folds < 2:
        return -strength
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    scores = cross_val_score(_shallow(strength), pooled_NF, targets_N, cv=splitter, scoring="neg_log_loss")
    return float(scores.mean())
