"""Headwater: recurrent networks from pre-training to the device.

The verbs of the command line are functions here: ``pretrain(PretrainOptions(...))``,
``transfer(checkpoint, TransferOptions(...))``, and so on; `Checkpoint.load` opens what they wrote.
(`import` is a word of Python's own: its function is `import_weights`. ``fine_tune(source, data=..., out=...)`` takes
its options one by one.)
Names are imported when they are first used, so that light work (a report, ``--help``) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.benchmark.bench import BenchOptions, bench
    from headwater.benchmark.doctor import DoctorOptions, doctor
    from headwater.checkpoint import Checkpoint
    from headwater.compression.verb import CompressOptions, compress
    from headwater.deployment.verb import ExportOptions, export
    from headwater.errors import HeadwaterError
    from headwater.federated.options import FederateOptions
    from headwater.federated.personalization import PersonalizeOptions, personalize
    from headwater.federated.verb import federate
    from headwater.generation import GenerateOptions, generate
    from headwater.importing import ImportOptions, import_weights
    from headwater.journey import run_journey
    from headwater.metalearning.options import MetalearnOptions
    from headwater.metalearning.verb import metalearn
    from headwater.prediction import EvaluateOptions, PredictOptions, evaluate, load_predictor, predict
    from headwater.pretrained import open_checkpoint
    from headwater.pretraining import PretrainOptions, pretrain
    from headwater.publishing import PushOptions, push
    from headwater.report import write_report
    from headwater.reshaping.verb import ReshapeOptions, reshape
    from headwater.transfer_learning.fine_tuning import fine_tune
    from headwater.transfer_learning.options import TransferOptions
    from headwater.transfer_learning.verb import transfer

_HOMES = {
    "BenchOptions": "headwater.benchmark.bench",
    "Checkpoint": "headwater.checkpoint",
    "CompressOptions": "headwater.compression.verb",
    "DoctorOptions": "headwater.benchmark.doctor",
    "EvaluateOptions": "headwater.prediction",
    "ExportOptions": "headwater.deployment.verb",
    "FederateOptions": "headwater.federated.options",
    "GenerateOptions": "headwater.generation",
    "HeadwaterError": "headwater.errors",
    "ImportOptions": "headwater.importing",
    "MetalearnOptions": "headwater.metalearning.options",
    "PersonalizeOptions": "headwater.federated.personalization",
    "PredictOptions": "headwater.prediction",
    "PretrainOptions": "headwater.pretraining",
    "PushOptions": "headwater.publishing",
    "ReshapeOptions": "headwater.reshaping.verb",
    "TransferOptions": "headwater.transfer_learning.options",
    "bench": "headwater.benchmark.bench",
    "compress": "headwater.compression.verb",
    "doctor": "headwater.benchmark.doctor",
    "evaluate": "headwater.prediction",
    "export": "headwater.deployment.verb",
    "federate": "headwater.federated.verb",
    "fine_tune": "headwater.transfer_learning.fine_tuning",
    "generate": "headwater.generation",
    "import_weights": "headwater.importing",
    "load_predictor": "headwater.prediction",
    "metalearn": "headwater.metalearning.verb",
    "open_checkpoint": "headwater.pretrained",
    "personalize": "headwater.federated.personalization",
    "predict": "headwater.prediction",
    "pretrain": "headwater.pretraining",
    "push": "headwater.publishing",
    "reshape": "headwater.reshaping.verb",
    "run_journey": "headwater.journey",
    "transfer": "headwater.transfer_learning.verb",
    "write_report": "headwater.report",
}

__all__ = [
    "BenchOptions",
    "Checkpoint",
    "CompressOptions",
    "DoctorOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FederateOptions",
    "GenerateOptions",
    "HeadwaterError",
    "ImportOptions",
    "MetalearnOptions",
    "PersonalizeOptions",
    "PredictOptions",
    "PretrainOptions",
    "PushOptions",
    "ReshapeOptions",
    "TransferOptions",
    "bench",
    "compress",
    "doctor",
    "evaluate",
    "export",
    "federate",
    "fine_tune",
    "generate",
    "import_weights",
    "load_predictor",
    "metalearn",
    "open_checkpoint",
    "personalize",
    "predict",
    "pretrain",
    "push",
    "reshape",
    "run_journey",
    "transfer",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    # `headwater.deployment` is a folder too: what is asked for is the verb.
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
