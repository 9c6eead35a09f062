"""Recurrent networks of other libraries, drawn and not trained, and their files."""

import io
import json
import zipfile

import numpy as np
import safetensors.torch
import torch
from torch import nn

from headwater.importing import ImportOptions, import_weights

WORDS = tuple(f"w{number}" for number in range(12))
TEXTS = ("w3", "w0 w11 w7", "w5 w5 w1 w2 w9 w10 w4")
SAVE = {
    "pt": torch.save,
    "safetensors": lambda tensors, path: safetensors.torch.save_file(dict(tensors), path),
    "npz": lambda tensors, path: np.savez(path, **{name: value.numpy() for name, value in tensors.items()}),
}


class Network(nn.Module):
    """An embedding, one of torch's recurrent modules, and a head that nobody imports."""

    def __init__(self, cell, *, layers=1, both=False, bias=True, seed=0, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(len(WORDS), 6)
        self.rnn = cell(6, 5, layers, bias=bias, bidirectional=both, batch_first=True, **options)
        self.head = nn.Linear(10 if both else 5, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    @torch.inference_mode()
    def states(self, numbers):
        """Return the states of one row, (T, R*H)."""
        return self.rnn(self.embedding(torch.tensor([numbers])))[0][0]


def write_vocabulary(folder, tokens=WORDS):
    """Write a vocabulary and return its path."""
    path = folder / "vocabulary.json"
    path.write_text(json.dumps(tokens))
    return path


def save(tensors, folder, kind="pt"):
    """Write tensors into a file of a kind and return its path."""
    path = folder / f"weights.{kind}"
    SAVE[kind](tensors, path)
    return path


def bring_in(path, **options):
    """Import a file beside its vocabulary; return the checkpoint."""
    folder = path.parent
    if "vocabulary" not in options:
        options["vocabulary"] = write_vocabulary(folder)
    return import_weights(path, ImportOptions(out=folder / "model", quiet=True, **options))


@torch.inference_mode()
def states_of(checkpoint, text):
    """Return the states of a text's tokens, (T, R*H)."""
    tokens_1T = torch.tensor([checkpoint.featurizer.encode(text)])
    return checkpoint.model().encoder(tokens_1T, torch.tensor([tokens_1T.shape[1]]))[0][0]


def numbers(text):
    """Return the rows of a text's words in the source."""
    return [WORDS.index(word) for word in text.split()]


def change_member(path, name, change):
    """Write an archive's member anew, with a checksum that fits."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, change(data) if member.endswith(name) else data)
    path.write_bytes(packed.getvalue())
