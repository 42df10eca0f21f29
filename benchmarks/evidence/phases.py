"""The phases of a training: whole trainings one after the other, of a part of a model or of all of it."""

from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, PolynomialLR


@dataclass(frozen=True)
class Phase:
    """A training of its own: new optimisers, a whole schedule, data drawn from the start.

    Args:
        trains: "all": what the method trains. "primary": that network alone, on its labels. "auxiliaries": they alone,
            on all samples alike.
        length: Its steps, over those of the settings.
        rate: If above 0, Adam at this learning rate trains the weights, whatever the settings say, and without weight
            decay; its rate and that of the gates fall as ``(1 - progress) ** 0.9``. Otherwise it is AdamW by the
            settings, over one cycle.
    """

    trains: Literal["all", "primary", "auxiliaries"] = "all"
    length: float = 1
    rate: float = 0.0

    def schedules(self, weights: Optimizer, gates: Optimizer, steps: int) -> list[LRScheduler]:
        """Of the learning rates, each to be stepped once a step."""
        if self.rate:
            return [PolynomialLR(optimiser, steps, power=0.9) for optimiser in (weights, gates)]
        return [OneCycleLR(weights, [group["lr"] for group in weights.param_groups], steps)]
