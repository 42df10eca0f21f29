"""Pictures: of the networks and their edges, of gates over training, of a training step's cost; needs matplotlib."""

from auxnas_layers.plot.cost import plot_cost
from auxnas_layers.plot.edges import plot_edges
from auxnas_layers.plot.gates import plot_gates
from auxnas_layers.plot.networks import plot_networks

__all__ = ["plot_cost", "plot_edges", "plot_gates", "plot_networks"]
