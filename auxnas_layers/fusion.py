"""Fusion layers: what a tap hands on once it has heard other features. They know nothing of taps or searches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from auxnas_layers.errors import LayoutError, SearchError

Start = Literal["zero", "scaled", "identity"]
_CONVOLUTIONS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class CrossTaskFusion(nn.Module):
    r"""Add gated 1x1 projections of other features to a feature: ``y = share * x + sum_j gate_j * G(W_j source_j)``.

    Aux-NAS (arXiv 2405.05695), section 3; there the norm and activation ``G`` stand around the whole sum. Here they
    stand inside each edge, so that a closed edge leaves nothing behind, and an export needs none of this layer.

    Args:
        channels: Channels ``C`` of the feature that hears; `None` if not known yet (see `materialise`).
        source_channels: Channels ``D_j`` of each source; `None` each if not known yet.
        own_share: Factor of the own feature, constant, unitless.
        start: How edges start. ``"zero"``: all zero. ``"scaled"``: normal, so that all edges together have about the
            variance of one source. ``"identity"``: the last source passes through unchanged, scaled by
            ``1 - own_share`` (1 if the own share is 1), channel by channel; the others are zero.
        channel_dim: Dimension of the channels in every feature.
        norm: Makes a norm for ``(rows, C)`` from ``C``, such as `torch.nn.LayerNorm` or `torch.nn.BatchNorm1d`.
        activation: Elementwise function that gives 0 for 0, such as `torch.nn.functional.gelu`.

    Shape:
        - x: ``(B, C, *places)``, or ``(B, *places, C)`` for ``channel_dim=-1``
        - sources: each like x, with ``D_j`` channels
        - gates: ``(len(sources),)``, or a sequence of scalars; unitless, in [0, 1]
        - output: as x

    Raises:
        SearchError: If an option is not one of those above.

    >>> x, source = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
    >>> fusion = CrossTaskFusion(3, [5], start="scaled")
    >>> fusion(x, [source], [0.5]).shape
    torch.Size([2, 3, 4, 4])
    >>> fusion(x, [source * torch.inf], [0.0]).equal(x)
    True
    """

    def __init__(
        self,
        channels: int | None,
        source_channels: Sequence[int | None],
        *,
        own_share: float = 1.0,
        start: Start = "zero",
        channel_dim: int = 1,
        norm: Callable[[int], nn.Module] | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if start not in get_args(Start):
            raise SearchError(f"start must be one of {', '.join(map(repr, get_args(Start)))}; found {start!r}")
        if activation and activation(torch.zeros(1)).item() != 0:
            raise SearchError(
                "the activation of an edge must give 0 for 0, as ReLU and GELU do, so that edges can close"
            )
        self.own_share, self.start, self.channel_dim = own_share, start, channel_dim
        self.make_norm, self.activation = norm, activation
        self.weights = _Weights([UninitializedParameter() for _ in source_channels])
        self.norms = nn.ModuleList()
        if channels is not None and None not in source_channels:
            self.materialise(channels, [count for count in source_channels if count is not None])

    @torch.no_grad()
    def materialise(
        self,
        channels: int,
        source_channels: Sequence[int],
        *,
        channel_dim: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Size and start the weights now that all channels are known; if they are sized already, only check them.

        Args:
            channels: Channels ``C`` of the feature that hears.
            source_channels: Channels ``D_j`` of each source.
            channel_dim: Dimension of the channels, if another than the constructor said.
            device, dtype: Those of the new weights.

        Raises:
            LayoutError: If the weights have been sized for other channels.
        """
        shapes = [(channels, count) for count in source_channels]
        if len(shapes) != len(self.weights):
            raise LayoutError(f"the fusion has {len(self.weights)} edges, and the channels of {len(shapes)} were given")
        if self.is_lazy():
            for weight, shape in zip(self.weights, shapes, strict=True):
                weight.materialize(shape, device=device, dtype=dtype)
            self._start_()
            if self.make_norm:
                make_norm = self.make_norm
                self.norms.extend([make_norm(channels).to(weight) for weight in self.weights])
        elif (found := [tuple(weight.shape) for weight in self.weights]) != shapes:
            raise LayoutError(f"the fusion has weights (C, D) {found}, the features need {shapes}")
        self.channel_dim = self.channel_dim if channel_dim is None else channel_dim

    def is_lazy(self) -> bool:
        """Whether the channels are still unknown."""
        return any(map(is_lazy, self.weights))

    def _start_(self) -> None:
        for last, weight in enumerate(self.weights, start=1 - len(self.weights)):
            if self.start == "scaled":
                nn.init.normal_(weight, std=(weight.shape[1] * len(self.weights)) ** -0.5)
            elif self.start == "identity" and last == 0:
                nn.init.eye_(weight).mul_(1 if self.own_share == 1 else 1 - self.own_share)
            else:
                nn.init.zeros_(weight)

    def forward(self, x: Tensor, sources: Sequence[Tensor], gates: Tensor | Sequence[float | Tensor]) -> Tensor:
        """Fuse; an edge whose gate is exactly 0 is skipped.

        Raises:
            LayoutError: If there are not as many sources and gates as edges, or the channels are not known yet.
        """
        if self.is_lazy():
            raise LayoutError(
                "the channels are not known yet: give them to CrossTaskFusion(...), or call materialise(...)"
            )
        if not len(sources) == len(gates) == len(self.weights):
            raise LayoutError(f"{len(self.weights)} edges need as many sources and gates; {len(sources)}, {len(gates)}")
        return self.fuse(x, {j: (sources[j], gate) for j, gate in enumerate(gates) if gate != 0})

    def fuse(self, x: Tensor, edges: Mapping[int, tuple[Tensor, float | Tensor]]) -> Tensor:
        """The same for a caller that knows which edges are open, so that no gate has to be looked at.

        Args:
            x: The feature that hears.
            edges: Source and gate of each open edge, by its number.
        """
        out = x if self.own_share == 1 else self.own_share * x
        for j, (source, gate) in edges.items():
            out = out + self._edge(j, source, gate).to(x.dtype)
        return out

    def _edge(self, j: int, source: Tensor, gate: float | Tensor) -> Tensor:
        weight = self.weights[j]
        if not self.norms and not self.activation:
            return _project(source, gate * weight, self.channel_dim)
        y = _project(source, weight, self.channel_dim).movedim(self.channel_dim, -1)
        if self.norms:
            y = self.norms[j](y.flatten(0, -2)).view(y.shape)
        if self.activation:
            y = self.activation(y)
        return gate * y.movedim(-1, self.channel_dim)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = [value for key, value in state_dict.items() if key.startswith(f"{prefix}weights.")]
        if self.is_lazy() and len(saved) == len(self.weights):
            self.materialise(saved[0].shape[0], [weight.shape[1] for weight in saved], dtype=saved[0].dtype)
        elif self.is_lazy() and saved:
            args[-1].append(f"{prefix}weights: saved with {len(saved)} edges, and there are {len(self.weights)}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Shapes and options."""
        shapes = ", ".join("?" if is_lazy(weight) else f"{tuple(weight.shape)}" for weight in self.weights)
        return f"weights=[{shapes}], own_share={self.own_share}, start={self.start!r}, channel_dim={self.channel_dim}"


class _Weights(nn.ParameterList):
    """Weights that are left out of a state_dict, and need none, as long as they have no size."""

    def _save_to_state_dict(self, *args: Any) -> None:
        if not any(map(is_lazy, self)):
            super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        if not any(map(is_lazy, self)):
            super()._load_from_state_dict(*args)


def _project(source: Tensor, weight: Tensor, channel_dim: int) -> Tensor:
    """A 1x1 convolution without bias: mix the channels of a feature."""
    if source.dtype != weight.dtype and not torch.is_autocast_enabled(source.device.type):
        source = source.to(weight.dtype)
    if channel_dim in (-1, source.dim() - 1):
        return F.linear(source, weight)
    if channel_dim == 1 and source.dim() in _CONVOLUTIONS:
        return _CONVOLUTIONS[source.dim()](source, weight[(...,) + (None,) * (source.dim() - 2)])
    return F.linear(source.movedim(channel_dim, -1), weight).movedim(-1, channel_dim)
