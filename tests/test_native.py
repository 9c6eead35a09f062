"""Kernels: at every instruction set of this processor, equal to the cells' own steps in float64, and safe in memory."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from headwater import native
from headwater.cells import CELLS, cell_class
from headwater.cells.stack import TALL, WIDE, RecurrentStack, run_packed
from headwater.errors import ConfigError
from headwater.model import pool
from headwater.native import (
    KINDS,
    LEVELS,
    OFF,
    Packing,
    keep_gate_gradients,
    library,
    linear_cross_entropy,
    pool_packed,
    product,
    using,
)

SOURCE = Path(native.__file__).parent
HERE = LEVELS[: LEVELS.index(native.best_level()) + 1] if native.best_level() != OFF else ()
needs_kernels = pytest.mark.skipif(not HERE, reason="no kernels: there was no C++ compiler at installation")
at_every_level = pytest.mark.parametrize("level", HERE)
BF16 = {"rnn_relu": 0.15}
"""Bound on a bfloat16 pass: L2 norm of the error over that of the value, for outputs, states and gradients. 0.01, but
the gradient of a ReLU jumps where rounding switches it."""


def drawn_cell(kind, inputs, hidden, seed):
    cell = cell_class(kind)(inputs, hidden)
    generator = torch.Generator().manual_seed(seed)
    for parameter in cell.parameters():
        # Large enough that every gate matters, small enough that the recurrence doesn't amplify rounding.
        nn.init.normal_(parameter, std=0.5 / hidden**0.5, generator=generator)
    return cell


def distance(a, b):
    return float((a.double() - b).norm() / b.norm().clamp_min(1e-30))


def passes(kind, lengths, time, inputs, hidden, *, start=True, half=False, seed=0):
    """Return (kernels, float64 steps): each the outputs, states and gradients of one pass by names."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(lengths)
    lengths = torch.tensor(lengths)
    cell = drawn_cell(kind, inputs, hidden, seed)
    x = torch.randn(batch, time, inputs, generator=generator)
    given = {name: torch.randn(batch, hidden, generator=generator) for name in cell.state_names} if start else {}
    packing = Packing.of(lengths, (batch, time))
    of_outputs = torch.randn(len(packing.place_N), hidden, generator=generator)
    of_states = {name: torch.randn(batch, hidden, generator=generator) for name in cell.state_names}

    def kernels(cell, x, state):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return run_packed(cell, packing.pack(x), packing, state or None)

    def steps(cell, x, state):
        state = state or cell.init_state(batch)
        outputs, states = [], []
        for t in range(time):
            y, state = cell.step(x[:, t], state)
            outputs.append(y)
            states.append(state)
        rows = torch.arange(batch)
        last = {name: torch.stack([state[name] for state in states])[lengths - 1, rows] for name in state}
        return packing.pack(torch.stack(outputs, 1)), last

    def one(run, cell, dtype):
        leaf = x.to(dtype, copy=True).requires_grad_()
        state = {name: value.to(dtype, copy=True).requires_grad_() for name, value in given.items()}
        y, after = run(cell.to(dtype), leaf, state)
        loss = (y * of_outputs.to(dtype)).sum() + sum((after[n] * w.to(dtype)).sum() for n, w in of_states.items())
        loss.backward()
        found = {"y": y.detach(), "dx": leaf.grad} | {f"after {n}": v.detach() for n, v in after.items()}
        found |= {f"d {n}": p.grad for n, p in cell.named_parameters()}
        return found | {f"d start {n}": v.grad for n, v in state.items()}

    return one(kernels, copy.deepcopy(cell), torch.float32), one(steps, copy.deepcopy(cell), torch.float64)


@needs_kernels
@at_every_level
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("lengths", "inputs", "hidden"),
    [
        ([1], 1, 1),
        ([3, 1, 7, 7, 2], 3, 5),
        ([1] * 20, 9, 33),
        (list(range(1, 31)), 40, 64),
        ([60] * 3 + [2] * 30, 530, 150),
    ],
)
def test_a_pass_equals_the_steps_in_float64(level, kind, lengths, inputs, hidden):
    with using(level):
        ours, exact = passes(kind, lengths, max(lengths) + 2, inputs, hidden)
    for name, value in exact.items():
        assert distance(ours[name], value) < 1e-5, name


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(set(KINDS) - {"rnn_relu"})),  # whose gradient jumps where rounding switches a unit
    level=st.sampled_from(HERE or ("",)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    tail=st.integers(0, 3),
    inputs=st.integers(1, 40),
    hidden=st.integers(1, 40),
    start=st.booleans(),
)
def test_random_shapes_equal_the_steps_in_float64(kind, level, lengths, tail, inputs, hidden, start):
    with using(level):
        ours, exact = passes(kind, lengths, max(lengths) + tail, inputs, hidden, start=start)
    for name, value in exact.items():
        assert distance(ours[name], value) < 1e-5 or (ours[name] - value).norm() < 1e-6, name


@pytest.mark.skipif("avx512_bf16" not in HERE, reason="no bfloat16 products on this processor")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("lengths", "inputs", "hidden"), [([3, 1, 7, 7, 2], 3, 5), (list(range(1, 31)), 41, 67), ([40, 9], 530, 30)]
)
def test_bfloat16_products_keep_their_bound(kind, lengths, inputs, hidden):
    ours, exact = passes(kind, lengths, max(lengths), inputs, hidden, half=True)
    worst = max(distance(ours[name], value) for name, value in exact.items())
    assert 1e-6 < worst < BF16.get(kind, 0.01)


@needs_kernels
@at_every_level
@pytest.mark.parametrize(
    ("name", "twin", "options"),
    [
        ("lstm", nn.LSTM, {}),
        ("gru", nn.GRU, {}),
        ("rnn", nn.RNN, {}),
        ("rnn_relu", nn.RNN, {"nonlinearity": "relu"}),
    ],
)
def test_a_bidirectional_stack_equals_torch_nn_over_packed_sequences(level, name, twin, options):
    lengths = torch.tensor([7, 1, 4, 7, 2, 6])
    stack = RecurrentStack(name, 3, 5, layers=2, bidirectional=True)
    twin = twin(3, 5, num_layers=2, bidirectional=True, batch_first=True, **options)
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for number, layer in enumerate(stack.layers):
        for side, suffix in (("fwd", ""), ("bwd", "_reverse")):
            for part, parameter in getattr(layer, side).named_parameters():
                nn.init.normal_(parameter, std=0.4, generator=generator)
                other = getattr(twin, f"{part}_l{number}{suffix}")
                other.data.copy_(parameter.data)
                pairs.append((parameter, other))
    x = torch.randn(6, 7, 3, generator=generator)
    weight = torch.randn(6, 7, 10, generator=generator) * (torch.arange(7) < lengths.unsqueeze(1)).unsqueeze(2)
    with using(level):
        ours = stack(x, lengths)[0] * weight
        ours.sum().backward()
    packed, _ = twin(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    theirs = pad_packed_sequence(packed, batch_first=True)[0] * weight
    theirs.sum().backward()
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, atol=5e-6, rtol=1e-5)


@needs_kernels
def test_both_paths_drop_out_alike_in_expectation_and_one_mask_a_row():
    stack = RecurrentStack("gru", 4, 8, layers=2, dropout=0.5)
    lengths = torch.tensor([5, 3])
    seen = []
    original = stack.layers[1].packed
    stack.layers[1].packed = lambda x, packing, state: seen.append((x, packing)) or original(x, packing, state)
    stack(torch.randn(2, 5, 4), lengths)
    x, packing = seen[0]
    dropped = packing.unpack(x)
    for row, length in enumerate(lengths.tolist()):
        columns = (dropped[row, :length] == 0).float().mean(0)
        assert set(columns.tolist()) <= {0.0, 1.0}
    assert 0 < (dropped[0, 0] == 0).sum() < 8 or 0 < (dropped[1, 0] == 0).sum() < 8


@needs_kernels
def test_frozen_weights_get_no_gradient_and_the_others_the_same():
    lengths, x = torch.tensor([4, 2]), torch.randn(2, 4, 3)
    whole, part = (drawn_cell("lstm", 3, 5, 0) for _ in range(2))
    part.weight_ih.requires_grad_(False)
    part.bias_hh.requires_grad_(False)
    packing = Packing.of(lengths, (2, 4))
    for cell in (whole, part):
        run_packed(cell, packing.pack(x), packing, None)[0].sum().backward()
    assert part.weight_ih.grad is None
    assert part.bias_hh.grad is None
    torch.testing.assert_close(part.weight_hh.grad, whole.weight_hh.grad, rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kept_gate_gradients_give_each_rows_own_gradients_and_norms(kind):
    lengths = torch.tensor([4, 1, 3])
    cell, x = drawn_cell(kind, 3, 5, 0), torch.randn(3, 4, 3)
    start = {name: torch.randn(3, 5) for name in cell.state_names}
    packing = Packing.of(lengths, (3, 4))
    with keep_gate_gradients() as kept:
        (run_packed(cell, packing.pack(x), packing, start)[0] ** 2).sum().backward()
    (gates,) = kept
    whole = {name: parameter.grad.clone() for name, parameter in cell.named_parameters()}
    rows = gates.of_rows()
    squared = torch.zeros(3)
    for row in range(3):
        cell.zero_grad()
        one = Packing.of(lengths[row : row + 1], (1, 4))
        state = {name: value[row : row + 1] for name, value in start.items()}
        (run_packed(cell, one.pack(x[row : row + 1]), one, state)[0] ** 2).sum().backward()
        for name, parameter in cell.named_parameters():
            torch.testing.assert_close(rows[name][row], parameter.grad, atol=1e-5, rtol=1e-5)
            squared[row] += parameter.grad.square().sum()
    torch.testing.assert_close(gates.squared_norms(), squared, atol=1e-5, rtol=1e-4)
    for name, value in whole.items():
        torch.testing.assert_close(rows[name].sum(0), value, atol=1e-5, rtol=1e-5)


@needs_kernels
def test_gate_gradients_are_not_kept_outside():
    with keep_gate_gradients() as kept:
        pass
    cell, packing = drawn_cell("rnn", 2, 2, 0), Packing.of(None, (1, 2))
    run_packed(cell, torch.randn(2, 2), packing, None)[0].sum().backward()
    assert kept == []


def test_wider_inputs_are_not_narrowed_in_silence():
    with pytest.raises(RuntimeError, match="dtype"):
        RecurrentStack("lstm", 3, 4)(torch.randn(2, 3, 3, dtype=torch.float64), torch.tensor([3, 1]))


@needs_kernels
def test_torch_trains_large_full_batches_of_lstms():
    stack, gru = RecurrentStack("lstm", 2, WIDE), RecurrentStack("gru", 2, WIDE)
    full, one_short = torch.full((TALL,), 3), torch.tensor([2] + [3] * (TALL - 1))
    assert stack.plan(full, (TALL, 3)) is None
    assert stack.plan(None, (TALL, 3)) is None
    assert stack.plan(None, (TALL - 1, 3))
    assert RecurrentStack("lstm", 2, WIDE - 1).plan(None, (TALL, 3))
    assert stack.plan(one_short, (TALL, 3))
    assert gru.plan(full, (TALL, 3))
    with keep_gate_gradients():
        assert stack.plan(full, (TALL, 3))


@pytest.mark.parametrize("name", sorted(CELLS))
def test_the_portable_path_passes_gradcheck_in_float64(name):
    stack = RecurrentStack(name, 2, 3, bidirectional=True).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.6, generator=generator)
    x = torch.randn(3, 4, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    lengths = torch.tensor([4, 1, 3])
    valid = (torch.arange(4) < lengths.unsqueeze(1)).unsqueeze(2)

    def run(x, *_):
        y, after = stack(x, lengths)
        return (y * valid, *after.values())

    assert torch.autograd.gradcheck(run, (x, *stack.parameters()))


@needs_kernels
@settings(max_examples=50, deadline=None)
@given(
    level=st.sampled_from(HERE or ("",)),
    rows=st.integers(1, 40),
    depth=st.integers(1, 40) | st.integers(510, 515),
    columns=st.integers(1, 70),
    flipped=st.tuples(st.booleans(), st.booleans()),
)
def test_products_equal_float64(level, rows, depth, columns, flipped):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=generator) for size in ((rows, depth), (depth, columns)))
    a, b = (value.t().contiguous().t() if flip else value for value, flip in zip((a, b), flipped, strict=True))
    with using(level):
        error = (product(a, b).double() - a.double() @ b.double()).abs()
    assert bool((error <= 1e-6 * (a.double().abs() @ b.double().abs())).all())


@needs_kernels
@at_every_level
@pytest.mark.parametrize(("rows", "inputs", "classes"), [(1, 1, 1), (5, 3, 7), (16, 600, 40), (37, 20, 1000)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_cross_entropy_equals_torch_in_float64(level, rows, inputs, classes, bias):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(rows, inputs, generator=generator), torch.randn(classes, inputs, generator=generator)]
    leaves += [torch.randn(classes, generator=generator)] * bias
    targets = torch.randint(classes, (rows,), generator=generator)
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    (3 * nn.functional.cross_entropy(nn.functional.linear(*exact), targets)).backward()
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    with using(level):
        loss = linear_cross_entropy(ours[0], ours[1], ours[2] if bias else None, targets)
        (3 * loss).backward()
    value = float(nn.functional.cross_entropy(nn.functional.linear(*exact), targets).detach())
    assert abs(float(loss.detach()) - value) < 1e-5 * max(1.0, value)
    for one, other in zip(ours, exact, strict=True):
        assert distance(one.grad, other.grad) < 1e-5 or other.grad.norm() < 1e-6


@needs_kernels
def test_extreme_logits_and_strange_targets():
    x, weight = torch.tensor([[1e4], [-1e4]]), torch.tensor([[1.0], [-1.0]])
    assert float(linear_cross_entropy(x, weight, None, torch.tensor([0, 1]))) == 0.0
    assert float(linear_cross_entropy(x, weight, None, torch.tensor([1, 0]))) == 2e4
    for wrong in (-1, 2):
        with pytest.raises(IndexError, match="for 2 classes"):
            linear_cross_entropy(x, weight, None, torch.tensor([0, wrong]))


@needs_kernels
def test_a_packing_mirrors_each_row_within_its_own_length():
    lengths = torch.tensor([3, 1, 4, 4])
    packing = Packing.of(lengths, (4, 6))
    values = torch.arange(24.0).view(4, 6, 1)
    mirrored = packing.unpack(packing.pack(values)[packing.mirror_N])
    for row, length in enumerate(lengths.tolist()):
        assert mirrored[row, :length, 0].tolist() == values[row, :length, 0].flip(0).tolist()
        assert mirrored[row, length:].abs().sum() == 0
    assert packing.mirror_N[packing.mirror_N].tolist() == list(range(12))
    assert packing.pack(values)[packing.last_B, 0].tolist() == [2, 6, 15, 21]


@needs_kernels
@pytest.mark.parametrize("lengths", [[0, 2], [3, 9], [1]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths from"):
        Packing.of(torch.tensor(lengths), (2, 4))


@needs_kernels
def test_what_the_kernels_would_read_past_is_refused():
    stack = RecurrentStack("lstm", 3, 5)
    x, lengths = torch.randn(2, 4, 3), torch.tensor([4, 2])
    with pytest.raises(ValueError, match="x has the shape"):
        stack(torch.randn(2, 4, 2), lengths)
    for wrong in (torch.zeros(2, 4), torch.zeros(7, 5), torch.zeros(2, 5).double()):
        with pytest.raises(ValueError, match="states of shapes|type torch.float64"):
            stack(x, lengths, {"0.fwd.h": wrong, "0.fwd.c": wrong})
    with pytest.raises(ValueError, match="kernels need"):
        linear_cross_entropy(torch.randn(2, 3), torch.randn(4, 5), None, torch.tensor([0, 1]))
    torch.testing.assert_close(stack(x, lengths.int())[0], stack(x, lengths)[0])


@needs_kernels
def test_products_that_make_no_sense_are_refused_and_empty_ones_are_zero():
    for a, b in ((torch.ones(4, 5), torch.ones(2, 3)), (torch.ones(2, 2).double(), torch.ones(2, 2))):
        with pytest.raises(ValueError, match="no product of|can't multiply"):
            product(a, b)
    assert product(torch.ones(2, 0), torch.ones(0, 3)).tolist() == [[0.0] * 3] * 2


@needs_kernels
@at_every_level
def test_a_level_without_bfloat16_products_takes_float32(level):
    a, b = torch.randn(5, 7), torch.randn(7, 9)
    cell, packing = drawn_cell("lstm", 3, 5, 0), Packing.of(torch.tensor([4, 2]), (2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = run_packed(cell, torch.randn(6, 3), packing, None)
    with using(level):
        torch.testing.assert_close(product(a, b, half=True), a @ b, atol=0.1, rtol=0.1)
        y.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in cell.parameters())


class Own(cell_class("gru")):
    """Another mathematics under an inherited name."""

    def forward(self, x_BTD, lengths_B=None, state=None):
        return torch.zeros(*x_BTD.shape[:2], self.hidden_size), self.init_state(len(x_BTD))


@needs_kernels
def test_what_the_kernels_would_not_see_runs_in_torch(monkeypatch):
    x, lengths = torch.randn(2, 4, 3), torch.tensor([4, 2])
    stack = RecurrentStack("gru", 3, 5)
    y, _ = stack(x, lengths)
    weights = {name: value * 0 for name, value in stack.named_parameters()}
    assert not torch.func.functional_call(stack, weights, (x, lengths))[0].any()
    loss = torch.func.grad(lambda w: torch.func.functional_call(stack, w, (x, lengths))[0][0].sum())
    assert loss(dict(stack.named_parameters()))["layers.0.fwd.weight_ih"].any()
    calls = []
    handle = stack.layers[0].fwd.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(stack(x, lengths)[0][0], y[0])
    assert calls == [1]
    handle.remove()
    with torch.autocast("cpu", torch.float16):
        assert stack.plan(lengths, x.shape) is None
    assert stack(torch.randn(0, 4, 3), torch.zeros(0, dtype=torch.int64))[0].shape == (0, 4, 5)
    monkeypatch.setitem(CELLS, "own", f"{__name__}:Own")
    assert not RecurrentStack("own", 3, 5)(x, lengths)[0].any()


@needs_kernels
@pytest.mark.parametrize("other", ["structures", "arguments"])
def test_a_build_of_another_version_is_not_used(other, monkeypatch):
    library.kernels()
    library._library.cache_clear()
    if other == "structures":
        monkeypatch.setattr(library.ctypes, "sizeof", lambda _: 1)
    else:
        monkeypatch.setattr(library, "_INTERFACE", 1)
    monkeypatch.setattr(library._State, "stale", False)
    try:
        assert native.level() == OFF
        assert "install again" in native.why()
    finally:
        monkeypatch.undo()
        library._library.cache_clear()
    assert native.level() != OFF


@needs_kernels
def test_levels_can_be_forced_and_come_back():
    before = native.level()
    with using(OFF):
        assert native.level() == OFF
        with using("plain"):
            assert native.level() == "plain"
        assert native.level() == OFF
    assert native.level() == before
    with pytest.raises(ConfigError, match="there are: off, plain"), using("mmx"):
        pass


@needs_kernels
@pytest.mark.parametrize("wanted", [OFF, "plain"])
def test_the_environment_chooses_the_level(wanted):
    said = subprocess.run(
        [sys.executable, "-c", "from headwater import native; print(native.level(), native.why())"],
        env=os.environ | {"HEADWATER_KERNELS": wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split()[0] == wanted
    assert "HEADWATER_KERNELS" in said.stdout


def _compiler():
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


@at_every_level
@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
@pytest.mark.parametrize("bidirectional", [False, True])
@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=9), features=st.integers(1, 20), seed=st.integers(0, 99)
)
def test_packed_states_pool_as_padded_ones_do(level, pooling, bidirectional, lengths, features, seed):
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers: some of a row's largest states are equal.
    y_BTF = torch.randint(-2, 3, (len(lengths), 7, 2 * features), generator=generator).float().requires_grad_()
    lengths_B = torch.tensor(lengths)
    weights = torch.randn(len(lengths), 2 * features * (3 if pooling == "concat" else 1), generator=generator)
    with using(level):
        packing = Packing.of(lengths_B, (len(lengths), 7))
        packed = pool_packed(packing.pack(y_BTF), packing, pooling, bidirectional=bidirectional)
        (gradient,) = torch.autograd.grad((packed * weights).sum(), y_BTF)
    padded = pool(y_BTF, lengths_B, pooling, bidirectional=bidirectional)
    (expected,) = torch.autograd.grad((padded * weights).sum(), y_BTF)
    torch.testing.assert_close(packed, padded)
    torch.testing.assert_close(gradient, expected)


@needs_kernels
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_is_still_none_when_pooled(place):
    y_NF = torch.ones(3, 1)
    y_NF[place] = torch.nan
    packing = Packing.of(torch.tensor([3]), (1, 3))
    assert pool_packed(y_NF, packing, "max", bidirectional=False).isnan().all()


@pytest.mark.skipif(_compiler() is None, reason="no C++ compiler")
def test_sanitizers_find_nothing_at_any_level(tmp_path):
    program = tmp_path / "check"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi"]
    driver = Path(__file__).parent / "native_check.cpp"
    subprocess.run([_compiler(), *flags, f"-I{SOURCE}", str(driver), "-o", str(program)], check=True)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[-1] == "passes"


def test_without_a_compiler_the_build_succeeds_without_kernels(tmp_path):
    root = Path(__file__).parent.parent
    said = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)],
        cwd=root,
        env=os.environ | {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert not list(tmp_path.rglob("_kernels*"))
    assert "_kernels" in said.stdout + said.stderr
