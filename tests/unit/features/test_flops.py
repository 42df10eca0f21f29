"""FLOPs of networks and of the edges between them."""

import pytest
import torch
from pairs import IMAGES
from torch import nn
from zoo import Cnn, Vit

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper, Inputs
from auxnas_layers.features import LayerInfo, Layout
from auxnas_layers.features.flops import count_flops, edge_flops


def feature(shape, layout):
    return LayerInfo(calls=1, shape=shape, layout=Layout(layout))


def test_flops_of_a_convolution_are_two_for_each_weight_and_position():
    net = nn.Conv2d(3, 5, 3, bias=False)
    assert count_flops(net, Inputs((IMAGES,))) == 2 * net.weight.numel() * 6 * 6 * 4


def test_a_transformer_layer_is_counted_where_nobody_asks_for_gradients():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    with torch.no_grad():
        assert count_flops(layer, Inputs((torch.randn(3, 5, 8),))) >= 2 * 3 * 5 * weights


def test_an_edge_costs_two_for_each_pair_of_channels_and_position_of_its_target():
    map_, tokens = feature((4, 3, 6, 5), "b c h w"), feature((4, 7, 8), "b n c")
    to_aux, to_primary = 2 * 3 * 8 * 4 * 7, 2 * 3 * 8 * 4 * 30
    assert edge_flops([(map_, tokens)], inward=False) == to_aux
    assert edge_flops([(map_, tokens)], inward=True) == to_aux + to_primary


@pytest.mark.parametrize("taps, edges", [(1, 1), (2, 3), (3, 6), (4, 9), (12, 33)])
def test_each_tap_receives_from_three(taps, edges):
    one = feature((1, 1), "b c")
    assert edge_flops([(one, one)] * taps, inward=False) == 2 * edges
    assert edge_flops([(one, one)] * taps, inward=True) == 4 * edges


@pytest.mark.parametrize("search", [AuxNAS(), AuxG()], ids=["aux-nas", "aux-g"])
@pytest.mark.parametrize("kind", [Cnn, Vit])
def test_the_estimate_is_what_the_wrapper_costs(kind, search):
    nets, taps = (Cnn(), kind()), [("layer1", "blocks.0"), ("layer2", "blocks.1")]
    wrapper = AuxNASWrapper(*nets, ["layer1", "layer2"] if kind is Cnn else taps, search=search, example_inputs=IMAGES)
    layers = {(layer.role, layer.name): info for layer, info in wrapper._layers.items()}
    names = [("layer1", "layer1"), ("layer2", "layer2")] if kind is Cnn else taps
    pairs = [(layers["primary", a], layers["aux", b]) for a, b in names]
    cost = wrapper.cost(IMAGES)
    edges = edge_flops(pairs, inward=isinstance(search, AuxNAS))
    assert cost.training.flops == cost.primary.flops + cost.auxiliary.flops + edges > edges > 0


def test_the_network_is_left_unchanged():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    state = torch.get_rng_state()
    count_flops(net, Inputs((torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),)))
    assert net.training and not net[1].num_batches_tracked and torch.equal(torch.get_rng_state(), state)
