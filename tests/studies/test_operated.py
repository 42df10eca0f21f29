"""Gradient surgery on joined networks."""

from dataclasses import asdict

import pytest
import torch
from methods import METHODS, OURS
from operated import OPERATED, Operated
from tabular import SPEED_BY_GATE_TIME
from torchjd.aggregation import PCGrad, Sum
from training import Regime, batches, losses_of

FLIGHTS = SPEED_BY_GATE_TIME


@pytest.fixture(scope="module")
def batch():
    train = FLIGHTS.load(True)["train"]
    return next(batches(FLIGHTS, train, torch.arange(len(train["input"])), Regime(0, plenty=True), False, 0))


@pytest.fixture(scope="module")
def model(batch):
    torch.manual_seed(0)
    return METHODS[OURS].build(FLIGHTS, batch["input"][:1])


def gradients(method, model, losses, **changes):
    model.zero_grad()
    method.backward(model, losses() | {task: change(losses()[task]) for task, change in changes.items()})
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def losses_on(model, batch, auxes=("gate",)):
    return lambda: losses_of(FLIGHTS, model, auxes, 0.2, 1.0, batch)


def test_joined_by_a_sum_it_is_ours(model, batch):
    """The penalty of the gates too, which is in no gradient of the primary."""
    expected = gradients(METHODS[OURS], model, losses_on(model, batch))
    torch.testing.assert_close(gradients(Operated(aggregator=Sum), model, losses_on(model, batch)), expected)
    assert any("alpha" in name for name in expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_pcgrad_is_ours_where_gradients_agree_and_keeps_both_tasks_from_harm_where_not(sign, model, batch):
    """The auxiliary loss is that of the primary, or the opposite of it, on half of the weight."""

    def losses():
        found = losses_of(FLIGHTS, model, ["gate"], 0.2, 1.0, batch)
        return found | {"gate": found["gate"] * 1e-3 + sign * 0.5 * found["primary"]}

    plain = gradients(METHODS[OURS], model, losses)
    operated = gradients(Operated(aggregator=PCGrad), model, losses)
    shared = [name for name in plain if name.startswith("primary_net.stage1")]
    others = [name for name in plain if not name.startswith("primary_net.")]
    assert shared and others
    for name in others:
        torch.testing.assert_close(operated[name], plain[name])
    differ = [name for name in shared if not torch.allclose(operated[name], plain[name], rtol=1e-4, atol=1e-7)]
    assert bool(differ) == (sign < 0)


@pytest.mark.parametrize("name", OPERATED)
def test_with_the_primary_alone_there_is_nothing_to_join(name, model, batch):
    expected = gradients(METHODS[OURS], model, losses_on(model, batch, []))
    assert expected and not any(name.startswith("aux_net") for name in expected)
    torch.testing.assert_close(gradients(OPERATED[name], model, losses_on(model, batch, [])), expected)


def test_each_takes_its_own_aggregator_and_all_else_from_ours():
    ours = asdict(METHODS[OURS])
    for name, method in OPERATED.items():
        found = asdict(method)
        assert found.pop("aggregator").__name__ == name.removeprefix("ours, ")
        assert found == ours
