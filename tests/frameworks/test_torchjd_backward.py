"""torchjd: the gradients of both losses are joined by an aggregator."""

import pytest
import torch
import torch.nn.functional as F
from samples import INPUTS, LABELS, OTHERS, STEPS, assert_exports, assert_trained, wrap
from torchjd.aggregation import Mean, UPGrad
from torchjd.autojac import backward, jac_to_grad

from auxnas_layers import AuxNASWrapper


def gradients_(wrapper: AuxNASWrapper, progress: float, aggregator: torch.nn.Module) -> None:
    out = wrapper(INPUTS)
    losses = [F.cross_entropy(out.primary, LABELS), F.cross_entropy(out.aux, OTHERS)]
    weights = list(wrapper.weight_parameters())
    gates = list(wrapper.arch_parameters())
    backward(losses, inputs=[*weights, *gates], retain_graph=True)
    jac_to_grad([*weights, *gates], aggregator)
    wrapper.search_penalty(progress).backward()


def test_the_wrapper_trains_and_exports():
    wrapper = wrap()
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)
    for step in range(STEPS):
        weights.zero_grad()
        gates.zero_grad()
        gradients_(wrapper, step / STEPS, UPGrad())
        weights.step()
        gates.step()
    assert_trained(wrapper)
    assert_exports(wrapper)


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.9])
def test_the_mean_of_both_gradients_is_what_backward_gives(progress):
    found, wanted = wrap(), wrap()
    for one in (found, wanted):
        one.search_penalty(progress)
    gradients_(found, progress, Mean())
    out = wanted(INPUTS)
    loss = (F.cross_entropy(out.primary, LABELS) + F.cross_entropy(out.aux, OTHERS)) / 2
    (loss + wanted.search_penalty(progress)).backward()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(one.grad, expected, msg=name)
