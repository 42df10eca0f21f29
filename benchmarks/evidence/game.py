"""Frames of a real game: depth, classes of things, their outlines and surface normals, each helped by the others."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from backbones import RESNET_TAPS, VIT_TAPS, ResNet, Vit
from baselines import HEARS, TAPS, ListeningHead
from demo import Net, doom
from problem import Aux, Batch, Errors, Loss, Problem
from study import FRAMES, VALIDATION_LEVELS
from torch import Tensor, nn

LEVELS = 48  # to train on and to choose by
OUTPUTS = {"depth": 1, "segmentation": 6, "normals": 3, "outlines": 1}
KEYS = {"depth": "primary", "segmentation": "aux", "normals": "normals", "outlines": "outlines"}  # in the frames
LEAST_VALID = 0.1  # of the pixels of a frame, where normals are the primary task


def load(primary: str, auxes: Sequence[str], fast: bool) -> dict[str, Batch]:
    """Frames of 38 training levels, 10 validation levels and 20 test levels, 60 of each; or one of each, made up."""
    train, test = made_up() if fast else doom.load(Path("data"), FRAMES)
    if "outlines" in auxes:
        train, test = ({**part, "outlines": outlines(part["aux"])} for part in (train, test))
    return split(train, test, {"primary": KEYS[primary]} | {aux: KEYS[aux] for aux in auxes})


def split(train: Batch, test: Batch, keys: Mapping[str, str]) -> dict[str, Batch]:
    """The last 10 of 48 training levels are for validation; labels get new names, each here with its old one."""
    first = len(train["image"]) * (LEVELS - VALIDATION_LEVELS) // LEVELS
    parts = {
        "train": {key: values[:first] for key, values in train.items()},
        "validation": {key: values[first:] for key, values in train.items()},
        "test": test,
    }
    keys = {"input": "image"} | dict(keys)
    parts = {name: {new: part[old] for new, old in keys.items()} for name, part in parts.items()}
    return {name: with_normals(part) if keys["primary"] == "normals" else part for name, part in parts.items()}


def with_normals(part: Batch) -> Batch:
    """The frames of which enough pixels have a normal."""
    enough = valid(part["primary"]).float().mean((1, 2)) >= LEAST_VALID
    return {key: values[enough] for key, values in part.items()}


def outlines(classes: Tensor) -> Tensor:
    """1 where the 3 x 3 pixels around a pixel are not all of one class: ``(b, 1, h, w)``."""
    classes = classes.unsqueeze(1).float()
    most, least = F.max_pool2d(classes, 3, 1, 1), -F.max_pool2d(-classes, 3, 1, 1)
    return (most > least).float()


def made_up() -> tuple[Batch, Batch]:
    """Smooth noise in the format of the frames, one for each level."""
    noise = torch.randn(LEVELS + 20, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, size=doom.SIZE, mode="bilinear", align_corners=False)
    classes = smooth[:, :3].sum(1).mul(2).add(3).clamp(0, 5).long()
    frames = {
        "image": smooth[:, :3].sigmoid(),
        "primary": smooth[:, 3:] + 1,
        "aux": classes,
        "normals": F.normalize(smooth[:, :3]) * (classes > 0).unsqueeze(1),
    }
    return {key: values[:LEVELS] for key, values in frames.items()}, {k: v[LEVELS:] for k, v in frames.items()}


def mirror(batch: Batch, random: torch.Generator, normals: str) -> Batch:
    """Mirror each frame with probability 1/2, and with it the sideways part of its normals, under the key `normals`."""
    mirrored = torch.rand(len(batch["input"]), generator=random) < 0.5
    flipped = {key: values.flip(-1) for key, values in batch.items()}
    if normals in batch:
        flipped[normals] *= torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    return {
        key: torch.where(mirrored.view(-1, *[1] * (values.dim() - 1)), flipped[key], values)
        for key, values in batch.items()
    }


def valid(normals: Tensor) -> Tensor:
    """Where there is a normal: ``(b, h, w)``."""
    return (normals != 0).any(1)


def normal_loss(outputs: Tensor, normals: Tensor) -> Tensor:
    """1 - cosine, mean over the pixels that have a normal."""
    where = valid(normals)
    return ((1 - F.cosine_similarity(outputs, normals)) * where).sum() / where.sum().clamp(min=1)


def normal_errors(outputs: Tensor, normals: Tensor) -> Tensor:
    """Mean angle in degrees over the pixels of each frame that have a normal; of vectors of any length."""
    where = valid(normals)
    half = (F.normalize(outputs) - F.normalize(normals)).norm(dim=1).div(2).clamp(max=1)
    return (2 * half.asin().rad2deg() * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)


def depth_errors(outputs: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute error of the log depth of each frame, x 1000."""
    return 1000 * (outputs - depth).abs().mean((1, 2, 3))


def class_errors(outputs: Tensor, classes: Tensor) -> Tensor:
    """Pixels of each frame given a wrong class, in %."""
    return 100 * (outputs.argmax(1) != classes).float().mean((1, 2))


LOSSES: dict[str, Loss] = {
    "depth": F.l1_loss,
    "segmentation": F.cross_entropy,
    "normals": normal_loss,
    "outlines": F.binary_cross_entropy_with_logits,
}
ERRORS: dict[str, tuple[str, Errors]] = {
    "depth": ("error of log depth x 1000", depth_errors),
    "segmentation": ("wrong pixels, %", class_errors),
    "normals": ("mean angle, degrees", normal_errors),
}
Make = Callable[[int], nn.Module]


def problem(
    primary: str,
    *auxes: str,
    note: str = "",
    net: Make = Net,
    aux_net: Make = Net,
    taps: Sequence[str | tuple[str, str]] = TAPS,
    hears: Sequence[tuple[str, str]] = HEARS,
    costly: bool = False,
    apart: bool = False,
) -> Problem:
    """A task on the frames and others that help it, by any network of which `ListeningHead` hears two layers."""
    metric, errors = ERRORS[primary]
    return Problem(
        name=f"{primary} <- {' + '.join(auxes)}{note}",
        metric=metric,
        load=partial(load, primary, auxes),
        net=partial(net, OUTPUTS[primary]),
        loss=LOSSES[primary],
        errors=errors,
        auxes={
            aux: Aux(
                partial(aux_net, OUTPUTS[aux]), LOSSES[aux], taps, head=(partial(ListeningHead, OUTPUTS[aux]), hears)
            )
            for aux in auxes
        },
        augment=partial(mirror, normals="primary" if primary == "normals" else "normals"),
        costly=costly,
        apart=apart,
        group=1 if primary == "normals" else FRAMES,  # with normals, some frames of a level are left out
    )


DEPTH_BY_SEGMENTATION = problem("depth", "segmentation")
DEPTH_BY_NORMALS = problem("depth", "normals")
DEPTH_BY_BOTH = problem("depth", "segmentation", "normals", costly=True)
DEPTH_BY_THREE = problem("depth", "segmentation", "normals", "outlines", costly=True)
NORMALS_BY_SEGMENTATION = problem("normals", "segmentation")
SEGMENTATION_BY_DEPTH = problem("segmentation", "depth")

_HEARS_RESNET = [(RESNET_TAPS[0], "fine"), (RESNET_TAPS[3], "coarse")]
_HEARS_VIT = [(VIT_TAPS[1], "fine"), (VIT_TAPS[3], "coarse")]
DEPTH_BY_SEGMENTATION_RESNET = problem(
    "depth",
    "segmentation",
    note=", ResNet-18",
    net=ResNet,
    aux_net=ResNet,
    taps=RESNET_TAPS,
    hears=_HEARS_RESNET,
    costly=True,
)
DEPTH_BY_SEGMENTATION_VIT = problem(
    "depth", "segmentation", note=", ViT", net=Vit, aux_net=Vit, taps=VIT_TAPS, hears=_HEARS_VIT, costly=True
)
DEPTH_BY_SEGMENTATION_MIXED = problem(
    "depth",
    "segmentation",
    note=", ResNet-18 and ViT",
    net=ResNet,
    aux_net=Vit,
    taps=list(zip(RESNET_TAPS, VIT_TAPS)),
    hears=_HEARS_RESNET,
    costly=True,
)
