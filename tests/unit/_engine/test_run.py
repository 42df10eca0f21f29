"""Which way a forward goes, and in which order random numbers are drawn."""

import threading

import pytest
import torch
from helpers import PLAIN, assert_same
from mlps import X
from pairs import IMAGES, make
from torch import nn
from zoo import Cnn

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper


def test_random_draws_of_the_sequential_path_are_those_of_two_plain_forwards():
    def net():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))

    wrapper = AuxNASWrapper(net(), net(), taps=["0"], search=AuxG(own_share=1.0, start="zero"), example_inputs=X)
    torch.manual_seed(5)
    output = wrapper(X)
    torch.manual_seed(5)
    assert_same(wrapper.primary_net(X), output.primary)
    assert_same(wrapper.aux_net(X), output.aux)


def test_lockstep_is_deterministic_for_a_seed():
    def net():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 2))

    wrapper = AuxNASWrapper(net(), net(), taps=["0", "2"], search=AuxNAS(start="scaled"), example_inputs=X)
    outputs = []
    for _ in range(3):
        torch.manual_seed(5)
        outputs.append(wrapper(X))
    assert_same(outputs[0], outputs[1])
    assert_same(outputs[0], outputs[2])


def test_cnn_in_train_mode_updates_running_statistics_once():
    plain, net = Cnn(), Cnn()
    net.load_state_dict(plain.state_dict())
    wrapper = AuxNASWrapper(net, Cnn(), taps=["layer1", "layer2"], search=PLAIN, example_inputs=torch.randn(2, 3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    wrapper(x)
    plain(x)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key


def test_an_edge_that_a_relaxed_gate_drops_at_evaluation_needs_no_lock_step(monkeypatch):
    wrapper = make().eval()
    for gate in wrapper.gates.values():
        gate.set_([0.4, 0.4, 0.4])
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
    wrapper(IMAGES)
    with pytest.raises(pytest.fail.Exception, match="a thread was started"):
        wrapper.train()(IMAGES)
