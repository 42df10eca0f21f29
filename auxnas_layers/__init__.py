"""Use auxiliary labels to make a primary network better, at no cost at inference.

What a training loop needs is here. Everything else is in the packages: gates, search spaces and what a search of one's
own needs in `search`, `Fusion` in `fusion`, layouts in `features`, reports in `export`, pictures in `plot`.

>>> import torch
>>> from torch import nn
>>> primary, aux = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)) for outputs in (1, 3))
>>> wrapper = AuxNASWrapper(primary, aux, taps=["0"], example_inputs=torch.ones(2, 4))
>>> for step in range(10):
...     out = wrapper(torch.ones(2, 4))
...     loss = out.primary.sum() + out.aux.sum() + wrapper.search_penalty(step / 10)
>>> net = wrapper.export_primary()
>>> wrapper.export_report.exact
True
"""

import importlib
import warnings
from typing import Any

from auxnas_layers._engine.joint import AuxNASOutput
from auxnas_layers.alignment import Alignment, explained_loss
from auxnas_layers.errors import (
    AuxiliaryWarning,
    AuxNASError,
    ExportError,
    LabelError,
    LayoutError,
    SearchError,
    TapError,
)
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.listing import list_taps
from auxnas_layers.features.suggest import suggest_taps
from auxnas_layers.features.taps import Tap
from auxnas_layers.fusion.cross_stitch import CrossStitchFusion
from auxnas_layers.fusion.cross_task import CrossTaskFusion
from auxnas_layers.fusion.listener import Listener
from auxnas_layers.fusion.nddr import NDDRFusion
from auxnas_layers.labels import known, split_batch
from auxnas_layers.sampling import MixedBatchSampler, PairedLoaders
from auxnas_layers.search.edges import Architecture, Edge
from auxnas_layers.search.searches import MTLNAS, AuxG, AuxNAS, FixedArchitecture
from auxnas_layers.search.spaces import DepthLimited
from auxnas_layers.stopping import StopRule
from auxnas_layers.surgery import surgery_backward
from auxnas_layers.wrapper import AuxNASWrapper

__version__ = "0.2.0"

__all__ = [
    "MTLNAS",
    "Alignment",
    "Architecture",
    "AuxG",
    "AuxNAS",
    "AuxNASError",
    "AuxNASOutput",
    "AuxNASWrapper",
    "AuxiliaryWarning",
    "CrossStitchFusion",
    "CrossTaskFusion",
    "DepthLimited",
    "Edge",
    "ExportError",
    "FixedArchitecture",
    "Inputs",
    "LabelError",
    "LayoutError",
    "Listener",
    "MixedBatchSampler",
    "NDDRFusion",
    "PairedLoaders",
    "SearchError",
    "StopRule",
    "Tap",
    "TapError",
    "explained_loss",
    "known",
    "list_taps",
    "split_batch",
    "suggest_taps",
    "surgery_backward",
]

_RENAMED = {"Seen": "LayerInfo"}
_MOVED = {
    "export": "Cost CostReport ExportReport MultitaskNet",
    "features": "LayerInfo Layout TapList TapTable align",
    "fusion": "Fusion project",
    "search": "ClampedGate EdgeMatrix FixedGate Gate RelaxedBernoulliGate Search SearchSpace SigmoidGate "
    "entropy_penalty l1_penalty linear_ramp",
}


def __getattr__(name: str) -> Any:
    """Names of version 0.1 that now live in a package, with a warning that says where."""
    new = _RENAMED.get(name, name)
    for package, names in _MOVED.items():
        if new in names.split():
            place = f"auxnas_layers.{package}"
            warnings.warn(f"{name} has moved: from {place} import {new}", DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(place), new)
    raise AttributeError(f"module 'auxnas_layers' has no attribute {name!r}")
