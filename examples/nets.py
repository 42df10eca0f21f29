"""A small network for dense prediction, written without a thought of auxiliary tasks."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.inner = nn.Sequential(conv(width, width), second, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


def twice_as_large(maps: Tensor) -> Tensor:
    """Maps at twice the resolution."""
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


class Net(nn.Module):
    """Images ``(b, 3, h, w)`` to maps ``(b, outputs, h, w)``, at a quarter and an eighth of the resolution."""

    def __init__(self, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.stage1 = conv(3, width, kernel=5, stride=4)
        self.stage2 = nn.Sequential(conv(width, 2 * width), Residual(2 * width))
        self.stage3 = nn.Sequential(conv(2 * width, 4 * width, stride=2), Residual(4 * width))
        self.stage4 = Residual(4 * width)
        self.up = nn.Conv2d(4 * width, 2 * width, 1)
        self.head = nn.Sequential(conv(2 * width, 2 * width), nn.Conv2d(2 * width, 4 * outputs, 1), nn.PixelShuffle(2))

    def features(self, images: Tensor) -> Tensor:
        """All but the head: ``(b, 2 * width, h / 4, w / 4)``."""
        fine = self.stage2(self.stage1(images))
        coarse = self.up(self.stage4(self.stage3(fine)))
        return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)

    def predict(self, features: Tensor) -> Tensor:
        """The head's map at the images' resolution."""
        return twice_as_large(self.head(features))

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))


class SharedBackbone(Net):
    """The same network with a second head: the usual way to learn two tasks."""

    def __init__(self, outputs: int, aux_outputs: int) -> None:
        super().__init__(outputs)
        self.aux_head = Net(aux_outputs).head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.predict(features), twice_as_large(self.aux_head(features))
