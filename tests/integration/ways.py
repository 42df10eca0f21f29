"""The ways in which a wrapper runs, and one training step on each."""

from functools import partial

import pytest
import torch
from helpers import gradients, loss_of, stir_
from torch import nn

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, NDDRFusion
from auxnas_layers.search import SigmoidGate

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WAYS = {
    "aux-nas": {"search": AuxNAS()},
    "aux-nas-closed": {"search": AuxNAS()},
    "aux-g": {"search": AuxG()},
    "mtl-nas": {"search": MTLNAS(), "fusion": NDDRFusion},
}
SMOOTH = {**WAYS, "mtl-nas": {"search": MTLNAS(gate=SigmoidGate), "fusion": partial(NDDRFusion, norm=None)}}
LOCKSTEP = ("aux-nas", "mtl-nas")
OTHER_WAYS = ("aux-nas-closed", "aux-g", "mtl-nas")  # those on which exceptions are not tested elsewhere
every_way = pytest.mark.parametrize("way", WAYS)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu())


def wrap(way, primary=None, aux=None, taps=("a", "b"), **options):
    """A wrapper whose edges all matter, which runs in lock-step or not as its way says, also in eval mode."""
    options = {**WAYS[way], "example_inputs": X, **options}
    wrapper = AuxNASWrapper(primary or Mlp(), aux or Mlp(), taps, **options)
    stir_(wrapper)
    for gate in wrapper.gates.values():
        gate.set_([0.7] * len(gate.closed))
    if way == "aux-nas-closed":
        wrapper.close_aux_to_primary_()
    return wrapper


def run(wrapper, x=X):
    """One forward, whose gates are drawn from the same seed each time."""
    torch.manual_seed(7)
    return wrapper(x)


def step(wrapper, optimisers, progress, x=X):
    """One step of the usual loop."""
    loss = loss_of(run(wrapper, x)) + wrapper.search_penalty(progress)
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


def optimisers_of(wrapper):
    groups = [list(wrapper.weight_parameters()), list(wrapper.arch_parameters())]
    return [torch.optim.Adam(group, lr=1e-2) for group in groups if group]


def assert_gradients_close(wrapper, expected):
    for name, found in gradients(wrapper).items():
        assert (found is None) == (expected[name] is None), name
        if found is not None:
            torch.testing.assert_close(found, expected[name], msg=name)


def backward(wrapper, loss):
    """The gradients of a loss, and none left behind."""
    wrapper.zero_grad()
    loss.backward()
    found = gradients(wrapper)
    wrapper.zero_grad()
    return found
