"""`plot_gates`: every gate over the progress of training."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from auxnas_layers.plot.drawing import COLOURS
from auxnas_layers.search.edges import Architecture, Direction

_MANY = 8  # edges of one direction, from which on they are thin beside their mean

_Points = list[tuple[float, float]]


def plot_gates(history: Sequence[tuple[float, Architecture]], ax: Axes | None = None) -> Axes:
    """Draw every gate over the progress of training: solid into the primary, dashed into an auxiliary.

    A direction with more than 8 edges has thin lines for its gates and a thick one for their mean.

    Args:
        history: Pairs of progress, in [0, 1], and the architecture at that time, as `wrapper.architecture()` gave it.
        ax: Axes to draw in; those of a new figure by default.

    Returns:
        The axes; ``ax.figure.savefig("gates.png")`` saves the picture.

    Raises:
        ValueError: If the history is empty.

    >>> from auxnas_layers import Edge
    >>> start = Architecture((Edge("aux_to_primary", 0, 0, 0.5, True),))
    >>> end = Architecture((Edge("aux_to_primary", 0, 0, 0.0, False),))
    >>> len(plot_gates([(0.0, start), (1.0, end)]).lines)
    1
    """
    if not history:
        raise ValueError("there is no history: collect (step / total_steps, wrapper.architecture()) in training")
    beside: dict[str, Any] = {} if ax else {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax = ax or plt.subplots(figsize=(7, 4), layout="constrained")[1]
    handles = [
        _draw(ax, direction, gates, COLOURS[i % len(COLOURS)]) for i, (direction, gates) in enumerate(_read(history))
    ]
    ax.legend(handles=handles, fontsize="small", frameon=False, **beside)
    times = [time for time, _ in history]
    ax.set(xlabel="progress of training", ylabel="gate", xlim=(min(times), max(times)))
    return ax


def _read(history: Sequence[tuple[float, Architecture]]) -> list[tuple[Direction, list[_Points]]]:
    """The course of each gate, by direction; an edge may end before training does, by `remove_aux_`."""
    gates: dict[Direction, dict[tuple[int, int], _Points]] = {}
    for time, architecture in history:
        for edge in architecture:
            gates.setdefault(edge.direction, {}).setdefault((edge.source, edge.target), []).append((time, edge.gate))
    return [(direction, list(side.values())) for direction, side in gates.items()]


def _draw(ax: Axes, direction: Direction, gates: Sequence[_Points], colour: str) -> Line2D:
    """Draw the gates of one direction; returns what stands for them in the legend."""
    style, label = "-" if direction.inward else "--", direction.replace("_", " ")
    many = len(gates) > _MANY
    for points in gates:
        ax.plot(*zip(*points, strict=True), style, color=colour, lw=0.6 if many else 1, alpha=0.35 if many else 0.8)
    if not many:
        return Line2D([], [], ls=style, color=colour, label=label)
    at: dict[float, list[float]] = {}
    for time, gate in (point for points in gates for point in points):
        at.setdefault(time, []).append(gate)
    ax.plot(list(at), [mean(found) for found in at.values()], style, color=colour, lw=2.5)
    return Line2D([], [], ls=style, color=colour, lw=2.5, label=f"{label}: {len(gates)} gates, mean")
