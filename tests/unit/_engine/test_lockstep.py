"""Two networks in lock-step, when one of them fails."""

import pytest
import torch
from helpers import assert_unchanged, snapshot, workers
from mlps import Mlp, X, wrap

from auxnas_layers import TapError


def raise_value_error(*_):
    raise ValueError("user's")


@pytest.mark.parametrize("side", ["primary", "aux"])
@pytest.mark.parametrize("layer", ["a", "b", "head"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, RuntimeError])
def test_an_exception_comes_through_as_it_is_and_leaves_nothing(side, layer, kind):
    def fail(*_):
        raise kind("user's own")

    wrapper = wrap()
    net = wrapper.primary_net if side == "primary" else wrapper.aux_net
    handle = getattr(net, layer).register_forward_pre_hook(fail)
    before = snapshot(wrapper.primary_net), snapshot(wrapper.aux_net)
    with pytest.raises(kind, match="user's own") as error:
        wrapper(X)
    assert any(entry.name == "fail" for entry in error.traceback)
    assert_unchanged(wrapper.primary_net, before[0])
    assert_unchanged(wrapper.aux_net, before[1])
    assert not workers()
    handle.remove()
    wrapper(X)


@pytest.mark.parametrize("swallowed", [Exception, BaseException])
@pytest.mark.parametrize("side", ["primary", "aux"])
def test_a_network_that_swallows_exceptions_neither_hangs_nor_hides_them(side, swallowed):
    class Swallow(Mlp):
        def forward(self, x):
            try:
                return super().forward(x)
            except swallowed:
                return torch.zeros(3, 2)

    wrapper = wrap(**{side: Swallow()})
    other = wrapper.aux_net if side == "primary" else wrapper.primary_net
    other.b.register_forward_hook(raise_value_error)
    with pytest.raises((ValueError, TapError)):
        wrapper(X)
    assert not workers()
