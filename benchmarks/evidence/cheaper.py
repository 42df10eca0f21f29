"""What can be saved in a training step: an auxiliary that takes part in less of it, and edges of low rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from methods import STOP_RULE, Joined, Method
from problem import Batch

from auxnas_layers import AuxNAS, CrossTaskFusion

CLOSED = AuxNAS().close[1]  # progress at which edges into the primary have closed


@dataclass(frozen=True)
class Cheaper(Joined):
    """Joined networks whose auxiliary takes part in some steps, on fewer samples, or with frozen layers.

    Args:
        every: The auxiliary takes part in every so manieth step; in the others the primary is trained alone.
        others: Share of the samples without the primary label that a step keeps.
        freezes: Whether the layers of the auxiliary but its head keep their weights.
        after: Progress from which on all this holds.
    """

    every: int = 1
    others: float = 1.0
    freezes: bool = False
    after: float = 0.0

    def taking_part(self, auxes: Sequence[str], step: int, progress: float) -> Sequence[str]:
        """None of them in the steps between."""
        return [] if progress >= self.after and step % self.every else auxes

    def thinned(self, batch: Batch, labelled: int, progress: float) -> Batch:
        """All samples with the primary label, and the share of the others."""
        kept = self.others if progress >= self.after else 1.0
        return {key: values[: labelled + round(kept * (len(values) - labelled))] for key, values in batch.items()}

    def freeze_(self, model: Any, progress: float) -> None:
        """All layers of the auxiliary networks but ``head``; edges go on."""
        if self.freezes and progress >= self.after:
            for name, parameter in model.aux_net.named_parameters():
                parameter.requires_grad_(".head." in f".{name}")


EVERY_STEP = "ours, again"
RANKS = 4, 8, 16  # features have 16 to 64 channels
CHEAPER: dict[str, Method] = {
    EVERY_STEP: Cheaper(**STOP_RULE),
    "every 2nd step": Cheaper(every=2, **STOP_RULE),
    "every 4th step": Cheaper(every=4, **STOP_RULE),
    "every 2nd step once closed": Cheaper(every=2, after=CLOSED, **STOP_RULE),
    "every 4th step once closed": Cheaper(every=4, after=CLOSED, **STOP_RULE),
    "half as many other samples": Cheaper(others=1 / 2, **STOP_RULE),
    "a quarter as many other samples": Cheaper(others=1 / 4, **STOP_RULE),
    "backbone frozen once closed": Cheaper(freezes=True, after=CLOSED, **STOP_RULE),
    **{f"edges of rank {r}": Cheaper(fusion=partial(CrossTaskFusion, rank=r), **STOP_RULE) for r in RANKS},
}
"""By what of the auxiliary and the edges is trained; the first is ours, run on the machine of the others."""
