"""The losses of a step as one module, and the scores of a network over a data set."""

from collections.abc import Iterable
from typing import Any

import torch
from backbones import resized
from tasks import Task
from torch import Tensor, nn

from auxnas_layers import AuxNASOutput


class Losses(nn.Module):
    """The sum of a step's losses, in one forward: what DistributedDataParallel looks at for parameters in use.

    Args:
        model: Gives the primary and the auxiliary output, if there is one, and the penalty of its search.
        tasks: The primary one first.
    """

    def __init__(self, model: nn.Module, tasks: list[Task]) -> None:
        super().__init__()
        self.model, self.tasks = model, tasks

    def forward(self, batch: dict[str, Tensor], progress: float) -> Tensor:
        """Of all tasks, and of the search."""
        outputs = [out for out in tuple(self.model(batch["image"])) if out is not None]
        weights = [task.weight if len(outputs) > 1 else 1.0 for task in self.tasks]
        pairs = zip(weights, self.tasks, outputs)
        losses = [weight * task.loss(out.float(), batch[task.name]) for weight, task, out in pairs]
        return torch.stack(losses).sum() + self.model.search_penalty(progress)


def predict(net: nn.Module, images: Tensor) -> Tensor:
    """The primary output of one network, or of two."""
    with torch.no_grad():
        out = net(images)
    return (out.primary if isinstance(out, AuxNASOutput) else out).float()


def evaluate(net: nn.Module, batches: Iterable[dict[str, Any]], task: Task, device: torch.device) -> dict[str, float]:
    """Scores at the resolution of the labels, over all processes."""
    net.eval()
    metric = task.scores().to(device)
    for batch in batches:
        images, labels = batch["image"].to(device), batch[task.name].to(device)
        metric.update(at_resolution(predict(net, images), images, labels, task), labels)
    return {name: float(value) for name, value in metric.compute().items()}


def at_resolution(out: Tensor, images: Tensor, labels: Tensor, task: Task) -> Tensor:
    """A map at the resolution of the labels; shifts in pixels of the image become shifts in pixels of the labels."""
    sized = resized(out, labels)
    return sized * (labels.shape[-1] / images.shape[-1]) if task.in_pixels else sized
