"""Weights of edges whose sizes become known later, and how such weights are saved and loaded."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from typing_extensions import override

from auxnas_layers.errors import LayoutError, SearchError

Start = Literal["zero", "scaled", "identity"]
SIZES = "_extra_state"  # torch's own key for what `get_extra_state` returns


class EdgeWeights(nn.Module):
    """A weight ``(C, D_j)`` for each edge into one layer, sized at once or by `materialise`; a base class of `Fusion`.

    Args:
        edges: Number of edges.
        own_share: Share of the own feature at the start, unitless.
        start: How the weights start, see `Fusion`.
        channel_dim: Dimension of the channels in every feature.

    Raises:
        SearchError: If `start` is none of those.
    """

    def __init__(self, edges: int, own_share: float, start: Start, channel_dim: int) -> None:
        super().__init__()
        if start not in get_args(Start):
            raise SearchError(f"start must be one of {', '.join(map(repr, get_args(Start)))}; found {start!r}")
        self.own_share, self.start, self.channel_dim = own_share, start, channel_dim
        self.weights = _Weights([UninitializedParameter() for _ in range(edges)])
        self._sizes: tuple[int, ...] | None = None

    # What a subclass may say

    def weight_shape(self, channels: int, source_channels: int) -> tuple[int, ...]:
        """Shape of the weight of one source."""
        return channels, source_channels

    def share(self, number: int) -> float:
        """Share with which a source passes where edges start as the identity: equal parts of what the own one leaves.

        Args:
            number: Number of the source.
        """
        return (1 - self.own_share) / len(self.weights)

    def start_weight_(self, weight: Tensor, share: float) -> None:
        """Set the first values of a source's weight; `share` is its factor where it starts as the identity."""
        if self.start == "scaled":
            nn.init.normal_(weight, std=(weight.shape[1] * len(self.weights)) ** -0.5)
        elif self.start == "identity":
            nn.init.eye_(weight).mul_(share)
        else:
            nn.init.zeros_(weight)

    def operations(self, number: int) -> int:
        """Multiplications of a source at one position, once its channels are known."""
        return int(self.weights[number].numel())

    def build(self, channels: int) -> None:
        """Make what is not a source's weight, such as norms, once `sizes` are known."""

    # Sizing

    def is_lazy(self) -> bool:
        """Whether the channels are still unknown."""
        return self._sizes is None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels of the feature that receives, and of each source; empty if they are unknown."""
        return self._sizes or ()

    def materialise(
        self,
        channels: int,
        source_channels: Sequence[int],
        *,
        channel_dim: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Size and start the weights; if they have sizes already, only check these.

        Args:
            channels: Channels ``C`` of the feature that receives.
            source_channels: Channels ``D_j`` of each source.
            channel_dim: Dimension of the channels, if another than the constructor's.
            device, dtype: Those of the new weights.

        Raises:
            LayoutError: If the weights have sizes for other channels, or these cannot be fused.
        """
        if len(source_channels) != len(self.weights):
            edges = len(self.weights)
            rule = f"the fusion has {edges} edges, so it takes the channels of {edges} sources"
            raise LayoutError(f"{rule}; found {len(source_channels)}")
        sizes = (channels, *source_channels)
        if self._sizes is None:
            own = self.weights[0].device if len(self.weights) else None
            with device or own or nullcontext():  # not where the user makes tensors by default
                self._start_(sizes, device, dtype)
        elif self._sizes != sizes:
            was, needed = ([(s[0], count) for count in s[1:]] for s in (self._sizes, sizes))
            differ = f"the fusion has weights (C, D) {was}, the features need {needed}"
            raise LayoutError(f"{differ}; make the fusion, or the wrapper, anew")
        self.channel_dim = self.channel_dim if channel_dim is None else channel_dim

    @torch.no_grad()
    def _start_(self, sizes: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> None:
        shapes = [self.weight_shape(sizes[0], count) for count in sizes[1:]]  # may raise
        self._sizes = sizes
        try:
            self.build(sizes[0])
        except BaseException:
            self._sizes = None
            raise
        for j, shape in enumerate(shapes):
            if device and self.weights[j].is_meta != (device.type == "meta"):  # torch cannot size it in place
                self.weights[j] = nn.Parameter(torch.empty(shape, device=device, dtype=dtype or self.weights[j].dtype))
            else:
                self.weights[j].materialize(shape, device=device, dtype=dtype)
            self.start_weight_(self.weights[j], self.share(j))
        like = self.weights[0] if len(self.weights) else torch.empty(0, device=device, dtype=dtype)
        self.to(like)  # what was built follows, also where only to() has told the dtype
        self.train(self.training)

    @torch.no_grad()
    def keep_(self, numbers: Sequence[int]) -> None:
        """Drop all edges but these, which get new numbers in this order."""
        self.weights = _Weights([self.weights[j] for j in numbers]).train(self.training)
        if self._sizes:
            self._sizes = (self._sizes[0], *(self._sizes[1 + j] for j in numbers))

    # Saving

    @override
    def get_extra_state(self) -> Tensor:
        """All channels, so that a state can be loaded before the sizes are known."""
        return torch.tensor(self._sizes or (), dtype=torch.long, device="cpu")

    @override
    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to do: `_load_from_state_dict` has sized the weights before theirs were loaded."""

    @override
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + SIZES)
        if self._sizes is None and saved is not None and len(saved):
            if len(saved) - 1 == len(self.weights):
                self.materialise(int(saved[0]), [int(count) for count in saved[1:]])  # in its own dtype
            else:
                there = len(self.weights)
                args[-1].append(f"{prefix}weights: saved with {len(saved) - 1} edges, and there are {there}")
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Weights(nn.ParameterList):
    """Weights that a state_dict leaves out, and does not need, as long as they have no size."""

    @override
    def _save_to_state_dict(self, *args: Any) -> None:
        if not any(map(is_lazy, self)):
            super()._save_to_state_dict(*args)

    @override
    def _load_from_state_dict(self, *args: Any) -> None:
        if not any(map(is_lazy, self)):
            super()._load_from_state_dict(*args)
