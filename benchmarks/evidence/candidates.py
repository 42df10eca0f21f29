"""Candidates for an auxiliary task: on the game's frames beside depth, and of patients beside their CD4 at 96 weeks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cd4
import game
import torch
import torch.nn.functional as F
from baselines import ListeningHead
from cd4 import CD4
from demo import Net, doom
from problem import Aux, Batch, Loss, Problem
from study import FRAMES
from tabular import Row
from torch import Tensor

Label = Callable[[Batch], Tensor]
"""Labels of frames, made of what is known of them."""


@dataclass(frozen=True)
class Candidate:
    """A task on the game's frames: its labels, how many outputs its network has, its loss."""

    label: Label
    outputs: int
    loss: Loss


def coarser(times: int, frames: Batch) -> Tensor:
    """Depth of which each square of so many pixels has the mean."""
    return F.interpolate(F.avg_pool2d(frames["primary"], times), scale_factor=float(times))


def noise(frames: Batch) -> Tensor:
    """Normal, of each pixel its own."""
    return torch.randn(frames["primary"].shape, generator=torch.Generator().manual_seed(1))


def of_others(frames: Batch) -> Tensor:
    """Classes of another frame."""
    return frames["aux"][torch.randperm(len(frames["aux"]), generator=torch.Generator().manual_seed(2))]


FRAME_TASKS = {
    "depth": Candidate(lambda frames: frames["primary"], 1, F.l1_loss),
    "segmentation": Candidate(lambda frames: frames["aux"], 6, F.cross_entropy),
    "normals": Candidate(lambda frames: frames["normals"], 3, game.normal_loss),
    "outlines": Candidate(lambda frames: game.outlines(frames["aux"]), 1, F.binary_cross_entropy_with_logits),
    "depth, 4 times coarser": Candidate(partial(coarser, 4), 1, F.l1_loss),
    "depth, 20 times coarser": Candidate(partial(coarser, 20), 1, F.l1_loss),
    "brightness": Candidate(lambda frames: frames["image"].mean(1, keepdim=True), 1, F.l1_loss),
    "segmentation, upside down": Candidate(lambda frames: frames["aux"].flip(1), 6, F.cross_entropy),
    "segmentation, permuted": Candidate(of_others, 6, F.cross_entropy),
    "noise": Candidate(noise, 1, F.l1_loss),
}
PERMUTED = {"segmentation, permuted", "CD4 at 20 weeks, permuted"}


def load_frames(tasks: Mapping[str, str], fast: bool) -> dict[str, Batch]:
    """Frames with the labels of tasks, under other names; permuted and noisy labels of training frames alone count."""
    parts = game.made_up() if fast else doom.load(Path("data"), FRAMES)
    parts = tuple(part | {name: FRAME_TASKS[task].label(part) for name, task in tasks.items()} for part in parts)
    return game.split(*parts, {name: name for name in tasks})


def of_frames(primary: str, aux: str) -> Problem:
    """Two of `FRAME_TASKS` as primary and auxiliary task, under the networks of the demo."""
    like, tasks = game.DEPTH_BY_SEGMENTATION, {"primary": primary, "aux": aux}
    one, other = FRAME_TASKS[primary], FRAME_TASKS[aux]
    _, errors = game.ERRORS.get(primary, ("", game.depth_errors))
    head = partial(ListeningHead, other.outputs)
    joined = Aux(partial(Net, other.outputs), other.loss, game.TAPS, head=(head, game.HEARS))
    return replace(
        like,
        name=f"{primary} <- {aux}",
        load=partial(load_frames, tasks),
        net=partial(Net, one.outputs),
        loss=one.loss,
        errors=errors,
        auxes={"aux": joined},
        augment=partial(game.mirror, normals={primary: "primary", aux: "aux"}.get("normals", "")),
    )


PATIENT_TASKS: dict[str, Callable[[Row], float]] = {
    "CD4 at 20 weeks": lambda row: float(row["cd420"]),
    "CD8 at 20 weeks": lambda row: float(row["cd820"]),
    "days to the event or the end": lambda row: float(row["days"]),
    "whether there was an event": lambda row: float(row["cens"]),
    "whether treatment was broken off": lambda row: float(row["offtrt"]),
    "age": lambda row: float(row["age"]),
    "weight": lambda row: float(row["wtkg"]),
}
MADE_UP = "CD4 at 20 weeks, permuted", "noise"


def load_patients(task: str, fast: bool) -> dict[str, Batch]:
    """Patients whose auxiliary label is that of a task."""
    rows = [] if fast else cd4.read_package()
    patients = cd4.made_up() if fast else cd4.table(rows)
    count, random = len(patients["primary"]), torch.Generator().manual_seed(3)
    if task == "noise":
        column = torch.randn(count, generator=random)
    elif fast:
        column = patients["early"][:, 0]
    else:
        column = torch.tensor([PATIENT_TASKS[task.removesuffix(", permuted")](row) for row in rows])
    if task.endswith("permuted"):
        column = column[torch.randperm(count, generator=random)]
    counts = {"validation": 12, "test": 12} if fast else cd4.SPLITS
    return cd4.split(patients | {"early": column.unsqueeze(1)}, counts)


def of_patients(task: str) -> Problem:
    """CD4 at 96 weeks, and such an auxiliary task."""
    aux = CD4.auxes["early"]
    net, (head, hears) = partial(cd4.Mlp, cd4.columns, dropout=0.3), aux.head
    joined = replace(aux, net=net, head=(head.func, hears))
    return replace(CD4, name=f"CD4 at 96 weeks <- {task}", load=partial(load_patients, task), auxes={"early": joined})


CANDIDATES: dict[str, dict[str, Problem]] = {
    "depth": {name: of_frames("depth", name) for name in FRAME_TASKS if name != "depth"},
    "CD4 at 96 weeks": {name: of_patients(name) for name in (*PATIENT_TASKS, *MADE_UP)},
}
"""By primary task and candidate."""
