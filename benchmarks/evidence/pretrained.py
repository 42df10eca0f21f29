"""Dense prediction from ImageNet weights: a whole network as trunk, and a small decoder, the same for every method.

Features of both networks are ``(b, 32, 16, 24)``, so that the head of either goes on the trunk of the other. The
decoder has no batch norm: only in the trunk does it matter what a batch is made of.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import game
import torch.nn.functional as F
from demo import doom, twice_as_large
from fashion import UPPER_BY_LOWER
from torch import Tensor, channels_last, nn, tensor
from weights import efficientnet_lite, mobilenet_v2

Trunk = tuple[nn.Sequential, Sequence[int], Sequence[float], Sequence[float]]
"""Four stages, at 1/4 to 1/32 of the resolution, their channels; mean and deviation of the inputs it was trained on."""

SIZE = 64, 96  # of images in the trunk; multiples of 32, the nearest to the frames' 60 x 80 from above
WIDTH = 32
TAPS = ["trunk.0", "trunk.1", "trunk.2", "trunk.3"]
HEARS = [("trunk.0", "fine"), ("trunk.2", "coarse")]


def mobilenet_trunk() -> Trunk:
    """MobileNetV2 without its last convolution and classifier."""
    layers = mobilenet_v2().features
    stages = nn.Sequential(layers[:4], layers[4:7], layers[7:14], layers[14:18])
    return stages, (24, 32, 96, 320), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lite_trunk(number: int = 0) -> Trunk:
    """EfficientNet-Lite without its last convolution and classifier."""
    net = efficientnet_lite(number)
    first = nn.Sequential(net.conv_stem, net.bn1, net.blocks[:2])
    stages = nn.Sequential(first, net.blocks[2], net.blocks[3:5], net.blocks[5:])
    widths = [about["num_chs"] for about in net.feature_info[1:]]
    return stages, widths, net.pretrained_cfg["mean"], net.pretrained_cfg["std"]


class Dense(nn.Module):
    """Images ``(b, 3, 60, 80)`` in [0, 1] to maps ``(b, outputs, 60, 80)``."""

    size: Sequence[int] = SIZE

    def __init__(self, trunk: Callable[[], Trunk], outputs: int) -> None:
        super().__init__()
        self.trunk, widths, mean, std = trunk()
        self.register_buffer("mean", tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", tensor(std).view(3, 1, 1), persistent=False)
        self.up = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths)
        layer = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.GroupNorm(8, WIDTH), nn.ReLU())
        self.head = nn.Sequential(layer, nn.Conv2d(WIDTH, 4 * outputs, 1), nn.PixelShuffle(2))
        self.to(memory_format=channels_last)  # a step takes two thirds of the time on a CPU

    def features(self, images: Tensor) -> Tensor:
        """The sum of all stages, at a quarter of the resolution."""
        x = resized((images - self.mean) / self.std, self.size).contiguous(memory_format=channels_last)
        maps = []
        for stage, up in zip(self.trunk, self.up):
            x = stage(x)
            maps.append(up(x))
        return sum((resized(coarse, maps[0].shape[-2:]) for coarse in maps[1:]), maps[0])

    def predict(self, features: Tensor) -> Tensor:
        """The head's map at the frames' resolution."""
        return resized(twice_as_large(self.head(features)), doom.SIZE)

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))


class Classifier(Dense):
    """Grey images ``(b, 1, 36, 36)`` in [0, 1] to logits ``(b, outputs)``."""

    size = 64, 64

    def __init__(self, trunk: Callable[[], Trunk], outputs: int) -> None:
        super().__init__(trunk, outputs)
        layer = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.GroupNorm(8, WIDTH), nn.ReLU())
        self.head = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, outputs))
        self.to(memory_format=channels_last)

    def features(self, images: Tensor) -> Tensor:
        """As of an image in colours."""
        return super().features(images.expand(-1, 3, -1, -1))

    def predict(self, features: Tensor) -> Tensor:
        """The head's logits."""
        return self.head(features)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at another resolution."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


MOBILENET, LITE = ", MobileNetV2", ", EfficientNet-Lite0"
TRUNKS: dict[str, Callable[[], Trunk]] = {MOBILENET: mobilenet_trunk, LITE: lite_trunk}
TASKS = (("depth", "segmentation"), ("normals", "segmentation"), ("segmentation", "depth"))
joined = partial(game.problem, taps=TAPS, hears=HEARS, costly=True, apart=True)
FINE_TUNED = [
    joined(primary, aux, note=note, net=partial(Dense, trunk), aux_net=partial(Dense, trunk))
    for note, trunk in TRUNKS.items()
    for primary, aux in TASKS
]
FINE_TUNED_MIXED = joined(
    "depth",
    "segmentation",
    note=", MobileNetV2 and EfficientNet-Lite0",
    net=partial(Dense, mobilenet_trunk),
    aux_net=partial(Dense, lite_trunk),
)
_net, _aux = partial(Classifier, mobilenet_trunk, 10), UPPER_BY_LOWER.auxes["lower"]
FINE_TUNED_GARMENTS = replace(
    UPPER_BY_LOWER,
    name=UPPER_BY_LOWER.name + MOBILENET,
    net=_net,
    auxes={"lower": replace(_aux, net=_net, taps=TAPS, head=(_aux.head[0], HEARS))},
    batch=8,
    costly=True,
    apart=True,
)
