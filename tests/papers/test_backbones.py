"""Backbones, their taps and heads."""

import pytest
import torch
from backbones import BACKBONES, SMALL, LightAux, resized
from methods import within
from tasks import DEPTH, NORMALS, classification, segmentation
from torch import nn

from auxnas_layers import AuxG, AuxNASWrapper

TASKS = [segmentation(5), classification("object", 7)]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_real_network_has_the_papers_taps_at_their_strides(name):
    backbone = BACKBONES[name]
    assert len(backbone.taps) == {"vgg16": 13, "resnet50": 16, "vit_base": 12}[name] == sum(backbone.stages)
    seen = []
    with torch.device("meta"):
        net = backbone.net(segmentation(40), pretrained=False).eval()
        for tap in backbone.taps:
            net.get_submodule(tap).register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[1:])))
        out = net(torch.empty(1, 3, *backbone.size))
    assert out.shape == (1, 40, *backbone.size)
    if name == "vit_base":
        assert seen == [(197, 768)] * 12
    else:
        widths = {"vgg16": (64, 512), "resnet50": (256, 2048)}[name]
        assert (seen[0][0], seen[-1][0]) == widths and seen[-1][1:] == (41, 41)  # stride 8


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("name", BACKBONES)
def test_a_network_is_its_head_on_its_features(name, task):
    backbone = SMALL[name]
    net, images = backbone.net(task, pretrained=False).eval(), torch.randn(2, 3, *backbone.size)
    assert net(images).shape == ((2, 5, 32, 32) if task.dense else (2, 7))
    low = net.predict(net.features(images))
    assert low.shape[:2] == (2, task.outputs) and low.isfinite().all()
    assert net(torch.randn(1, 3, 48, 64)).shape[2:] == ((48, 64) if task.dense else ())


@pytest.mark.parametrize("task", [DEPTH, TASKS[1]], ids=lambda task: task.name)
@pytest.mark.parametrize("name", BACKBONES)
def test_a_light_auxiliary_receives_what_the_head_of_a_network_gets(name, task):
    backbone = SMALL[name]
    primary, light = backbone.net(NORMALS if task.dense else task, pretrained=False), LightAux(backbone, task)
    images = torch.randn(2, 3, *backbone.size)
    taps = LightAux.taps(backbone, task)
    space = torch.eye(len(taps)).tolist()  # the same level only
    search = AuxG(own_share=1.0, start="identity")  # what passes through is the feature itself
    wrapper = AuxNASWrapper(primary, light, taps, search=search, search_space=space, example_inputs=images).eval()
    expected = resized(light.head(primary.features(images)), images)
    torch.testing.assert_close(wrapper(images).aux, expected)


def test_the_papers_search_space_has_24_edges_in_each_direction():
    for name in ("vgg16", "vit_base"):
        assert sum(map(sum, within(BACKBONES[name].stages))) == 24
    assert within((2, 1)) == [[True, False, False], [True, True, False], [False, False, True]]


def test_vgg_keeps_the_weights_of_torchvision_but_not_its_last_pooling():
    from torchvision.models import vgg16_bn

    torch.manual_seed(0)
    own = BACKBONES["vgg16"].make(False, False)
    theirs = vgg16_bn(weights=None).features
    assert [tuple(p.shape) for p in own.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    pools = [layer for layer in own.modules() if isinstance(layer, nn.MaxPool2d)]
    assert [pool.stride for pool in pools] == [2, 2, 2, 1]
    dilated = [layer.dilation for layer in own.modules() if isinstance(layer, nn.Conv2d)]
    assert dilated == [(1, 1)] * 10 + [(2, 2)] * 3
