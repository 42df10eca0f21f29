"""Pictures of an architecture and of its gates during training; needs matplotlib (``auxnas_layers[plot]``)."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from auxnas_layers.features.taps import PRIMARY
from auxnas_layers.search.edges import Architecture, Direction


def plot_gates(history: Sequence[tuple[float, Architecture]], ax: Axes | None = None) -> Axes:
    """Draw every gate over the progress of training: solid into the primary, dashed into an auxiliary.

    Args:
        history: Pairs of progress, in [0, 1], and the architecture at that time, as `wrapper.architecture()` gave it.
        ax: Axes to draw in; the current ones by default.

    Raises:
        ValueError: If the history is empty.

    >>> from auxnas_layers import Edge
    >>> start = Architecture((Edge("aux_to_primary", 0, 0, 0.5, True),))
    >>> end = Architecture((Edge("aux_to_primary", 0, 0, 0.0, False),))
    >>> len(plot_gates([(0.0, start), (1.0, end)], plt.figure().gca()).lines)
    1
    """
    if not history:
        raise ValueError("there is no history: collect (step / total_steps, wrapper.architecture()) in training")
    ax = ax or plt.gca()
    times = [time for time, _ in history]
    gates: dict[tuple[Direction, int, int], list[tuple[float, float]]] = {}
    for time, architecture in history:  # an edge may end before training does, by remove_aux_
        for edge in architecture:
            gates.setdefault((edge.direction, edge.source, edge.target), []).append((time, edge.gate))
    lines: dict[Direction, Line2D] = {}
    for (direction, _, _), points in gates.items():
        colour = lines[direction].get_color() if direction in lines else f"C{len(lines)}"
        style = "-" if direction.inward else "--"
        (line,) = ax.plot(*zip(*points, strict=True), style, color=colour, lw=1, alpha=0.8)
        lines.setdefault(direction, line)
    names = [direction.replace("_", " ") for direction in lines]
    ax.legend(list(lines.values()), names, fontsize="small", frameon=False)
    ax.set(xlabel="progress of training", ylabel="gate", xlim=(min(times), max(times)))
    return ax


def plot_edges(architecture: Architecture, ax: Axes | None = None) -> Axes:
    """Draw the tapped layers by name and the edges between them, the thicker the larger the gate; closed ones dotted.

    Args:
        architecture: What `wrapper.architecture()` returned.
        ax: Axes to draw in; the current ones by default.

    >>> from auxnas_layers import Edge
    >>> ax = plot_edges(Architecture((Edge("primary_to_aux", 0, 1, 0.5, True),)), plt.figure().gca())
    """
    ax = ax or plt.gca()
    directions = dict.fromkeys(edge.direction for edge in architecture)
    roles = [PRIMARY, *dict.fromkeys(direction.aux for direction in directions)]
    taps = 1 + max((edge.target for edge in architecture), default=0)
    for edge in architecture:
        source, target = roles.index(edge.direction.source), roles.index(edge.direction.target)
        shift, colour = (0.06, "C0") if edge.direction.inward else (-0.06, "C1")
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": colour, "shrinkA": 9, "shrinkB": 9}
        arrow |= {"lw": 0.5 + 2 * edge.gate} if edge.open else {"lw": 0.8, "ls": ":", "alpha": 0.5}
        ax.annotate("", (edge.target + shift, -target), (edge.source + shift, -source), arrowprops=arrow)
    for row, role in enumerate(roles):
        ax.plot(range(taps), [-row] * taps, "o-", color="0.3", ms=10, lw=3, zorder=3)
        ax.text(-0.35, -row, role, ha="right", va="center")
    _write_names(architecture, roles, ax)
    ax.set(xlim=(-1.2, taps - 0.5), ylim=(0.2 - len(roles), 0.8), xlabel="tap", xticks=range(taps), yticks=[])
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    return ax


def _write_names(architecture: Architecture, roles: Sequence[str], ax: Axes) -> None:
    """Write the name of every layer beside its point: above the primary's, below an auxiliary's."""
    names = {}
    for edge in architecture:
        names[edge.source_layer.role, edge.source] = edge.source_name
        names[edge.target_layer.role, edge.target] = edge.target_name
    for (role, tap), name in names.items():
        row, above = roles.index(role), role == PRIMARY
        place = (tap, -row + (0.18 if above else -0.18))
        ax.text(*place, name, ha="center", va="bottom" if above else "top", fontsize="x-small", color="0.3")
