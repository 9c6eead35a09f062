"""Small random checkpoints, made without training."""

from types import MappingProxyType

import torch

from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.features.text import SPECIAL, TextFeaturizer, TextOptions
from headwater.model import DropoutOptions, EncoderOptions

WORDS = tuple(f"w{number}" for number in range(36))
LABELS = ("bad", "fair", "good")
HEAD = "head.linear.weight"
CLASSIFICATION = MappingProxyType({"name": "classification", "labels": LABELS, "pooling": "concat"})


def small_checkpoint(*, seed=0, task=CLASSIFICATION, pooling="concat", words=WORDS, **encoder):
    """Return a checkpoint with every weight drawn, biases too, so that no mistake multiplies a zero."""
    shape = {"embedding_size": 6, "hidden_size": 5, "bidirectional": True} | encoder
    settings = dict(task) | ({"pooling": pooling} if task["name"] == "classification" else {})
    featurizer = TextFeaturizer(TextOptions(), (*SPECIAL, *words))
    config = ModelConfig(
        encoder=EncoderOptions(**shape),
        vocabulary_size=len(featurizer.vocabulary),
        dropout=DropoutOptions(),
        featurizer=featurizer.options,
        task=settings,
    )
    torch.manual_seed(seed)
    model = config.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Checkpoint(config, featurizer, {}).with_model(model)


def personal(checkpoint, *clients):
    """Return the clients' own heads, each far from the shared one."""
    generator = torch.Generator().manual_seed(1)
    shape = checkpoint.tensors[HEAD].shape
    return {client: {HEAD: torch.randn(shape, generator=generator)} for client in clients}


def write_rows(path, texts, labels, clients=None):
    """Write rows as a CSV file and return its path as text."""
    columns = zip(texts, labels, clients or ["-"] * len(texts), strict=True)
    path.write_text("text,label,client\n" + "".join(f"{t},{la},{c}\n" for t, la, c in columns))
    return str(path)


def sentences(count, *, seed=0):
    """Return texts of 1 to 30 words, some of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 31, (count,), generator=generator).tolist()
    known = [*WORDS, "never", "seen"]
    picks = (torch.randint(len(known), (length,), generator=generator).tolist() for length in lengths)
    return [" ".join(known[number] for number in pick) for pick in picks]
