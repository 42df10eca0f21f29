"""What neighbouring papers would change of the default: steps without the auxiliary, halves that share no level."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from demo import PaperSearch
from methods import STOP_RULE, Joined, Method
from variants import ABLATIONS

from auxnas_layers import AuxNAS

CUT = PaperSearch(l1=0.0)  # edges into the primary never close, and are cut after the last step
LATE = AuxNAS(close=(0.7, 0.9))


@dataclass(frozen=True)
class Dropped(Joined):
    """Joined networks of which the primary trains alone in some steps (Elastic Architecture Search, arXiv 2108.01224).

    Args:
        drop: Share of these steps, which are drawn at random, the same in each run.
    """

    drop: float = 0.0

    def taking_part(self, auxes: Sequence[str], step: int, progress: float) -> Sequence[str]:
        """None of them in the steps that are drawn."""
        drawn = torch.rand((), generator=torch.Generator().manual_seed(step))
        return [] if drawn < self.drop else auxes


LEARNED = ABLATIONS["gates towards the auxiliary"]["gates learned on another half"]
NEIGHBOURS: dict[str, dict[str, Method]] = {
    "edges close by 0.4": {"dropped in half of the steps": Dropped(drop=0.5, **STOP_RULE)},
    "edges close by 0.9": {
        "closing from 0.7 to 0.9": Joined(search=LATE, **STOP_RULE),
        "closing from 0.7 to 0.9, dropped in half": Dropped(search=LATE, drop=0.5, **STOP_RULE),
    },
    "edges cut at the end": {
        "cut at the end, dropped in a quarter": Dropped(search=CUT, drop=0.25, **STOP_RULE),
        "cut at the end, dropped in half": Dropped(search=CUT, drop=0.5, **STOP_RULE),
    },
    "gates towards the auxiliary": {"gates learned on other levels": replace(LEARNED, by_group=True)},
}
"""By where they change it."""
