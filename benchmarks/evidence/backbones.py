"""Networks for dense prediction on backbones of timm, with random weights; their heads are those of `nets.Net`.

Features of all are ``(b, 32, h / 4, w / 4)``, so that the head of any of them goes on the backbone of any other.
"""

import torch.nn.functional as F
from demo import Net, twice_as_large
from torch import Tensor, nn

WIDTH = 32  # channels of the features
RESNET_TAPS = ["trunk.layer1", "trunk.layer2", "trunk.layer3", "trunk.layer4"]
VIT_TAPS = ["trunk.blocks.0", "trunk.blocks.1", "trunk.blocks.2", "trunk.blocks.3"]


class ResNet(nn.Module):
    """ResNet-18 of output stride 16, its stages of a quarter of the width; sums them at a quarter of the resolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        import timm

        widths = (16, 32, 64, 128)
        self.trunk = timm.create_model(
            "resnet18", channels=widths, output_stride=16, features_only=True, out_indices=(1, 2, 3, 4)
        )
        self.up = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths)
        self.head = Net(outputs).head

    def features(self, images: Tensor) -> Tensor:
        stages = [up(stage) for up, stage in zip(self.up, self.trunk(images))]
        return sum((resized(stage, images) for stage in stages[1:]), stages[0])

    def predict(self, features: Tensor) -> Tensor:
        return twice_as_large(self.head(features))

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))


class Vit(nn.Module):
    """ViT of half the width of ViT-Ti, with four blocks, on patches of 10 x 10, for images of 60 x 80."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        from timm.models import VisionTransformer

        width = 96
        self.trunk = VisionTransformer(
            (60, 80), 10, embed_dim=width, depth=4, num_heads=3, class_token=False, global_pool="", num_classes=0
        )
        self.up = nn.Sequential(nn.Conv2d(width, 4 * WIDTH, 1), nn.PixelShuffle(2))
        self.head = Net(outputs).head

    def features(self, images: Tensor) -> Tensor:
        tokens = self.trunk.forward_features(images)
        return resized(self.up(tokens.mT.unflatten(-1, self.trunk.patch_embed.grid_size)), images)

    def predict(self, features: Tensor) -> Tensor:
        return twice_as_large(self.head(features))

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))


def resized(maps: Tensor, images: Tensor) -> Tensor:
    """Maps at a quarter of the images' resolution."""
    size = images.shape[-2] // 4, images.shape[-1] // 4
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
