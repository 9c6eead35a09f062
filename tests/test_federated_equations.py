"""Each method's steps against its paper's equation, worked out from gradients; no dropout, so nothing else moves."""

import pytest
import torch
from helpers import toy_config, toy_examples, toy_model
from torch.nn.functional import cosine_similarity

from headwater.data.batches import InOrder, Shuffler
from headwater.federated.client_updates import LocalTraining, client_seed
from headwater.federated.methods.feddyn import FedDyn
from headwater.federated.methods.fedprox import FedProx
from headwater.federated.methods.moon import Moon
from headwater.federated.methods.scaffold import Scaffold
from headwater.federated.personal.apfl import Apfl
from headwater.federated.personal.ditto import Ditto
from headwater.federated.personal.fedrep import FedRep
from headwater.federated.personal.ifca import Ifca
from headwater.federated.personal.perfedavg import PerFedAvg
from headwater.federated.personal.pfedme import PFedMe
from headwater.federated.protocols import Client, Instruction
from headwater.weights import add_scaled, load_weights, part, weights_of

CONFIG = toy_config()
LR, POPULATION, REPLIES = 0.3, 5, 2
ROWS = toy_examples(8)  # one batch


def local(*methods, **changes):
    """Two steps on `ROWS`, if nothing else is said."""
    given = {"epochs": 2, "batch_size": 8, "lr": LR} | changes
    return LocalTraining(toy_model(CONFIG), CONFIG.make_task(), methods=methods, **given)


def drawn(seed=0):
    return weights_of(toy_model(CONFIG, seed))


def named(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def minus(a, b):
    return add_scaled(a, b, -1.0)


def slope(at, rows=ROWS, more=None):
    """Return the gradient of the mean loss of the rows, and of what is added to it."""
    model, batch = toy_model(CONFIG), InOrder(rows, len(rows))[0]
    load_weights(model, at)
    loss = CONFIG.make_task().loss(model, batch)
    (loss if more is None else loss + more(model, batch)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def descended(at, slope_at, *, steps=2, lr=LR):
    for _ in range(steps):
        at = add_scaled(at, slope_at(at), -lr)
    return at


def pulled(to, strength, rows=ROWS):
    """Return the gradient of F(w) + strength / 2 * |w - to|^2, as a function of w."""
    return lambda at: add_scaled(slope(at, rows), minus(at, to), strength)


def close(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=1e-6, rtol=1e-4)


def test_fedprox_descends_its_pulled_objective():
    w = drawn()
    update = local(FedProx(0.5))(Instruction(1, w, 0), Client("c", ROWS))
    close(update.delta, minus(descended(w, pulled(w, 0.5)), w))


def test_scaffold_corrects_its_steps_and_moves_both_controls():
    w, c, own, method = drawn(), drawn(1), drawn(2), Scaffold(POPULATION)
    method.restore(c)
    order, client = method.on_instruct(Instruction(2, w, 0)), Client("c", ROWS, named("scaffold/", own))
    update = local(method)(order, client)
    y = descended(w, lambda at: add_scaled(minus(slope(at), own), c))
    change = minus({name: value / (2 * LR) for name, value in minus(w, y).items()}, c)
    close(update.delta, minus(y, w) | named("scaffold/", change))
    close(client.state, named("scaffold/", add_scaled(own, change)))
    close(method.on_aggregate(update.delta, order, REPLIES), minus(y, w))
    close(method.state(), add_scaled(c, change, REPLIES / POPULATION))


def test_feddyn_bends_its_steps_and_those_of_the_server():
    w, own, h, dyn = drawn(), drawn(1), drawn(2), 0.5
    method, client = FedDyn(POPULATION, dyn), Client("c", ROWS, named("feddyn/", own))
    method.restore(h)
    order = Instruction(2, w, 0)
    delta = local(method)(order, client).delta
    close(delta, minus(descended(w, lambda at: minus(pulled(w, dyn)(at), own)), w))
    close(client.state, named("feddyn/", add_scaled(own, delta, -dyn)))
    moved = method.on_aggregate(delta, order, REPLIES)
    close(method.state(), add_scaled(h, delta, -dyn * REPLIES / POPULATION))
    close(moved, add_scaled(delta, method.state(), -1 / dyn))


def test_moon_descends_its_contrast():
    w, last, mu, tau = drawn(), drawn(1), 2.0, 0.25

    def represented(weights, batch):
        model = toy_model(CONFIG)
        load_weights(model, weights)
        return model.encoder.pooled(batch.inputs, batch.lengths_B, "mean").detach()

    def contrast(model, batch):
        z = model.encoder.pooled(batch.inputs, batch.lengths_B, "mean")
        a, b = (torch.exp(cosine_similarity(z, represented(other, batch)) / tau) for other in (w, last))
        return mu * -torch.log(a / (a + b)).mean()

    update = local(Moon(mu, tau))(Instruction(2, w, 0), Client("c", ROWS, named("moon/", last)))
    close(update.delta, minus(descended(w, lambda at: slope(at, more=contrast)), w))


def test_dittos_own_model_is_pulled_to_the_shared_one_of_its_round():
    learner, client, v = Ditto(local(), 0.5), Client("c", ROWS), drawn()
    for number, w in enumerate((drawn(), drawn(1)), start=1):
        update = learner(Instruction(number, w, 0), client)
        v = descended(v, pulled(w, 0.5))
        close(client.state, named("ditto/", v))
        close(update.delta, minus(descended(w, slope), w))


def test_apfls_own_model_and_share_descend_the_mixtures_loss():
    w, v, share = drawn(), drawn(1), 0.25
    client = Client("c", ROWS, named("apfl/own/", v) | {"apfl/mixing": torch.tensor(share)})
    update = Apfl(local(epochs=1))(Instruction(2, w, 0), client)
    gradient = slope({name: share * v[name] + (1 - share) * w[name] for name in w})
    along = sum(float(((v[name] - w[name]) * value).sum()) for name, value in gradient.items())
    close(update.delta, minus(descended(w, slope, steps=1), w))
    close(part(client.state, "apfl/own/"), add_scaled(v, gradient, -LR * share))
    assert 0 < share - LR * along < 1
    assert float(client.state["apfl/mixing"]) == pytest.approx(share - LR * along, abs=1e-6)


def test_perfedavg_descends_by_another_batchs_gradient_where_the_first_leads():
    w, rows = drawn(), toy_examples(16)
    update = PerFedAvg(local(steps=1), inner_steps=2, inner_lr=0.2)(Instruction(1, w, 0), Client("c", rows))
    batches = Shuffler(rows, 8, client_seed(0, 1, "c"))
    first, second = (rows.take(batches.rows(number)) for number in (0, 1))
    adapted = descended(w, lambda at: slope(at, first), lr=0.2)
    close(update.delta, minus(add_scaled(w, slope(adapted, second), -LR), w))


def test_pfedme_steps_towards_theta():
    w = begun = drawn()
    update = PFedMe(local(), pull=0.5, inner_steps=3, inner_lr=0.2)(Instruction(1, w, 0), Client("c", ROWS))
    for _ in range(2):
        theta = descended(w, pulled(w, 0.5), steps=3, lr=0.2)
        w = add_scaled(w, minus(w, theta), -LR * 0.5)
    close(update.delta, minus(w, begun))


def test_fedreps_head_learns_first_and_the_rest_under_it():
    learner, client, w = FedRep(local(), own_epochs=3), Client("c", ROWS), drawn()
    shared = learner.start(w)
    head = {name: value for name, value in w.items() if name not in shared}
    update = learner(Instruction(1, shared, 0), client)
    head = descended(head, lambda at: slope(shared | at), steps=3)
    close(client.state, named("own/", head))
    close(update.delta, minus(descended(shared, lambda at: slope(at | head)), shared))


def test_ifca_trains_the_model_with_the_lowest_loss():
    begun = drawn()
    fitted = descended(begun, slope, steps=5)
    away = minus(begun, minus(fitted, begun))
    sent = named("cluster0.", begun) | named("cluster1.", fitted) | named("cluster2.", away)
    update = Ifca(local(), clusters=3)(Instruction(1, sent, 0), Client("c", ROWS))
    close(update.delta, named("cluster1.", minus(descended(fitted, slope), fitted)))
