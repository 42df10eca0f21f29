"""Copies of networks, which must be the same network."""

import copy

import pytest
from helpers import assert_same
from pairs import IMAGES
from zoo import Cnn

from auxnas_layers import MTLNAS, AuxNAS, AuxNASWrapper, ExportError, NDDRFusion
from auxnas_layers.export.copying import copy_networks


def test_export_refuses_a_network_whose_copy_is_another():
    class Odd(Cnn):
        def __deepcopy__(self, memo):
            return Cnn(width=3)

    wrapper = AuxNASWrapper(Odd(), Cnn(), taps=["layer1"], search=AuxNAS())
    wrapper.close_aux_to_primary_()
    with pytest.raises(
        ExportError,
        match="deepcopy of Odd does not give the same network; mend the __deepcopy__ of what differs:\n"
        "  - the classes.*\n  - 'layer1.0.weight' differs",
    ):
        wrapper.export_primary()


def test_modules_that_both_networks_share_are_still_shared_when_exported():
    primary, aux = Cnn(), Cnn()
    aux.layer1 = primary.layer1
    wrapper = AuxNASWrapper(primary, aux, ["layer2"], search=MTLNAS(), fusion=NDDRFusion, example_inputs=IMAGES).eval()
    net = wrapper.export_multitask()
    assert net.primary_net.layer1 is net.aux_net.layer1 is not primary.layer1
    assert_same(net(IMAGES), wrapper(IMAGES))


class Vocabulary(dict):
    """Counts how often somebody goes through all of it."""

    passes = 0

    def items(self):
        type(self).passes += 1
        return super().items()

    def __iter__(self):
        type(self).passes += 1
        return super().__iter__()


def test_what_a_network_keeps_is_gone_through_once_as_by_deepcopy():
    net = Cnn()
    net.vocabulary = Vocabulary((f"word{i}", i) for i in range(100))
    copy.deepcopy(net)
    once, Vocabulary.passes = Vocabulary.passes, 0
    copied = copy_networks([net])[0]
    assert Vocabulary.passes == once and copied.vocabulary == net.vocabulary


def test_results_that_a_network_keeps_anywhere_are_copied_without_their_graph():
    class Holder:
        pass

    net = Cnn()
    result = net(IMAGES)
    net.last, net.all, net.holder = result, {"results": [result]}, Holder()
    net.holder.result = result
    copied = copy_networks([net])[0]
    found = [copied.last, copied.all["results"][0], copied.holder.result]
    assert all(tensor is found[0] for tensor in found) and found[0] is not result
    assert found[0].equal(result) and not found[0].requires_grad
    assert net.last is result and result.requires_grad
