"""What the measurements take from examples/: the demo's data, networks and training, and the search as released."""

import sys
from pathlib import Path

sys.path.extend(  # last: a module there has the name of one here
    str(Path(__file__).parents[2] / "examples" / folder) for folder in ("", "papers")
)

import doom
import rooms
from nets import Net, Residual, SharedBackbone, conv, twice_as_large
from quickstart import BATCH, LEARNING_RATE, batches, error, fit, train_aux_nas, train_single_task
from released import PAPER, PaperSearch

__all__ = [
    "BATCH",
    "LEARNING_RATE",
    "PAPER",
    "Net",
    "PaperSearch",
    "Residual",
    "SharedBackbone",
    "batches",
    "conv",
    "doom",
    "error",
    "fit",
    "rooms",
    "train_aux_nas",
    "train_single_task",
    "twice_as_large",
]
