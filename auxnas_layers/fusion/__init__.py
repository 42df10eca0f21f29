"""Fusions: what a layer returns from its own feature and those of its sources."""

from auxnas_layers.fusion.base import Fusion
from auxnas_layers.fusion.cross_stitch import CrossStitchFusion
from auxnas_layers.fusion.cross_task import CrossTaskFusion
from auxnas_layers.fusion.listener import Listener
from auxnas_layers.fusion.nddr import NDDRFusion
from auxnas_layers.fusion.projection import project

__all__ = ["CrossStitchFusion", "CrossTaskFusion", "Fusion", "Listener", "NDDRFusion", "project"]
