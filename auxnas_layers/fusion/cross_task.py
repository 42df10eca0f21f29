"""`CrossTaskFusion`: the residual fusion of Aux-NAS."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers.errors import SearchError
from auxnas_layers.fusion.base import Fusion, OpenEdges
from auxnas_layers.fusion.projection import project


class CrossTaskFusion(Fusion):
    r"""Add gated 1x1 projections of other features to a feature: ``y = share * x + sum_j gate_j * G(W_j source_j)``.

    Aux-NAS (arXiv 2405.05695), section 3. There norm and activation ``G`` are around the whole sum; here they are
    inside each edge, so that the layer is the identity when no edge is open, and export can drop it.

    Args:
        channels, source_channels, channel_dim, norm: See `Fusion`.
        own_share: Factor of the own feature, constant, unitless.
        start: How edges start, see `Fusion`. ``"identity"``: the last source passes through unchanged, scaled by
            ``1 - own_share`` (1 if the own share is 1), channel by channel; the others are zero.
        activation: Elementwise function that gives 0 for 0, such as `torch.nn.functional.gelu`.

    Shape:
        - x, sources, gates, output: see `Fusion`

    Raises:
        SearchError: If the activation does not give 0 for 0.

    >>> x, source = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
    >>> fusion = CrossTaskFusion(3, [5], start="scaled")
    >>> fusion(x, [source], [0.5]).shape
    torch.Size([2, 3, 4, 4])
    >>> fusion(x, [source * torch.inf], [0.0]).equal(x)
    True
    """

    @property
    @override
    def residual(self) -> bool:  # type: ignore[override]
        """Whether the own feature passes whole."""
        return self.own_share == 1

    @override
    def check(self) -> None:
        """Raise a `SearchError` if the activation does not give 0 for 0."""
        if self.activation and self.activation(torch.zeros(1)).item() != 0:
            raise SearchError(
                "the activation of an edge must give 0 for 0, as ReLU and GELU do, so that edges can close"
            )

    @override
    def share(self, number: int) -> float:
        """The last source gets all that the own share leaves."""
        last = number == len(self.weights) - 1
        return (1.0 if self.own_share == 1 else 1 - self.own_share) if last else 0.0

    @override
    def build(self, channels: int) -> None:
        """A norm for each edge."""
        if self.make_norm:
            self.norms.extend([self.new_norm(channels) for _ in self.weights])

    @override
    def keep_(self, numbers: Sequence[int]) -> None:
        """Drop all edges but these, and their norms."""
        super().keep_(numbers)
        if self.norms:
            kept = [self.norms[j] for j in numbers]
            self.norms = nn.ModuleList().train(self.training).extend(kept)

    @override
    def fuse(self, x: Tensor, edges: OpenEdges) -> Tensor:
        """The feature's share, and what each open edge adds."""
        out = x if self.own_share == 1 else self.own_share * x
        for j, (source, gate) in edges.items():
            out = out + self._edge(j, source, gate).to(x.dtype)
        return out

    def _edge(self, j: int, source: Tensor, gate: float | Tensor) -> Tensor:
        if not self.norms and not self.activation:
            return project(source, gate * self.weights[j], self.channel_dim)
        return gate * self.finish(project(source, self.weights[j], self.channel_dim), j)
