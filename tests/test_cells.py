"""Cells: step = forward, padding changes nothing, and torch's own layers agree in outputs and gradients.

Every test over `CELLS` holds for a new cell as soon as it stands in the table.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from headwater import native
from headwater.cells import CELLS, cell_class
from headwater.cells.base import last_valid
from headwater.cells.stack import RecurrentStack, locked_dropout
from headwater.errors import ConfigError

NAMES = sorted(CELLS)
TWINS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
LENGTHS = torch.tensor([7, 1, 4, 7, 2, 6])


@pytest.fixture(autouse=True, params=sorted({native.OFF, native.best_level()}))
def _both_paths(request):
    """Run every test in torch and, where they were built, in the kernels."""
    with native.using(request.param):
        yield


def drawn(module, seed=0, std=0.5):
    """Draw every parameter, biases too, so that no mistake multiplies a zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module


def made(name, inputs=3, hidden=5, **options):
    return drawn(cell_class(name)(inputs, hidden, **options))


def ragged(inputs=3, seed=0, lengths=LENGTHS, dtype=torch.float32):
    x = torch.randn(len(lengths), int(lengths.max()), inputs, generator=torch.Generator().manual_seed(seed))
    valid = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
    return (x * valid.unsqueeze(2)).to(dtype), valid


def close(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_one_forward_over_ragged_rows(name):
    cell = made(name)
    x, _ = ragged()
    y, after = cell(x, LENGTHS)
    assert after.keys() == cell.init_state(1).keys()
    for row, length in enumerate(LENGTHS.tolist()):
        state = cell.init_state(1)
        for t in range(length):
            out, state = cell.step(x[row : row + 1, t], state)
            close(out[0], y[row, t])
        for part, value in state.items():
            close(value[0], after[part][row])


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_on_padding_changes_nothing(name):
    cell = made(name)
    x, valid = ragged()
    y, after = cell(x, LENGTHS)
    other = torch.where(valid.unsqueeze(2), x, torch.full_like(x, 40.0))
    wider = torch.cat([other, torch.full_like(x[:, :3], -40.0)], 1)
    for changed in (other, wider):
        again, state = cell(changed, LENGTHS)
        close(again[:, : x.shape[1]][valid], y[valid])
        for part, value in after.items():
            close(state[part], value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_state_carried_over_a_split_equals_one_pass(name, cut):
    cell = made(name)
    x, _ = ragged(lengths=torch.full((4,), 7))
    whole, end = cell(x)
    first, between = cell(x[:, :cut])
    second, after = cell(x[:, cut:], None, between)
    close(torch.cat([first, second], 1), whole)
    for part, value in end.items():
        close(after[part], value)


@pytest.mark.parametrize("name", NAMES)
def test_a_ragged_batch_can_start_from_a_state(name):
    cell = made(name)
    x, _ = ragged()
    generator = torch.Generator().manual_seed(5)
    start = {part: torch.randn(len(LENGTHS), 5, generator=generator) for part in cell.init_state(1)}
    _, after = cell(x, LENGTHS, start)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, end = cell(
            x[row : row + 1, :length], None, {part: value[row : row + 1] for part, value in start.items()}
        )
        assert alone.shape == (1, length, 5)
        for part, value in end.items():
            close(after[part][row], value[0])


@pytest.mark.parametrize("name", NAMES)
def test_padded_rows_and_single_rows_give_the_same_finite_gradients(name):
    x, valid = ragged()
    weight = torch.randn(*x.shape[:2], 5, generator=torch.Generator().manual_seed(3)) * valid.unsqueeze(2)

    def gradients(rows):
        cell = made(name)
        inputs = x.clone().requires_grad_()
        total = torch.zeros(())
        for row in rows:
            part = inputs[row] if isinstance(row, slice) else inputs[row : row + 1, : LENGTHS[row]]
            lengths = LENGTHS if isinstance(row, slice) else None
            y, after = cell(part, lengths)
            chosen = weight if lengths is not None else weight[row : row + 1, : LENGTHS[row]]
            total = total + (y * chosen).sum() + sum(value.square().sum() for value in after.values())
        total.backward()
        return {name: p.grad for name, p in cell.named_parameters()} | {"x": inputs.grad}

    padded, single = gradients([slice(None)]), gradients(range(len(LENGTHS)))
    for part, value in single.items():
        assert torch.isfinite(padded[part]).all()
        assert value.abs().sum() > 0
        close(padded[part], value, atol=2e-5)
    assert (padded["x"][~valid] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_recurrent_weights_are_dropped_only_in_training(name):
    cell, plain = made(name, weight_drop=0.5), made(name)
    x, valid = ragged()
    expected = plain(x, LENGTHS)[0][valid]
    cell.eval()
    close(cell(x, LENGTHS)[0][valid], expected)
    cell.train()
    torch.manual_seed(0)
    first, second = cell(x, LENGTHS)[0][valid], cell(x, LENGTHS)[0][valid]
    assert not torch.allclose(first, expected)
    assert not torch.allclose(first, second)
    assert {"weight_ih", "weight_hh", "bias_ih", "bias_hh"} == dict(cell.named_parameters()).keys()


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_in_float64_over_ragged_rows(name):
    cell = made(name, 2, 3).double()
    lengths = torch.tensor([3, 1])
    x, valid = ragged(2, lengths=lengths, dtype=torch.float64)
    names = [part for part, _ in cell.named_parameters()]

    def run(inputs, *values):
        y, after = functional_call(cell, dict(zip(names, values, strict=True)), (inputs, lengths))
        return (y[valid], *after.values())

    values = [value.detach().clone().requires_grad_() for value in cell.parameters()]
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *values))


@pytest.mark.parametrize("name", sorted(TWINS))
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 4),
    time=st.integers(1, 6),
    inputs=st.integers(1, 7),
    hidden=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_equal_the_twin_in_torch(name, batch, time, inputs, hidden, seed):
    cell = drawn(cell_class(name)(inputs, hidden), seed)
    twin = TWINS[name](inputs, hidden, batch_first=True)
    twin.load_state_dict({f"{part}_l0": value for part, value in cell.state_dict().items()})
    x = torch.randn(batch, time, inputs, generator=torch.Generator().manual_seed(seed + 1))
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, state = cell(one)
    expected, end = twin(two)
    close(y, expected)
    for value, last in zip(state.values(), end if isinstance(end, tuple) else (end,), strict=True):
        close(value, last[0])
    (y.sin().sum() + sum(v.square().sum() for v in state.values())).backward()
    ends = end if isinstance(end, tuple) else (end,)
    (expected.sin().sum() + sum(v.square().sum() for v in ends)).backward()
    close(one.grad, two.grad, atol=2e-5)
    for part, value in cell.named_parameters():
        close(value.grad, getattr(twin, f"{part}_l0").grad, atol=2e-5)


def test_the_gru_with_reset_before_equals_the_paper():
    cell = made("gru_reset_before", 3, 4).double()
    x, _ = ragged(lengths=torch.tensor([5, 5]), dtype=torch.float64)
    w, u, b, c = (value.detach().numpy() for value in cell.parameters())
    h = np.zeros((2, 4))

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    expected = []
    for t in range(5):
        a = x[:, t].numpy() @ w.T + b
        r = sigmoid(a[:, :4] + h @ u[:4].T + c[:4])
        z = sigmoid(a[:, 4:8] + h @ u[4:8].T + c[4:8])
        n = np.tanh(a[:, 8:] + (r * h) @ u[8:].T + c[8:])
        h = (1 - z) * n + z * h
        expected.append(h)
    np.testing.assert_allclose(cell(x)[0].detach().numpy(), np.stack(expected, 1), atol=1e-12)


def test_the_two_gru_conventions_differ():
    before, after = made("gru_reset_before"), made("gru")
    x, _ = ragged()
    assert not torch.allclose(before(x)[0], after(x)[0], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_cell_starts_orthogonal_with_no_bias_but_an_open_forget_gate(name):
    torch.manual_seed(0)
    cell = cell_class(name)(3, 4)
    for block in torch.split(cell.weight_hh.detach(), 4):
        close(block @ block.T, torch.eye(4), atol=1e-5)
    bias = torch.zeros(cell.gates * 4)
    if name == "lstm":
        bias[4:8] = 1.0
    assert torch.equal(cell.bias_ih + cell.bias_hh, bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_value_that_holds_the_memory_shuts_a_gate_exactly(dtype):
    from headwater.cells.lstm import _HOLD

    gates = torch.sigmoid(torch.tensor([_HOLD, -_HOLD, _HOLD - 50, 50 - _HOLD], dtype=dtype))
    assert gates.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_the_memory_is_held_over_padding_to_the_bit_in_bfloat16():
    cell = made("lstm").to(torch.bfloat16)
    x, _ = ragged(dtype=torch.bfloat16)
    _, after = cell(x, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        _, alone = cell(x[:, :length])
        assert torch.equal(after["c"][row], alone["c"][row])
        assert torch.equal(after["h"][row], alone["h"][row])


def test_an_unknown_cell_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'lstm'"):
        cell_class("ltsm")


def stacked_twin(stack, name, inputs, hidden, layers):
    twin = TWINS[name](inputs, hidden, num_layers=layers, bidirectional=stack.bidirectional, batch_first=True)
    weights = {}
    for key, value in stack.state_dict().items():
        _, number, side, part = key.split(".")
        weights[f"{part}_l{number}" + ("_reverse" if side == "bwd" else "")] = value
    twin.load_state_dict(weights)
    return twin


@pytest.mark.parametrize("name", sorted(TWINS))
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_equals_torchs_on_a_packed_sequence(name, layers, bidirectional):
    stack = drawn(RecurrentStack(name, 3, 4, layers=layers, bidirectional=bidirectional))
    twin = stacked_twin(stack, name, 3, 4, layers)
    x, valid = ragged()
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, state = stack(one, LENGTHS)
    packed, end = twin(pack_padded_sequence(two, LENGTHS, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    close(y[valid], expected[valid])
    ends = dict(zip(("h", "c"), end if isinstance(end, tuple) else (end,), strict=False))
    sides = ("fwd", "bwd") if bidirectional else ("fwd",)
    assert len(state) == len(ends) * layers * len(sides)
    for part, value in ends.items():
        for place, last in enumerate(value):
            close(state[f"{place // len(sides)}.{sides[place % len(sides)]}.{part}"], last)
    y[valid].sin().sum().backward()
    expected[valid].sin().sum().backward()
    close(one.grad, two.grad, atol=2e-5)
    for key, value in stack.named_parameters():
        _, number, side, part = key.split(".")
        other = getattr(twin, f"{part}_l{number}" + ("_reverse" if side == "bwd" else ""))
        close(value.grad, other.grad, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_reads_each_row_as_if_it_were_alone(name):
    stack = drawn(RecurrentStack(name, 3, 4, layers=2, bidirectional=True))
    x, _ = ragged()
    y, state = stack(x, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, end = stack(x[row : row + 1, :length])
        close(y[row, :length], alone[0])
        for part, value in end.items():
            close(state[part][row], value[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_goes_on_from_its_state(name):
    stack = drawn(RecurrentStack(name, 3, 4, layers=2))
    x, _ = ragged(lengths=torch.full((3,), 7))
    whole, end = stack(x)
    first, state = stack(x[:, :3])
    second, after = stack(x[:, 3:], None, state)
    close(torch.cat([first, second], 1), whole)
    for part, value in end.items():
        close(after[part], value)


def test_dropout_keeps_one_mask_a_row_for_all_steps():
    torch.manual_seed(0)
    dropped = locked_dropout(torch.ones(50, 6, 40), 0.25)
    assert (dropped == dropped[:, :1]).all()
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.2 < float((dropped[:, 0] == 0).float().mean()) < 0.3
    assert len({tuple(row) for row in dropped[:, 0].tolist()}) == 50


def test_layers_drop_only_in_training_and_never_the_first_input():
    x, _ = ragged()
    torch.manual_seed(0)
    for layers, differs in ((1, False), (2, True)):
        stack = drawn(RecurrentStack("gru", 3, 4, layers=layers, dropout=0.5))
        trained = stack.train()(x, LENGTHS)[0]
        assert torch.equal(trained, stack.eval()(x, LENGTHS)[0]) != differs


def test_the_last_valid_output_is_each_rows_own():
    y = torch.arange(12.0).view(2, 3, 2)
    assert last_valid(y, torch.tensor([1, 3])).tolist() == [[0.0, 1.0], [10.0, 11.0]]
    assert last_valid(y, None).tolist() == [[4.0, 5.0], [10.0, 11.0]]
