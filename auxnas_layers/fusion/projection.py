"""The 1x1 convolution by which an edge mixes channels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_LARGE = 5_000_000  # multiplications of a convolution from which on oneDNN is worth its set-up


def project(source: Tensor, weight: Tensor, channel_dim: int = 1) -> Tensor:
    """A 1x1 convolution without bias: mix the channels of a feature, in the dtype of the weight.

    Shape:
        - source: ``(B, D, *places)``, or ``(B, *places, D)`` for ``channel_dim=-1``
        - weight: ``(C, D)``
        - output: as source, with ``C`` channels

    >>> project(torch.ones(2, 3, 5), torch.ones(4, 3)).shape
    torch.Size([2, 4, 5])
    """
    device = source.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    left_to_autocast = autocast and source.dtype is not torch.float64  # it does not cast doubles
    if source.dtype != weight.dtype and not left_to_autocast:
        source = source.to(weight.dtype)
    if channel_dim in (-1, source.dim() - 1):
        return F.linear(source, weight)
    if channel_dim == 1 and source.dim() in _CONVOLUTIONS:
        kernel = weight[(...,) + (None,) * (source.dim() - 2)]
        return _CONVOLUTIONS[source.dim()](source, kernel, dilation=_dilation(source, weight))
    return F.linear(source.movedim(channel_dim, -1), weight).movedim(-1, channel_dim)


def _dilation(source: Tensor, weight: Tensor) -> int:
    """The dilation of a 1x1 convolution: it changes no value, only the backend that torch chooses.

    On one CPU thread torch computes small batches as a plain matrix product, unless the convolution is dilated; oneDNN
    is up to twice as fast where there is enough to compute.
    """
    large = source.numel() * len(weight) > _LARGE
    return 2 if large and source.device.type == "cpu" and source.dtype is torch.float32 else 1
