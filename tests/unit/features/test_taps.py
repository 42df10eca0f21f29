"""Which layers are tapped, and how a user names them."""

import pytest
from zoo import Cnn

from auxnas_layers import AuxNASWrapper, Tap, TapError


@pytest.mark.parametrize("names", [(0,), ("0", 1)])
def test_a_tap_names_layers(names):
    with pytest.raises(TapError, match="Tap names layers as list_taps prints them; found "):
        Tap(*names)


def test_one_layer_under_two_names_is_named_once():
    net = Cnn()
    net.alias = net.layer1
    with pytest.raises(TapError, match="primary 'alias' is the same layer as 'layer1'; name it once"):
        AuxNASWrapper(net, Cnn(), ["layer1", ("alias", "layer2")])
    with pytest.raises(TapError, match="primary 'alias' is the same layer as 'layer1'; name it once"):
        AuxNASWrapper(net, {"a": Cnn(), "b": Cnn()}, {"a": ["layer1"], "b": [("alias", "layer1")]})


def test_one_layer_described_in_two_ways_is_an_error():
    taps = {"a": [Tap("layer1", primary_layout="b c h w")], "b": [Tap("layer1", primary_layout="b c y x")]}
    with pytest.raises(TapError, match="a layer of the primary network must be described once"):
        AuxNASWrapper(Cnn(), {"a": Cnn(), "b": Cnn()}, taps)
