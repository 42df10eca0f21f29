"""What two networks share."""

import copy

import torch
from helpers import assert_same, gradients, loss_of
from ways import Mlp, X, every_way, run, wrap


def assert_gradients_add_up(way, primary, aux, names):
    """Gradients of shared parameters against those of two networks that share nothing and have the same values."""
    shared = wrap(way, primary, aux)
    apart = wrap(way, copy.deepcopy(primary), copy.deepcopy(aux))
    apart.load_state_dict(shared.state_dict())
    expected = run(apart)
    loss_of(expected).backward()
    output = run(shared)
    assert_same(tuple(output), tuple(expected))
    loss_of(output).backward()
    of_primary, of_aux = gradients(apart.primary_net), gradients(apart.aux_net)
    for name, gradient in gradients(shared.primary_net).items():
        wanted = of_primary[name] + of_aux[name] if name in names else of_primary[name]
        torch.testing.assert_close(gradient, wanted, msg=name)
    left = [name for name in of_aux if name not in names]
    assert len(list(shared.aux_parameters())) == len(left)


@every_way
def test_the_gradient_of_a_trunk_that_both_networks_share_is_the_sum_of_both(way):
    primary, aux = Mlp(), Mlp()
    aux.a = primary.a
    assert_gradients_add_up(way, primary, aux, {"a.weight", "a.bias"})


@every_way
def test_the_gradient_of_a_network_on_both_sides_is_the_sum_of_both(way):
    net = Mlp()
    assert_gradients_add_up(way, net, net, dict(net.named_parameters()).keys())


@every_way
def test_a_network_on_both_sides_is_taken_out_as_one(way):
    net = Mlp()
    wrapper = wrap(way, net, net).eval()
    if way == "mtl-nas":
        wrapper.discretize_()
        exported = wrapper.export_multitask()
        assert exported.primary_net is exported.aux_net is not net
        assert_same(exported(X), wrapper(X))
    else:
        wrapper.close_aux_to_primary_()
        assert_same(wrapper.export_primary()(X), net(X))
