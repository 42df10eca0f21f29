"""Features: taps, layouts, what layers return, and dry runs that look at it."""

from auxnas_layers.features.align import align
from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.layouts import Layout
from auxnas_layers.features.listing import TapTable, list_taps
from auxnas_layers.features.suggest import TapList, suggest_taps
from auxnas_layers.features.taps import Tap

__all__ = ["Inputs", "LayerInfo", "Layout", "Tap", "TapList", "TapTable", "align", "list_taps", "suggest_taps"]
