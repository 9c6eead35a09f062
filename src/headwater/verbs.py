"""The verbs: one a stage. The command line, the journey and `headwater.<verb>` all run through this table.

Everything is named by strings, so that ``headwater --help`` imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headwater.config import Config

MODEL = "CHECKPOINT"
EITHER = "CHECKPOINT_OR_ARTIFACT"
FILE = "FILE"


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        summary: One line for the list of commands.
        options: ``"module:class"`` of its options.
        run: ``"module:function"``; takes what `subject` says, if anything, and the options.
        subject: What it starts from: nothing, a checkpoint, the path of a checkpoint or artifact, or that of a file.
        by_name: Whether `run` takes a checkpoint by its name, to open it itself.
        optional: Whether it can begin from nothing too.
    """

    summary: str
    options: str
    run: str
    subject: str = ""
    by_name: bool = False
    optional: bool = False

    def options_class(self) -> type[Config]:
        """Import the options."""
        found: type[Config] = _resolve(self.options)
        return found

    def __call__(self, options: Config, subject: str | Path | None = None) -> Any:
        """Run the verb."""
        run = _resolve(self.run)
        if not self.subject:
            return run(options)
        if self.optional and not subject:
            return run(None, options)
        if self.subject == MODEL and not self.by_name:
            from headwater.pretrained import open_checkpoint

            return run(open_checkpoint(str(subject)), options)
        return run(subject, options)


VERBS = {
    "pretrain": Verb(
        "train a model on a source task",
        "headwater.pretraining:PretrainOptions",
        "headwater.pretraining:pretrain",
    ),
    "import": Verb(
        "make a checkpoint of other people's recurrent weights",
        "headwater.importing:ImportOptions",
        "headwater.importing:import_weights",
        FILE,
    ),
    "transfer": Verb(
        "carry a model over to a target task with little data",
        "headwater.transfer_learning.options:TransferOptions",
        "headwater.transfer_learning.verb:transfer",
        MODEL,
    ),
    "fine-tune": Verb(
        "transfer in one call: what can be chosen is, each step is shown",
        "headwater.transfer_learning.fine_tuning:FineTuneOptions",
        "headwater.transfer_learning.fine_tuning:run_steps",
        MODEL,
        by_name=True,
    ),
    "metalearn": Verb(
        "train a model over many small tasks, so that a new one takes few rows",
        "headwater.metalearning.options:MetalearnOptions",
        "headwater.metalearning.verb:metalearn",
        MODEL,
        optional=True,
    ),
    "reshape": Verb(
        "change a model's widths, layers or directions and keep what it has learned",
        "headwater.reshaping.verb:ReshapeOptions",
        "headwater.reshaping.verb:reshape",
        MODEL,
    ),
    "federate": Verb(
        "train a model over clients who keep their rows",
        "headwater.federated.options:FederateOptions",
        "headwater.federated.verb:federate",
        MODEL,
    ),
    "personalize": Verb(
        "give each client a head or a model of its own",
        "headwater.federated.personalization:PersonalizeOptions",
        "headwater.federated.personalization:personalize",
        MODEL,
    ),
    "compress": Verb(
        "make a model small",
        "headwater.compression.verb:CompressOptions",
        "headwater.compression.verb:compress",
        MODEL,
    ),
    "export": Verb(
        "write a model for a device, verified equal",
        "headwater.deployment.verb:ExportOptions",
        "headwater.deployment.verb:export",
        MODEL,
    ),
    "push": Verb(
        "put a checkpoint on the Hugging Face hub",
        "headwater.publishing:PushOptions",
        "headwater.publishing:push",
        MODEL,
    ),
    "evaluate": Verb(
        "measure a checkpoint or an artifact on labelled rows",
        "headwater.prediction:EvaluateOptions",
        "headwater.prediction:evaluate",
        EITHER,
    ),
    "predict": Verb(
        "predict labels with a checkpoint or an artifact",
        "headwater.prediction:PredictOptions",
        "headwater.prediction:predict",
        EITHER,
    ),
    "generate": Verb(
        "write text with a language model",
        "headwater.generation:GenerateOptions",
        "headwater.generation:generate",
        MODEL,
    ),
    "bench": Verb(
        "measure this machine beside torch and ONNX Runtime",
        "headwater.benchmark.bench:BenchOptions",
        "headwater.benchmark.bench:bench",
    ),
    "doctor": Verb(
        "say which kernels are in use here, why, and what they gain",
        "headwater.benchmark.doctor:DoctorOptions",
        "headwater.benchmark.doctor:doctor",
    ),
}
STAGES = (
    "pretrain",
    "import",
    "transfer",
    "fine-tune",
    "metalearn",
    "reshape",
    "federate",
    "personalize",
    "compress",
    "export",
)
"""The verbs that write a folder: what a journey is made of."""


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
