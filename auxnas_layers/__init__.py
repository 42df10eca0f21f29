"""Use auxiliary labels to make a primary network better, at no cost at inference.

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

from auxnas_layers.alignment import Alignment, explained_loss
from auxnas_layers.architecture import Architecture, Edge
from auxnas_layers.cost import Cost, CostReport
from auxnas_layers.errors import AuxiliaryWarning, AuxNASError, ExportError, LayoutError, SearchError, TapError
from auxnas_layers.export import ExportReport
from auxnas_layers.fusion import CrossStitchFusion, CrossTaskFusion, Fusion, NDDRFusion, project
from auxnas_layers.gates import ClampedGate, FixedGate, Gate, RelaxedBernoulliGate, SigmoidGate
from auxnas_layers.inputs import Inputs
from auxnas_layers.joint import AuxNASOutput
from auxnas_layers.layouts import Layout, align
from auxnas_layers.listener import Listener
from auxnas_layers.multitask import MultitaskNet
from auxnas_layers.search import (
    MTLNAS,
    AuxG,
    AuxNAS,
    FixedArchitecture,
    Search,
    entropy_penalty,
    l1_penalty,
    linear_ramp,
)
from auxnas_layers.search_space import DepthLimited, EdgeMatrix, SearchSpace
from auxnas_layers.suggest import TapList, suggest_taps
from auxnas_layers.survey import Seen, TapTable, list_taps
from auxnas_layers.taps import Tap
from auxnas_layers.wrapper import AuxNASWrapper

__version__ = "0.1.0"

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
    "ClampedGate",
    "Cost",
    "CostReport",
    "CrossStitchFusion",
    "CrossTaskFusion",
    "DepthLimited",
    "Edge",
    "EdgeMatrix",
    "ExportError",
    "ExportReport",
    "FixedArchitecture",
    "FixedGate",
    "Fusion",
    "Gate",
    "Inputs",
    "Layout",
    "LayoutError",
    "Listener",
    "MultitaskNet",
    "NDDRFusion",
    "RelaxedBernoulliGate",
    "Search",
    "SearchError",
    "SearchSpace",
    "Seen",
    "SigmoidGate",
    "Tap",
    "TapError",
    "TapList",
    "TapTable",
    "align",
    "entropy_penalty",
    "explained_loss",
    "l1_penalty",
    "linear_ramp",
    "list_taps",
    "project",
    "suggest_taps",
]
