"""Aggregators: many updates to one direction. Updates come in the order of the clients' names.

Only `WeightedMean` counts a client by its rows: how many they are is what the client says, so aggregators that are to
hold against hostile clients count all alike.
"""

from headwater.federated.aggregators.averages import LANES, FixedMean, Mean, WeightedMean
from headwater.federated.aggregators.bounded import CenteredClipping, NormBound
from headwater.federated.aggregators.coordinates import Median, TrimmedMean
from headwater.federated.aggregators.distances import Bulyan, GeometricMedian, Guarded, Krum, MultiKrum
from headwater.federated.aggregators.validated import ByValidation

__all__ = [
    "LANES",
    "Bulyan",
    "ByValidation",
    "CenteredClipping",
    "FixedMean",
    "GeometricMedian",
    "Guarded",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "NormBound",
    "TrimmedMean",
    "WeightedMean",
]
