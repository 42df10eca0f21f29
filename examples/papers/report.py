"""What a run says of itself: checks of its export, pictures, the constant predictor, tables."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from methods import Method
from tasks import UNKNOWN_CLASS, Task
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PUBLISHED = {
    ("nyuv2", "vit_base", "normals"): "single-task, ViT-B/16, within 11.25, encoded: 43.20 (best epoch on test)",
    ("nyuv2", "vit_base", "segmentation"): "single-task, ViT-B/16, mIoU: 33.98 (best epoch on test)",
}
"""From the names of released checkpoints of Aux-NAS: the only published figures that we could check."""


def verify(model: Any, method: Method | None, fresh: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Export, and compare with the single-task network: class, keys, FLOPs.

    Raises:
        RuntimeError: If they differ.
    """
    if method is None:
        return {}
    model.eval()
    if method.both:
        model.export_multitask()
        return {"exact": model.export_report.exact}
    open_edges = sum(edge.open and edge.direction.inward for edge in model.architecture())
    model.close_aux_to_primary_()
    net = model.export_primary()
    found = {"exact": model.export_report.exact, "open edges that were cut": open_edges}
    alike = type(net) is type(fresh) and list(net.state_dict()) == list(fresh.state_dict())
    if not alike or flops(net, size) != flops(fresh, size):
        raise RuntimeError("the exported network differs from a single-task network")
    return found


def flops(net: nn.Module, size: tuple[int, int]) -> int:
    """Of a forward of one image."""
    device = next(net.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 3, *size, device=device))
    return int(counter.get_total_flops())


def constant(task: Task, train: Any, test: Any, count: int = 50) -> dict[str, float]:
    """Scores of the mean normal of some training images, on as many test images; for other tasks nothing."""
    if task.name != "normals":
        return {}
    some = [train[number][task.name] for number in range(min(count, len(train)))]
    mean = torch.stack([normals.sum((1, 2)) for normals in some]).sum(0).view(1, 3, 1, 1)
    metric = task.scores()
    for number in range(min(count, len(test))):
        labels = torch.as_tensor(test[number][task.name])[None]
        metric.update(mean.expand_as(labels), labels)
    return {name: float(value) for name, value in metric.compute().items()}


def pictures(task: Task, label: Tensor, out: Tensor) -> dict[str, Tensor]:
    """The label of a sample and what was predicted, at its resolution, as images ``(3, h, w)`` in [0, 1]."""
    if task.name == "segmentation":
        shades = [out.argmax(0), label.where(label != UNKNOWN_CLASS, 0)]
        pair = [(shade / (task.outputs - 1)).expand(3, -1, -1) for shade in shades]
    elif task.name == "normals":
        pair = [(F.normalize(vectors, dim=0) + 1) / 2 for vectors in (out, label)]
    else:
        top = label.max().clamp(min=1e-6)
        pair = [(distances / top).clamp(0, 1).expand(3, -1, -1) for distances in (out, label)]
    return {f"{task.name}/predicted": pair[0], f"{task.name}/label": pair[1]}


def print_table(folder: Path) -> None:
    """A table for each data set, backbone and primary task: methods against single-task, over seeds."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.rglob("*.json"))]
    groups: dict[tuple[str, ...], dict[str, list[dict[str, float]]]] = {}
    for run in runs:
        about = run["options"]
        key = about["data"], about["backbone"], about["primary"]
        for way, scores in run["scores"].items():
            kept = {name: value for name, value in scores.items() if name != "epoch"}
            method = about["method"] if about["aux"] == "None" else f"{about['method']} <- {about['aux']}"
            groups.setdefault(key, {}).setdefault(f"{method}, {way}", []).append(kept)
        if run["constant"]:
            groups[key].setdefault("a constant vector", []).append(run["constant"])
    for key, rows in groups.items():
        names = list(next(iter(rows.values()))[0])
        print(f"\n{' | '.join(key)}\n\n| method | seeds | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}")
        for method, seeds in rows.items():
            means = [sum(scores[name] for scores in seeds) / len(seeds) for name in names]
            print(f"| {method} | {len(seeds)} | {' | '.join(f'{value:.2f}' for value in means)} |")
        if key in PUBLISHED:
            print(f"\nPublished: {PUBLISHED[key]}")
