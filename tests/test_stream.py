"""A stream: one row step by step, equal to a whole pass, at every instruction set and in torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headwater import native
from headwater.cells import CELLS
from headwater.cells.stack import RecurrentStack
from headwater.cells.stream import Stream
from headwater.errors import ConfigError
from headwater.native import LEVELS, OFF, using

HERE = (OFF, *(LEVELS[: LEVELS.index(native.best_level()) + 1] if native.best_level() != OFF else ()))
at_every_level = pytest.mark.parametrize("level", HERE)
of_every_cell = pytest.mark.parametrize("cell", sorted(CELLS))


def drawn(cell, inputs, hidden, layers, seed=0):
    """Return a stack whose every parameter matters, biases too."""
    stack = RecurrentStack(cell, inputs, hidden, layers=layers)
    generator = torch.Generator().manual_seed(seed)
    for parameter in stack.parameters():
        # Small enough that the recurrence doesn't amplify rounding.
        nn.init.normal_(parameter, std=0.5 / hidden**0.5, generator=generator)
    return stack


def whole(stack, x_TD):
    """Return the outputs and the last state of a pass in float64, in torch."""
    stack = RecurrentStack.double(stack)
    with torch.no_grad():
        y_1TH, after = stack(x_TD.double().unsqueeze(0))
    stack.float()
    return y_1TH[0], after


def assert_equal_to_a_pass(cell, inputs, hidden, layers, level, time=6):
    stack = drawn(cell, inputs, hidden, layers)
    x_TD = torch.randn(time, inputs, generator=torch.Generator().manual_seed(1))
    with using(level):
        stream = Stream(stack)
        y_TH = torch.stack([stream.step(x_D) for x_D in x_TD])
    exact_TH, after = whole(stack, x_TD)
    torch.testing.assert_close(y_TH.double(), exact_TH, atol=1e-5, rtol=1e-5)
    assert stream.state().keys() == after.keys()
    for name, value in stream.state().items():
        torch.testing.assert_close(value.double(), after[name], atol=1e-5, rtol=1e-5)


@at_every_level
@of_every_cell
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 1), (3, 16), (17, 15), (70, 69), (9, 130), (256, 256)])
def test_steps_equal_a_pass_in_float64(level, cell, layers, inputs, hidden):
    assert_equal_to_a_pass(cell, inputs, hidden, layers, level)


@settings(max_examples=150, deadline=None)
@given(
    cell=st.sampled_from(sorted(CELLS)),
    level=st.sampled_from(HERE),
    layers=st.integers(1, 3),
    inputs=st.integers(1, 70),
    hidden=st.integers(1, 70),
)
def test_random_sizes_equal_a_pass_in_float64(cell, level, layers, inputs, hidden):
    assert_equal_to_a_pass(cell, inputs, hidden, layers, level)


@at_every_level
@of_every_cell
def test_a_stream_equals_the_stacks_own_pass_and_goes_on_from_its_state(level, cell):
    stack = drawn(cell, 5, 20, 2)
    x_TD = torch.randn(9, 5)
    with using(level):
        y_1TH, after = stack(x_TD.unsqueeze(0))
        stream = Stream(stack)
        stream.restore(stack(x_TD[:4].unsqueeze(0))[1])
        y_TH = torch.stack([stream.step(x_D) for x_D in x_TD[4:]])
    torch.testing.assert_close(y_TH, y_1TH[0, 4:], atol=1e-5, rtol=1e-5)
    for name, value in stream.state().items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-5)
        assert not value.requires_grad


@at_every_level
@of_every_cell
def test_reset_and_restore_repeat_the_same_bits(level, cell):
    x_TD = torch.randn(6, 5)
    with using(level):
        stream = Stream(drawn(cell, 5, 20, 2))

        def run(start):
            return torch.stack([stream.step(x_D) for x_D in x_TD[start:]])

        first = run(0)
        stream.reset()
        assert all(not value.any() for value in stream.state().values())
        assert torch.equal(run(0), first)
        stream.reset()
        for x_D in x_TD[:3]:
            stream.step(x_D)
        held = stream.state()
        second = run(3)
        assert torch.equal(second, first[3:])
        stream.restore(held)
        assert torch.equal(run(3), second)


@at_every_level
def test_outputs_and_states_are_the_callers_own(level):
    with using(level):
        stream, twin = (Stream(drawn("lstm", 3, 5, 1)) for _ in range(2))
        x_D = torch.randn(3)
        stream.step(x_D).fill_(1e3)
        stream.state()["0.fwd.h"].fill_(1e3)
        twin.step(x_D)
        assert torch.equal(stream.step(x_D), twin.step(x_D))


@at_every_level
def test_later_training_and_dropped_weights_do_not_reach_a_stream(level):
    stack = RecurrentStack("gru", 3, 5, layers=2, dropout=0.5, weight_drop=0.5).train()
    x_D = torch.randn(3)
    with using(level):
        streams = [Stream(stack), Stream(stack)]
        with torch.no_grad():
            for parameter in stack.parameters():
                parameter.fill_(float("nan"))
        y_H, twin_H = (stream.step(x_D) for stream in streams)
    assert torch.isfinite(y_H).all()
    assert torch.equal(y_H, twin_H)


@at_every_level
def test_inputs_need_not_be_dense_and_modes_do_not_matter(level):
    wide_DD, head = torch.randn(3, 3), nn.Linear(5, 2)
    with using(level):
        with torch.inference_mode():
            stack = drawn("lstm", 3, 5, 1)
            stream = Stream(stack)
            expected_H = stream.step(wide_DD[:, 1].contiguous())
        stream.reset()
        y_H = stream.step(wide_DD.requires_grad_()[:, 1])
        assert torch.equal(y_H, expected_H)
        head(y_H).sum().backward()
        assert wide_DD.grad is None
        with torch.inference_mode():
            held = stream.state()
        stream.restore(held)


@at_every_level
def test_a_stream_made_at_one_level_runs_at_any_other(level):
    with using(level):
        stream = Stream(drawn("gru_reset_before", 7, 33, 1))
    x_TD = torch.randn(4, 7)
    y_TH = torch.stack([stream.step(x_D) for x_D in x_TD])
    stream.reset()
    for other in HERE:
        with using(other):
            torch.testing.assert_close(torch.stack([stream.step(x_D) for x_D in x_TD]), y_TH, atol=1e-6, rtol=1e-5)
        stream.reset()


@at_every_level
def test_what_does_not_fit_is_refused(level):
    with using(level):
        stream = Stream(RecurrentStack("lstm", 3, 5, layers=2))
        with pytest.raises(ConfigError, match="can't read backwards"):
            Stream(RecurrentStack("gru", 3, 5, bidirectional=True))
    for wrong in (
        torch.zeros(4),
        torch.zeros(1, 3),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, device="meta"),
    ):
        with pytest.raises(ValueError, match="one step of this stream reads"):
            stream.step(wrong)
    state = stream.state()
    with pytest.raises(ValueError, match="where this stream has"):
        stream.restore({name: value for name, value in state.items() if name != "1.fwd.c"})
    with pytest.raises(ValueError, match="where this stream has"):
        stream.restore({name: value.expand(2, -1) for name, value in state.items()})


def test_other_types_run_in_torch():
    stack = drawn("gru", 3, 5, 2).double()
    stream = Stream(stack)
    x_TD = torch.randn(4, 3, dtype=torch.float64)
    y_TH = torch.stack([stream.step(x_D) for x_D in x_TD])
    torch.testing.assert_close(y_TH, stack(x_TD.unsqueeze(0))[0][0].detach())
