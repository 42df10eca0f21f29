"""`Listener`: the layer that a light auxiliary has in place of a backbone."""

import torch
from torch import Tensor, nn
from typing_extensions import override


class Listener(nn.Module):
    """A layer that returns zeros, to which its tap adds the primary's features.

    An auxiliary of listeners and a head has no backbone, so training it costs little more than two heads on one
    backbone. Only edges from the primary make sense with it: ``search=AuxG()``.

    Args:
        channels: Channels ``C`` of the feature.
        channel_dim: Dimension of the channels: 1, or -1 for the last.

    Shape:
        - like: ``(B, ...)``; gives the batch and the device
        - places: sizes of the place axes, to which sources are resized
        - output: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``; in the listener's own dtype, which
          `to` changes as it changes that of weights

    Raises:
        ValueError: If `channel_dim` is another.

    >>> Listener(8)(torch.ones(2, 3, 60, 80), 15, 20).shape
    torch.Size([2, 8, 15, 20])
    """

    only_receives = True
    """It has no feature of its own; `suggest_taps` takes such layers of an auxiliary as its taps."""

    zero: Tensor

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        if channel_dim not in (1, -1):
            raise ValueError(f"channel_dim of a Listener must be 1 or -1; found {channel_dim!r}")
        self.channels, self.channel_dim = channels, channel_dim
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # takes on a dtype by to()
        if channel_dim == 1:
            self.out_channels = channels  # as layers of torch tell theirs, by which a layout is inferred
        else:
            self.out_features = channels

    @override
    def forward(self, like: Tensor, *places: int) -> Tensor:
        """Zeros."""
        shape = (self.channels, *places) if self.channel_dim == 1 else (*places, self.channels)
        return torch.zeros(len(like), *shape, dtype=self.zero.dtype, device=like.device)

    @override
    def extra_repr(self) -> str:
        """Its options."""
        return f"{self.channels}, channel_dim={self.channel_dim}"
