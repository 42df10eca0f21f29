"""Gradient surgery on joined networks: what the losses do to the primary's weights is joined by an aggregator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from methods import STOP_RULE, Joined, Losses, Method
from torchjd.aggregation import Aggregator, PCGrad, UPGrad

from auxnas_layers import surgery_backward


@dataclass(frozen=True)
class Operated(Joined):
    """Joined networks; gradients of both losses in a weight of the primary are joined by an aggregator.

    UPGrad takes a mean of gradients where PCGrad takes a sum, as on a shared backbone.
    """

    aggregator: Callable[[], Aggregator] = UPGrad

    def backward(self, model: Any, losses: Losses) -> None:
        """The primary's gradients joined, where several losses reach it; all others as they are."""
        tasks = [loss for task, loss in losses.items() if task != "penalty"]
        if len(tasks) == 1:
            return super().backward(model, losses)
        surgery_backward(model, tasks, self.aggregator(), penalty=losses["penalty"])


OPERATED: dict[str, Method] = {
    "ours, PCGrad": Operated(aggregator=PCGrad, **STOP_RULE),
    "ours, UPGrad": Operated(aggregator=UPGrad, **STOP_RULE),
}
