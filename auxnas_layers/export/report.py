"""The report of an export, and the check that no open edge is cut by it."""

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from auxnas_layers.errors import ExportError, bullets
from auxnas_layers.export.cost import Cost, cost_table, html_costs
from auxnas_layers.search.edges import Architecture, Edge
from auxnas_layers.tables import html_lines


@dataclass(frozen=True)
class ExportReport:
    """What an export dropped, and the evidence that the exported network computes what the wrapper does.

    Args:
        dropped: The edges of the training graph that are gone; those into the primary first.
        cut: The edges into the primary among them that were still open, and were cut because ``allow_open=True``.
        kept: The edges that are still there, if both networks are exported; otherwise None.
        exact: Whether the primary returns the same bits in the wrapper and alone; the exported network is a copy of it,
            with the same bits in every parameter and buffer. If both networks are exported, or edges were cut: whether
            the exported network returns the same bits as the wrapper. None: not compared, because there are no inputs,
            or no tensors in the outputs.
        max_difference: Largest absolute difference between the outputs of the exported network and of the wrapper on
            the example inputs in eval mode, in the outputs' unit. On a GPU rounding may differ, because kernels are
            also chosen by where weights lie in memory. None: as above.
        noise: Largest absolute difference between two calls of the same network on the example inputs; 0.0 if both
            calls agree, or if nothing differed and there was no second call.
        training, primary, exported: Cost of the wrapper with all open edges, of the primary before, of the exported
            network. None: there are no inputs.
        auxiliary: Cost of the auxiliary networks alone, if they are exported too.
    """

    dropped: tuple[Edge, ...]
    cut: tuple[Edge, ...] = ()
    kept: tuple[Edge, ...] | None = None
    exact: bool | None = None
    max_difference: float | None = None
    noise: float = 0.0
    training: Cost | None = None
    primary: Cost | None = None
    exported: Cost | None = None
    auxiliary: Cost | None = None

    @override
    def __str__(self) -> str:
        table = [cost_table(costs)] if (costs := self._costs()) else []
        return "\n".join([self._edges(), *table, self._compared()])

    def _repr_html_(self) -> str:
        table = html_costs(costs) if (costs := self._costs()) else ""
        return html_lines(self._edges()) + table + html_lines(self._compared())

    def _edges(self) -> str:
        if self.kept is not None:
            return f"kept {len(self.kept)} edges, dropped {len(self.dropped)}"
        return f"dropped {len(self.dropped)} edges, {len(self.cut)} of them open and into the primary"

    def _costs(self) -> dict[str, Cost]:
        """The cost of each network; nothing if they were not called."""
        if not (self.training and self.primary and self.exported):
            return {}
        auxiliary = {"auxiliary": self.auxiliary} if self.auxiliary else {}
        return {
            "training graph": self.training,
            "primary": self.primary,
            **auxiliary,
            "exported net": self.exported,
        }

    def _compared(self) -> str:
        if not self._costs():
            return "not compared: pass example_inputs to compare outputs and count FLOPs"
        compared = "no tensors in the outputs"
        if self.max_difference is not None:
            compared = f"largest difference {self.max_difference:g}"
        if self.noise:
            compared += f", noise {self.noise:g}"
        was = "wrapper" if self.auxiliary else "primary"
        return f"exported == {was}: {self.exact} ({compared})"


def check_closed(
    architecture: Architecture, acting: Sequence[str], *, allow_open: bool, otherwise: str
) -> tuple[Edge, ...]:
    """The edges into the primary that are still open.

    Args:
        architecture: The edges.
        acting: Fusions of the primary that change its features even when no edge is open, as messages name them.
        allow_open: Whether these edges and fusions may be cut.
        otherwise: What to do with open edges instead.

    Raises:
        ExportError: If there are any of them that may not be cut.
    """
    open_edges = tuple(edge for edge in architecture if edge.open and edge.direction.inward)
    if not (open_edges or acting) or allow_open:
        return open_edges
    lines = []
    if open_edges:
        count = f"{len(open_edges)} edge(s) into the primary are still open"
        lines.append(f"{count}, so the export would differ from what was trained. {otherwise}")
    if acting:
        lines.append(f"{len(acting)} fusion(s) change the primary's features even without edges")
    lines.append("allow_open=True cuts them anyway:")
    raise ExportError(bullets("; ".join(lines), [*map(str, open_edges), *acting]))
