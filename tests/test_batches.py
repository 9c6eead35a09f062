"""Batches: every row once an epoch, a pure function of seed and step, padded and put back in order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.data.batches import Shuffler, batch_of
from headwater.data.examples import Examples
from headwater.features.text import PAD
from headwater.inference import run_all

ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=90)


def numbered(rows):
    """Return examples whose targets are the rows' own numbers."""
    return Examples(rows, list(range(len(rows))))


@given(rows=ROWS, size=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_holds_each_row_once_and_whole(rows, size, seed, epoch):
    shuffler = Shuffler(numbered(rows), size, seed)
    seen = []
    for step in range(epoch * shuffler.steps_per_epoch, (epoch + 1) * shuffler.steps_per_epoch):
        batch = shuffler[step]
        assert 1 <= len(batch.targets_B) <= size
        for tokens, length, target in zip(batch.inputs, batch.lengths_B, batch.targets_B, strict=True):
            assert tokens[:length].tolist() == rows[int(target)]
            assert (tokens[length:] == PAD).all()
            seen.append(int(target))
        assert batch.inputs.shape[1] == int(batch.lengths_B.max())
    assert sorted(seen) == list(range(len(rows)))


def test_a_batch_is_a_pure_function_of_seed_and_step():
    rows = [[1] * (1 + n % 5) for n in range(50)]
    one, two = Shuffler(numbered(rows), 8, 3), Shuffler(numbered(rows), 8, 3)
    forwards = [one[step].targets_B.tolist() for step in range(30)]
    backwards = [two[step].targets_B.tolist() for step in reversed(range(30))]
    assert forwards == backwards[::-1]
    epoch = one.steps_per_epoch
    assert forwards[:epoch] != forwards[epoch : 2 * epoch]
    assert forwards != [Shuffler(numbered(rows), 8, 4)[step].targets_B.tolist() for step in range(30)]


def test_the_global_generators_have_no_part_in_the_order():
    rows = [[1]] * 20
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what is tested
    first = Shuffler(numbered(rows), 4, 0)[0].targets_B.tolist()
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert Shuffler(numbered(rows), 4, 0)[0].targets_B.tolist() == first


def test_rows_of_like_length_share_a_batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 640)
    shuffler = Shuffler(Examples([[1] * n for n in lengths]), 32, 0)
    padded = sum(shuffler[step].inputs.numel() for step in range(shuffler.steps_per_epoch))
    assert padded < 1.15 * lengths.sum()


def test_a_batch_larger_than_the_rows_is_all_of_them():
    shuffler = Shuffler(numbered([[1], [2], [3]]), 100, 0)
    assert (shuffler.steps_per_epoch, sorted(shuffler[0].targets_B.tolist())) == (1, [0, 1, 2])


@given(rows=ROWS, size=st.integers(1, 40))
def test_batches_in_order_can_be_put_back_in_order(rows, size):
    examples = numbered(rows)
    assert all(len(numbers) <= size for numbers in examples.in_order(size))
    sums = run_all(lambda tokens_BT, lengths_B: np.stack([tokens_BT.sum(1), lengths_B], 1), examples, size)
    assert sums.tolist() == [[sum(row), len(row)] for row in rows]


@pytest.mark.parametrize("chosen", [[2], [2, 0], [1, 1, 0]])
def test_taken_rows_are_the_rows_in_the_given_order(chosen):
    rows = [[1, 2], [3], [4, 5, 6]]
    taken = numbered(rows).take(np.array(chosen))
    assert taken.targets_N.tolist() == chosen
    for place, row in enumerate(chosen):
        batch = batch_of(taken, np.array([place]))
        assert batch.inputs[0].tolist() == rows[row]


def test_rows_without_labels_have_no_targets():
    batch = batch_of(Examples([[1, 2], [3]]), np.array([1, 0]))
    assert batch.targets_B.shape == (0,)
    assert batch.inputs.tolist() == [[3, 0], [1, 2]]
    assert batch.lengths_B.tolist() == [1, 2]
