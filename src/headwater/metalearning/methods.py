"""The methods of meta-learning: in which direction an episode moves the weights that all episodes begin with.

Shapes: S support rows, Q query rows, F pooled features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from headwater.metalearning.adaptation import Learner
from headwater.metalearning.episodes import Episode
from headwater.tasks.classification import class_probabilities, pooled_states
from headwater.tasks.prototypes import prototype_head
from headwater.weights import Weights


class Method(ABC):
    """A method of meta-learning."""

    outer_lr: ClassVar[float] = 3e-3
    """The usual rate of its steps."""
    head: ClassVar[bool] = True
    """Whether it learns a head, where all tasks have the same labels."""

    @abstractmethod
    def direction(self, learner: Learner, episode: Episode) -> tuple[Weights, float]:
        """Return the gradient of the shared weights, or what stands for it, and a loss; the model stays as it is."""

    @abstractmethod
    def probabilities(self, learner: Learner, episode: Episode) -> tuple[tuple[str, ...], np.ndarray]:
        """Return labels, and their probabilities (Q, K) for the queries by a model adapted to the support rows."""

    def optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Return what takes the steps."""
        return torch.optim.Adam(parameters, lr=lr, fused=True)


class Adapting(Method):
    """Methods that adapt by gradient descent."""

    def probabilities(self, learner: Learner, episode: Episode) -> tuple[tuple[str, ...], np.ndarray]:
        """Adapt by gradient descent, then predict."""
        query = episode.query().encode(learner.featurizer, episode.labels)
        with learner.trying():
            learner.adapt(episode.support(), episode.labels, learner.options.adapt_steps, episode.seed)
            return episode.labels, class_probabilities(learner.model, query)


class Reptile(Adapting):
    """Some of the way to the adapted weights (Nichol, Achiam and Schulman 2018, arXiv:1803.02999, algorithm 1).

    An episode's queries are learned from too: unlike MAML, the method doesn't split a task's rows. It is federated
    averaging with the episodes as clients.
    """

    outer_lr = 0.5

    def direction(self, learner: Learner, episode: Episode) -> tuple[Weights, float]:
        """Return the way from the adapted weights back."""
        with learner.trying() as before:
            loss = learner.adapt(episode.both(), episode.labels, learner.options.inner_steps, episode.seed)
            return {name: before[name] - p.detach().cpu() for name, p in learner.shared().items()}, loss

    def optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Plain steps: a rate of 1 goes all the way."""
        return torch.optim.SGD(parameters, lr=lr)


class FirstOrderMAML(Adapting):
    """The queries' gradient at the adapted weights (Finn et al. 2017, arXiv:1703.03400, section 5.2)."""

    def direction(self, learner: Learner, episode: Episode) -> tuple[Weights, float]:
        """Adapt to the support rows, then take the queries' gradient as if it were the start's."""
        with learner.trying():
            learner.adapt(episode.support(), episode.labels, learner.options.inner_steps, episode.seed)
            loss = learner.loss(learner.batch(episode.query(), episode.labels))
            loss.backward()  # type: ignore[no-untyped-call]
            return learner.gradients(), float(loss.detach())


class Prototypes(Method):
    """The nearest class mean wins (prototypical networks; Snell et al. 2017, arXiv:1703.05175, algorithm 1)."""

    head = False

    def direction(self, learner: Learner, episode: Episode) -> tuple[Weights, float]:
        """Return the gradient of the queries' loss, through the means too."""
        torch.manual_seed(episode.seed)  # of dropout
        learner.model.train()
        labels = _classes(episode)
        support, query = (learner.batch(rows, labels) for rows in (episode.support(), episode.query()))
        weight_KF, bias_K = prototype_head(learner.pooled(support), support.targets_B, len(labels))
        loss = F.cross_entropy(F.linear(learner.pooled(query), weight_KF, bias_K), query.targets_B)
        loss.backward()  # type: ignore[no-untyped-call]
        return learner.gradients(), float(loss.detach())

    def probabilities(self, learner: Learner, episode: Episode) -> tuple[tuple[str, ...], np.ndarray]:
        """Compare the queries with the means of the support rows."""
        labels = _classes(episode)
        support, query = (rows.encode(learner.featurizer, labels) for rows in (episode.support(), episode.query()))
        support_SF, query_QF = (torch.from_numpy(pooled_states(learner.model, rows)) for rows in (support, query))
        head = prototype_head(support_SF, torch.from_numpy(support.targets_N), len(labels))
        return labels, F.linear(query_QF, *head).softmax(1).numpy()


def _classes(episode: Episode) -> tuple[str, ...]:
    """Return the labels that have rows: of those that all tasks share, one may lack some."""
    return tuple(dict.fromkeys(episode.support().labels))
