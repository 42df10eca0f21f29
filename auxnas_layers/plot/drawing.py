"""What the pictures share: colours, their legend, sizes of text in inches, names that fit."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from auxnas_layers.search.edges import Edge

FONT = 8.0  # points
MOST = 24  # letters of a name in a figure of our own
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours that colour-blind readers can tell apart, by Okabe and Ito."""
INTO_PRIMARY, INTO_AUX = COLOURS[:2]

_LETTER = 0.6 / 72  # mean width of a letter in inches, for each point of the font


def new_axes(width: float, height: float) -> Axes:
    """Axes without ticks in a new figure of this size in inches."""
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    bare(ax)
    figure.draw_without_rendering()  # gives the axes the place that they will have
    return ax


def bare(ax: Axes) -> None:
    """Take ticks and frame from axes."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def size(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in inches."""
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    return box.width, box.height


def text_width(letters: int, font: float) -> float:
    """About how wide a text is, in inches."""
    return letters * font * _LETTER


def short(names: Sequence[str], most: int) -> list[str]:
    """Names of at most so many letters: without the modules that all are in, then without their middles.

    >>> short(["vision_model.encoder.layers.0", "vision_model.encoder.layers.1"], 20)
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


def edge_legend(ax: Axes, edges: Sequence[Edge], font: float, lw: float = 1.5, **options: Any) -> None:
    """Say below the picture which colour is which direction, and that dotted edges are closed."""
    looks = {True: (INTO_PRIMARY, "into the primary"), False: (INTO_AUX, "into an auxiliary")}
    found = [looks[inward] for inward in looks if any(edge.direction.inward == inward for edge in edges)]
    keys = [Line2D([], [], color=colour, lw=lw, label=label) for colour, label in found]
    if not all(edge.open for edge in edges):
        keys.append(Line2D([], [], color="0.5", ls=":", label="closed"))
    ax.legend(handles=keys, loc="lower center", ncols=len(keys) or 1, fontsize=font, frameon=False, **options)
