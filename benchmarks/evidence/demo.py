"""What the measurements take from the demo in examples/: data, networks, and how they are trained."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import doom
import rooms
from nets import Net, Residual, SharedBackbone, conv, twice_as_large
from quickstart import BATCH, LEARNING_RATE, batches, error, fit, train_aux_nas, train_single_task

__all__ = [
    "BATCH",
    "LEARNING_RATE",
    "Net",
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
