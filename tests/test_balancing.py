"""Each way to balance tasks against an independent computation of its paper, on toys where it could fail."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from headwater.data_parallel import Share
from headwater.registry import lookup
from headwater.trainer import Objective, ParameterGroup, TrainOptions, make_optimizer
from headwater.transfer_learning.balancing import BALANCERS
from headwater.transfer_learning.balancing.pcgrad import conflicts, inner_products, surgery
from headwater.transfer_learning.task_options import TaskOptions


class Toy(nn.Module):
    """What tasks share: an embedding and a last layer, both used by all of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(4, 3, bias=False)
        self.stack = nn.Module()
        self.stack.layers = nn.ModuleList([nn.Linear(3, 3, bias=False)])

    def forward(self, x):
        return self.stack.layers[-1](self.embedding(x).tanh())


class Regression(Objective):
    """A head that is to make given numbers of the shared states; its rows come in parts, dealt to shares."""

    steps_per_epoch = 5

    def __init__(self, encoder, seed, *, parts=2, scale=1.0, rows=6):
        generator = torch.Generator().manual_seed(seed)
        self.x, self.y = torch.randn(rows, 4, generator=generator), torch.randn(rows, generator=generator)
        self.encoder, self.parts, self.scale = encoder, parts, scale
        self.head = nn.Parameter(torch.randn(3, generator=generator))

    def errors(self, rows):
        return self.scale * (self.encoder(self.x[rows]) @ self.head - self.y[rows]).square().sum() / len(self.y)

    def loss(self):
        return self.errors(np.arange(len(self.y)))

    def losses(self, step, share):
        for part in np.array_split(share.of(np.arange(len(self.y))), self.parts):
            yield self.errors(part)


def balancer(name, encoder, weights, **options):
    return lookup("headwater.balancers", BALANCERS, name)(weights, encoder, TaskOptions(**options), 3)


def step_of(objectives, parameters, step=0, share=Share()):  # noqa: B008 - it is frozen
    """Leave a step's gradient in the parameters, as the trainer does; return the loss."""
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    for objective in objectives:
        for loss in objective.losses(step, share):
            loss.backward()
            total += float(loss.detach())
    return total


def gradients_of(tasks, parameters):
    """Return each task's gradient, flat, by autograd alone."""
    found = [torch.autograd.grad(task.loss(), parameters) for task in tasks]
    return [torch.cat([value.flatten() for value in gradient]).double().numpy() for gradient in found]


def flat(parameters):
    return torch.cat([parameter.grad.flatten() for parameter in parameters]).double().numpy()


def algorithm_1(gradients, rng):
    """Yu et al. 2020, Algorithm 1, in the words of the paper."""
    projected = []
    for i, gradient in enumerate(gradients):
        own = gradient.copy()
        for j in rng.permutation(len(gradients)):
            if j != i and own @ gradients[j] < 0:
                own = own - own @ gradients[j] / (gradients[j] @ gradients[j]) * gradients[j]
        projected.append(own)
    return projected


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_surgery_is_the_papers_algorithm(tasks, seed):
    gradients = np.random.default_rng(seed).normal(size=(tasks, 4))
    expected = sum(algorithm_1(list(gradients), np.random.default_rng(seed)))
    counts = surgery(inner_products(torch.from_numpy(gradients)), np.random.default_rng(seed))
    np.testing.assert_allclose(counts @ gradients, expected, atol=1e-12)


def test_the_order_of_the_projections_is_drawn():
    products = inner_products(torch.from_numpy(np.random.default_rng(2).normal(size=(5, 4))))
    drawn = {tuple(surgery(products, np.random.default_rng(seed)).round(9)) for seed in range(9)}
    assert len(drawn) > 1


def test_of_two_tasks_neither_loses_by_the_step_and_agreement_is_left_alone():
    against, along = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([[1.0, 0.0], [0.1, 3.0]])
    counts = surgery(inner_products(against), np.random.default_rng(0))
    step = counts @ against.numpy()
    assert (against.sum(0) @ against[0]).item() == 0.0  # the plain sum would leave the first task where it is
    assert (against.numpy() @ step > 0).all()
    np.testing.assert_allclose(step, [1 - 0.8, 0.4 + 0.5], atol=1e-7)
    assert surgery(inner_products(along), np.random.default_rng(0)).tolist() == [1.0, 1.0]


def test_pairs_in_conflict_are_counted():
    gradients = np.random.default_rng(1).normal(size=(6, 3))
    found = conflicts(inner_products(torch.from_numpy(gradients)))
    assert found == (sum(a @ b < 0 for a, b in combinations(gradients, 2)), 15)


@pytest.mark.parametrize("weights", [[1.0, 0.5, 2.0], [1.0, 1e-3, 1e-3]])
def test_pcgrad_leaves_the_projected_gradient_in_what_is_shared_and_their_own_in_the_heads(weights):
    encoder = Toy()
    shared = list(encoder.parameters())
    tasks = [Regression(encoder, seed) for seed in (1, 2, 3)]
    method = balancer("pcgrad", encoder, weights)
    objectives = method.objectives(tasks)
    before = [w * gradient for w, gradient in zip(weights, gradients_of(tasks, shared), strict=True)]
    heads = [task.head for task in tasks]
    for step in range(4):
        loss = step_of(objectives, [*shared, *heads], step)
        drawn = np.random.default_rng([3, 0x9C6D, step])
        np.testing.assert_allclose(flat(shared), sum(algorithm_1(before, drawn)), atol=1e-6)
    assert loss == pytest.approx(sum(w * task.loss().item() for w, task in zip(weights, tasks, strict=True)))
    for weight, task in zip(weights, tasks, strict=True):
        torch.testing.assert_close(task.head.grad, weight * torch.autograd.grad(task.loss(), task.head)[0])
    conflicting = sum(a @ b < 0 for a, b in combinations(before, 2))
    assert conflicting > 0
    assert method.notes(["a", "b", "c"])[1].startswith(f"{conflicting / 3:.1%} of 12 pairs")


def test_what_other_objectives_have_left_is_kept():
    encoder = Toy()
    shared = list(encoder.parameters())
    tasks = [Regression(encoder, seed) for seed in (1, 2)]
    objectives = balancer("pcgrad", encoder, [1.0, 1.0]).objectives(tasks)
    step_of(objectives, shared)
    alone = flat(shared)
    other = Regression(encoder, 9)
    step_of([other, *objectives], shared)
    np.testing.assert_allclose(flat(shared), alone + gradients_of([other], shared)[0], atol=1e-6)
    step_of([*objectives, other], shared)
    np.testing.assert_allclose(flat(shared), alone + gradients_of([other], shared)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["gradnorm", "pcgrad"])
def test_tasks_on_a_frozen_encoder_train_their_heads(name):
    encoder = Toy().requires_grad_(False)
    tasks = [Regression(encoder, seed) for seed in (1, 2)]
    method = balancer(name, encoder, [1.0, 1.0])
    step_of(method.objectives(tasks), [task.head for task in tasks])
    for task in tasks:
        torch.testing.assert_close(task.head.grad, torch.autograd.grad(task.loss(), task.head)[0])
    assert method.weights() == pytest.approx([1.0, 1.0])
    assert all(parameter.grad is None for parameter in encoder.parameters())


def l_grad(weights, norms, losses, first, alpha):
    """Return dL_grad / dw by autograd (Chen et al. 2018, equations 1 and 2), the goal held constant."""
    weights = torch.tensor(weights, requires_grad=True)
    sizes = weights * torch.tensor(norms)
    rates = torch.tensor(losses) / torch.tensor(first)
    goal = (sizes.mean() * (rates / rates.mean()) ** alpha).detach()
    (sizes - goal).abs().sum().backward()
    return weights.grad


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_descends_the_papers_loss_and_its_weights_add_up_to_the_number_of_tasks(alpha):
    encoder = Toy()
    last = [encoder.stack.layers[-1].weight]
    tasks = [Regression(encoder, seed, scale=scale) for seed, scale in ((1, 1.0), (2, 0.2), (3, 3.0))]
    method = balancer("gradnorm", encoder, [1.0, 0.5, 0.5], gradnorm_alpha=alpha)
    objectives = method.objectives(tasks)
    weights = [1.5, 0.75, 0.75]
    assert method.weights() == pytest.approx(weights)
    parameters = [*encoder.parameters(), *(task.head for task in tasks)]
    first = [task.loss().item() for task in tasks]
    for step in range(4):
        losses = [task.loss().item() for task in tasks]
        norms = [np.linalg.norm(gradient) for gradient in gradients_of(tasks, last)]
        expected = sum(w * g for w, g in zip(weights, gradients_of(tasks, list(encoder.parameters())), strict=True))
        step_of(objectives, parameters, step)
        np.testing.assert_allclose(flat(encoder.parameters()), expected, atol=1e-5)
        moved = torch.tensor(weights) - 0.025 * l_grad(weights, norms, losses, first, alpha)
        weights = (moved * 3 / moved.sum()).tolist()
        assert method.weights() == pytest.approx(weights, abs=1e-5)
        assert sum(method.weights()) == pytest.approx(3.0)
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(0.05 * parameter.grad)


def test_gradnorm_turns_to_the_slower_task():
    encoder = Toy()
    quick, slow = (Regression(encoder, seed) for seed in (1, 1))  # the same task twice
    method = balancer("gradnorm", encoder, [1.0, 1.0])
    objectives = method.objectives([quick, slow])
    parameters = list(encoder.parameters())
    step_of(objectives, parameters, 0)
    assert method.weights() == pytest.approx([1.0, 1.0])
    quick.scale = 0.5  # its loss has halved, that of the other hasn't moved
    for step in range(1, 6):
        step_of(objectives, parameters, step)
    assert method.weights()[1] > 1.05


def test_a_weight_stays_above_zero_whatever_the_size_of_the_gradients():
    encoder = Toy()
    tasks = [Regression(encoder, 1), Regression(encoder, 2, scale=1e4)]
    method = balancer("gradnorm", encoder, [1.0, 1.0])
    for step in range(3):
        step_of(method.objectives(tasks), list(encoder.parameters()), step)
    assert all(weight > 0 for weight in method.weights())
    assert sum(method.weights()) == pytest.approx(2.0)


def test_tasks_without_a_loss_leave_the_weights_alone():
    encoder = Toy()
    tasks = [Regression(encoder, seed, scale=0.0) for seed in (1, 2)]
    method = balancer("gradnorm", encoder, [1.0, 0.5])
    for step in range(2):
        step_of(method.objectives(tasks), list(encoder.parameters()), step)
    assert method.weights() == pytest.approx([4 / 3, 2 / 3])


def test_the_rate_finder_leaves_nothing_behind():
    encoder = Toy()
    tasks = [Regression(encoder, seed, scale=seed) for seed in (1, 2, 3)]
    for name in ("gradnorm", "pcgrad"):
        once, again = (balancer(name, encoder, [1.0, 0.5, 2.0]) for _ in range(2))
        for method, steps in ((once, [0, 1]), (again, [0, 1, 2, 3, 0, 1])):
            for step in steps:
                step_of(method.objectives(tasks), list(encoder.parameters()), step)
        assert once.notes("abc") == again.notes("abc")


def test_uncertainty_is_the_papers_loss_and_its_gradient_in_the_log_variances_is_right():
    encoder = Toy()
    tasks = [Regression(encoder, seed) for seed in (1, 2)]
    method = balancer("uncertainty", encoder, [1.0, 0.25])
    assert method.weights() == pytest.approx([1.0, 0.25])
    variances = [float(value.detach()) for value in method.learned]
    assert variances == pytest.approx([0.0, math.log(4)])
    parameters = [*encoder.parameters(), *method.learned]
    found = [task.loss().item() for task in tasks]
    expected = sum(math.exp(-s) * loss + s / 2 for s, loss in zip(variances, found, strict=True))
    objectives = method.objectives(tasks)
    assert step_of(objectives, parameters) == pytest.approx(expected)
    for variance, s, loss in zip(method.learned, variances, found, strict=True):
        assert variance.grad.item() == pytest.approx(-math.exp(-s) * loss + 0.5)
    whole = flat(parameters)
    shares = []
    for number in range(3):
        step_of(objectives, parameters, share=Share(number, 3))
        shares.append(flat([p for p in parameters if p.grad is not None]))
    np.testing.assert_allclose(sum(shares), whole, atol=1e-6)


def test_learned_uncertainty_settles_where_a_task_counts_half_of_its_inverse_loss():
    encoder = Toy().requires_grad_(False)
    tasks = [Regression(encoder, 1, scale=scale) for scale in (0.3, 4.0)]
    method = balancer("uncertainty", encoder, [1.0, 1.0])
    objectives = method.objectives(tasks)
    optimizer = torch.optim.Adam(list(method.learned), lr=0.1)
    for step in range(300):
        step_of(objectives, list(method.learned), step)
        optimizer.step()
    assert method.weights() == pytest.approx([1 / (2 * task.loss().item()) for task in tasks], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_leaves_a_group_alone_that_does_not_decay(optimizer):
    module = nn.ParameterDict({"pulled": nn.Parameter(torch.ones(1)), "kept": nn.Parameter(torch.ones(1))})
    groups = [ParameterGroup(("pulled",)), ParameterGroup(("kept",), decays=False)]
    made = make_optimizer(module, groups, TrainOptions(weight_decay=0.5, optimizer=optimizer), 0.1)
    for value in module.values():
        value.grad = torch.zeros(1)
    made.step()
    assert module["kept"].item() == 1.0
    assert module["pulled"].item() == pytest.approx(0.95)


def test_fixed_weights_are_a_weighted_sum():
    encoder = Toy()
    tasks = [Regression(encoder, seed) for seed in (1, 2)]
    method = balancer("fixed", encoder, [1.0, 0.5])
    shared = list(encoder.parameters())
    loss = step_of(method.objectives(tasks), shared)
    assert loss == pytest.approx(tasks[0].loss().item() + 0.5 * tasks[1].loss().item())
    one, other = gradients_of(tasks, shared)
    np.testing.assert_allclose(flat(shared), one + 0.5 * other, atol=1e-6)
    assert method.notes(["target", "films"]) == ["Weights of the tasks: target 1, films 0.5."]


def test_surgery_is_exact_in_bfloat16_too():
    gradients = torch.tensor([[1.0, 1.0], [1.0, -1.001]])  # in bfloat16 they would not conflict
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conflicts(inner_products(gradients)) == (1, 1)
