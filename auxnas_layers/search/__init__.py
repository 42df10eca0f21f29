"""Searches: edges and search spaces, gates, and what closes, keeps or fixes them."""

from auxnas_layers.search.edges import Architecture, Direction, Edge
from auxnas_layers.search.gate_bank import GateBank
from auxnas_layers.search.gates import ClampedGate, FixedGate, Gate, RelaxedBernoulliGate, SigmoidGate
from auxnas_layers.search.penalties import entropy_penalty, l1_penalty, linear_ramp
from auxnas_layers.search.searches import MTLNAS, AuxG, AuxNAS, FixedArchitecture, Search
from auxnas_layers.search.spaces import DepthLimited, EdgeMatrix, SearchSpace

__all__ = [
    "MTLNAS",
    "Architecture",
    "AuxG",
    "AuxNAS",
    "ClampedGate",
    "DepthLimited",
    "Direction",
    "Edge",
    "EdgeMatrix",
    "FixedArchitecture",
    "FixedGate",
    "Gate",
    "GateBank",
    "RelaxedBernoulliGate",
    "Search",
    "SearchSpace",
    "SigmoidGate",
    "entropy_penalty",
    "l1_penalty",
    "linear_ramp",
]
