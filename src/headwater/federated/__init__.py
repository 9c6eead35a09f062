"""Federated learning: clients train on rows of their own and send updates; a server combines them.

A method is five pieces put together, never a class to inherit from: client update, update transforms, aggregator,
server optimizer and sampler (`protocols.py`). A new aggregator or partitioner is a class or function here and a row in
its table.
"""

from __future__ import annotations

AGGREGATORS = {
    "mean": "headwater.federated.aggregators:Mean",
    "weighted": "headwater.federated.aggregators:WeightedMean",
    "median": "headwater.federated.aggregators:Median",
}
METHODS = {
    "fedprox": "headwater.federated.methods.fedprox:FedProx",
    "scaffold": "headwater.federated.methods.scaffold:Scaffold",
    "fednova": "headwater.federated.methods.fednova:FedNova",
    "feddyn": "headwater.federated.methods.feddyn:FedDyn",
    "moon": "headwater.federated.methods.moon:Moon",
}
PARTITIONERS = {
    "iid": "headwater.federated.partition:Iid",
    "dirichlet": "headwater.federated.partition:Dirichlet",
    "labels": "headwater.federated.partition:Labels",
    "quantity": "headwater.federated.partition:Quantity",
    "length": "headwater.federated.partition:Length",
    "time": "headwater.federated.partition:Time",
    "vocabulary": "headwater.federated.partition:Vocabulary",
}
