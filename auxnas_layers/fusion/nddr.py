"""`NDDRFusion`: the 1x1 convolution over all features of NDDR-CNN and MTL-NAS."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers.fusion.base import Activation, Fusion, Norm, OpenEdges
from auxnas_layers.fusion.projection import product_dtype, project, project_sum
from auxnas_layers.fusion.sizing import Start


class NDDRFusion(Fusion):
    r"""Mix a feature and its sources, then norm and activation: ``y = G(W_0 x + sum_j gate_j * W_j source_j)``.

    That is a 1x1 convolution over all features, concatenated (NDDR-CNN, CVPR 2019; MTL-NAS, arXiv 2003.14058, where
    G is BatchNorm and ReLU). It changes the feature even when no edge is open, so the deployed network needs it too.

    Args:
        channels, source_channels, channel_dim, norm, activation: See `Fusion`.
        own_share: The own feature starts with this share, the ``k`` others with ``(1 - own_share) / k`` each: the
            paper's ``(0.9, 0.1 / k)``, or ``(1, 0)``.
        start: How edges start, see `Fusion`; ``W_0`` is ``own_share`` times the identity in any case.

    Shape:
        - x, sources, gates, output: see `Fusion`

    >>> x, source = torch.ones(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)
    >>> NDDRFusion(3, [5], norm=None)(x, [source], [1.0])[0, 0, 0].tolist()
    [0.8999999761581421, 0.8999999761581421, 0.8999999761581421, 0.8999999761581421]
    """

    own_weight: nn.Parameter

    def __init__(
        self,
        channels: int | None,
        source_channels: Sequence[int | None],
        *,
        own_share: float = 0.9,
        start: Start = "identity",
        channel_dim: int = 1,
        norm: Norm | None = nn.BatchNorm1d,
        activation: Activation | None = F.relu,
    ) -> None:
        super().__init__(
            channels,
            source_channels,
            own_share=own_share,
            start=start,
            channel_dim=channel_dim,
            norm=norm,
            activation=activation,
        )

    @override
    def build(self, channels: int) -> None:
        """The weight of the own feature, and one norm."""
        self.own_weight = nn.Parameter(self.own_share * torch.eye(channels))
        if self.make_norm:
            self.norms.append(self.new_norm(channels))

    @override
    def source_dtype(self, source: Tensor) -> torch.dtype:
        """That of its products."""
        return product_dtype(source, self.weights[0])

    @override
    def fuse(self, x: Tensor, edges: OpenEdges) -> Tensor:
        """The mixed features, then norm and activation."""
        own = project(x, self.own_weight, self.channel_dim)
        return self.finish(project_sum(own, self.gated(edges), self.channel_dim)).to(x.dtype)
