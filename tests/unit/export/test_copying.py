"""Copies of networks, which must be the same network."""

import pytest
from helpers import assert_same
from pairs import IMAGES
from zoo import Cnn

from auxnas_layers import MTLNAS, AuxNAS, AuxNASWrapper, ExportError, NDDRFusion


def test_export_refuses_a_network_whose_copy_is_another():
    class Odd(Cnn):
        def __deepcopy__(self, memo):
            return Cnn(width=3)

    wrapper = AuxNASWrapper(Odd(), Cnn(), taps=["layer1"], search=AuxNAS())
    wrapper.close_aux_to_primary_()
    with pytest.raises(
        ExportError, match="deepcopy of Odd does not give the same network:\n  - 'layer1.0.weight' differs"
    ):
        wrapper.export_primary()


def test_modules_that_both_networks_share_are_still_shared_when_exported():
    primary, aux = Cnn(), Cnn()
    aux.layer1 = primary.layer1
    wrapper = AuxNASWrapper(primary, aux, ["layer2"], search=MTLNAS(), fusion=NDDRFusion, example_inputs=IMAGES).eval()
    net = wrapper.export_multitask()
    assert net.primary_net.layer1 is net.aux_net.layer1 is not primary.layer1
    assert_same(net(IMAGES), wrapper(IMAGES))
