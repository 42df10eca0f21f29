"""Pictures of an architecture and of how it came about; needs matplotlib, which ``auxnas_layers[plot]`` brings."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from auxnas_layers.architecture import Architecture, Edge


def plot_gates(history: Sequence[tuple[float, Architecture]], ax: Axes | None = None) -> Axes:
    """Draw every gate over the progress of training: solid towards the primary, dashed towards an auxiliary.

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
    gates: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for time, architecture in history:  # an edge may come to an end, by remove_aux_
        for edge in architecture:
            gates.setdefault(edge.key, []).append((time, edge.gate))
    lines: dict[str, Line2D] = {}
    for (direction, _, _), points in gates.items():
        colour = lines[direction].get_color() if direction in lines else f"C{len(lines)}"
        (line,) = ax.plot(
            *zip(*points, strict=True), "-" if _inward(direction) else "--", color=colour, lw=1, alpha=0.8
        )
        lines.setdefault(direction, line)
    names = [direction.replace("_", " ") for direction in lines]
    ax.legend(list(lines.values()), names, fontsize="small", frameon=False)
    ax.set(xlabel="progress of training", ylabel="gate", xlim=(min(times), max(times)))
    return ax


def plot_edges(architecture: Architecture, ax: Axes | None = None) -> Axes:
    """Draw the taps that edges join and the edges, the thicker the larger the gate; closed ones dotted.

    Args:
        architecture: What `wrapper.architecture()` returned.
        ax: Axes to draw in; the current ones by default.

    >>> from auxnas_layers import Edge
    >>> ax = plot_edges(Architecture((Edge("primary_to_aux", 0, 1, 0.5, True),)), plt.figure().gca())
    """
    ax = ax or plt.gca()
    names = list(dict.fromkeys(name for edge in architecture for name in _ends(edge)))
    names.sort(key=lambda name: name != "primary")
    taps = 1 + max((edge.target for edge in architecture), default=0)
    for edge in architecture:
        source, target = (names.index(name) for name in _ends(edge))
        shift = 0.06 if _inward(edge.direction) else -0.06
        arrow: dict[str, Any] = {
            "arrowstyle": "-|>",
            "color": "C0" if _inward(edge.direction) else "C1",
            "shrinkA": 9,
            "shrinkB": 9,
        }
        arrow |= {"lw": 0.5 + 2 * edge.gate} if edge.open else {"lw": 0.8, "ls": ":", "alpha": 0.5}
        ax.annotate("", (edge.target + shift, -target), (edge.source + shift, -source), arrowprops=arrow)
    for row, name in enumerate(names):
        ax.plot(range(taps), [-row] * taps, "o-", color="0.3", ms=10, lw=3, zorder=3)
        ax.text(-0.35, -row, name, ha="right", va="center")
    ax.set(xlim=(-1.2, taps - 0.5), ylim=(0.4 - len(names), 0.6), xlabel="tap", xticks=range(taps), yticks=[])
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    return ax


def _ends(edge: Edge) -> tuple[str, str]:
    if _inward(edge.direction):
        return edge.direction.removesuffix("_to_primary"), "primary"
    return "primary", edge.direction.removeprefix("primary_to_")


def _inward(direction: str) -> bool:
    return direction.endswith("_to_primary")
