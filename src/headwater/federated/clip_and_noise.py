"""Client-level differential privacy as an update transform: clip each client's update, noise the aggregate."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch

from headwater.federated.protocols import Client, Instruction, Update, UpdateTransform
from headwater.weights import Weights, clipped


@dataclass(frozen=True)
class ClipAndNoise(UpdateTransform):
    """DP-FedAvg with a fixed denominator (McMahan et al. 2018, arXiv:1710.06963).

    Each update is scaled down to the L2 norm `clip`; the aggregate, a sum over `expected` clients' updates divided
    by that number, gets Gaussian noise of standard deviation ``noise_multiplier * clip / expected`` on each number.

    Attributes:
        clip: Largest L2 norm of an update.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        expected: Clients expected in a round.
        seed: Seeds the noise, so that a simulation can be repeated. Whoever knows it can take the noise off again:
            a deployment must keep it secret and draw it anew.
    """

    clip: float
    noise_multiplier: float
    expected: float
    seed: int

    def on_client(self, update: Update, instruction: Instruction, client: Client) -> Update:
        """Clip."""
        del instruction, client
        return replace(update, delta=clipped(update.delta, self.clip))

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Clip again: the guarantee must not rest on the client's honesty."""
        del instruction
        return replace(update, delta=clipped(update.delta, self.clip))

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Add noise."""
        del replies
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{instruction.round}/noise".encode()))
        deviation = self.noise_multiplier * self.clip / self.expected
        # In the order of the names: a resumed run reads its weights back in another order than it made them.
        return {
            name: aggregate[name] + deviation * torch.randn(aggregate[name].shape, generator=generator)
            for name in sorted(aggregate)
        }
