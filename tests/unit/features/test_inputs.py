"""The arguments of a call, as data: copied, and brought to where the network is."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from auxnas_layers import AuxNASWrapper, Inputs, suggest_taps


class Pair(NamedTuple):
    x: Tensor
    name: str


def mlp(out=1, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, out))


def test_what_a_container_holds_beside_tensors_is_passed_as_it_is():
    thing = object()
    copied = Inputs((Pair(torch.ones(1), thing), [thing]), {"more": {"thing": thing}}).copied()
    assert copied.args[0].name is copied.args[1][0] is copied.kwargs["more"]["thing"] is thing
    holds_itself = [torch.ones(1)]
    holds_itself.append(holds_itself)
    assert torch.equal(Inputs((holds_itself,)).copied().args[0][0], torch.ones(1))


def test_inputs_made_in_inference_mode_will_do():
    with torch.inference_mode():
        x = torch.randn(2, 4)
    wrapper = AuxNASWrapper(mlp(), mlp(3), ["0"], example_inputs=x)
    assert str(suggest_taps(mlp(), mlp(3), x)) and wrapper.cost(x).primary.flops
    wrapper.close_aux_to_primary_()
    wrapper.export_primary(x)
    assert wrapper.export_report.exact


def test_networks_of_two_precisions_are_exported_with_the_inputs_that_they_were_given():
    x = torch.randn(2, 4)
    example = Inputs((x.double(),), {"aux_inputs": (x,)})
    wrapper = AuxNASWrapper(mlp().double(), mlp(3), ["0"], example_inputs=example)
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact
    wrapper.bfloat16().export_primary()
    assert wrapper.export_report.exact


def test_inputs_of_another_dtype_than_the_network_stay_so():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            assert x.dtype == torch.float64
            return self.b(self.a(x.to(self.a.weight.dtype)))

    wrapper = AuxNASWrapper(Casts(), Casts(), ["a"], example_inputs=torch.randn(2, 4).double())
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact


def test_a_network_may_be_empty_by_its_length():
    class Empty(nn.Sequential):
        def __len__(self):
            return 0

    wrapper = AuxNASWrapper(Empty(*mlp()), mlp(3), ["0"], example_inputs=torch.randn(2, 4)).double()
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact
