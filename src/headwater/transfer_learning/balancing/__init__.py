"""How the losses of several tasks become one step. A new way is a class and a row in the table."""

from __future__ import annotations

BALANCERS = {
    "fixed": "headwater.transfer_learning.balancing.fixed:Fixed",
    "uncertainty": "headwater.transfer_learning.balancing.uncertainty:Uncertainty",
    "gradnorm": "headwater.transfer_learning.balancing.gradnorm:GradNorm",
    "pcgrad": "headwater.transfer_learning.balancing.pcgrad:PCGrad",
}
