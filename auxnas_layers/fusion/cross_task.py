"""`CrossTaskFusion`: the residual fusion of Aux-NAS."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers.errors import SearchError
from auxnas_layers.features.inputs import floating_parameter
from auxnas_layers.fusion.base import Activation, Fusion, Norm, OpenEdges
from auxnas_layers.fusion.projection import gate_weights, pass_through, product_dtype, project, project_sum
from auxnas_layers.fusion.sizing import SIZES, Start


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
        rank: Rank ``r`` of every ``W_j``: a product ``B_j A_j`` of ``(C, r)`` and ``(r, D_j)``, as in LoRA
            (arXiv 2106.09685), so that an edge costs ``r (C + D_j)`` multiplications at each place instead of
            ``C D_j``. Where that is no less, and for None, ``W_j`` is full. Under ``start="identity"`` a source passes
            through beside the product, times a learned factor for each channel.

    Shape:
        - x, sources, gates, output: see `Fusion`

    Raises:
        SearchError: If the activation does not give 0 for 0, or the rank is not a positive integer.

    >>> x, source = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
    >>> fusion = CrossTaskFusion(3, [5], start="scaled")
    >>> fusion(x, [source], [0.5]).shape
    torch.Size([2, 3, 4, 4])
    >>> fusion(x, [source * torch.inf], [0.0]).equal(x)
    True
    >>> [sum(p.numel() for p in CrossTaskFusion(256, [256], rank=r).parameters()) for r in (None, 8)]
    [65536, 4096]
    """

    ups: nn.ParameterDict
    """``B_j`` of each edge of low rank, by its number; its `weights` are ``A_j``."""

    diagonals: nn.ParameterDict
    """The factors of a source that passes through unchanged at the start, by the number of its edge of low rank."""

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
        rank: int | None = None,
    ) -> None:
        self.rank = rank
        super().__init__(
            channels,
            source_channels,
            own_share=own_share,
            start=start,
            channel_dim=channel_dim,
            norm=norm,
            activation=activation,
        )

    @property
    @override
    def residual(self) -> bool:  # type: ignore[override]
        """Whether the own feature passes whole."""
        return self.own_share == 1

    @override
    def check(self) -> None:
        """Raise a `SearchError` if the activation does not give 0 for 0, or the rank is no positive integer."""
        like = floating_parameter(self.activation) if isinstance(self.activation, nn.Module) else None
        zero = torch.zeros(1, device="cpu") if like is None else torch.zeros(1, dtype=like.dtype, device=like.device)
        if self.activation and self.activation(zero).item() != 0:
            raise SearchError(
                "the activation of an edge must give 0 for 0, as ReLU and GELU do, so that edges can close"
            )
        if self.rank is not None and not (type(self.rank) is int and self.rank > 0):
            raise SearchError(f"rank must be a positive integer, or None for full weights; found rank={self.rank!r}")

    # Weights

    @override
    def share(self, number: int) -> float:
        """The last source gets all that the own share leaves."""
        last = number == len(self.weights) - 1
        return (1.0 if self.own_share == 1 else 1 - self.own_share) if last else 0.0

    @override
    def weight_shape(self, channels: int, source_channels: int) -> tuple[int, ...]:
        """That of ``A_j``, or of ``W_j`` where a product would cost no less."""
        rank = self.rank or channels
        is_low = rank * (channels + source_channels) < channels * source_channels
        return (rank if is_low else channels), source_channels

    @override
    def start_weight_(self, weight: Tensor, share: float) -> None:
        """Normal where the rank is low, so that ``B_j`` has a gradient even if it starts at zero."""
        if self.rank and len(weight) != self.sizes[0]:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        else:
            super().start_weight_(weight, share)

    @override
    def build(self, channels: int) -> None:
        """A norm for each edge, and the other factors of those of low rank."""
        self.ups, self.diagonals = nn.ParameterDict(), nn.ParameterDict()
        if self.make_norm:
            self.norms.extend([self.new_norm(channels) for _ in self.weights])
        for j, source_channels in enumerate(self.sizes[1:]):
            rank, _ = self.weight_shape(channels, source_channels)
            if rank == channels:
                continue
            self.ups[str(j)] = nn.Parameter(torch.zeros(channels, rank))
            if self.start == "scaled":
                nn.init.normal_(self.ups[str(j)], std=(rank * len(self.weights)) ** -0.5)
            if self.start == "identity" and self.share(j):
                self.diagonals[str(j)] = nn.Parameter(torch.full((min(channels, source_channels),), self.share(j)))

    @override
    def operations(self, number: int) -> int:
        """Multiplications of all its factors."""
        factors = [side[str(number)] for side in (self.ups, self.diagonals) if str(number) in side]
        return super().operations(number) + sum(int(factor.numel()) for factor in factors)

    @override
    def keep_(self, numbers: Sequence[int]) -> None:
        """Drop all edges but these, with their norms and factors."""
        super().keep_(numbers)
        if self.norms:
            kept = [self.norms[j] for j in numbers]
            self.norms = nn.ModuleList().train(self.training).extend(kept)
        if not self.is_lazy():
            new = {str(j): str(number) for number, j in enumerate(numbers)}
            for name in ("ups", "diagonals"):
                left = {new[j]: factor for j, factor in getattr(self, name).items() if j in new}
                setattr(self, name, nn.ParameterDict(left).train(self.training))

    @override
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.is_lazy() or prefix + SIZES not in state_dict:
            return
        for j, up in self.ups.items():  # once edges were dropped, the last one may have no diagonal, or another one
            saved = state_dict.get(f"{prefix}diagonals.{j}")
            if saved is None and j in self.diagonals:
                del self.diagonals[j]
            if saved is not None and j not in self.diagonals:
                self.diagonals[j] = nn.Parameter(up.detach().new_zeros(saved.shape))

    @override
    def source_dtype(self, source: Tensor) -> torch.dtype:
        """That of its products."""
        return product_dtype(source, self.weights[0])

    # Fusing

    @override
    def fuse(self, x: Tensor, edges: OpenEdges) -> Tensor:
        """The feature's share, and what each open edge adds."""
        if not self.norms and not self.activation:
            return self._sum(x, edges)
        out = x if self.own_share == 1 else self.own_share * x
        for j, (source, gate) in edges.items():
            out = out + (gate * self.finish(self._edge(j, source), j)).to(x.dtype)
        return out

    def _sum(self, x: Tensor, edges: OpenEdges) -> Tensor:
        """With the gates in the weights; all edges of low rank share one product to the channels of the feature."""
        low = {j: edge for j, edge in edges.items() if str(j) in self.ups}
        pairs = self.gated({j: edge for j, edge in edges.items() if j not in low})
        if low:
            narrow = [project(source, self.weights[j], self.channel_dim) for j, (source, _) in low.items()]
            ups = gate_weights([self.ups[str(j)] for j in low], [gate for _, gate in low.values()])
            pairs.append((torch.cat(narrow, dim=self.channel_dim), torch.cat(ups, dim=1)))
        out = project_sum(x, pairs, self.channel_dim, self.own_share)
        for j, (source, gate) in low.items():
            if str(j) in self.diagonals:
                out = pass_through(out, source, gate * self.diagonals[str(j)], self.channel_dim)
        return out

    def _edge(self, j: int, source: Tensor) -> Tensor:
        """``W_j source_j``."""
        y = project(source, self.weights[j], self.channel_dim)
        if str(j) in self.ups:
            y = project(y, self.ups[str(j)], self.channel_dim)
        if str(j) in self.diagonals:
            y = pass_through(y, source, self.diagonals[str(j)], self.channel_dim)
        return y

    @override
    def extra_repr(self) -> str:
        """Shapes and options."""
        return super().extra_repr() + (f", rank={self.rank}" if self.rank else "")
