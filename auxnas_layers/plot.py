"""Pictures of an architecture and of its gates during training; needs matplotlib (``auxnas_layers[plot]``)."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from auxnas_layers.features.taps import PRIMARY
from auxnas_layers.search.edges import Architecture, Direction, Edge

_FONT = 8.0  # points
_LETTER = 0.6 / 72  # mean width of a letter in inches, for each point of the font
_MOST = 24  # letters of a name in a figure of our own
_GAP = 1.7  # inches between the layers of two networks there
_INTO_PRIMARY, _INTO_AUX = "C0", "C1"


def plot_gates(history: Sequence[tuple[float, Architecture]], ax: Axes | None = None) -> Axes:
    """Draw every gate over the progress of training: solid into the primary, dashed into an auxiliary.

    Args:
        history: Pairs of progress, in [0, 1], and the architecture at that time, as `wrapper.architecture()` gave it.
        ax: Axes to draw in; those of a new figure by default.

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
    ax.legend(list(lines.values()), names, fontsize="small", frameon=False, **beside)
    ax.set(xlabel="progress of training", ylabel="gate", xlim=(min(times), max(times)))
    return ax


def plot_edges(architecture: Architecture, ax: Axes | None = None) -> Axes:
    """Draw the tapped layers by name, from top to bottom, and the edges between them; once for each auxiliary.

    An edge is the thicker the larger its gate; closed ones are dotted.

    Args:
        architecture: What `wrapper.architecture()` returned.
        ax: Axes to draw in, which shorten names to their size; those of a new figure, large enough, by default.

    >>> from auxnas_layers import Edge
    >>> ax = plot_edges(Architecture((Edge("primary_to_aux", 0, 1, 0.5, True, "layer1", "blocks.3"),)))
    >>> [text.get_text() for text in ax.texts if text.get_text()]
    ['primary', 'layer1', 'aux', 'blocks.3']
    """
    sides = [_Side(aux, architecture) for aux in dict.fromkeys(edge.direction.aux for edge in architecture)]
    taps = 1 + max((edge.target for edge in architecture), default=0)
    letters = max((side.letters for side in sides), default=0)
    ax = ax or _new_axes(max(len(sides) * (_GAP + 2 * _width(letters + 3, _FONT)), 4), 1.2 + 0.3 * taps)
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    width, font = box.width / max(len(sides), 1), min(_FONT, 72 * 0.7 * box.height / (taps + 2))
    gap = min(_GAP, 0.4 * width)
    most = max(int((width - gap) / 2 / _width(1, font)) - 2, 3)
    for number, side in enumerate(sides):
        middle = (number + 0.5) * width
        side.draw(ax, (middle - gap / 2, middle + gap / 2), most, font)
    _legend(architecture, ax, font)
    ax.set(xlim=(0, width * max(len(sides), 1)), ylim=(-taps - 0.8, 1.2), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _new_axes(width: float, height: float) -> Axes:
    """Axes without ticks in a new figure of this size in inches."""
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xticks=[], yticks=[])
    figure.draw_without_rendering()  # gives the axes the place that they will have
    return ax


def _width(letters: int, font: float) -> float:
    """About how wide a text is, in inches."""
    return letters * font * _LETTER


class _Side:
    """One auxiliary beside the primary network, with the edges between them.

    Args:
        aux: Name of the auxiliary.
        architecture: All edges.
    """

    def __init__(self, aux: str, architecture: Iterable[Edge]) -> None:
        self.aux = aux
        self.edges = [edge for edge in architecture if edge.direction.aux == aux]
        self.names: tuple[dict[int, str], dict[int, str]] = ({}, {})
        for edge in self.edges:
            source, target = (0, 1) if edge.direction.source == PRIMARY else (1, 0)
            self.names[source][edge.source] = edge.source_name or f"tap {edge.source}"
            self.names[target][edge.target] = edge.target_name or f"tap {edge.target}"

    @property
    def letters(self) -> int:
        """Letters of the longest name that is shown."""
        every = [self.aux, PRIMARY, *(name for column in self.names for name in _short(list(column.values()), _MOST))]
        return min(max(map(len, every)), _MOST)

    def draw(self, ax: Axes, places: tuple[float, float], most: int, font: float) -> None:
        """Draw the layers of both networks at these places, and the edges between them."""
        for edge in self.edges:
            ends = places if edge.direction.source == PRIMARY else places[::-1]
            self._arrow(ax, edge, *ends)
        out = _width(1, font)
        for role, names, place, side in zip((PRIMARY, self.aux), self.names, places, (-1, 1), strict=True):
            align = "right" if side < 0 else "left"
            ax.plot([place] * len(names), [-tap for tap in sorted(names)], "o-", color="0.3", ms=5, lw=2, zorder=3)
            ax.text(place + side * out, 0.8, _short([role], most)[0], ha=align, va="center", size=font, weight="bold")
            for tap, name in zip(names, _short(list(names.values()), most), strict=True):
                ax.text(place + side * out, -tap, name, ha=align, va="center", size=font)

    def _arrow(self, ax: Axes, edge: Edge, start: float, end: float) -> None:
        shift, colour = (0.1, _INTO_PRIMARY) if edge.direction.inward else (-0.1, _INTO_AUX)
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": colour, "shrinkA": 4, "shrinkB": 4}
        arrow |= {"lw": 0.5 + 2 * edge.gate} if edge.open else {"lw": 1, "ls": ":", "alpha": 0.7}
        ax.annotate("", (end, shift - edge.target), (start, shift - edge.source), arrowprops=arrow)


def _legend(architecture: Architecture, ax: Axes, font: float) -> None:
    """Say which colour is which direction, below the layers."""
    colours = {True: (_INTO_PRIMARY, "into the primary"), False: (_INTO_AUX, "into an auxiliary")}
    found = [colours[inward] for inward in colours if any(edge.direction.inward == inward for edge in architecture)]
    lines = [Line2D([], [], color=colour, label=label) for colour, label in found]
    if not all(edge.open for edge in architecture):
        lines.append(Line2D([], [], color="0.5", ls=":", label="closed"))
    ax.legend(handles=lines, loc="lower center", ncols=len(lines) or 1, fontsize=font, frameon=False)


def _short(names: Sequence[str], most: int) -> list[str]:
    """Names of at most so many letters: without the modules that all are in, then without their middles.

    >>> _short(["vision_model.encoder.layers.0", "vision_model.encoder.layers.1"], 20)
    ['…layers.0', '…layers.1']
    """
    if max(map(len, names), default=0) > most:
        words = [name.split(".") for name in names]
        shared = min(len(one) for one in words) - 2
        while shared > 0 and len({tuple(one[:shared]) for one in words}) > 1:
            shared -= 1
        names = ["…" + ".".join(one[shared:]) for one in words] if shared > 0 else names
    start = most // 3
    return [name if len(name) <= most else name[:start] + "…" + name[start + 1 - most :] for name in names]
