"""The images of a run: those to train on, those that choose the epoch, those for the test."""

from pathlib import Path
from typing import Any

import cityscapes
import nyuv2
import taskonomy
import torch
from processes import Place
from recipes import evaluation, training
from torch.utils.data import Dataset, Subset
from torchvision.tv_tensors import Image

DATA: dict[str, Any] = {"nyuv2": nyuv2, "cityscapes": cityscapes, "taskonomy": taskonomy}
Samples = Dataset[dict[str, Any]]


class Images:
    """A data set under the transforms of a backbone.

    Args:
        data: Its name.
        root: Its folder.
        tasks: The tasks whose labels are read.
        backbone: Name of the backbone, which says how images are changed.
        size: Of the backbone's images.
        held_out: Share of the training images that choose the epoch.
    """

    def __init__(
        self, data: str, root: Path, tasks: tuple[str, ...], backbone: str, size: tuple[int, int], held_out: float
    ) -> None:
        shape = backbone, size, DATA[data].RESOLUTION
        every, test = (DATA[data].Samples(root, train, tasks) for train in (True, False))
        judged = OfImage(evaluation(*shape))
        self.train, self.test = Transformed(every, training(*shape)), Transformed(test, judged)
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
        count = round(held_out * len(every))
        self.numbers, self.held_out = order[count:], Subset(Transformed(every, judged), order[:count])

    def of_epoch(self, epoch: int, place: Place, halves: bool) -> list[Samples]:
        """What this process trains on, in the order of an epoch; in two halves, or all of it."""
        order = torch.randperm(len(self.numbers), generator=torch.Generator().manual_seed(epoch)).tolist()
        mine = [self.numbers[number] for number in order[place.rank :: place.world]]
        return [Subset(self.train, part) for part in ([mine[::2], mine[1::2]] if halves else [mine])]


class Transformed(Samples):
    """Samples under a transform."""

    def __init__(self, samples: Any, transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.transform(self.samples[number])


class OfImage:
    """A transform of the image of a sample alone."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"image": self.transform(Image(sample["image"]))}
