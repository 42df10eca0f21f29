"""Layers whose result the network ignores, so that an edge into them would do nothing, are found at construction."""

import numpy as np
import pytest
import torch
from helpers import assert_unchanged, snapshot
from mlps import X
from torch import nn

from auxnas_layers import AuxG, AuxNASWrapper, TapError
from auxnas_layers.features.ignored import ignored_problems
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.taps import Point


class Net(nn.Module):
    """Two layers, called as `run` says."""

    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.run = nn.Linear(4, 4), nn.Linear(4, 4), run

    def forward(self, x):
        return self.run(self, x)


class Returning(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.inner, self.run = nn.Linear(4, 4), run

    def forward(self, given):
        return self.run(self.inner, given)


def ignores(net, names=("a",), inputs=(X,)):
    return ignored_problems("primary", net, Inputs(inputs), [Point(name) for name in names])


def writes(net, x):
    """As blocks that take turns on one dict do."""
    state = {"h": x}
    net.a(state)
    return net.b(state["h"])


def write(inner, state):
    state["h"] = inner(state["h"])
    return state


def test_a_block_that_writes_into_what_it_was_given_is_ignored():
    net = Net(writes)
    net.a = Returning(write)
    before = snapshot(net)
    (problem,) = ignores(net)
    assert "primary 'a' returns a feature that the network ignores: an edge into it would do nothing" in problem
    assert "tap a layer whose result it uses" in problem
    assert_unchanged(net, before)
    with pytest.raises(TapError, match="primary 'a' returns a feature that the network ignores"):
        AuxNASWrapper(net, Net(lambda net, x: net.b(net.a(x))), [("a", "b")], example_inputs=X)
    taps = [("a.inner", "a")]
    AuxNASWrapper(net, Net(lambda net, x: net.b(net.a(x))), taps, example_inputs=X)(X)


def test_the_tensor_that_is_used_instead_is_named():
    net = Net(lambda net, x: net.b(net.a(x)[1]["other"]))
    net.a = Returning(lambda inner, x: (inner(x), {"other": x + 1}))
    assert ignores(net)[0].endswith("it uses another tensor of the same layer: Tap(..., primary_select=(1, 'other'))")


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.b(net.a(x)),
        lambda net, x: net.a(x),
        lambda net, x: {"deep": [net.b(x), (net.a(x),)]},
        lambda net, x: net.b(x) + 0 * net.a(x),
        lambda net, x: net.b(x).add_(net.a(x)),
        lambda net, x: net.a(x).argmax(1),
        lambda net, x: net.b(x) if net.a(x).sum() > 0 else x,
        lambda net, x: net.b(torch.from_numpy(np.array(net.a(x).tolist(), dtype=np.float32))),
        lambda net, x: torch.from_numpy(net.a(x).detach().numpy() + 1),  # no operation of torch sees it
        lambda net, x: net.b(x) if not net.training else net.b(net.a(x)),  # in train mode it is used
    ],
    ids=["next", "output", "deep output", "zero", "in place", "integers", "branch", "list", "numpy", "mode"],
)
def test_a_result_that_is_used_in_any_way_is_no_problem(run):
    net = Net(run)
    if net.run.__code__.co_names == ("b", "training", "a"):
        net.run = lambda net, x: (net.a(x), net.b(x))[1] if not net.training else net.b(net.a(x))
    assert not ignores(net)


def test_what_is_kept_in_an_object_of_another_kind_may_be_used():
    class Found:
        def __init__(self, feature):
            self.feature = feature

    assert not ignores(Net(lambda net, x: (net.b(x), Found(net.a(x)))))


def test_what_a_network_keeps_for_a_loss_outside_of_it_may_be_used():
    def run(net, x):
        net.embedding = net.a(x)
        return net.b(x)

    assert not ignores(Net(run))


def test_sources_need_not_be_used():
    net = Net(lambda net, x: (net.a(x), net.b(x))[1])
    assert ignores(net)
    AuxNASWrapper(net, Net(lambda net, x: net.b(net.a(x))), ["a"], search=AuxG(), example_inputs=X)(X)
