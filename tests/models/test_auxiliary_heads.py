"""Networks of torchvision with auxiliary heads: a head becomes a light auxiliary, and the export has no trace of it.

docs/guides/deployment.md shows the functions.
"""

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models import googlenet, inception_v3
from torchvision.models.segmentation import deeplabv3_resnet50

from auxnas_layers import AuxG, AuxNASOutput, AuxNASWrapper, Listener


# --8<-- [start:head]
class AuxHead(nn.Module):
    """An auxiliary head, on a feature of the primary."""

    def __init__(self, head: nn.Module, channels: int, *places: int) -> None:
        super().__init__()
        self.feature, self.head, self.places = Listener(channels), head, places

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.feature(images, *self.places))


# --8<-- [end:head]


# --8<-- [start:deeplab]
def wrap_deeplab(net: nn.Module, images: Tensor) -> AuxNASWrapper:
    head, net.aux_classifier = net.aux_classifier, None  # deeplabv3_resnet50(aux_loss=True)
    height, width = images.shape[2] // 8, images.shape[3] // 8  # of backbone.layer3
    aux = AuxHead(head, 1024, height, width)
    taps = [("backbone.layer3", "feature")]
    return AuxNASWrapper(net, aux, taps, search=AuxG(own_share=0.0), example_inputs=images)


# --8<-- [end:deeplab]


# --8<-- [start:loss]
def deeplab_loss(out: AuxNASOutput, masks: Tensor) -> Tensor:  # masks: (samples, height, width)
    aux = interpolate(out.aux, size=masks.shape[1:], mode="bilinear", align_corners=False)
    return cross_entropy(out.primary["out"], masks) + 0.5 * cross_entropy(aux, masks)


# --8<-- [end:loss]


# --8<-- [start:inception]
def wrap_inception(net: nn.Module, images: Tensor) -> AuxNASWrapper:
    head, net.AuxLogits, net.aux_logits = net.AuxLogits, None, False  # images of 299 x 299
    taps = [("Mixed_6e", "feature")]
    return AuxNASWrapper(net, AuxHead(head, 768, 17, 17), taps, search=AuxG(own_share=0.0), example_inputs=images)


def wrap_googlenet(net: nn.Module, images: Tensor) -> AuxNASWrapper:
    heads = {"aux1": AuxHead(net.aux1, 512, 14, 14), "aux2": AuxHead(net.aux2, 528, 14, 14)}  # 224 x 224
    net.aux1, net.aux2, net.aux_logits = None, None, False
    taps = {"aux1": [("inception4a", "feature")], "aux2": [("inception4d", "feature")]}
    return AuxNASWrapper(net, heads, taps, search=AuxG(own_share=0.0), example_inputs=images)


# --8<-- [end:inception]


# --8<-- [start:checkpoint]
HEADS = ("aux_classifier.", "aux1.", "aux2.", "AuxLogits.")


def without_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(HEADS)}


# --8<-- [end:checkpoint]


def deeplab(aux: bool) -> nn.Module:
    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=aux)


def google(aux: bool) -> nn.Module:
    return googlenet(weights=None, num_classes=3, aux_logits=aux, init_weights=False, transform_input=False)


def inception(aux: bool) -> nn.Module:
    return inception_v3(weights=None, num_classes=3, aux_logits=aux, init_weights=False)


START = "# --8<-- [start:"
NETWORKS = {
    "DeepLabV3": (deeplab, wrap_deeplab, (2, 3, 64, 64), "layer3", "classifier"),
    "GoogLeNet": (google, wrap_googlenet, (2, 3, 224, 224), "inception4a", "fc"),
    "Inception v3": (inception, wrap_inception, (2, 3, 299, 299), "Mixed_6e", "fc"),
}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request):
    """A network with heads, its plain twin's maker, the wrapper, inputs, and its outputs before it was wrapped."""
    make, wrap, shape, *parts = NETWORKS[request.param]
    torch.manual_seed(0)
    net, images = make(True).eval(), torch.randn(shape)
    with torch.no_grad():
        before = net(images)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make(False).load_state_dict(net.state_dict())
    wrapper = wrap(net, images).eval()
    return make, wrapper, images, before, parts


def test_the_export_loads_into_the_network_without_heads_and_computes_the_same(case):
    make, wrapper, images, before, _ = case
    exported = wrapper.export_primary()
    assert wrapper.export_report.exact and wrapper.export_report.max_difference == 0
    plain = make(False).eval()
    plain.load_state_dict(exported.state_dict())
    with torch.no_grad():
        found = plain(images)
    wanted = before["out"] if isinstance(before, dict) else before
    assert torch.equal(found["out"] if isinstance(found, dict) else found, wanted)


def test_the_loss_of_a_head_trains_the_backbone_and_not_the_last_layers(case):
    _, wrapper, images, _, (trained, untouched) = case
    wrapper.zero_grad()
    aux = wrapper(images).aux
    sum(out.square().sum() for out in (aux.values() if isinstance(aux, dict) else [aux])).backward()
    gradients = {name: p.grad for name, p in wrapper.primary_net.named_parameters()}
    wrapper.zero_grad()
    assert any(f"{trained}." in name and g is not None and g.any() for name, g in gradients.items())
    assert all(g is None for name, g in gradients.items() if name.startswith(f"{untouched}."))


def test_the_loss_begins_as_that_of_the_network_with_its_head():
    torch.manual_seed(0)
    net, images, masks = deeplab(True).eval(), torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    with torch.no_grad():
        before = net(images)
        found = deeplab_loss(wrap_deeplab(net, images).eval()(images), masks)
    assert torch.equal(found, cross_entropy(before["out"], masks) + 0.5 * cross_entropy(before["aux"], masks))


@pytest.mark.parametrize("make", [deeplab, google, inception])
def test_a_checkpoint_without_its_heads_loads_strictly_and_computes_the_same(make):
    torch.manual_seed(0)
    net, plain, images = make(True).eval(), make(False).eval(), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        wanted = net(images)
        plain.load_state_dict(without_heads(net.state_dict()))
        found = plain(images)
    if make is deeplab:
        found, wanted = found["out"], wanted["out"]
    assert torch.equal(found, wanted)


def test_the_page_shows_every_function_of_this_file():
    text = (ROOT / "docs" / "guides" / "deployment.md").read_text()
    sections = [line[len(START) : -1] for line in Path(__file__).read_text().splitlines() if line.startswith(START)]
    assert len(sections) == 5
    for section in sections:
        assert f'--8<-- "tests/models/test_auxiliary_heads.py:{section}"' in text, section
