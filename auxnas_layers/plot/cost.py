"""`plot_cost`: where the FLOPs of a training step go."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from auxnas_layers.export.cost import CostReport
from auxnas_layers.plot.drawing import COLOURS, INTO_AUX, INTO_PRIMARY

_ROOM = 1.45  # of the longest bar, for the numbers beside it


def plot_cost(report: CostReport, ax: Axes | None = None) -> Axes:
    """Draw the FLOPs of a forward pass in training, as multiples of the primary's: networks, and edges by direction.

    A full bar is what `export_primary` keeps; hatched bars cost in training only.

    Args:
        report: What `wrapper.cost()` returned.
        ax: Axes to draw in; those of a new figure by default.

    Returns:
        The axes; ``ax.figure.savefig("cost.png")`` saves the picture.

    Raises:
        ValueError: If the FLOPs are unknown, or the report does not split them.

    >>> from auxnas_layers.export import Cost
    >>> ax = plot_cost(CostReport(Cost(3, 100), Cost(4, 130), Cost(9, 300), inward=20, outward=50))
    >>> [text.get_text() for text in ax.texts]
    ['1.00x, 100 FLOPs', '1.30x, 130 FLOPs', '0.20x, 20 FLOPs', '0.50x, 50 FLOPs']
    """
    parts = _parts(report)
    primary, total = parts["primary"][0], sum(flops for flops, _ in parts.values())
    ax = ax or plt.subplots(figsize=(6.4, 1.2 + 0.36 * len(parts)), layout="constrained")[1]
    most = max(flops for flops, _ in parts.values()) / primary
    hatched: dict[str, Any] = {"hatch": "////", "edgecolor": "white", "lw": 0}
    for row, (flops, colour) in enumerate(parts.values()):
        ax.barh(row, flops / primary, color=colour, height=0.6, **(hatched if row else {}))
        ax.text(flops / primary + 0.03 * most, row, f"{flops / primary:.2f}x, {_large(flops)}FLOPs", va="center")
    ax.set_yticks(range(len(parts)), list(parts))
    ax.set(xlim=(0, _ROOM * most), xticks=[], ylim=(len(parts) - 0.4, -0.6))
    ax.set_title(f"a training step: {total / primary:.2f} times the primary's FLOPs", fontsize="medium")
    ax.tick_params(length=0)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    looks: dict[str, dict[str, Any]] = {"kept by export_primary": {}, "dropped": hatched}
    keys = [Patch(fc="0.5", label=label, **look) for label, look in looks.items()]
    ax.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize="small")
    return ax


def _parts(report: CostReport) -> dict[str, tuple[int, str]]:
    """FLOPs and colour of each part of a step.

    Raises:
        ValueError: If they are unknown.
    """
    primary, auxiliary, inward, outward = report.primary.flops, report.auxiliary.flops, report.inward, report.outward
    if not primary or auxiliary is None or report.edges is None or inward is None or outward is None:
        raise ValueError(
            f"plot_cost takes a report whose FLOPs are counted by direction, such as wrapper.cost(images); found "
            f"primary {primary}, auxiliary {auxiliary}, edges into the primary {inward}, into an auxiliary {outward}"
        )
    parts = {
        "primary": (primary, COLOURS[2]),
        "auxiliary": (auxiliary, COLOURS[3]),
        "edges into the primary": (inward, INTO_PRIMARY),
        "edges into the auxiliary": (outward, INTO_AUX),
    }
    rest = report.edges - inward - outward
    return parts | ({"fusions without edges": (rest, COLOURS[4])} if rest else {})


def _large(flops: int) -> str:
    """A number of FLOPs in three digits, up to its unit.

    >>> _large(999), _large(12_345_678), _large(2_000_000_000_000)
    ('999 ', '12.3 M', '2 T')
    """
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops} "
