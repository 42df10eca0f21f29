"""`plot_networks`: the networks of a wrapper, the edges between them, and what the export drops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

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
from auxnas_layers.search.edges import Edge
from auxnas_layers.search.searches import AuxNAS
from auxnas_layers.wrapper import AuxNASWrapper

_ROW, _GAP, _COLUMN = 0.36, 1.7, 1.25  # inches from tap to tap, between the networks, of the narrowest network
_ABOVE, _BELOW = 2.9, 3.6  # rows over the first tap and under the last one
_KEYS = "the larger the gate, the thicker the edge"


def plot_networks(wrapper: AuxNASWrapper, ax: Axes | None = None) -> Axes:
    """Draw the primary beside each auxiliary: their tapped layers, the edges between them, and what is deployed.

    The thickness of an edge is its gate; closed edges are faint and dotted. The export keeps what has a frame, and
    drops what is hatched. It is `export_multitask`, which keeps both networks, if an edge into the primary is open
    that the search never closes, as under `MTLNAS`; otherwise it is `export_primary`.

    Args:
        wrapper: The wrapper, at any time of training.
        ax: Axes to draw in, which shorten names to their size; those of a new figure, large enough, by default.

    Returns:
        The axes; ``ax.figure.savefig("networks.png")`` saves the picture.

    Raises:
        TypeError: If it is no wrapper.
        SearchError: If a gate is NaN.

    >>> from torch import nn
    >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3)]
    >>> ax = plot_networks(AuxNASWrapper(*nets, taps=["0"]))
    >>> [text.get_text() for text in ax.texts]
    ['deployed', 'primary', 'Sequential', '0', 'output', 'dropped at export', 'aux', 'Sequential', '0', 'output']
    """
    panels = _panels(wrapper)
    taps = max(len(panel.taps) for panel in panels)
    column = max(_COLUMN, text_width(max(panel.letters for panel in panels) + 3, FONT))
    ax = ax or new_axes(max(len(panels) * (_GAP + 2 * column + 0.5), 3.6), _ROW * (taps + _ABOVE + _BELOW))
    width, height = size(ax)
    width, row = width / len(panels), height / (taps + _ABOVE + _BELOW)
    font = min(FONT, 72 * 0.55 * row, width / text_width(40, 1))
    column = (width - min(_GAP, 0.35 * width)) / 2 - 0.03 * width
    for number, panel in enumerate(panels):
        _Drawing(ax, panel, number * width, width, column, row, font).draw()
    edges = [edge for panel in panels for edge in panel.edges]
    edge_legend(ax, edges, font, lw=2, title=_KEYS, title_fontsize=font, columnspacing=1.2)
    ax.set(xlim=(0, width * len(panels)), ylim=(-(taps + _BELOW - 1) * row, (_ABOVE + 0.05) * row))
    bare(ax)
    return ax


@dataclass(frozen=True)
class _Panel:
    """The primary beside one auxiliary.

    Args:
        roles: The primary's role, and the auxiliary's.
        kinds: Classes of both networks.
        taps: Names of both layers of each tap.
        edges: The edges between them.
        both: Whether the export keeps both networks.
    """

    roles: tuple[str, str]
    kinds: tuple[str, str]
    taps: Sequence[tuple[str, str]]
    edges: Sequence[Edge]
    both: bool

    @property
    def letters(self) -> int:
        """Letters of the longest name that is shown."""
        every = [
            *self.roles,
            *self.kinds,
            *(name for side in zip(*self.taps, strict=True) for name in short(side, MOST)),
        ]
        return min(max(map(len, every)), MOST)


def _panels(wrapper: AuxNASWrapper) -> list[_Panel]:
    """The primary beside each auxiliary of a wrapper.

    Raises:
        TypeError: If it is no wrapper.
    """
    if not isinstance(wrapper, AuxNASWrapper):
        raise TypeError(
            f"plot_networks takes an AuxNASWrapper; found {type(wrapper).__name__}. Of another wrapper around it give "
            "the inner one, such as ddp.module; for an architecture there is plot_edges(architecture)"
        )
    searches, architecture = wrapper._searches(), wrapper.architecture()
    both = any(
        edge.open and edge.direction.inward and not isinstance(searches[edge.direction.aux], AuxNAS)
        for edge in architecture
    )
    kinds = {role: type(net).__name__ for role, net in wrapper._nets().items()}
    taps = wrapper.taps if isinstance(wrapper.taps, Mapping) else {"aux": wrapper.taps}
    return [
        _Panel(
            (PRIMARY, aux),
            (kinds[PRIMARY], kinds[aux]),
            [(tap.primary, tap.aux) for tap in side],
            [edge for edge in architecture if edge.direction.aux == aux],
            both,
        )
        for aux, side in taps.items()
    ]


@dataclass(frozen=True)
class _Drawing:
    """One panel on its place in the axes; all sizes are in inches, but the font, which is in points.

    Args:
        ax: The axes.
        panel: What to draw.
        left, width: Where the panel begins, and how wide it is.
        column: Width of a network.
        row: From tap to tap.
        font: Size of letters.
    """

    ax: Axes
    panel: _Panel
    left: float
    width: float
    column: float
    row: float
    font: float

    def draw(self) -> None:
        """Draw both networks and the edges between them."""
        margin = 0.02 * self.width
        places = self.left + margin, self.left + self.width - margin - self.column
        self._frame(places[0], self.column)
        if self.panel.both:
            self._frame(places[1], self.column)
        else:
            start = places[0] + self.column + margin
            self._hatch(start, places[1] + self.column - start)
        inset = 0.08 * self.column
        for edge in self.panel.edges:
            self._edge(edge, places[0] + self.column - inset, places[1] + inset)
        for number, place in enumerate(places):
            said = "deployed" if self.panel.both or not number else "dropped at export"
            self._network(number, place, self.column, inset, said)

    def _bottom(self) -> float:
        return -(len(self.panel.taps) + 0.5) * self.row

    def _frame(self, place: float, width: float) -> None:
        top, bottom = (_ABOVE - 0.1) * self.row, self._bottom()
        round_ = f"round,pad=0,rounding_size={0.2 * self.row}"
        frame: dict[str, Any] = {"fc": "white", "ec": "0.25", "lw": 1.5, "zorder": 0.5}
        self.ax.add_patch(FancyBboxPatch((place, bottom), width, top - bottom, boxstyle=round_, **frame))

    def _hatch(self, place: float, width: float) -> None:
        top, bottom = (_ABOVE - 0.1) * self.row, self._bottom()
        look: dict[str, Any] = {"fc": "0.95", "ec": "0.82", "hatch": "////", "lw": 0, "zorder": 0.5}
        self.ax.add_patch(Rectangle((place, bottom), width, top - bottom, **look))

    def _network(self, number: int, place: float, width: float, inset: float, said: str) -> None:
        """One network from top to bottom: what becomes of it, its role, its class, its tapped layers, its output."""
        middle, most = place + width / 2, max(int((width - 2 * inset) / text_width(1, self.font)) - 1, 3)
        names = short([tap[number] for tap in self.panel.taps], most)
        ends = (middle, 0.75 * self.row), (middle, (0.25 - len(names)) * self.row)
        self.ax.add_patch(_arrow(*ends, self.font, lw=1.2, color="0.4", zorder=2))
        role, kind = (short([name], most)[0] for name in (self.panel.roles[number], self.panel.kinds[number]))
        self._text(middle, 2.35, said, style="italic")
        self._text(middle, 1.65, role, weight="bold")
        self._text(middle, 1.05, kind)
        for tap, name in enumerate(names):
            corner = place + inset, -(tap + 0.34) * self.row
            self.ax.add_patch(
                Rectangle(corner, width - 2 * inset, 0.68 * self.row, fc="white", ec="0.4", lw=1, zorder=3)
            )
            self._text(middle, -tap, name)
        self._text(middle, -len(names), "output")

    def _text(self, place: float, row: float, text: str, **look: Any) -> None:
        font = min(self.font, self.column / text_width(len(text), 1))
        self.ax.text(place, row * self.row, text, ha="center", va="center", size=font, zorder=4, **look)

    def _edge(self, edge: Edge, primary: float, aux: float) -> None:
        """An arrow; the two directions a little apart."""
        inward = edge.direction.inward
        start, end = (aux, primary) if inward else (primary, aux)
        shift = 0.11 if inward else -0.11
        points = (start, (shift - edge.source) * self.row), (end, (shift - edge.target) * self.row)
        look: dict[str, Any] = (
            {"lw": (0.4 + 1.8 * edge.gate) * self.font / FONT} if edge.open else {"lw": 0.8, "ls": ":", "alpha": 0.55}
        )
        look |= {"color": INTO_PRIMARY if inward else INTO_AUX}
        self.ax.add_patch(_arrow(*points, self.font, **look))


def _arrow(start: tuple[float, float], end: tuple[float, float], font: float, **look: Any) -> FancyArrowPatch:
    head = "-|>,head_length=0.5,head_width=0.2"
    return FancyArrowPatch(start, end, arrowstyle=head, mutation_scale=font, shrinkA=0, shrinkB=0, **look)
