"""The layer that a light auxiliary network has in place of a backbone."""

import torch
from torch import Tensor, nn


class Listener(nn.Module):
    """A layer without a feature of its own: zeros, to which its tap adds what it hears.

    An auxiliary network of listeners and a head has no backbone, so training it costs somewhat more than two heads on
    one backbone. Only edges from the primary make sense with it: ``search=AuxG()``.

    Args:
        channels: Channels ``C`` of the feature.
        channel_dim: Dimension of the channels: 1, or -1 for the last.

    Shape:
        - like: ``(B, ...)``; gives the batch and the device
        - places: sizes of the place axes; what is heard is brought to them
        - output: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``; in the dtype that the listener was
          brought to, as a layer with weights

    Raises:
        ValueError: If `channel_dim` is another.

    >>> Listener(8)(torch.ones(2, 3, 60, 80), 15, 20).shape
    torch.Size([2, 8, 15, 20])
    """

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

    def forward(self, like: Tensor, *places: int) -> Tensor:
        """Zeros."""
        shape = (self.channels, *places) if self.channel_dim == 1 else (*places, self.channels)
        return torch.zeros(len(like), *shape, dtype=self.zero.dtype, device=like.device)

    def extra_repr(self) -> str:
        """Its options."""
        return f"{self.channels}, channel_dim={self.channel_dim}"
