"""Baidu's LAC network, as the package `jieba` 0.42.1 carries it: a Chinese word segmenter and tagger.

It reads characters: an embedding, two layers of bidirectional GRUs and a conditional random field (CRF),
trained with PaddlePaddle. Sources: `jieba/lac_small/nets.py` for the network, PaddlePaddle's `gru_op` for the
GRU and `linear_chain_crf_op` for the CRF, `lod_tensor.cc` for the file format. Nothing of jieba is imported.

jieba leaves out a step that LAC was trained with: full-width characters were folded to half-width ones and
capitals to small letters, so the rows of the former still hold their random start. `fold` makes up for it,
and `LacNetwork.trained_V` tells such rows.

Shapes: V vocabulary, E embedding, D input, H hidden, K tags, T time.
"""

from __future__ import annotations

import importlib.util
import string
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.errors import CheckpointError
from headwater.files import sha256_bytes

Array = NDArray[np.float32]

SHA256 = {
    "word.dic": "0d21d1e11490c1f74b3dbb5d291213593dcf443dad742027551972f7ef0d9f25",
    "tag.dic": "ae35d28de6256118b80174526f03de95d3227f3219b4170e1dc8aa010908ea4a",
    "model_baseline/crfw": "1883c72d43449227dc301a56fd9d22dedcb3536ce5032700d5ea23be4f56587b",
    "model_baseline/fc_0.b_0": "815e0a25669ea66f6cf58a719fbe09eeb8007ad5cdc7c28b73fdf5640aea475e",
    "model_baseline/fc_0.w_0": "f07f01d3ff0a5e9b93b623a28fda050e16010640a5516cd83b0501add0b7b435",
    "model_baseline/fc_1.b_0": "c3f42160370292134e7ddb21dadb30b9320b324204e1038a437ea51b05d53312",
    "model_baseline/fc_1.w_0": "147454ee4c8e960e168347dd76bdc08c9bb865896c4bfbbb5a9d090693852f3a",
    "model_baseline/fc_2.b_0": "f83b10a5e1b53deef130c68df5d385ed0412351012af5415ee8cb4b055041696",
    "model_baseline/fc_2.w_0": "514f9904cda432864b5f1faa257be1f1d24c205e29eb97e968dd38b425297f1d",
    "model_baseline/fc_3.b_0": "9d7e41b09e929f3817148687fd03d17c239887bff18a5599b87cbd2b4290af8c",
    "model_baseline/fc_3.w_0": "a8fb02bf59bd971abc47872c11482fbee242343639a6bddd6e559c3c9c009492",
    "model_baseline/fc_4.b_0": "899a1aba22b4cb1f23cf703d0061c024a661ff33523bf4bb1cb3cafcf8444ecb",
    "model_baseline/fc_4.w_0": "9a5666f104851dddb51bedf267d7b829e71f26a257be4f67cdc08c7d861e3c30",
    "model_baseline/gru_0.b_0": "3940a09d14029870b442c55841cd2f4d4ea4ac7142221ebb50eeaea78aaae839",
    "model_baseline/gru_0.w_0": "b9822a37d80c79f77f28a7395e3d04f00c9834a9b21d37f535a38c4a5fd7b720",
    "model_baseline/gru_1.b_0": "ed17bdf16b928323d23b7652fca9003362908909360a874cc3cbe6f2a68eae12",
    "model_baseline/gru_1.w_0": "1d2e72eefdea8649929a9b625716643e18cad11530b270af412ea237e6778351",
    "model_baseline/gru_2.b_0": "cda019c833a1abf4986dec6dfa04e4115acdbf589c4ad5151277c4958338712e",
    "model_baseline/gru_2.w_0": "f38ae5d2a94eee65c41232ba834ad0b7ab63de739664c01a33dcec608932f664",
    "model_baseline/gru_3.b_0": "5dee386ee162fc417024886ac83d4d4659baa08bc75a3acb0940c4310c7cb5da",
    "model_baseline/gru_3.w_0": "91f837f6deaa75ba877f048bedd987198a1f635c061b85c39cd773ea6e69136b",
    "model_baseline/word_emb": "3b65cdc2d4ebd78f03bbfe8747162c1e63f5b1c821d08f0ec695248c40f8be38",
}
"""Every file that is read."""
FLOAT32 = 5
"""`VarType.FP32` in PaddlePaddle's `framework.proto`."""
LAYERS = 2
REINSTALL = "pip install --force-reinstall jieba==0.42.1"
START_BOUND = 0.1000001
"""The embedding started uniform in -0.1 to 0.1 (`init_bound` in `nets.py`), with room for rounding."""
FOLDS = (
    {code: chr(code - 0xFEE0).lower() for code in range(0xFF01, 0xFF5F)}
    | str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
    | str.maketrans("。、…—‖∶〔〕〈〉【】〖〗", ".,.-|:()<>[][]")  # noqa: RUF001 - they are what is folded
    | str.maketrans("“”〝〞『』", '"' * 6)
    | str.maketrans("‘’「」", "'" * 4)  # noqa: RUF001
)
"""Characters whose rows were never trained, and the ones that LAC knows them by."""
UNKNOWN = "OOV"
"""The vocabulary's entry for characters that it doesn't have."""


@dataclass(frozen=True)
class LacNetwork:
    """The parameters, float32, in torch's gate order r, z, n for a GRU that resets before it multiplies.

    ::

        r  = sigmoid(W_r x + b_r + U_r h + b'_r)
        z  = sigmoid(W_z x + b_z + U_z h + b'_z)
        n  = tanh(W_n x + b_n + U_n (r * h) + b'_n)
        h' = (1 - z) * n + z * h
    """

    vocabulary: list[str]
    """One entry a row of the embedding; empty where LAC's list skips a number (one row, never looked up)."""
    tags: list[str]
    """Such as `PER-B` and `PER-I`: the first and the following characters of a word."""
    embedding_VE: Array
    layers: list[list[dict[str, Array]]]
    """By layer and direction (forward, backward): `weight_ih` (3H, D), `weight_hh` (3H, H), `bias_ih` and
    `bias_hh` (3H,); the latter is zero."""
    emission_weight: Array
    """(K, 2H)"""
    emission_bias: Array
    """(K,)"""
    transitions: Array
    """(K + 2, K): each tag's score at the start and at the end, then from each tag (row) to each (column)."""

    @property
    def trained_V(self) -> NDArray[np.bool_]:  # noqa: N802 - the suffix is the shape
        """Which rows of the embedding training has ever moved; copying one of the others brings nothing."""
        trained: NDArray[np.bool_] = np.abs(self.embedding_VE).max(axis=1) > START_BOUND
        return trained


def read_lac(folder: Path | None = None) -> LacNetwork:
    """Read the network.

    Args:
        folder: Where `word.dic`, `tag.dic` and `model_baseline` lie; by default inside the installed jieba.

    Raises:
        CheckpointError: jieba isn't installed, or a file is missing, damaged or of another version.
    """
    folder = folder or _jieba_folder()
    files = {name: _read_pinned(folder, name) for name in SHA256}
    tensors = {
        name.removeprefix("model_baseline/"): parse_tensor(data, name)
        for name, data in files.items()
        if name.startswith("model_baseline/")
    }
    # fc_i and gru_i: the two directions of the first layer, then those of the second; fc_4 is the emission.
    layers = [[_gru(tensors, 2 * layer + direction) for direction in (0, 1)] for layer in range(LAYERS)]
    return LacNetwork(
        vocabulary=_parse_dictionary(files["word.dic"], "word.dic"),
        tags=_parse_dictionary(files["tag.dic"], "tag.dic"),
        embedding_VE=tensors["word_emb"],
        layers=layers,
        emission_weight=np.ascontiguousarray(tensors["fc_4.w_0"].T),
        emission_bias=tensors["fc_4.b_0"],
        transitions=tensors["crfw"],
    )


def _jieba_folder() -> Path:
    spec = importlib.util.find_spec("jieba")
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            "the LAC network lies in the package jieba, which isn't installed: pip install jieba==0.42.1"
        )
    return Path(spec.submodule_search_locations[0]) / "lac_small"


def _read_pinned(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"can't read {path} ({error.strerror}): {REINSTALL}") from error
    if sha256_bytes(data) != SHA256[name]:
        raise CheckpointError(f"{path} isn't the file of jieba 0.42.1 (its SHA-256 differs): {REINSTALL}")
    return data


def _gru(tensors: dict[str, Array], index: int) -> dict[str, Array]:
    """Turn one of Paddle's GRUs, gates u, r, c and h' = (1 - u) h + u c, into torch's order and sense."""
    weight_D3H, bias_3H = (
        tensors[f"fc_{index}.w_0"],
        tensors[f"fc_{index}.b_0"] + tensors[f"gru_{index}.b_0"][0],
    )
    recurrent = tensors[f"gru_{index}.w_0"]
    hidden = recurrent.shape[0]
    # The (H, 3H) tensor is really an (H, 2H) block for u and r and then an (H, H) block for c.
    flat = recurrent.reshape(-1)
    gates_H2H = flat[: 2 * hidden**2].reshape(hidden, 2 * hidden)
    candidate_HH = flat[2 * hidden**2 :].reshape(hidden, hidden)
    return {
        "weight_ih": _reorder(weight_D3H.T),
        "weight_hh": _reorder(np.concatenate([gates_H2H.T, candidate_HH.T])),
        "bias_ih": _reorder(bias_3H),
        "bias_hh": np.zeros_like(bias_3H),
    }


def _reorder(gates: Array) -> Array:
    update, reset, candidate = np.split(gates, 3)
    # torch's z keeps the old state where Paddle's u lets the new one in: z = 1 - u = sigmoid(-...).
    return np.concatenate([reset, -update, candidate])


def parse_tensor(data: bytes, name: str) -> Array:
    """Parse a file of PaddlePaddle 1.x that holds one float32 tensor.

    It holds: u32 version, u64 levels of detail (none), u32 version, i32 length of the description, the
    description (protobuf: field 1 the type, field 2 the sizes), then the values, little endian.

    Args:
        data: The file's bytes.
        name: Its name, for messages.

    Raises:
        CheckpointError: It is cut short or isn't such a file.
    """
    head = struct.Struct("<IQIi")
    if len(data) < head.size:
        raise CheckpointError(f"{name}: {len(data)} bytes are too few for a Paddle tensor")
    version, levels, tensor_version, length = head.unpack_from(data)
    if (version, levels, tensor_version) != (0, 0, 0) or not 0 < length <= len(data) - head.size:
        raise CheckpointError(f"{name} isn't a Paddle tensor of version 0 without levels of detail")
    kind, shape = _parse_description(data[head.size : head.size + length], name)
    values = data[head.size + length :]
    if kind != FLOAT32 or not shape or len(values) != 4 * _product(shape):
        raise CheckpointError(f"{name}: {len(values)} bytes of values don't fit type {kind} and sizes {shape}")
    return np.frombuffer(values, dtype="<f4").astype(np.float32).reshape(shape)


def _parse_description(data: bytes, name: str) -> tuple[int, list[int]]:
    """Parse protobuf `TensorDesc` and return the type and the sizes."""
    kind, sizes, position = -1, [], 0
    while position < len(data):
        tag, position = _varint(data, position, name)
        if tag not in (0x08, 0x10):  # fields 1 and 2, both plain integers
            raise CheckpointError(f"{name}: unknown protobuf tag {tag} in the tensor's description")
        value, position = _varint(data, position, name)
        if tag == 0x08:
            kind = value
        else:
            sizes.append(value)
    return kind, sizes


def _varint(data: bytes, position: int, name: str) -> tuple[int, int]:
    """Return the integer at the position, and the position behind it."""
    value = 0
    for shift in range(0, 63, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise CheckpointError(f"{name}: a number in the tensor's description has no end")


def _product(sizes: list[int]) -> int:
    # Python's own integers: sizes of a damaged file can't overflow.
    product = 1
    for size in sizes:
        product *= size
    return product


def _parse_dictionary(data: bytes, name: str) -> list[str]:
    """Parse lines of number and entry, from 0; a number that is skipped gets an empty entry."""
    entries: list[str] = []
    for line in data.decode("utf-8").rstrip("\n").split("\n"):
        number, _, entry = line.partition("\t")
        if not (number.isdecimal() and entry and 0 <= int(number) - len(entries) <= 1):
            raise CheckpointError(f"{name}: the entry {len(entries)} is missing or out of order")
        entries += [""] * (int(number) - len(entries)) + [entry]
    return entries


def fold(text: str) -> str:
    """Return the text as LAC saw it in training: half-width, in small letters, of the same length."""
    return text.translate(FOLDS)


def tag(network: LacNetwork, text: str) -> list[tuple[str, str]]:
    """Segment a text into words and tag each, as LAC itself does; the proof that the network was read right.

    Args:
        network: The network.
        text: Some Chinese; the spaces around it are left out.

    Returns:
        The words in order, which together are the text, each with its tag (`PER`, `LOC`, `n`, `v`, ...).
    """
    text = text.strip()
    if not text:
        return []
    ids = {entry: index for index, entry in enumerate(network.vocabulary)}
    x_TD = network.embedding_VE[[ids.get(char, ids[UNKNOWN]) for char in fold(text)]]
    for forward, backward in network.layers:
        x_TD = np.concatenate([_run(forward, x_TD), _run(backward, x_TD[::-1])[::-1]], axis=1)
    emissions_TK = x_TD @ network.emission_weight.T + network.emission_bias
    tags = [network.tags[index] for index in _viterbi(emissions_TK, network.transitions)]
    words: list[tuple[str, str]] = []
    for position, (char, name) in enumerate(zip(text, tags, strict=True)):
        if position == 0 or name.endswith("-B") or (name == "O" and tags[position - 1] != "O"):
            words.append((char, name.split("-")[0]))
        else:
            words[-1] = (words[-1][0] + char, words[-1][1])
    return words


def _run(gru: dict[str, Array], x_TD: Array) -> Array:
    """Run a GRU over a sequence and return its states (T, H)."""
    gates_T3H = x_TD @ gru["weight_ih"].T + gru["bias_ih"] + gru["bias_hh"]
    reset_HH, update_HH, new_HH = np.split(gru["weight_hh"], 3)
    h_H = np.zeros(len(reset_HH), dtype=np.float32)
    states = []
    for gates_3H in gates_T3H:
        reset_H, update_H, new_H = np.split(gates_3H, 3)
        r_H = _sigmoid(reset_H + reset_HH @ h_H)
        z_H = _sigmoid(update_H + update_HH @ h_H)
        n_H = np.tanh(new_H + new_HH @ (r_H * h_H))
        h_H = (1 - z_H) * n_H + z_H * h_H
        states.append(h_H)
    return np.stack(states)


def _sigmoid(x: Array) -> Array:
    # By tanh, which can't overflow.
    result: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _viterbi(emissions_TK: Array, transitions: Array) -> list[int]:
    """Return the best path of tags."""
    start_K, end_K, between_KK = transitions[0], transitions[1], transitions[2:]
    score_K = start_K + emissions_TK[0]
    back: list[NDArray[np.intp]] = []
    for emission_K in emissions_TK[1:]:
        total_KK = score_K[:, None] + between_KK
        back.append(total_KK.argmax(axis=0))
        score_K = total_KK.max(axis=0) + emission_K
    path = [int((score_K + end_K).argmax())]
    for pointers_K in reversed(back):
        path.append(int(pointers_K[path[-1]]))
    return path[::-1]
