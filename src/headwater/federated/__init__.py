"""Federated learning: five pieces put together, never a class to inherit from.

A new aggregator, sampler, partitioner or server optimizer is a class here and a row in its table.
"""

from __future__ import annotations

AGGREGATORS = {
    "mean": "headwater.federated.aggregators:Mean",
    "weighted": "headwater.federated.aggregators:WeightedMean",
    "median": "headwater.federated.aggregators:Median",
}
PARTITIONERS = {
    "iid": "headwater.federated.partition:iid",
    "dirichlet": "headwater.federated.partition:dirichlet",
}
