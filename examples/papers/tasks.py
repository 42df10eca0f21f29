"""The tasks of the papers: what a network puts out, its loss, and how it is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from maps import UNKNOWN_CLASS
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What a network learns.

    Args:
        name: Key of its labels in a sample.
        outputs: Channels of its output.
        loss: From outputs and labels to a scalar.
        scores: Makes what judges it.
        best: The score by which the best epoch is chosen; lower is better if it starts with "-".
        weight: Of its loss, where it is one of two (both papers: segmentation 1, normals 20).
        dense: Whether its output is a map, or one vector for each image.
        in_pixels: Whether its output counts pixels of the image.
    """

    name: str
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[], MetricCollection]
    best: str
    weight: float = 1.0
    dense: bool = True
    in_pixels: bool = False

    def better(self, scores: Mapping[str, float]) -> float:
        """The score by which epochs are compared, so that more is better."""
        value = scores[self.best.removeprefix("-")]
        return -value if self.best.startswith("-") else value


def mean_over(values: Tensor, known: Tensor) -> Tensor:
    """Mean of what is known; 0, still connected to the values, if nothing is."""
    return values[known].sum() / known.sum().clamp(min=1)


def together(metrics: dict[str, Metric]) -> MetricCollection:
    """Metrics that are updated at once; those of torchmetrics are shares, so they come times 100, in %."""
    return MetricCollection(metrics, compute_groups=False)


# Segmentation


def segmentation(classes: int) -> Task:
    """A class for each pixel; 255 is unknown."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, labels, ignore_index=UNKNOWN_CLASS, reduction="none")
        return mean_over(each, labels != UNKNOWN_CLASS)

    def scores() -> MetricCollection:
        options = {"num_classes": classes, "ignore_index": UNKNOWN_CLASS}
        right = MulticlassAccuracy(average="micro", **options)
        return together({"mIoU": 100 * MulticlassJaccardIndex(**options), "pixels right": 100 * right})

    return Task("segmentation", classes, loss, scores, best="mIoU")


# Surface normals

WITHIN = (11.25, 22.5, 30.0)
BINS = 18_000  # of 0.01 degrees, for the median


def normals_loss(outputs: Tensor, normals: Tensor) -> Tensor:
    """1 minus the cosine, over known pixels."""
    return mean_over(1 - F.cosine_similarity(outputs, normals, dim=1), normals.any(1))


class Angles(Metric):
    """Angles between predicted and true normals in degrees, over all known pixels; the median to 0.01 degrees.

    Args:
        encoded: As the papers measure it: on vectors as PNG files encode them, ``(v + 1) / 2``, all of which lie in one
            octant. These angles are about 0.4 times the true ones, and say little; they are only good for comparing
            with the papers' tables.
    """

    full_state_update = False

    def __init__(self, encoded: bool = False) -> None:
        super().__init__()
        self.encoded = encoded
        self.add_state("counts", torch.zeros(BINS + 1, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(len(WITHIN), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, normals: Tensor) -> None:
        """Add vectors of any length ``(b, 3, h, w)`` and unit vectors, zero where unknown."""
        known = normals.any(1)
        pair = [maps.movedim(1, -1)[known].double() for maps in (F.normalize(outputs.float(), dim=1), normals)]
        if self.encoded:
            pair = [(vectors + 1) / 2 for vectors in pair]
        angles = F.cosine_similarity(*pair, dim=1).clamp(-1, 1).acos().rad2deg()
        self.counts += torch.bincount((angles / 180 * BINS).long(), minlength=BINS + 1)
        self.total += angles.sum()
        self.hits += torch.stack([(angles <= limit).sum() for limit in WITHIN])

    def compute(self) -> Scores:
        """Of all pixels so far."""
        count = self.counts.sum().clamp(min=1)
        middle = (self.counts.cumsum(0) >= (count + 1) // 2).int().argmax()
        scores = {"mean": self.total / count, "median": (middle + 0.5) * 180 / BINS}
        scores |= {f"within {limit}": 100 * hits / count for limit, hits in zip(WITHIN, self.hits)}
        return {name + ", encoded" * self.encoded: value for name, value in scores.items()}


def angles() -> MetricCollection:
    """True angles, and those of the papers."""
    return together({"true": Angles(), "encoded": Angles(encoded=True)})


NORMALS = Task("normals", 3, normals_loss, angles, best="within 11.25", weight=20.0)


# Depth and disparity


def distance_loss(outputs: Tensor, distances: Tensor) -> Tensor:
    """L1, over known pixels."""
    return mean_over((outputs - distances).abs(), distances != 0)


class Distances(Metric):
    """Mean absolute error in the unit of the labels, and mean relative error in %, over all known pixels."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("absolute", "relative", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, distances: Tensor) -> None:
        """Add maps ``(b, 1, h, w)``; labels are 0 where unknown."""
        known = distances != 0
        true = distances[known].double()
        off = (outputs[known] - true).abs()
        self.absolute += off.sum()
        self.relative += (off / true).sum()
        self.count += known.sum()

    def compute(self) -> Scores:
        """Of all pixels so far."""
        count = self.count.clamp(min=1)
        return {"abs": self.absolute / count, "rel": 100 * self.relative / count}


def distances() -> MetricCollection:
    """Absolute and relative."""
    return together({"errors": Distances()})


DEPTH = Task("depth", 1, distance_loss, distances, best="-abs")
DISPARITY = Task("disparity", 1, distance_loss, distances, best="-abs", in_pixels=True)


# Classes of a whole image


class TopClasses(MulticlassAccuracy):
    """How often the most probable class of the label is among the most likely ones of the output."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add logits and probabilities, both ``(b, classes)``."""
        super().update(outputs, labels.argmax(1))


def classification(name: str, classes: int) -> Task:
    """Probabilities of classes, as another network gave them."""

    def scores() -> MetricCollection:
        tops = {k: TopClasses(classes, average="micro", top_k=min(k, classes)) for k in (1, 5)}
        return together({f"top {k}": 100 * metric for k, metric in tops.items()})

    return Task(name, classes, F.cross_entropy, scores, best="top 1", dense=False)
