"""The 1x1 convolution by which an edge mixes channels, and sums of them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
STARTS_FAST = ("cpu",)  # devices that start a product sooner than they copy a weight
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
    if source.dtype != weight.dtype and not _left_to_autocast(source):
        source = source.to(weight.dtype)
    if _is_last(channel_dim, source):
        return F.linear(source, weight)
    if channel_dim == 1 and source.dim() in _CONVOLUTIONS:
        kernel = weight[(...,) + (None,) * (source.dim() - 2)]
        return _CONVOLUTIONS[source.dim()](source, kernel, dilation=_dilation(source, weight))
    return F.linear(source.movedim(channel_dim, -1), weight).movedim(-1, channel_dim)


def project_sum(x: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], channel_dim: int = 1, share: float = 1.0) -> Tensor:
    """``share * x + sum of project(source, weight)``, in the dtype and memory format of `x`.

    Shape:
        - x: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``
        - pairs: sources like x, with ``D_j`` channels, and weights ``(C, D_j)``
        - output: as x

    >>> project_sum(torch.ones(2, 4, 5), [(torch.ones(2, 3, 5), torch.ones(4, 3))], share=0.5)[0, 0]
    tensor([3.5000, 3.5000, 3.5000, 3.5000, 3.5000])
    """
    if not pairs:
        return x if share == 1 else share * x
    alike = {tensor.dtype for pair in pairs for tensor in pair} == {x.dtype} and not _left_to_autocast(x)
    if alike and _is_last(channel_dim, x) and x.is_contiguous():
        return _add_rows(x, pairs, share)
    total = project(*pairs[0], channel_dim)
    if _is_last(channel_dim, x):
        total = _add_rows(total, pairs[1:])
    else:
        for source, weight in pairs[1:]:
            total = total + project(source, weight, channel_dim)
    if share != 1 and total.stride() == x.stride():
        return torch.add(total, x, alpha=share).to(x.dtype)
    return ((x if share == 1 else share * x) + total).to(x.dtype)  # the first one gives the memory format


def _add_rows(x: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], share: float = 1.0) -> Tensor:
    """``share * x + sum of source @ weight.T`` without a pass over memory for each sum."""
    rows = x.flatten(0, -2)
    for source, weight in pairs:
        rows, share = torch.addmm(rows, source.flatten(0, -2), weight.t(), beta=share), 1.0
    return rows.view(x.shape)


def pass_through(x: Tensor, source: Tensor, factor: Tensor, channel_dim: int = 1) -> Tensor:
    """Add the first channels of a source, each times its factor, to those of a feature, in the dtype of `x`.

    Shape:
        - x, output: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``
        - source: as x, with ``D`` channels
        - factor: ``(min(C, D),)``

    >>> pass_through(torch.zeros(1, 3), torch.ones(1, 2), torch.tensor([5.0, 7.0])).tolist()
    [[5.0, 7.0, 0.0]]
    """
    count, after = len(factor), x.dim() - 1 - channel_dim % x.dim()
    added = factor.view(-1, *[1] * after) * source.narrow(channel_dim, 0, count)
    missing = x.shape[channel_dim] - count
    return (x + (F.pad(added, [0, 0] * after + [0, missing]) if missing else added)).to(x.dtype)


def gate_weights(weights: Sequence[Tensor], gates: Sequence[float | Tensor]) -> list[Tensor]:
    """Each weight times its gate, in the dtype of the products; on an accelerator by one product where shapes agree.

    Shape:
        - weights, output: ``(C, D_j)``
        - gates: scalars
    """
    alike = len({weight.shape for weight in weights}) == 1 < len(weights)
    if alike and weights[0].device.type not in STARTS_FAST:
        return _gate_together(weights, [torch.as_tensor(gate, device=weights[0].device) for gate in gates])
    return [gate * weight for gate, weight in zip(gates, weights, strict=True)]


def _gate_together(weights: Sequence[Tensor], gates: Sequence[Tensor]) -> list[Tensor]:
    gated = torch.stack(list(gates)).view(-1, 1, 1) * torch.stack(list(weights))
    return list(gated.to(product_dtype(weights[0], weights[0])).unbind())  # gates may be wider than the weights


def product_dtype(source: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which `project` multiplies: that of the weight, or autocast's."""
    return torch.get_autocast_dtype(source.device.type) if _left_to_autocast(source) else weight.dtype


def _left_to_autocast(tensor: Tensor) -> bool:
    """Whether autocast chooses the dtype of a product; it does not cast doubles."""
    device = tensor.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return is_on and tensor.dtype is not torch.float64


def _is_last(channel_dim: int, feature: Tensor) -> bool:
    return channel_dim in (-1, feature.dim() - 1)


def _dilation(source: Tensor, weight: Tensor) -> int:
    """The dilation of a 1x1 convolution: it changes no value, only the backend that torch chooses.

    On one CPU thread torch computes small batches as a plain matrix product, unless the convolution is dilated; oneDNN
    is up to twice as fast where there is enough to compute.
    """
    large = source.numel() * len(weight) > _LARGE
    return 2 if large and source.device.type == "cpu" and source.dtype is torch.float32 else 1
