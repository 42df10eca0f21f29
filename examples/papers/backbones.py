"""VGG-16, ResNet-50 and ViT-B/16 with their taps, and the heads that make them single-task networks.

Each network is a `Net`: ``net(images)`` is ``net.predict(net.features(images))``, maps in the size of the
images. `small` narrows all layers, to try code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import timm
import torch.nn.functional as F
import torchvision
from tasks import Task
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.vgg import make_layers

from auxnas_layers import Listener, Tap

Features = Tensor | list[Tensor]


class Net(nn.Module):
    """A backbone and a head; maps come out at the resolution of the images."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def features(self, images: Tensor) -> Features:
        """What the head gets."""
        return self.backbone(images)

    def predict(self, features: Features) -> Tensor:
        """The head's output."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.predict(self.features(images)), images)


def resized(out: Tensor, like: Tensor) -> Tensor:
    """A map at the resolution of images or labels; vectors as they are."""
    return F.interpolate(out, like.shape[-2:], mode="bilinear", align_corners=True) if out.dim() == 4 else out


# VGG-16, as DeepLab-LargeFOV has it


def vgg16(pretrained: bool, small: bool) -> nn.Module:
    """13 convolutions with batch norm at stride 8, each with the pooling before it: the taps of MTL-NAS."""
    if small:
        widths = [8, 8, "M", 16, 16, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
        layers = make_layers(widths, batch_norm=True)
    else:
        weights = torchvision.models.VGG16_BN_Weights.DEFAULT if pretrained else None
        layers = torchvision.models.vgg16_bn(weights=weights).features
    blocks, pool = nn.Sequential(), []
    for layer in list(layers)[:-1]:
        if isinstance(layer, nn.Conv2d):
            blocks.append(nn.Sequential(*pool, layer))
            pool = []
        elif isinstance(layer, nn.MaxPool2d):
            pool = [nn.MaxPool2d(3, stride=2 if len(blocks) < 10 else 1, padding=1)]
        else:
            blocks[-1].append(layer)
    for block in blocks[10:]:
        for layer in block:
            if isinstance(layer, nn.Conv2d):
                layer.dilation, layer.padding = (2, 2), (2, 2)
    return blocks


def large_field_of_view(channels: int, outputs: int, hidden: int = 1024) -> nn.Module:
    """The head of DeepLab-LargeFOV."""
    return nn.Sequential(
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.Conv2d(channels, hidden, 3, padding=12, dilation=12),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(hidden, outputs, 1),
    )


# ResNet-50 at stride 8


class ResNet(nn.Module):
    """The four stages of a ResNet-50, without its classifier."""

    def __init__(self, pretrained: bool, small: bool) -> None:
        super().__init__()
        options = {"channels": (8, 8, 16, 16)} if small else {"pretrained": pretrained}
        net = timm.create_model("resnet50", output_stride=8, **options)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, images: Tensor) -> Tensor:
        """``(b, 2048, h/8, w/8)``."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))


# ViT-B/16 and its dense decoder

HOOKS = (2, 5, 8, 11)


class ViT(nn.Module):
    """A vision transformer that gives the tokens of four blocks as maps, as they are after fusion."""

    def __init__(self, pretrained: bool, small: bool) -> None:
        super().__init__()
        options = {"embed_dim": 24, "num_heads": 3} if small else {"pretrained": pretrained}
        self.net = timm.create_model("vit_base_patch16_224", num_classes=0, dynamic_img_size=True, **options)
        self.net.norm = nn.Identity()  # the decoder takes tokens before it

    def forward(self, images: Tensor) -> list[Tensor]:
        """Four maps ``(b, 768, h/16, w/16)``."""
        return self.net.forward_intermediates(images, indices=list(HOOKS), intermediates_only=True)


class DenseDecoder(nn.Module):
    """Maps at strides 4, 8, 16 and 32 from those of a ViT, added from the coarsest down, and a head."""

    def __init__(self, width: int, outputs: int, inner: int = 192) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(width, inner, 1) for _ in HOOKS)
        self.scale = nn.ModuleList(
            [
                nn.ConvTranspose2d(inner, inner, 4, 4),
                nn.ConvTranspose2d(inner, inner, 2, 2),
                nn.Identity(),
                nn.Conv2d(inner, inner, 3, 2, 1),
            ]
        )
        self.refine = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in HOOKS)
        self.head = nn.Sequential(
            nn.Conv2d(inner, inner // 2, 3, padding=1),
            nn.UpsamplingBilinear2d(scale_factor=2),
            nn.Conv2d(inner // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, outputs, 1),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """``(b, outputs, h/2, w/2)``."""
        levels = [scale(narrow(x)) for x, narrow, scale in zip(maps, self.narrow, self.scale)]
        total = levels[-1]
        for level, refine in zip(levels[::-1], self.refine):
            if level is not total:
                total = level + F.interpolate(total, level.shape[-2:], mode="bilinear", align_corners=True)
            total = total + refine(F.relu(total))
        return self.head(F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=True))


# All of them


class Pooled(nn.Module):
    """A classifier on the mean over a map, of several maps the last."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, outputs)

    def forward(self, features: Features) -> Tensor:
        """``(b, outputs)``."""
        last = features if isinstance(features, Tensor) else features[-1]
        return self.classifier(last.mean((2, 3)))


@dataclass(frozen=True)
class Backbone:
    """A backbone by its makers.

    Args:
        make: Makes it, from whether its weights are pretrained and whether it is small.
        channels: Of its last feature.
        dense: Makes the head for maps, from channels and outputs.
        taps: Names of its layers to join.
        stages: How many taps each of its stages has.
        sources: Names of those that a light auxiliary receives: what the head gets.
        stride: Of these, in pixels of the images.
        size: Of the images in training, (h, w).
        tokens: Whether its taps give tokens ``(b, 1 + h w, c)``.
        small: See above.
    """

    make: Callable[[bool, bool], nn.Module]
    channels: int
    dense: Callable[[int, int], nn.Module]
    taps: tuple[str, ...]
    stages: tuple[int, ...]
    sources: tuple[str, ...]
    stride: int
    size: tuple[int, int]
    tokens: bool = False
    small: bool = False

    def head(self, task: Task) -> nn.Module:
        """Of a task."""
        return (self.dense if task.dense else Pooled)(self.channels, task.outputs)

    def sources_for(self, task: Task) -> tuple[str, ...]:
        """What a light auxiliary receives: a classifier only the last."""
        return self.sources if task.dense else self.sources[-1:]

    def net(self, task: Task, pretrained: bool) -> Net:
        """The single-task network."""
        return Net(self.make(pretrained, self.small), self.head(task))


BLOCKS = [f"backbone.layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
CONVOLUTIONS = [f"backbone.{number}" for number in range(13)]
LAYERS = [f"backbone.net.blocks.{number}" for number in range(12)]
BACKBONES = {
    "vgg16": Backbone(
        make=vgg16,
        channels=512,
        dense=large_field_of_view,
        taps=tuple(CONVOLUTIONS),
        stages=(2, 2, 3, 3, 3),
        sources=("backbone.12",),
        stride=8,
        size=(321, 321),
    ),
    "resnet50": Backbone(
        make=ResNet,
        channels=2048,
        dense=DeepLabHead,
        taps=tuple(BLOCKS),
        stages=(3, 4, 6, 3),
        sources=("backbone.layer4.2",),
        stride=8,
        size=(321, 321),
    ),
    "vit_base": Backbone(
        make=ViT,
        channels=768,
        dense=DenseDecoder,
        taps=tuple(LAYERS),
        stages=(3, 3, 3, 3),
        sources=tuple(LAYERS[number] for number in HOOKS),
        stride=16,
        size=(224, 224),
        tokens=True,
    ),
}
SMALL = {
    "vgg16": replace(
        BACKBONES["vgg16"], channels=32, dense=partial(large_field_of_view, hidden=16), size=(32, 32), small=True
    ),
    "resnet50": replace(
        BACKBONES["resnet50"], channels=64, dense=partial(DeepLabHead, atrous_rates=(1, 2)), size=(32, 32), small=True
    ),
    "vit_base": replace(
        BACKBONES["vit_base"], channels=24, dense=partial(DenseDecoder, inner=16), size=(32, 32), small=True
    ),
}


class LightAux(nn.Module):
    """A head without a backbone, on the primary's features."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__()
        self.stride, self.head = backbone.stride, backbone.head(task)
        self.listeners = nn.ModuleList(Listener(backbone.channels) for _ in backbone.sources_for(task))

    def forward(self, images: Tensor) -> Tensor:
        """Maps come out at the resolution of the images."""
        places = [-(-size // self.stride) for size in images.shape[-2:]]
        maps = [listener(images, *places) for listener in self.listeners]
        return resized(self.head(maps if len(maps) > 1 else maps[0]), images)

    @staticmethod
    def taps(backbone: Backbone, task: Task) -> list[Tap]:
        """What it receives, and where."""
        layout = "b 1+(h w) c" if backbone.tokens else "b c h w"
        return [Tap(name, f"listeners.{i}", primary_layout=layout) for i, name in enumerate(backbone.sources_for(task))]
