"""`plot_edges`: the edges of an architecture, between the names of layers."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes

from auxnas_layers.features.taps import PRIMARY
from auxnas_layers.plot.drawing import (
    FONT,
    INTO_AUX,
    INTO_PRIMARY,
    MOST,
    bare,
    edge_legend,
    new_axes,
    short,
    size,
    text_width,
)
from auxnas_layers.search.edges import Architecture, Edge

_GAP = 1.7  # inches between the layers of two networks there


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
    ax = ax or new_axes(max(len(sides) * (_GAP + 2 * text_width(letters + 3, FONT)), 4), 1.2 + 0.3 * taps)
    width, height = size(ax)
    width, font = width / max(len(sides), 1), min(FONT, 72 * 0.7 * height / (taps + 2))
    gap = min(_GAP, 0.4 * width)
    most = max(int((width - gap) / 2 / text_width(1, font)) - 2, 3)
    for number, side in enumerate(sides):
        middle = (number + 0.5) * width
        side.draw(ax, (middle - gap / 2, middle + gap / 2), most, font)
    edge_legend(ax, architecture.edges, font)
    ax.set(xlim=(0, width * max(len(sides), 1)), ylim=(-taps - 0.8, 1.2))
    bare(ax)
    return ax


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
        every = [self.aux, PRIMARY, *(name for column in self.names for name in short(list(column.values()), MOST))]
        return min(max(map(len, every)), MOST)

    def draw(self, ax: Axes, places: tuple[float, float], most: int, font: float) -> None:
        """Draw the layers of both networks at these places, and the edges between them."""
        for edge in self.edges:
            ends = places if edge.direction.source == PRIMARY else places[::-1]
            self._arrow(ax, edge, *ends)
        out = text_width(1, font)
        for role, names, place, side in zip((PRIMARY, self.aux), self.names, places, (-1, 1), strict=True):
            align = "right" if side < 0 else "left"
            ax.plot([place] * len(names), [-tap for tap in sorted(names)], "o-", color="0.3", ms=5, lw=2, zorder=3)
            ax.text(place + side * out, 0.8, short([role], most)[0], ha=align, va="center", size=font, weight="bold")
            for tap, name in zip(names, short(list(names.values()), most), strict=True):
                ax.text(place + side * out, -tap, name, ha=align, va="center", size=font)

    def _arrow(self, ax: Axes, edge: Edge, start: float, end: float) -> None:
        shift, colour = (0.1, INTO_PRIMARY) if edge.direction.inward else (-0.1, INTO_AUX)
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": colour, "shrinkA": 4, "shrinkB": 4}
        arrow |= {"lw": 0.5 + 2 * edge.gate} if edge.open else {"lw": 1, "ls": ":", "alpha": 0.7}
        ax.annotate("", (end, shift - edge.target), (start, shift - edge.source), arrowprops=arrow)
