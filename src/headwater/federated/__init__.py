"""Federated learning: clients train on rows of their own and send updates; a server combines them.

A method is five pieces put together, never a class to inherit from: client update, update transforms, aggregator,
server optimizer and sampler (`protocols.py`). A new aggregator or partitioner is a class here and a row in its
table.
"""

from __future__ import annotations

AGGREGATORS = {
    "mean": "headwater.federated.aggregators:Mean",
    "weighted": "headwater.federated.aggregators:WeightedMean",
    "validation": "headwater.federated.aggregators:ByValidation",
    "median": "headwater.federated.aggregators:Median",
    "trimmed_mean": "headwater.federated.aggregators:TrimmedMean",
    "geometric_median": "headwater.federated.aggregators:GeometricMedian",
    "krum": "headwater.federated.aggregators:Krum",
    "multi_krum": "headwater.federated.aggregators:MultiKrum",
    "bulyan": "headwater.federated.aggregators:Bulyan",
    "norm_bound": "headwater.federated.aggregators:NormBound",
    "centered_clipping": "headwater.federated.aggregators:CenteredClipping",
}
ATTACKS = {
    "label_flip": "headwater.federated.attacks:LabelFlip",
    "sign_flip": "headwater.federated.attacks:SignFlip",
    "scaling": "headwater.federated.attacks:Scaling",
    "inner_product": "headwater.federated.attacks:InnerProduct",
    "backdoor": "headwater.federated.attacks:Backdoor",
    "free_rider": "headwater.federated.attacks:FreeRider",
}
CODECS = {
    "sparse_rows": "headwater.federated.codecs.sparse:SparseRows",
    "low_rank": "headwater.federated.codecs.low_rank:LowRank",
    "top_k": "headwater.federated.codecs.sparse:TopK",
    "random_k": "headwater.federated.codecs.sparse:RandomK",
    "float16": "headwater.federated.codecs.half:Float16",
    "bfloat16": "headwater.federated.codecs.half:BFloat16",
    "int8": "headwater.federated.codecs.quantization:Int8",
    "int4": "headwater.federated.codecs.quantization:Int4",
    "ternary": "headwater.federated.codecs.quantization:Ternary",
    "sign": "headwater.federated.codecs.quantization:Sign",
    "rotation": "headwater.federated.codecs.rotation:Rotation",
}
METHODS = {
    "fedprox": "headwater.federated.methods.fedprox:FedProx",
    "scaffold": "headwater.federated.methods.scaffold:Scaffold",
    "fednova": "headwater.federated.methods.fednova:FedNova",
    "feddyn": "headwater.federated.methods.feddyn:FedDyn",
    "moon": "headwater.federated.methods.moon:Moon",
}
PERSONALIZERS = {
    "fedper": "headwater.federated.personal.fedper:FedPer",
    "fedrep": "headwater.federated.personal.fedrep:FedRep",
    "ditto": "headwater.federated.personal.ditto:Ditto",
    "apfl": "headwater.federated.personal.apfl:Apfl",
    "pfedme": "headwater.federated.personal.pfedme:PFedMe",
    "perfedavg": "headwater.federated.personal.perfedavg:PerFedAvg",
    "ifca": "headwater.federated.personal.ifca:Ifca",
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
SAMPLERS = {
    "uniform": "headwater.federated.sampling:Uniform",
    "weighted": "headwater.federated.sampling:Weighted",
    "poisson": "headwater.federated.sampling:Poisson",
    "round_robin": "headwater.federated.sampling:RoundRobin",
}
SERVER_OPTIMIZERS = {
    "sgd": "headwater.federated.server_optimizers:ServerSGD",
    "adam": "headwater.federated.server_optimizers:ServerAdam",
    "yogi": "headwater.federated.server_optimizers:ServerYogi",
    "adagrad": "headwater.federated.server_optimizers:ServerAdagrad",
}
