"""A default device is for the user's tensors: numbers of the library's own are where they are needed.

The meta device stands for any other one: a number that is made there by mistake cannot be read.
"""

import pytest
import torch
from torch import nn
from ways import OTHER_WAYS, Mlp, X, step, wrap

from auxnas_layers import AuxNASWrapper, CrossTaskFusion, Inputs, MixedBatchSampler
from auxnas_layers.features.ignored import ignored_problems
from auxnas_layers.features.inputs import Examples
from auxnas_layers.features.taps import Point


@pytest.fixture
def elsewhere():
    """Sets another default device."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def test_samples_are_drawn_in_the_same_order(elsewhere):
    def batches():
        return list(MixedBatchSampler([0, 1, 2, 3], range(4, 12), 4, seed=3))

    expected = batches()
    elsewhere()
    assert batches() == expected


class Ignores(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 2)

    def forward(self, x):
        self.a(x)
        return self.b(x)


def test_a_layer_whose_result_the_network_ignores_is_found(elsewhere):
    net = Ignores()
    expected = ignored_problems("aux", net, Inputs((X,)), [Point("a")])
    elsewhere()
    assert ignored_problems("aux", net, Inputs((X,)), [Point("a")]) == expected != []


def test_example_inputs_of_a_network_without_parameters_stay_where_they_are(elsewhere):
    examples = Examples()
    examples.add("primary", Inputs((X,)), nn.Identity())
    elsewhere()
    assert torch.equal(examples.now({"primary": nn.Identity()})["primary"].args[0], X)


@pytest.mark.parametrize("way", ["aux-nas", *OTHER_WAYS, "sized later"])
def test_gates_and_edges_are_where_their_networks_are(way, elsewhere):
    nets = Mlp(), Mlp()
    elsewhere()
    wrapper = AuxNASWrapper(*nets, ["a", "b"]) if way == "sized later" else wrap(way, *nets)
    for progress in (0.0, 0.5, 1.0):
        step(wrapper, [], progress)
    assert {t.device.type for t in (*wrapper.parameters(), *wrapper.buffers())} == {"cpu"}


def test_an_activation_with_parameters_is_tried_where_they_are(elsewhere):
    """As on a GPU, where fusions are made on the device of their layer, the user's activation elsewhere."""
    activation = nn.PReLU()
    elsewhere()
    CrossTaskFusion(None, [None], activation=activation)


def test_an_activation_may_have_a_parameter_without_dimensions():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return self.factor * x

    CrossTaskFusion(None, [None], activation=Scaled())
