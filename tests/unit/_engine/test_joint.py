"""Joined networks that share modules, stand in each other, or get their sizes late."""

import copy
import pickle

import pytest
import torch
from helpers import PLAIN, assert_same
from mlps import Mlp, X, wrap
from torch import nn
from torch.utils import _pytree

from auxnas_layers import AuxG, AuxNASOutput, AuxNASWrapper, LayoutError


@pytest.mark.parametrize("search", [PLAIN, AuxG(own_share=1.0, start="zero")], ids=["lockstep", "sequential"])
def test_the_same_network_may_stand_on_both_sides(search):
    net = Mlp()
    wrapper = AuxNASWrapper(net, net, taps=["a", "b"], search=search, example_inputs=X)
    output = wrapper(X, aux_inputs=(2 * X,))
    assert_same(output.primary, net(X))
    assert_same(output.aux, net(2 * X))
    assert not list(wrapper.aux_parameters())
    assert len(list(wrapper.weight_parameters())) == len({id(p) for p in wrapper.weight_parameters()})


@pytest.mark.parametrize("search", [PLAIN, AuxG(own_share=1.0, start="zero")], ids=["lockstep", "sequential"])
def test_networks_may_share_a_tapped_trunk(search):
    primary, aux = Mlp(), Mlp()
    aux.a = primary.a
    wrapper = AuxNASWrapper(primary, aux, taps=["a", "b"], search=search, example_inputs=X)
    output = wrapper(X)
    assert_same(output.primary, primary(X))
    assert_same(output.aux, aux(X))


def test_a_wrapper_may_stand_inside_a_wrapped_network():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = wrap(search=PLAIN), nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.inner(x).primary)

    outer = Outer()
    wrapper = AuxNASWrapper(
        outer, Mlp(), taps=[("inner.primary_net.head", "a"), ("head", "b")], search=PLAIN, example_inputs=X
    )
    assert_same(wrapper(X).primary, outer(X))


def test_edges_do_not_get_their_sizes_inside_a_transform():
    wrapper = AuxNASWrapper(Mlp(), Mlp(), ["a", "b"]).eval()
    with pytest.raises(
        LayoutError, match="cannot get one inside torch.func; give AuxNASWrapper.*or call the wrapper once"
    ):
        torch.func.grad(lambda x: wrapper(x).aux.sum())(X)
    wrapper(X)
    assert torch.func.grad(lambda x: wrapper(x).aux.sum())(X).shape == X.shape


def test_an_output_is_a_named_tuple_of_which_the_trainer_takes_the_primarys_part():
    output = AuxNASOutput(primary=X, aux={"depth": 2 * X})
    primary, aux = output
    assert output[0] is output.primary is primary and output[1] is output[-1] is output.aux is aux
    assert output[:] == (primary, aux) and output[:1] == (primary,) and len(output) == 2
    assert output[1:] == (primary,)  # after a loss, predictions
    assert AuxNASOutput({"loss": 1, "logits": X, "states": 3}, None)[1:] == (X, 3)
    for other in (copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert type(other) is AuxNASOutput and torch.equal(other.primary, X)
    changed = _pytree.tree_map(lambda tensor: tensor + 1, output)
    assert type(changed) is AuxNASOutput and torch.equal(changed.aux["depth"], 2 * X + 1)
    assert AuxNASOutput(item for item in (1, 2)) == AuxNASOutput(1, 2) == AuxNASOutput(1, aux=2)
    assert output._replace(aux=3)._asdict() == {"primary": X, "aux": 3}
    assert repr(AuxNASOutput(1, None)) == "AuxNASOutput(primary=1, aux=None)"


def test_an_output_is_made_as_a_named_tuple_and_as_a_tuple():
    for output in (AuxNASOutput(1, 2), AuxNASOutput(primary=1, aux=2), AuxNASOutput(1, aux=2), AuxNASOutput([1, 2])):
        assert output == (1, 2) and output.aux == 2
    assert AuxNASOutput(None, None) == (None, None)


def test_a_user_may_set_a_configuration_on_the_wrapper():
    class Configured(AuxNASWrapper):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.config = {"lr": 0.1}

    primary = Mlp()
    primary.config = {"width": 4}
    assert AuxNASWrapper(primary, Mlp(), ["a"]).config is primary.config
    wrapper = Configured(primary, Mlp(), ["a"])
    assert wrapper.config == {"lr": 0.1} and primary.config == {"width": 4}
    del wrapper.config
    assert wrapper.config is primary.config
