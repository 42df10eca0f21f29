"""Fusion layers: what a tap returns from its feature and the sources; they know nothing of taps or searches."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers._torch.state import numbers
from auxnas_layers.errors import LayoutError, SearchError
from auxnas_layers.fusion.projection import gate_weights
from auxnas_layers.fusion.sizing import EdgeWeights, Start

Norm = Callable[[int], nn.Module]
Activation = Callable[[Tensor], Tensor]
OpenEdges = Mapping[int, tuple[Tensor, float | Tensor]]
"""Source and gate of each open edge, by the edge's number."""


class Fusion(EdgeWeights):
    """What a tap returns from its own feature and those of its sources; a base class.

    A subclass implements `fuse`. It finds a weight ``(C, D_j)`` for each source in `weights`, and makes parts of its
    own in `build`.

    Args:
        channels: Channels ``C`` of the feature that receives; None if not known yet (see `materialise`).
        source_channels: Channels ``D_j`` of each source; None each if not known yet.
        own_share: Share of the own feature at the start, unitless.
        start: How the weights of the sources start. ``"zero"``: all zero. ``"scaled"``: normal, so that all edges
            together have about the variance of one source. ``"identity"``: sources pass through unchanged, channel
            by channel, times the factor that `share` gives.
        channel_dim: Dimension of the channels in every feature.
        norm: Makes a norm for ``(rows, C)`` from ``C``, such as `torch.nn.LayerNorm` or `torch.nn.BatchNorm1d`.
        activation: Elementwise function, such as `torch.nn.functional.gelu`.

    Shape:
        - x: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``
        - sources: each like x, with ``D_j`` channels
        - gates: ``(len(sources),)``, or a sequence of scalars; unitless, in [0, 1]
        - output: as x

    Raises:
        SearchError: If an option is not one of those above, or makes no sense for this kind of fusion.
        LayoutError: If the fusion cannot join features of these channels.
    """

    residual = False
    """Identity when no edge is open, so that an export can drop it."""

    def __init__(
        self,
        channels: int | None,
        source_channels: Sequence[int | None],
        *,
        own_share: float = 1.0,
        start: Start = "zero",
        channel_dim: int = 1,
        norm: Norm | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(len(source_channels), own_share, start, channel_dim)
        if isinstance(norm, nn.Module) or isinstance(activation, type):
            raise SearchError(
                "norm makes a module from a number of channels, as norm=torch.nn.LayerNorm does; activation is a "
                f"function or a module, as activation=torch.nn.ReLU(); found {norm!r} and {activation!r}"
            )
        self.make_norm, self.activation = norm, activation
        self.norms = nn.ModuleList()
        self.check()
        if channels is not None and None not in source_channels:
            self.materialise(channels, [count for count in source_channels if count is not None])

    # What a subclass may say

    def check(self) -> None:
        """Raise a `SearchError` if the options make no sense for this kind of fusion."""

    def fuse(self, x: Tensor, edges: OpenEdges) -> Tensor:
        """What the tap returns.

        Args:
            x: The feature that receives.
            edges: Source and gate of each open edge, by its number.
        """
        raise NotImplementedError  # abstract: this is what tells one kind of fusion from another

    def source_dtype(self, source: Tensor) -> torch.dtype:
        """The dtype in which the fusion takes a source, so that one copy serves all layers that receive it."""
        return source.dtype

    # Use

    @override
    def forward(
        self, x: Tensor, sources: Sequence[Tensor] | OpenEdges, gates: Tensor | Sequence[float | Tensor] | None = None
    ) -> Tensor:
        """Fuse; an edge whose gate is exactly 0 is skipped.

        Args:
            x: The feature that receives.
            sources: The source of each edge; or, without `gates`, source and gate of each open edge by its number.
            gates: The gate of each edge.

        Raises:
            LayoutError: If there are not as many sources and gates as edges, or the channels are not known yet.
        """
        if self.is_lazy():
            kind = type(self).__name__
            raise LayoutError(f"the channels are not known yet: give them to {kind}(...), or call materialise(...)")
        if isinstance(sources, Mapping):  # whoever knows which edges are open need not look at any gate
            return self.fuse(x, sources)
        edges, found = len(self.weights), 0 if gates is None else len(gates)
        if not len(sources) == found == edges:
            rule = f"a fusion of {edges} edges takes {edges} sources and {edges} gates"
            raise LayoutError(f"{rule}; found {len(sources)} and {found}")
        assert gates is not None
        values = numbers(gates) if isinstance(gates, Tensor) else gates
        return self.fuse(x, {j: (sources[j], gates[j]) for j, value in enumerate(values) if value != 0})

    def gated(self, edges: OpenEdges) -> list[tuple[Tensor, Tensor]]:
        """Source and weight of each open edge, the weight times its gate."""
        sources = [source for source, _ in edges.values()]
        weights = gate_weights([self.weights[j] for j in edges], [gate for _, gate in edges.values()])
        return list(zip(sources, weights, strict=True))

    def finish(self, y: Tensor, number: int = 0) -> Tensor:
        """Apply the norm of this number and the activation, if there are any."""
        if self.norms:
            rows = y.movedim(self.channel_dim, -1)
            y = self.norms[number](rows.flatten(0, -2)).view(rows.shape).movedim(-1, self.channel_dim)
        return self.activation(y) if self.activation else y

    def new_norm(self, channels: int) -> nn.Module:
        """A norm as the user wants it, tried on rows.

        Raises:
            SearchError: If it does not take rows.
        """
        assert self.make_norm
        norm = self.make_norm(channels)
        try:
            with torch.no_grad():
                copy.deepcopy(norm).eval()(torch.zeros(2, channels))
        except Exception as error:
            raise SearchError(
                f"norm makes a norm of rows (rows, {channels}), such as LayerNorm or BatchNorm1d, whatever layout the "
                f"features have; {type(norm).__name__} does not take rows: {error}"
            ) from error
        return norm

    @override
    def extra_repr(self) -> str:
        """Shapes and options."""
        shapes = ", ".join("?" if self.is_lazy() else f"{tuple(weight.shape)}" for weight in self.weights)
        return f"weights=[{shapes}], own_share={self.own_share}, start={self.start!r}, channel_dim={self.channel_dim}"
