"""Virtual adversarial training of classifiers (Miyato et al. 2016, arXiv:1605.07725, section 3).

Shapes: B batch, T time, C channels, E embedding, K classes, U tokens that the rows have, N steps of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.data.batches import Batch, Shuffler, batch_of
from headwater.data.examples import Examples
from headwater.data_parallel import Share
from headwater.model import Encoder, SequenceModel, TokenEncoder
from headwater.trainer import Objective
from headwater.transfer_learning.options import TransferOptions

_SEARCH = 0.1
"""Norm of the random step at which the direction is looked for, as in the authors' code: small beside the radius, and
large enough that float32 tells the predictions apart."""


class VirtualAdversarial(Objective):
    """Predictions are to stay as they are when the embedded tokens move in the direction that changes them most.

    The paper's network reads embeddings that are normalised by the tokens' frequency, so that it can't evade a
    perturbation by growing them. Here it reads them as they are, and the perturbation is normalised instead: its norm
    is counted in standard deviations of each of the embedding's numbers over the rows' tokens. What the first layer
    reads is the same up to a linear map, and a source model can be taken as it is. Of numeric rows it is the channels
    that move, or what they are projected to, counted likewise.

    The model drops out as in the rest of training. All passes over a batch drop the same units, so that dropout itself
    makes no divergence; tokens move behind the embedding's dropout.

    Args:
        model: A classifier.
        examples: Rows; their labels, if they have some, aren't read.
        options: The weight, the radius, and how the rows are put into batches: labelled rows alone come in the batches
            in which the task reads them.
        device: That holds the model.
    """

    def __init__(
        self, model: SequenceModel, examples: Examples, options: TransferOptions, device: torch.device
    ) -> None:
        self._model, self._examples, self._options, self._device = model, examples, options, device
        self._steps = Shuffler(examples, options.step_size, options.seed)
        self.steps_per_epoch = self._steps.steps_per_epoch
        encoder = model.encoder
        self._spread = (
            _token_spread(encoder, examples) if isinstance(encoder, TokenEncoder) else _number_spread(encoder, examples)
        )

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the weighted divergence of each batch of a step, by its part of the rows."""
        rows = self._steps.rows(step)
        own, size = share.of(rows), self._options.batch_size
        for start in range(0, len(own), size):
            part = own[start : start + size]
            divergence = self.divergence(batch_of(self._examples, part).to(self._device))
            yield self._options.vat * divergence * (len(part) / len(rows))

    def divergence(self, batch: Batch) -> Tensor:
        """Return the mean divergence between a batch's predictions and those for the perturbed tokens, in nats."""
        model, lengths_B = self._model, batch.lengths_B
        x_BTE = model.encoder.embed(batch.inputs)
        still_BTE = x_BTE.detach()
        valid_BT = torch.arange(x_BTE.shape[1], device=self._device) < lengths_B.unsqueeze(1)
        random_BTE = torch.randn_like(still_BTE) * valid_BT.unsqueeze(2)

        def predict(embedded_BTE: Tensor) -> Tensor:
            y_BTH, _ = model.encoder.stack(embedded_BTE, lengths_B)
            logits_BK: Tensor = model.head(y_BTH, lengths_B)
            return logits_BK.log_softmax(1, dtype=torch.promote_types(logits_BK.dtype, torch.float32))

        with _searching(model, self._device):
            spread_E = self._spread()
            with _rewound(self._device):
                before_BK = predict(still_BTE)
            with _rewound(self._device):
                step_BTE = worst_step(
                    lambda step_BTE: divergences(before_BK, predict(still_BTE + spread_E * step_BTE)),
                    random_BTE,
                    self._options.vat_radius,
                )
        return divergences(before_BK, predict(x_BTE + spread_E * step_BTE)).mean()


def worst_step(divergence: Callable[[Tensor], Tensor], random_BTE: Tensor, radius: float) -> Tensor:
    """Return the perturbation of each row that raises its divergence most, to the second order (equations 5 and 6).

    A divergence is least at zero, where its gradient vanishes; the gradient at a small random step is that step
    multiplied by the matrix of second derivatives: one power iteration towards the eigenvector that matters most.

    Args:
        divergence: Of each row (B,), by its perturbation (B, T, E).
        random_BTE: Where to start; zero on padding, where the perturbation will be zero too.
        radius: L2 norm of each row's perturbation; a row whose divergence doesn't change keeps zero.
    """
    step_BTE = _scaled(random_BTE, _SEARCH).requires_grad_()
    (gradient_BTE,) = torch.autograd.grad(divergence(step_BTE).sum(), step_BTE)
    return _scaled(gradient_BTE, radius)


def divergences(before_BK: Tensor, after_BK: Tensor) -> Tensor:
    """Return each row's Kullback-Leibler divergence (B,) of log probabilities from those before, in nats."""
    return F.kl_div(after_BK, before_BK, reduction="none", log_target=True).sum(1)


def _scaled(x_BTE: Tensor, norm: float) -> Tensor:
    """Return the rows scaled to an L2 norm; zeros stay zeros."""
    # By the largest number first: squares of small gradients vanish in float32.
    largest_B11 = x_BTE.abs().amax((1, 2), keepdim=True)
    safe_BTE = x_BTE / largest_B11.where(largest_B11 > 0, 1.0)
    return norm * F.normalize(safe_BTE.flatten(1)).view_as(x_BTE)


@contextmanager
def _searching(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold the parameters constant, and compute in float32: bfloat16 would round a small step away."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _rewound(device: torch.device) -> AbstractContextManager[None]:
    """Return a context after which the generators stand where they stood before: the next pass draws the same."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _token_spread(encoder: TokenEncoder, examples: Examples) -> Callable[[], Tensor]:
    """Return what gives the standard deviation (E,) of each of the embedding's numbers over the rows' tokens."""
    tokens, counts = np.unique(examples.inputs, return_counts=True)
    tokens_U, shares_U = torch.from_numpy(tokens), torch.from_numpy(counts / counts.sum())

    def spread() -> Tensor:
        weight_UE = encoder.embedding.weight.detach()[tokens_U]
        share_U = shares_U.to(weight_UE)
        return (share_U @ (weight_UE - share_U @ weight_UE).square()).sqrt()

    return spread


def _number_spread(encoder: Encoder, examples: Examples) -> Callable[[], Tensor]:
    """Return what gives the standard deviation (E,) of each number that the first layer reads over the rows' steps."""
    around_NC = examples.inputs - examples.inputs.mean(0, dtype=np.float64)
    covariance_CC = torch.from_numpy(around_NC.T @ around_NC / len(around_NC))

    def spread() -> Tensor:
        if not encoder.input_side:
            return covariance_CC.diagonal().sqrt().to(next(encoder.parameters()))
        weight_EC = encoder.get_parameter("projection.weight").detach()
        return ((weight_EC @ covariance_CC.to(weight_EC)) * weight_EC).sum(1).clamp_min(0).sqrt()

    return spread
