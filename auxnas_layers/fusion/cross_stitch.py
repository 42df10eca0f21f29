"""`CrossStitchFusion`: one number for each feature, of cross-stitch networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers.errors import LayoutError, SearchError
from auxnas_layers.fusion.base import Fusion, OpenEdges
from auxnas_layers.fusion.sizing import Start


class CrossStitchFusion(Fusion):
    r"""Mix a feature and its sources by one number each: ``y = a_0 x + sum_j gate_j * a_j source_j``.

    Cross-stitch networks (CVPR 2016, arXiv 1604.03539). All features need the same channels. It changes the feature
    even when no edge is open, so the deployed network needs it too.

    Args:
        channels, source_channels, channel_dim: See `Fusion`.
        own_share: ``a_0`` at the start; the ``k`` others start at ``(1 - own_share) / k``.
        start: ``"identity"``, or ``"zero"`` for others that start at zero.
        per_channel: Learn a number for each channel instead of one for all.

    Shape:
        - x, sources, output: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``
        - gates: see `Fusion`

    Raises:
        SearchError: If edges would start otherwise.
        LayoutError: If the features have different channels.

    >>> x, source = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    >>> CrossStitchFusion(3, [3], own_share=0.75)(x, [source], [1.0])[0, 0]
    tensor([0.7500, 0.7500, 0.7500, 0.7500], grad_fn=<SelectBackward0>)
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
        per_channel: bool = False,
    ) -> None:
        self.per_channel = per_channel
        super().__init__(channels, source_channels, own_share=own_share, start=start, channel_dim=channel_dim)

    @override
    def check(self) -> None:
        """Raise a `SearchError` for a start that one number cannot have."""
        if self.start == "scaled":
            raise SearchError("CrossStitchFusion has one number for each source; start must be 'zero' or 'identity'")

    @override
    def weight_shape(self, channels: int, source_channels: int) -> tuple[int, ...]:
        """One number, or one for each channel.

        Raises:
            LayoutError: If a source has other channels.
        """
        if channels != source_channels:
            raise LayoutError(
                f"CrossStitchFusion mixes channel by channel, and {channels} channels cannot meet {source_channels}; "
                "tap layers of one width, or use CrossTaskFusion or NDDRFusion"
            )
        return (channels if self.per_channel else 1,)

    @override
    def operations(self, number: int) -> int:
        """One for each channel."""
        return self._sizes[0] if self._sizes else 0

    @override
    def start_weight_(self, weight: Tensor, share: float) -> None:
        """Its share."""
        nn.init.constant_(weight, share if self.start == "identity" else 0.0)

    @override
    def build(self, channels: int) -> None:
        """The number of the own feature."""
        self.own_weight = nn.Parameter(torch.full((channels if self.per_channel else 1,), self.own_share))

    @override
    def fuse(self, x: Tensor, edges: OpenEdges) -> Tensor:
        """The weighted sum."""
        out = self._along(self.own_weight, x) * x
        for j, (source, gate) in edges.items():
            out = out + self._along(gate * self.weights[j], x) * source
        return out.to(x.dtype)

    def _along(self, weight: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        return weight.view(shape)
