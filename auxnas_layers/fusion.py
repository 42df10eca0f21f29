"""Fusion layers: what a tap hands on once it has heard other features. They know nothing of taps or searches."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from auxnas_layers.errors import LayoutError, SearchError

Start = Literal["zero", "scaled", "identity"]
Norm = Callable[[int], nn.Module]
Activation = Callable[[Tensor], Tensor]
Heard = Mapping[int, tuple[Tensor, float | Tensor]]
"""Source and gate of each open edge, by the edge's number."""

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_LARGE = 5_000_000  # multiplications of a convolution from which on oneDNN is worth its set-up
_SIZES = "_extra_state"  # torch's own key for what `get_extra_state` returns


class Fusion(nn.Module):
    """What a tap does with its feature and with those that it hears; a base class.

    A subclass says by `fuse` what comes out. It finds a weight ``(C, D_j)`` for each source in `weights`; parts of its
    own it makes in `build`.

    Args:
        channels: Channels ``C`` of the feature that hears; `None` if not known yet (see `materialise`).
        source_channels: Channels ``D_j`` of each source; `None` each if not known yet.
        own_share: Share of the own feature at the start, unitless.
        start: How the weights of the sources start. ``"zero"``: all zero. ``"scaled"``: normal, so that all edges
            together have about the variance of one source. ``"identity"``: sources pass through unchanged, channel
            by channel, scaled by the share that `share` says.
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
    """Whether the feature passes as it is where no edge is open: then a network needs none of this layer."""

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
        super().__init__()
        if isinstance(norm, nn.Module) or isinstance(activation, type):
            raise SearchError(
                "norm makes a module from a number of channels, as norm=torch.nn.LayerNorm does; activation is a "
                f"function or a module, as activation=torch.nn.ReLU(); found {norm!r} and {activation!r}"
            )
        if start not in get_args(Start):
            raise SearchError(f"start must be one of {', '.join(map(repr, get_args(Start)))}; found {start!r}")
        self.own_share, self.start, self.channel_dim = own_share, start, channel_dim
        self.make_norm, self.activation = norm, activation
        self.check()
        self.weights = _Weights([UninitializedParameter() for _ in source_channels])
        self.norms = nn.ModuleList()
        self._sizes: tuple[int, ...] | None = None
        if channels is not None and None not in source_channels:
            self.materialise(channels, [count for count in source_channels if count is not None])

    # What a subclass may say

    def check(self) -> None:
        """Raise a `SearchError` if the options make no sense for this kind of fusion."""

    def fuse(self, x: Tensor, heard: Heard) -> Tensor:
        """What the tap hands on, for a caller that knows which edges are open, so that no gate has to be looked at.

        Args:
            x: The feature that hears.
            heard: Source and gate of each open edge, by its number.
        """
        raise NotImplementedError  # abstract: this is what tells one kind of fusion from another

    def weight_shape(self, channels: int, source_channels: int) -> tuple[int, ...]:
        """Shape of the weight of a source."""
        return channels, source_channels

    def operations(self, number: int) -> int:
        """Multiplications of a source at one place, once its channels are known."""
        return int(self.weights[number].numel())

    def share(self, number: int) -> float:
        """Share with which a source passes where edges start as the identity: equal parts of what the own one leaves.

        Args:
            number: Number of the source.
        """
        return (1 - self.own_share) / len(self.weights)

    def build(self, channels: int) -> None:
        """Make what is not a source's weight, such as norms, now that the channels are known."""

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

    @torch.no_grad()
    def keep_(self, numbers: Sequence[int]) -> None:
        """Forget all sources but these, which are numbered anew in this order."""
        self.weights = _Weights([self.weights[j] for j in numbers]).train(self.training)
        if self._sizes:
            self._sizes = (self._sizes[0], *(self._sizes[1 + j] for j in numbers))

    # Sizing

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
            LayoutError: If the weights have been sized for other channels, or these cannot be joined.
        """
        if len(source_channels) != len(self.weights):
            found = len(source_channels)
            raise LayoutError(f"the fusion has {len(self.weights)} edges, and the channels of {found} were given")
        sizes = (channels, *source_channels)
        if self._sizes is None:
            self._start_(sizes, device, dtype)
        elif self._sizes != sizes:
            was, needed = ([(s[0], count) for count in s[1:]] for s in (self._sizes, sizes))
            raise LayoutError(f"the fusion has weights (C, D) {was}, the features need {needed}")
        self.channel_dim = self.channel_dim if channel_dim is None else channel_dim

    @torch.no_grad()
    def _start_(self, sizes: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> None:
        shapes = [self.weight_shape(sizes[0], count) for count in sizes[1:]]  # may refuse
        self.build(sizes[0])  # may refuse as well
        for j, shape in enumerate(shapes):
            if device and self.weights[j].is_meta != (device.type == "meta"):  # torch cannot size it in place
                self.weights[j] = nn.Parameter(torch.empty(shape, device=device, dtype=dtype or self.weights[j].dtype))
            else:
                self.weights[j].materialize(shape, device=device, dtype=dtype)
            self.start_weight_(self.weights[j], self.share(j))
        like = self.weights[0] if len(self.weights) else torch.empty(0, device=device, dtype=dtype)
        self.to(like)  # what was built follows, also where the dtype came by to() before the sizes
        self.train(self.training)
        self._sizes = sizes

    def start_weight_(self, weight: Tensor, share: float) -> None:
        """Give the weight of a source its first values; `share` is what it passes where it starts as the identity."""
        if self.start == "scaled":
            nn.init.normal_(weight, std=(weight.shape[1] * len(self.weights)) ** -0.5)
        elif self.start == "identity":
            nn.init.eye_(weight).mul_(share)
        else:
            nn.init.zeros_(weight)

    def is_lazy(self) -> bool:
        """Whether the channels are still unknown."""
        return self._sizes is None

    # Use

    def forward(self, x: Tensor, sources: Sequence[Tensor], gates: Tensor | Sequence[float | Tensor]) -> Tensor:
        """Fuse; an edge whose gate is exactly 0 is skipped.

        Raises:
            LayoutError: If there are not as many sources and gates as edges, or the channels are not known yet.
        """
        if self.is_lazy():
            kind = type(self).__name__
            raise LayoutError(f"the channels are not known yet: give them to {kind}(...), or call materialise(...)")
        if not len(sources) == len(gates) == len(self.weights):
            raise LayoutError(f"{len(self.weights)} edges need as many sources and gates; {len(sources)}, {len(gates)}")
        return self.fuse(x, {j: (sources[j], gate) for j, gate in enumerate(gates) if gate != 0})

    def finish(self, y: Tensor, number: int = 0) -> Tensor:
        """Norm, by its number, and activation, if there are any."""
        if self.norms:
            rows = y.movedim(self.channel_dim, -1)
            y = self.norms[number](rows.flatten(0, -2)).view(rows.shape).movedim(-1, self.channel_dim)
        return self.activation(y) if self.activation else y

    # Saving and printing

    def get_extra_state(self) -> Tensor:
        """All channels, so that a state can be loaded into a fusion that does not know its own yet."""
        return torch.tensor(self._sizes or (), dtype=torch.long, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to do: a fusion that needed them has taken them from the state before its weights came."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + _SIZES)
        if self._sizes is None and saved is not None and len(saved):
            if len(saved) - 1 == len(self.weights):
                self.materialise(int(saved[0]), [int(count) for count in saved[1:]])  # in a precision of its own
            else:
                there = len(self.weights)
                args[-1].append(f"{prefix}weights: saved with {len(saved) - 1} edges, and there are {there}")
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


class CrossTaskFusion(Fusion):
    r"""Add gated 1x1 projections of other features to a feature: ``y = share * x + sum_j gate_j * G(W_j source_j)``.

    Aux-NAS (arXiv 2405.05695), section 3; there the norm and activation ``G`` stand around the whole sum. Here they
    stand inside each edge, so that a closed edge leaves nothing behind, and an export needs none of this layer.

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
    def residual(self) -> bool:  # type: ignore[override]
        """Whether the own feature passes whole."""
        return self.own_share == 1

    def check(self) -> None:
        """Raise a `SearchError` if the activation does not give 0 for 0."""
        if self.activation and self.activation(torch.zeros(1)).item() != 0:
            raise SearchError(
                "the activation of an edge must give 0 for 0, as ReLU and GELU do, so that edges can close"
            )

    def share(self, number: int) -> float:
        """All that the own share leaves goes to the last source."""
        last = number == len(self.weights) - 1
        return (1.0 if self.own_share == 1 else 1 - self.own_share) if last else 0.0

    def build(self, channels: int) -> None:
        """A norm for each edge."""
        if self.make_norm:
            self.norms.extend([self.new_norm(channels) for _ in self.weights])

    def keep_(self, numbers: Sequence[int]) -> None:
        """Forget all sources but these, and their norms."""
        super().keep_(numbers)
        if self.norms:
            kept = [self.norms[j] for j in numbers]
            self.norms = nn.ModuleList().train(self.training).extend(kept)

    def fuse(self, x: Tensor, heard: Heard) -> Tensor:
        """The feature's share, and what each open edge adds."""
        out = x if self.own_share == 1 else self.own_share * x
        for j, (source, gate) in heard.items():
            out = out + self._edge(j, source, gate).to(x.dtype)
        return out

    def _edge(self, j: int, source: Tensor, gate: float | Tensor) -> Tensor:
        if not self.norms and not self.activation:
            return project(source, gate * self.weights[j], self.channel_dim)
        return gate * self.finish(project(source, self.weights[j], self.channel_dim), j)


class NDDRFusion(Fusion):
    r"""Mix a feature and those that it hears, then norm and activation: ``y = G(W_0 x + sum_j gate_j * W_j source_j)``.

    That is a 1x1 convolution over all features side by side (NDDR-CNN, CVPR 2019; MTL-NAS, arXiv 2003.14058, where
    G is BatchNorm and ReLU). It also acts where no edge is open, so a network that hears over it needs it at inference.

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

    def build(self, channels: int) -> None:
        """The weight of the own feature, and one norm."""
        self.own_weight = nn.Parameter(self.own_share * torch.eye(channels))
        if self.make_norm:
            self.norms.append(self.new_norm(channels))

    def fuse(self, x: Tensor, heard: Heard) -> Tensor:
        """The mixed features, then norm and activation."""
        out = project(x, self.own_weight, self.channel_dim)
        for j, (source, gate) in heard.items():
            out = out + project(source, gate * self.weights[j], self.channel_dim)
        return self.finish(out).to(x.dtype)


class CrossStitchFusion(Fusion):
    r"""Mix a feature and those that it hears by one number each: ``y = a_0 x + sum_j gate_j * a_j source_j``.

    Cross-stitch networks (CVPR 2016, arXiv 1604.03539). All features need the same channels. It also acts where no
    edge is open, so a network that hears over it needs it at inference.

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

    def check(self) -> None:
        """Raise a `SearchError` for a start that one number cannot have."""
        if self.start == "scaled":
            raise SearchError("CrossStitchFusion has one number for each source; start must be 'zero' or 'identity'")

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

    def operations(self, number: int) -> int:
        """One for each channel."""
        return self._sizes[0] if self._sizes else 0

    def start_weight_(self, weight: Tensor, share: float) -> None:
        """Its share."""
        nn.init.constant_(weight, share if self.start == "identity" else 0.0)

    def build(self, channels: int) -> None:
        """The number of the own feature."""
        self.own_weight = nn.Parameter(torch.full((channels if self.per_channel else 1,), self.own_share))

    def fuse(self, x: Tensor, heard: Heard) -> Tensor:
        """The weighted sum."""
        out = self._along(self.own_weight, x) * x
        for j, (source, gate) in heard.items():
            out = out + self._along(gate * self.weights[j], x) * source
        return out.to(x.dtype)

    def _along(self, weight: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        return weight.view(shape)


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
    left_to_autocast = autocast and source.dtype is not torch.float64
    if source.dtype != weight.dtype and not left_to_autocast:  # which leaves doubles alone
        source = source.to(weight.dtype)
    if channel_dim in (-1, source.dim() - 1):
        return F.linear(source, weight)
    if channel_dim == 1 and source.dim() in _CONVOLUTIONS:
        kernel = weight[(...,) + (None,) * (source.dim() - 2)]
        return _CONVOLUTIONS[source.dim()](source, kernel, dilation=_dilation(source, weight))
    return F.linear(source.movedim(channel_dim, -1), weight).movedim(-1, channel_dim)


def _dilation(source: Tensor, weight: Tensor) -> int:
    """The dilation of a 1x1 convolution, which changes nothing but the backend that torch chooses.

    On one CPU thread torch leaves small batches to a plain matrix product, unless the convolution is dilated; oneDNN
    is up to twice as fast where there is enough to compute.
    """
    large = source.numel() * len(weight) > _LARGE
    return 2 if large and source.device.type == "cpu" and source.dtype is torch.float32 else 1
