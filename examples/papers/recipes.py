"""The papers' settings, by backbone, each with where it comes from; "ours" where no source gives it.

[M] MTL-NAS: paper (CVPR 2020) and released configuration.  [A] Aux-NAS (ICLR 2024), released configuration.
"""

from dataclasses import dataclass

import torch
import torchvision.transforms.v2 as T
from maps import FILL, Normalise, RandomZoom, Resize
from torch import nn
from torch.optim import SGD, Adam, Optimizer

SCRATCH = "head."  # what has no pretrained weights


@dataclass(frozen=True)
class Recipe:
    """How a backbone is trained.

    Args:
        batch, joined_batch: Images in a step of one network, and of two.
        epochs: Over the training images.
        lr, joined_lr: Of pretrained weights in one network, and of all in two that start from trained ones.
        scratch: Factor of the learning rate of what starts from random weights.
        weight_decay, joined_weight_decay: Likewise.
        sgd: SGD with momentum 0.9; otherwise Adam.
        power: Learning rates fall as ``(1 - progress) ** power``.
    """

    batch: int
    joined_batch: int
    epochs: int
    lr: float
    joined_lr: float
    scratch: float
    weight_decay: float
    joined_weight_decay: float
    sgd: bool
    power: float = 0.9

    def optimiser(self, net: nn.Module, joined: bool) -> Optimizer:
        """Of a network's weights; of two networks, weights without their gates."""
        lr, decay = (self.joined_lr, self.joined_weight_decay) if joined else (self.lr, self.weight_decay)
        named = [(name, p) for name, p in net.named_parameters() if not name.startswith("gates.")]
        factors = {1.0: [p for name, p in named if SCRATCH not in name or joined]}
        factors[self.scratch] = factors.get(self.scratch, []) + [
            p for name, p in named if SCRATCH in name and not joined
        ]
        groups = [{"params": params, "lr": factor * lr} for factor, params in factors.items() if params]
        if self.sgd:
            return SGD(groups, lr, momentum=0.9, weight_decay=decay)
        return Adam(groups, lr, weight_decay=decay)


CNN = Recipe(  # 20,001 steps of 10 of 795 images [M]; for ResNet-50 [A] says "like VGG"
    batch=10,
    joined_batch=10,
    epochs=252,
    lr=1e-3,
    joined_lr=1e-3,
    scratch=10.0,  # of the last layer [M]; of the whole head here, since no weights of DeepLab are to be had: ours
    weight_decay=5e-4,
    joined_weight_decay=2.5e-4,  # [M]
    sgd=True,
)
VIT = Recipe(  # [A]
    batch=32,
    joined_batch=20,
    epochs=100,
    lr=1e-4,
    joined_lr=1e-4,
    scratch=30.0,  # 3e-3
    weight_decay=0.0,
    joined_weight_decay=0.0,
    sgd=False,  # [A] lowers rates of single-task networks when the test loss stalls; ours by the power, as for two
)
RECIPES = {"vgg16": CNN, "resnet50": CNN, "vit_base": VIT}


# Transforms


def training(backbone: str, size: tuple[int, int], resolution: tuple[int, int]) -> T.Transform:
    """Of a sample, from the resolution to which images of a data set are brought first to the crop's size."""
    if backbone == "vit_base":
        height = size[0]
        return T.Compose(
            [
                Resize(size),  # aspect lost [A]
                T.RandomHorizontalFlip(0.5),  # [A]
                T.RandomApply([T.RandomRotation(10, fill=FILL)], 0.2),  # [A] crops the corners; here they are unknown
                RandomZoom(
                    size, (height / (height - 1), height / (0.66 * height)), 0.3
                ),  # of 224, crops of 148 to 223 [A]
                normalise(backbone),
            ]
        )
    return T.Compose(
        [
            Resize(resolution),
            T.ColorJitter(saturation=0.05, hue=0.05),  # [M]
            RandomZoom(size, (0.5, 1.5)),  # [M]
            T.RandomHorizontalFlip(0.5),  # [M]
            normalise(backbone),
        ]
    )


def evaluation(backbone: str, size: tuple[int, int], resolution: tuple[int, int]) -> T.Transform:
    """Of the image of a sample alone: labels are judged at their own resolution."""
    return T.Compose([Resize(size if backbone == "vit_base" else resolution), normalise(backbone)])


def normalise(backbone: str) -> T.Transform:
    """As the pretrained weights want images."""
    if backbone == "vit_base":
        return Normalise(0.5, 0.5)  # [A]
    return Normalise(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))  # of torchvision: ours
