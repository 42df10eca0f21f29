"""Aggregators of torchjd under `surgery_backward`."""

import copy

import pytest
import torch
from helpers import gradients, stir_
from torch import nn

from auxnas_layers import AuxNAS, AuxNASWrapper, surgery_backward

aggregation = pytest.importorskip("torchjd.aggregation")
autojac = pytest.importorskip("torchjd.autojac")

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
AGGREGATORS = ["PCGrad", "UPGrad", "MGDA", "Mean", "Sum", "ConFIG", "GradDrop", "IMTLG", "AlignedMTL"]


def two():
    nets = [nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)]
    wrapper = AuxNASWrapper(*nets, ["0"], search=AuxNAS(aux_to_primary_start=0.5), example_inputs=X)
    stir_(wrapper)
    return wrapper, copy.deepcopy(wrapper)


def losses_of(wrapper, sign=1):
    out = wrapper(X)
    return [out.primary.square().mean(), sign * out.aux.square().mean()]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_gradients_are_those_of_torchjds_own_functions(name, sign):
    found, expected = two()
    aggregator = getattr(aggregation, name)()
    torch.manual_seed(0)  # some draw at random
    surgery_backward(found, losses_of(found, sign), aggregator, penalty=found.search_penalty(0.2))

    losses, shared = losses_of(expected, sign), list(expected.primary_net[0].parameters())
    others = [parameter for parameter in expected.parameters() if all(parameter is not one for one in shared)]
    autojac.backward(losses, inputs=shared, retain_graph=True, parallel_chunk_size=1)
    torch.manual_seed(0)
    autojac.jac_to_grad(shared, aggregator)
    (sum(losses) + expected.search_penalty(0.2)).backward(inputs=others)
    for key, gradient in gradients(expected).items():
        torch.testing.assert_close(found.get_parameter(key).grad, gradient, msg=key)


@pytest.mark.parametrize("name", ["PCGrad", "UPGrad"])
def test_a_step_hurts_neither_task_where_their_sum_does(name):
    wrapper, _ = two()
    shared = list(wrapper.primary_parameters())  # the second loss reaches the head too

    def conflicting():
        primary, aux = losses_of(wrapper)
        return [primary, aux - 4 * primary]

    def rows():
        return [torch.autograd.grad(loss, shared, retain_graph=True) for loss in conflicting()]

    def slopes(step):
        """Of both losses along a step in the shared parameters."""
        return [sum((g * d).sum().item() for g, d in zip(row, step, strict=True)) for row in rows()]

    plain = [a + b for a, b in zip(*rows(), strict=True)]
    surgery_backward(wrapper, conflicting(), getattr(aggregation, name)())
    harm = min(slopes(plain))
    assert harm < 0 and min(slopes([p.grad for p in shared])) > 1e-3 * harm  # UPGrad solves to some tolerance
