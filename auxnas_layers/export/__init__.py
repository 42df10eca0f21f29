"""Export: networks without the wrapper, with the proof that they compute what it does."""

from auxnas_layers.export.cost import Cost, CostReport
from auxnas_layers.export.multitask import MultitaskNet
from auxnas_layers.export.report import ExportReport

__all__ = ["Cost", "CostReport", "ExportReport", "MultitaskNet"]
