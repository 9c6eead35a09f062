"""Update codecs: what comes out beside what went in, the bytes counted, hostile messages, whole federations."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from small_models import small_checkpoint

from headwater.errors import ConfigError, FederationError
from headwater.federated import CODECS
from headwater.federated.aggregators import Median, WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.clip_and_noise import ClipAndNoise
from headwater.federated.codecs.base import decode, encode
from headwater.federated.codecs.options import CodecOptions
from headwater.federated.codecs.packing import pack, packed_bytes, unpack
from headwater.federated.codecs.rotation import Rotation
from headwater.federated.codecs.transforms import EncodeUpdates, EncodeWeights
from headwater.federated.methods.scaffold import Scaffold
from headwater.federated.options import FederateOptions
from headwater.federated.protocols import Client, FederatedAlgorithm, Instruction, Update
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.verb import federate
from headwater.federated.wire import Wire, received
from headwater.metrics import ClassificationCounts
from headwater.model import DropoutOptions
from headwater.records import StageRecord
from headwater.registry import made
from headwater.tasks.classification import class_probabilities
from headwater.weights import load_weights, weights_of

NAMES = sorted(CODECS)
SHAPES = [(), (1,), (1, 1), (7,), (512,), (1025,), (3, 5), (40, 33), (1, 600), (2, 3, 4)]
STACKS = [
    ("top_k", "int8"),
    ("random_k", "int4"),
    ("low_rank", "float16"),
    ("sparse_rows", "top_k", "ternary"),
    ("sparse_rows", "rotation"),
    ("low_rank", "top_k", "sign"),
]
WIRE = Wire()


def stack(*names, feedback=False, **options):
    options = CodecOptions(codec=names, error_feedback=feedback, **options)
    return [made("headwater.codecs", CODECS, name, options) for name in names]


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def back_and_forth(value, codecs, key="k"):
    """Return a tensor as it comes out."""
    return decode(encode({"w": value}, codecs, key), {"w": value}, codecs, key)["w"]


# One tensor

BUCKET = 512


def level(value, levels):
    """Return each number's distance between two levels: its bucket's largest magnitude over their number."""
    flat = value.reshape(-1)
    return torch.cat([part.abs().max().expand(len(part)) for part in flat.split(BUCKET)]).view(value.shape) / levels


WITHIN = {
    "float16": lambda x: x.abs() * 2**-11 + 2**-25,
    "bfloat16": lambda x: x.abs() * 2**-8,
    "int8": lambda x: level(x, 127),
    "int4": lambda x: level(x, 7),
    "ternary": lambda x: level(x, 1),
    "sparse_rows": torch.zeros_like,
}


@pytest.mark.parametrize("name", sorted(WITHIN))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_no_number_is_off_by_more_than_is_stated(name, shape, scale):
    value = drawn(shape) * scale
    error = (back_and_forth(value, stack(name)) - value).abs()
    assert (error <= WITHIN[name](value) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["int8", "int4", "ternary"])
def test_with_error_feedback_a_number_is_off_by_half_a_level(name):
    value = drawn((40, 33))
    error = (back_and_forth(value, stack(name, feedback=True)) - value).abs()
    assert (error <= WITHIN[name](value) * 0.500001).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_with_error_feedback_less_is_lost_than_was_there(name, shape):
    value = drawn(shape)
    lost = value - back_and_forth(value, stack(name, feedback=True, keep=0.1))
    assert lost.norm() < value.norm()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [*SHAPES, (0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("feedback", [False, True])
def test_zeros_and_nothing_come_out_as_they_are(name, shape, feedback):
    zeros = torch.zeros(shape)
    assert torch.equal(back_and_forth(zeros, stack(name, feedback=feedback)), zeros)


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), *STACKS])
@pytest.mark.parametrize("shape", [*SHAPES, (0,)])
def test_what_comes_out_has_the_same_name_type_and_shape_and_what_goes_in_stays(names, shape):
    codecs, value = stack(*names), drawn(shape)
    out = back_and_forth(value, codecs)
    assert (out.dtype, out.shape) == (torch.float32, value.shape)
    assert torch.equal(value, drawn(shape))
    assert torch.equal(out, back_and_forth(value, codecs))


@pytest.mark.parametrize("name", ["int8", "int4", "ternary", "random_k"])
def test_random_rounding_is_right_on_average(name):
    value, trials = drawn((BUCKET,)), 1000
    made = back_and_forth(value.repeat(trials), stack(name, keep=0.2)).view(trials, BUCKET)
    error = made.mean(0) - value
    rare = WITHIN.get(name, torch.zeros_like)(value) / trials  # what happens once in so many trials, or didn't
    assert (error.abs() <= 5 * (made.std(0) / trials**0.5 + rare)).all()
    assert made.std(0).max() > 0


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_rotation_is_right_on_average_and_as_near_as_its_paper_says(bits):
    value = drawn((1024,)) * torch.linspace(0, 3, 1024)
    trials = 400  # each block is rotated by signs of its own
    made = back_and_forth(value.repeat(trials), [Rotation(bits)]).view(trials, 1024)
    variance = (made - value).square().sum(1).mean() / value.square().sum()
    # Of numbers that look normal: 1 / (1 - d) - 1, with d the distortion of Max's quantizer (0.3634, 0.1175, 0.009497).
    distortion = {1: 0.3634, 2: 0.1175, 4: 0.009497}[bits]
    assert float(variance) == pytest.approx(1 / (1 - distortion) - 1, rel=0.03)
    assert (made.mean(0) - value).norm() / value.norm() < 1.5 * (variance / trials) ** 0.5


def test_the_largest_numbers_are_kept_and_random_ones_need_no_places():
    value = drawn((300, 300))
    out = back_and_forth(value, stack("top_k", keep=0.01))
    kept = out != 0
    assert int(kept.sum()) == 900
    assert torch.equal(out[kept], value[kept])
    assert value[kept].abs().min() >= value[~kept].abs().max()
    sent = encode({"w": value}, stack("random_k", keep=0.01), "k")
    assert {name: tuple(part.shape) for name, part in sent.items()} == {"w#values": (900,)}


def test_a_matrix_of_low_rank_comes_out_whole():
    value = drawn((60, 3)) @ drawn((3, 50), seed=1)
    torch.testing.assert_close(back_and_forth(value, stack("low_rank", rank=3)), value, atol=1e-4, rtol=1e-4)
    noisy = value + 0.1 * drawn((60, 50), seed=2)
    u, s, v = torch.linalg.svd(noisy)
    best = (u[:, :3] * s[:3]) @ v[:3]
    lost = (back_and_forth(noisy, stack("low_rank", rank=3)) - noisy).norm()
    assert lost < 1.02 * (best - noisy).norm()


def test_rows_of_zeros_take_no_bytes():
    value = torch.zeros(70_000, 8)
    value[[3, 65_535, 65_536, 69_999]] = drawn((4, 8))
    codecs = stack("sparse_rows")
    sent = encode({"w": value}, codecs, "k")
    assert {name: tuple(part.shape) for name, part in sent.items()} == {
        "w#places": (4,),
        "w#counts": (2,),
        "w#rows": (4, 8),
    }
    assert torch.equal(decode(sent, {"w": value}, codecs, "k")["w"], value)


@pytest.mark.parametrize(
    ("names", "options", "share"),
    [
        (("float16",), {}, 1 / 2),
        (("int8",), {}, 1 / 4),
        (("int4",), {}, 1 / 8),
        (("ternary",), {}, 1 / 16),
        (("sign",), {}, 1 / 32),
        (("rotation",), {}, 1 / 32),
        (("top_k",), {"keep": 0.01}, 0.015),
        (("top_k", "int8"), {"keep": 0.01}, 0.0075),
        (("top_k",), {"keep": 0.5}, 0.5 + 1 / 32),
        (("random_k", "int8"), {"keep": 0.01}, 0.0025),
    ],
)
def test_the_bytes_are_those_of_the_bits_and_little_more(names, options, share):
    value = drawn((400, 500))
    sent = encode({"w": value}, stack(*names, **options), "k")
    size = sum(part.numel() * part.element_size() for part in sent.values())
    assert share <= size / (4 * value.numel()) < 1.05 * share + 0.003


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("feedback", [False, True])
def test_a_number_that_is_none_does_not_come_out_as_one(name, bad, feedback):
    value = drawn((30, 20))
    value[5, 5] = bad
    out = back_and_forth(value, stack(name, feedback=feedback, keep=1.0, rank=1))
    assert not out.isfinite().all()


@settings(deadline=None, max_examples=40)
@given(
    shape=array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
    names=st.lists(st.sampled_from(NAMES), max_size=3),
    seed=st.integers(0, 99),
)
def test_any_stack_takes_any_shape(shape, names, seed):
    value, codecs = drawn(shape, seed), stack_of(names)
    out = back_and_forth(value, codecs)
    assert out.shape == value.shape
    assert out.isfinite().all()


def stack_of(names):
    """Return a stack that the options would refuse too: the last codecs of it may have nothing to do."""
    return [codec for name in names for codec in stack(name, keep=0.1)]


# Packing


@settings(deadline=None, max_examples=40)
@given(bits=st.sampled_from([1, 2, 4, 8]), numbers=st.lists(st.integers(0, 255), max_size=70))
def test_packed_numbers_come_out_again(bits, numbers):
    codes = torch.tensor([number % 2**bits for number in numbers], dtype=torch.uint8)
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(len(numbers), bits) == math.ceil(len(numbers) * bits / 8)
    assert torch.equal(unpack(packed, bits, len(numbers)), codes)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 140_000), seed=st.integers(0, 99), keep=st.sampled_from([0.00001, 0.001, 0.1, 1.0]))
def test_places_are_found_again(count, seed, keep):
    value = drawn((count,), seed)
    codecs = stack("top_k", keep=keep)
    sent = encode({"w": value}, codecs, "k")
    out = decode(sent, {"w": value}, codecs, "k")["w"]
    kept = out != 0
    assert int(kept.sum()) == max(1, math.ceil(keep * count))
    assert torch.equal(out[kept], value[kept])
    size = sum(part.numel() * part.element_size() for name, part in sent.items() if name != "w#values")
    assert size <= math.ceil(count / 8)


# Messages

LIKE = {"a": torch.zeros(30, 70), "b": torch.zeros(9), "c": torch.zeros(()), "d": torch.zeros(0)}
ORDER = Instruction(3, LIKE, 11)


def update_of(transform, *, seed=0, like=LIKE):
    delta = {name: drawn(value.shape, seed) for name, value in like.items()}
    return transform.on_client(Update("ann", delta, 5, {"loss": 0.5}), ORDER, Client("ann", None))


@pytest.mark.parametrize("names", [(), *((name,) for name in NAMES), *STACKS])
@pytest.mark.parametrize("zstd", [0, 3])
def test_the_bytes_counted_are_those_of_the_message_and_it_comes_out_of_them(names, zstd):
    transform, wire = EncodeUpdates(stack(*names)), Wire(zstd)
    update = update_of(transform)
    message = wire.pack_update(update)
    assert wire.update_size(update) == len(message)
    got = wire.unpack_update(message, client="ann", instruction=ORDER, like=ORDER.weights)
    got = received(got, ORDER, [transform], LIKE)
    assert same_bits(got.delta, transform.on_receive(update, ORDER).delta)
    assert {name: value.shape for name, value in got.delta.items()} == {n: v.shape for n, v in LIKE.items()}


DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.bool]


@st.composite
def spoiled(draw):
    """Return a stack's transform, and a message of it that someone has put a hand to."""
    names = draw(st.sampled_from([*((name,) for name in NAMES), *STACKS]))
    transform = EncodeUpdates(stack(*names, keep=draw(st.sampled_from([0.01, 0.5]))))
    delta = dict(update_of(transform).delta)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(delta)))
        kind = draw(st.sampled_from(["bytes", "type", "shape", "gone", "new", "name"]))
        value = delta.pop(name)
        if kind == "bytes" and value.numel():
            flat = value.reshape(-1).view(torch.uint8).clone()
            flat[draw(st.integers(0, len(flat) - 1))] = draw(st.integers(0, 255))
            delta[name] = flat.view(value.dtype).view(value.shape)
        elif kind == "type":
            delta[name] = value.to(draw(st.sampled_from(DTYPES)))
        elif kind == "shape":
            delta[name] = torch.ones(draw(array_shapes(min_dims=0, min_side=0)), dtype=value.dtype)
        elif kind == "new":
            delta |= {name: value, draw(st.text(max_size=5)): value.clone()}
        elif kind == "name":
            delta[name + draw(st.sampled_from(["#", "#scale", "/", "x"]))] = value
        delta = delta or {"x": torch.zeros(1)}
    return transform, delta


@settings(deadline=None, max_examples=40)
@given(spoiled())
def test_of_a_hostile_message_nothing_comes_out_but_an_update_or_a_refusal(case):
    transform, delta = case
    try:
        got = received(Update("ann", delta, 5), ORDER, [transform], LIKE)
    except FederationError:
        return
    given, wanted = ({name: (value.dtype, value.shape) for name, value in w.items()} for w in (got.delta, LIKE))
    assert given == wanted


BIG = {"w": torch.zeros(70_000)}


@pytest.mark.parametrize(
    ("names", "change", "reason"),
    [
        (("int8",), {"w#scale": torch.ones(3)}, "'w#scale' is torch.float32 of shape"),
        (("int8",), {"w#levels": torch.zeros(70_000)}, "'w#levels' is torch.float32"),
        (("int8",), {"v#levels": torch.zeros(1)}, "'v#levels' is part of no tensor"),
        (("top_k",), {"w#places": torch.zeros(700, dtype=torch.int16)}, "don't rise"),
        (("top_k",), {"w#counts": torch.tensor([2**31 - 1, 2**31 - 1], dtype=torch.int32)}, "don't add up"),
        (("top_k",), {"w#counts": torch.tensor([701, -1], dtype=torch.int32)}, "don't add up"),
        (("top_k",), {"w#counts": torch.tensor([0, 700], dtype=torch.int32)}, "don't rise below 70000"),
        (("top_k",), {"w#mask": torch.full((8750,), 255, dtype=torch.uint8)}, "70000 places, where 700 are kept"),
    ],
)
def test_a_refusal_says_what_is_wrong(names, change, reason):
    transform, order = EncodeUpdates(stack(*names)), Instruction(1, BIG, 0)
    delta = encode({"w": drawn((70_000,))}, transform.stack, "0/1/ann")
    with pytest.raises(FederationError, match=f"client 'ann', round 1, receive: .*{reason}"):
        received(Update("ann", delta | change, 5), order, [transform], BIG)


def test_a_message_that_lacks_a_part_is_refused():
    transform = EncodeUpdates(stack("int8"))
    delta = {name: value for name, value in update_of(transform).delta.items() if name != "a#scale"}
    with pytest.raises(FederationError, match="'a#scale' is missing"):
        received(Update("ann", delta, 5), ORDER, [transform], LIKE)


# Error feedback


def test_what_a_client_loses_comes_with_its_next_updates():
    transform, like = EncodeUpdates(stack("top_k", feedback=True, keep=0.1), True), {"w": torch.zeros(200)}
    client, delta = Client("ann", None), {"w": drawn((200,))}
    total = torch.zeros(200)
    for number in range(1, 41):
        order = Instruction(number, like, 0)
        update = transform.on_client(Update("ann", delta, 5), order, client)
        total += transform.on_receive(update, order).delta["w"]
        torch.testing.assert_close(total + client.state["feedback/w"], number * delta["w"], atol=1e-4, rtol=1e-5)
    assert (total / 40 - delta["w"]).norm() < 0.3 * delta["w"].norm()


# Weights


def test_clients_train_from_what_comes_out_of_the_message_and_its_bytes_are_counted():
    transform = EncodeWeights(*stack("int8"))
    weights = {name: drawn(value.shape) for name, value in LIKE.items()}
    order = Instruction(3, weights, 11, {"m/a": drawn((5, 5))})
    sent = transform.on_instruct(order)
    message = WIRE.pack_instruction(sent)
    assert WIRE.instruction_size(sent) == len(message) < 0.6 * len(WIRE.pack_instruction(order))
    heard = transform.decoded(WIRE.unpack_instruction(message), order.weights, order.extra)
    assert (heard.round, heard.seed) == (3, 11)
    assert same_bits(heard.weights, sent.weights)
    assert same_bits(heard.extra, sent.extra)
    assert list(sent.weights) == list(weights)
    assert not torch.equal(sent.weights["a"], weights["a"])
    assert (sent.weights["a"] - weights["a"]).abs().max() < weights["a"].abs().max() / 127


# Federations

CONFIG = toy_config(dropout=DropoutOptions())


def measuring():
    model, valid = toy_model(CONFIG), toy_examples(200, seed=50)

    def evaluate(weights):
        load_weights(model, weights)
        return ClassificationCounts.of(class_probabilities(model, valid), valid.targets_N).figures()

    return evaluate


def run(*transforms, rounds=4, processes=1, methods=(), aggregator=None, stop=None, states=None, state=None, lr=0.3):
    data = {f"c{n}": toy_examples(10 + 4 * n, seed=20 + n) for n in range(6)}
    train = LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 2, 8, lr, "sgd", 1.0, methods=methods)
    method = FederatedAlgorithm(
        transforms=transforms,
        aggregator=aggregator or WeightedMean(),
        server_optimizer=ServerSGD(1.0),
        sampler=Uniform(0.7, 7),
    )
    state = state or FederationState(weights_of(toy_model(CONFIG)))
    with LocalCohort(data, train, processes=processes, states=states) as cohort:
        stopping = Stopping(stop or rounds, keep_best=False)
        weights, _ = run_rounds(method, cohort, state, stopping, measuring(), seed=7)
    return weights, state


LEARNED = [*((name,) for name in NAMES), *STACKS[:3]]


@pytest.mark.parametrize("names", LEARNED)
def test_a_federation_learns_through_each_codec(names):
    feedback = bool({"top_k", "low_rank", "sign"} & set(names))
    codecs = stack(*names, feedback=feedback, keep=0.5, rank=1)
    _, state = run(EncodeUpdates(codecs, feedback), rounds=12, lr=0.5)
    assert max(record.metrics["accuracy"] for record in state.records) > 0.7


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int4", "rotation"])
def test_a_federation_learns_from_encoded_weights(name):
    _, state = run(EncodeWeights(*stack(name, rotation_bits=4)), rounds=12, lr=0.5)
    assert max(record.metrics["accuracy"] for record in state.records) > 0.7
    assert state.records[0].bytes_down < state.records[0].bytes_up


BOTH = (EncodeUpdates(stack("low_rank", "top_k", "int4", feedback=True, keep=0.2), True), EncodeWeights(*stack("int8")))


@pytest.mark.parametrize("aggregator", [WeightedMean(), Median()])
def test_the_number_of_processes_changes_no_bit_of_an_encoded_federation(aggregator):
    runs = [run(*BOTH, processes=processes, aggregator=aggregator) for processes in (1, 2)]
    assert same_bits(runs[0][0], runs[1][0])
    assert runs[0][1].records == runs[1][1].records


@pytest.mark.parametrize("processes", [1, 2])
def test_an_encoded_federation_that_is_resumed_ends_with_the_same_bits(processes):
    with tempfile.TemporaryDirectory() as folder:
        whole, _ = run(*BOTH, states=Path(folder) / "a")
        _, state = run(*BOTH, states=Path(folder) / "b", stop=2)
        again = FederationState.of(state.tensors(), state.facts())
        resumed, _ = run(*BOTH, states=Path(folder) / "b", state=again, processes=processes)
    assert same_bits(resumed, whole)


def test_threads_change_no_bit():
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(run(EncodeUpdates(stack("low_rank", "rotation")), rounds=2)[0])
    finally:
        torch.set_num_threads(threads)
    assert same_bits(*runs)


def test_what_a_method_sends_is_encoded_too():
    methods = [Scaffold(6)]
    weights, state = run(*methods, EncodeUpdates(stack("int8"), before=methods), methods=methods, rounds=3)
    scaffold = [Scaffold(6)]
    plain, beside = run(*scaffold, methods=scaffold, rounds=3)
    assert state.records[-1].bytes_up < 0.75 * beside.records[-1].bytes_up
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert max(float((weights[name] - plain[name]).abs().max()) for name in plain) < 0.1


def test_an_update_is_clipped_again_behind_its_codec():
    clip = ClipAndNoise(clip=0.1, noise_multiplier=0.0, expected=3.0, seed=7)
    transforms = [clip, EncodeUpdates(stack("random_k"), before=[clip])]
    got = received(update_of(transforms[1]), ORDER, transforms, LIKE)
    norm = sum(float(value.square().sum()) for value in got.delta.values()) ** 0.5
    assert norm == pytest.approx(0.1, rel=1e-4)


# The verb

RUN = {"quiet": True, "valid": 0.3, "rounds": 2, "participation": 0.5, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_csv(folder / "train.csv", toy_rows(240, clients=6))
    return folder


def options(folder, out, **changes):
    given = {"data": str(folder / "train.csv"), "client": "client", "out": out, "controls": False}
    return FederateOptions(**RUN | given | changes)


def test_federate_encodes_both_ways(people, tmp_path):
    source = small_checkpoint(task={"name": "classification", "labels": ("bad", "good")}, words=("film",))
    for name, changes in {
        "plain": {},
        "coded": {"codec": ["top_k", "int8"], "keep": 0.05, "error_feedback": True, "down_codec": "bfloat16"},
    }.items():
        federate(source, options(people, tmp_path / name, **changes))
    plain, coded = (StageRecord.load(tmp_path / name) for name in ("plain", "coded"))
    assert coded.rounds[0].bytes_up < plain.rounds[0].bytes_up
    assert coded.rounds[0].bytes_down < plain.rounds[0].bytes_down
    assert not any("ignored" in note for note in coded.notes)


def test_adapters_and_the_head_alone_can_be_shared(people, tmp_path):
    source = small_checkpoint(task={"name": "classification", "labels": ("bad", "good")}, words=("film",))
    with pytest.raises(ConfigError, match="transfer --method adapters first"):
        federate(source, options(people, tmp_path / "f", share="adapters"))
    config = source.config.model_copy(update={"adapters": {0: 3}})
    source = replace(source, config=config, tensors=weights_of(toy_model(config)))
    made = federate(source, options(people, tmp_path / "f", share="adapters", rounds=1))
    learned = {name for name, value in made.tensors.items() if not torch.equal(value, source.tensors[name])}
    own = {name for name in made.tensors if ".adapter." in name or name.startswith("head.")}
    assert learned == own
    sent = StageRecord.load(tmp_path / "f").rounds[0].bytes_up
    assert sent < 3 * (4 * sum(made.tensors[name].numel() for name in own) + 1000)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"codec": ["int8", "top_k"]}, "int8 leaves nothing for top_k to encode: put it last"),
        ({"codec": "int88"}, "did you mean 'int8'"),
        ({"down_codec": "top_k"}, "too little of weights"),
        ({"codec": "top_k", "keep": 0.0}, "greater than 0"),
        ({"codec": "sign", "error_feedback": True, "epsilon": 1.0, "aggregator": "mean"}, "error_feedback keeps"),
    ],
)
def test_codecs_that_do_not_fit_are_refused(given, reason):
    with pytest.raises(ConfigError, match=reason):
        FederateOptions.parse({"data": "x", "out": "y"} | given)


def test_options_that_no_codec_reads_are_said():
    given = {"data": "x", "out": "y", "codec": "int8", "keep": 0.5, "rank": 2, "rotation_bits": 2}
    assert [note.split()[0] for note in FederateOptions(**given).notes()] == ["--keep", "--rank", "--rotation-bits"]
    assert "--error-feedback was ignored" in FederateOptions(data="x", out="y", error_feedback=True).notes()[0]
