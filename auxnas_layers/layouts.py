"""Axis strings: what the axes of a feature mean, and bringing a feature of one layout into another's.

A layout names every dimension of a feature: ``b`` the batch, ``c`` the channels, any other name a place axis.
``(h w)`` is one dimension that holds a flattened grid; ``1+(h w)`` has one extra token (a class token) before the grid.
"""

import keyword
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from auxnas_layers.errors import LayoutError

_AXIS = re.compile(r"(?:(?P<extra>\d+)\+)?\((?P<group> *[a-z][a-z ]*)\)|(?P<name>[a-z]+)")
_ALONE = ("b",), ("c",)
_TAKEN = {*keyword.kwlist, "tensor", "pattern"}  # einops takes sizes by keyword
_FIRST = {3: "b c t", 4: "b c h w", 5: "b c d h w"}
_LAST = {3: "b n c", 4: "b h w c", 5: "b d h w c"}
_MOST_EXTRA_TOKENS = 5
_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Layout:
    """The meaning of a feature's dimensions, read from an axis string.

    Args:
        text: The axis string, such as ``"b c h w"``, ``"b n c"`` or ``"b 1+(h w) c"``.

    Raises:
        LayoutError: If the string is not of that form, or ``b`` and ``c`` are not each there once, on their own.

    >>> Layout("b 1+(h w) c").places
    ('h', 'w')
    """

    text: str

    def __post_init__(self) -> None:
        axes = [axis for group in self.dimensions for axis in group]
        if (
            _AXIS.sub("", self.text).strip(" ")
            or len(set(axes)) < len(axes)
            or not _TAKEN.isdisjoint(axes)
            or any(self.dimensions.count(alone) != 1 for alone in _ALONE)
            or any("(" + axis + ")" in self.text for axis in "bc")
            or ("+" in self.text and len(self.dimensions) != 3)
        ):
            raise LayoutError(
                f"{self.text!r} is not a layout: name every dimension once, 'b' for the batch and 'c' for the "
                "channels among them, as in 'b c h w', 'b n c', 'b h w c', 'b (h w) c' or 'b 1+(h w) c'"
            )

    @property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """The axes that each dimension holds: one, or several where it is a flattened grid."""
        return tuple(tuple((match["group"] or match["name"]).split()) for match in _AXIS.finditer(self.text))

    @property
    def places(self) -> tuple[str, ...]:
        """The axes other than batch and channels, in order."""
        return tuple(axis for group in self.dimensions for axis in group if axis not in ("b", "c"))

    @property
    def extra(self) -> int:
        """Tokens that stand before the flattened grid and belong to no place."""
        return sum(int(match["extra"] or 0) for match in _AXIS.finditer(self.text))

    @property
    def place_dims(self) -> tuple[int, ...]:
        """The dimensions that hold places."""
        return tuple(dim for dim, group in enumerate(self.dimensions) if group not in _ALONE)

    @property
    def batch_dim(self) -> int:
        """The dimension that holds the samples."""
        return self.dimensions.index(("b",))

    @property
    def channel_dim(self) -> int:
        """The dimension that holds the channels."""
        return self.dimensions.index(("c",))

    @property
    def pattern(self) -> str:
        """The einops pattern of the feature without its extra tokens."""
        return re.sub(r"\d+\+", "", self.text)

    def renamed(self, names: Mapping[str, str]) -> "Layout":
        """The same layout with other names for some axes."""
        return Layout(re.sub("[a-z]+", lambda match: names.get(match.group(), match.group()), self.text))

    def channels(self, shape: Sequence[int]) -> int:
        """How many channels a feature of this shape has.

        Raises:
            LayoutError: If the shape has another number of dimensions.
        """
        if len(shape) != len(self.dimensions):
            raise LayoutError(f"layout {self.text!r} has {len(self.dimensions)} dimensions, the feature {tuple(shape)}")
        return shape[self.channel_dim]


def infer_layout(shape: Sequence[int], leaves: Iterable[nn.Module], batches: Collection[int] = ()) -> Layout:
    """Tell the layout of a feature from its shape and the layers that made it.

    Args:
        shape: Shape of the feature.
        leaves: Layers registered up to the one that gave the feature out, the latest first. The first one whose number
            of output channels is found at dimension 1 or at the end decides.
        batches: Numbers of samples that layers of the network took as ``(time, batch, channels)``. Where there are any,
            three dimensions may be ``t b c``, and which of the first two is such a number decides.

    Raises:
        LayoutError: If neither the shape nor the layers tell.

    >>> infer_layout((2, 8, 5, 5), [nn.Conv2d(3, 8, 1)]).text
    'b c h w'
    >>> infer_layout((2, 5, 8), [nn.Linear(3, 8)]).text
    'b n c'
    """
    if len(shape) == 2:
        return Layout("b c")
    if len(shape) not in _FIRST:
        raise LayoutError(f"no layout is known for a feature of shape {tuple(shape)}")
    if len(shape) == 3 and batches:
        first, second = (size in batches for size in shape[:2])
        if first == second:
            found = " or ".join(map(str, sorted(batches)))
            raise LayoutError(
                f"a feature of shape {tuple(shape)} may be 't b c' or have its batch first, in a network with layers "
                f"that take (time, batch, channels), here of {found} samples"
            )
        if second:
            return Layout("t b c")
    for leaf in leaves:
        channels, first = _output_channels(leaf)
        at_first, at_last = shape[1] == channels, shape[-1] == channels
        if at_first or at_last:
            return Layout((_FIRST if at_first and (first or not at_last) else _LAST)[len(shape)])
        if len(shape) == 5 and channels in shape[2:4]:
            raise LayoutError(f"a feature of shape {tuple(shape)} has its {channels} channels at an unusual place")
    if len(shape) > 3:
        return Layout(_FIRST[len(shape)])
    raise LayoutError(
        f"a feature of shape {tuple(shape)} may be 'b n c' or 'b c t', and no layer before it tells which"
    )


def _output_channels(leaf: nn.Module) -> tuple[int | None, bool]:
    """The number of channels that a layer gives out, and whether it keeps them at dimension 1."""
    for name in ("out_channels", "num_features", "num_channels"):
        if isinstance(count := getattr(leaf, name, None), int):
            return count, True
    for name in ("out_features", "embedding_dim", "embed_dim"):
        if isinstance(count := getattr(leaf, name, None), int):
            return count, False
    if isinstance(leaf, nn.RNNBase):
        return (leaf.proj_size or leaf.hidden_size) * (2 if leaf.bidirectional else 1), False
    normalized = getattr(leaf, "normalized_shape", ())
    sizes: tuple[int, ...] = (normalized,) if isinstance(normalized, int) else tuple(normalized)
    return (sizes[0] if len(sizes) == 1 else None), False


def align(source: Tensor, source_layout: Layout, target_shape: Sequence[int], target_layout: Layout) -> Tensor:
    """Bring a feature into the layout, places and resolution of another one; its channels stay as they are.

    Place axes pair by name, those left over in order if both have as many. A paired axis is pooled (averaged) where it
    shrinks and interpolated linearly where it grows; an axis that only the source has is averaged; one that only the
    target has is repeated.
    An axis called ``n`` (tokens) against a grid is read as that grid where its length fits, after up to 5 extra tokens.
    Extra tokens of the target get the source's own extra tokens if it has as many, otherwise its mean.

    Args:
        source: Feature to bring over.
        source_layout: Its layout.
        target_shape: Shape of the feature that it will be added to; its channels are ignored.
        target_layout: Layout of that feature.

    Shape:
        - source: as in `source_layout`, with batch ``b`` and channels ``c``
        - output: as in `target_layout`, with the target's ``b`` and places and the source's ``c``

    Raises:
        LayoutError: If the batches differ, or a flattened grid cannot be unfolded.

    >>> import torch
    >>> align(torch.zeros(2, 8, 4, 4), Layout("b c h w"), (2, 197, 6), Layout("b n c")).shape
    torch.Size([2, 197, 8])
    """
    plan = _plan(source_layout.text, tuple(source.shape), target_layout.text, tuple(target_shape))
    return source if plan is None else plan.apply(source)


def check_alignable(source_shape: Sequence[int], source: Layout, target_shape: Sequence[int], target: Layout) -> None:
    """Raise the `LayoutError` that `align` would raise on features of these shapes."""
    _plan(source.text, tuple(source_shape), target.text, tuple(target_shape))


@dataclass(frozen=True)
class _Plan:
    """The steps that bring a feature of one layout and shape into another."""

    source: Layout
    grid: Mapping[str, int]
    kept: str
    resized: tuple[int, ...]
    target: Layout
    sizes: Mapping[str, int]

    def apply(self, source: Tensor) -> Tensor:
        extra = None
        if self.source.extra:
            dim = self.source.place_dims[0]
            extra, source = source.tensor_split([self.source.extra], dim=dim)
        places = " ".join(self.source.places)
        grid = rearrange(source, f"{self.source.pattern} -> b c {places}", **self.grid)
        x = _resize(reduce(grid, f"b c {places} -> b c {self.kept}", "mean"), self.resized)
        out = repeat(x, f"b c {self.kept} -> {self.target.pattern}", **self.sizes)
        if not self.target.extra:
            return out
        if extra is not None and self.source.extra == self.target.extra:
            extra = rearrange(extra, f"{_tokens(self.source)} -> {_tokens(self.target)}")
        else:
            mean = reduce(grid, f"b c {places} -> b c", "mean")
            extra = repeat(mean, f"b c -> {_tokens(self.target)}", n=self.target.extra)
        return torch.cat([extra, out], dim=self.target.place_dims[0])


def _tokens(layout: Layout) -> str:
    """The pattern of a layout with extra tokens, with its place dimension called ``n``."""
    return " ".join(group[0] if group in _ALONE else "n" for group in layout.dimensions)


@lru_cache(maxsize=4096)
def _plan(
    source_text: str, source_shape: tuple[int, ...], target_text: str, target_shape: tuple[int, ...]
) -> _Plan | None:
    """Work out how to align two features; None where the source already fits."""
    source, target = Layout(source_text), Layout(target_text)
    channels = source.channels(source_shape), target.channels(target_shape)
    samples, others = source_shape[source.batch_dim], target_shape[target.batch_dim]
    if samples != others:
        raise LayoutError(
            f"{samples} samples cannot meet {others}, {source_shape} read as {source_text!r} and {target_shape} as "
            f"{target_text!r}; give both networks the same samples, or Tap(...) the primary_layout or aux_layout"
        )
    if source == target and _with_channels(target, target_shape, channels[0]) == source_shape:
        return None
    source = _as_grid(source, source_shape, target, target_shape)
    target = _as_grid(target, target_shape, source, source_shape)
    source, target = (
        _fold(source, source_shape, target, target_shape),
        _fold(target, target_shape, source, source_shape),
    )
    pairs = _pair(source.places, target.places)
    source = source.renamed(pairs)
    source_grid = _grid(source, source_shape, hint=_direct(target, target_shape))
    target_grid = _grid(target, target_shape, hint=_direct(source, source_shape))
    kept = [axis for axis in source.places if axis in target.places]
    if len(kept) > max(_POOL) and any(source_grid[axis] != target_grid[axis] for axis in kept):
        raise LayoutError(f"at most {max(_POOL)} place axes can be resized at once, here {len(kept)}: {' '.join(kept)}")
    return _Plan(
        source=source,
        grid=source_grid,
        kept=" ".join(kept),
        resized=tuple(target_grid[axis] for axis in kept),
        target=target,
        sizes={axis: size for axis, size in target_grid.items() if axis not in kept},
    )


def _with_channels(layout: Layout, shape: Sequence[int], channels: int) -> tuple[int, ...]:
    return tuple(channels if dim == layout.channel_dim else size for dim, size in enumerate(shape))


def _as_grid(layout: Layout, shape: Sequence[int], other: Layout, other_shape: Sequence[int]) -> Layout:
    """Read a row of tokens ``n`` as the grid of the other feature, after as few extra tokens as its length allows."""
    if "n" not in layout.text.split() or layout.places != ("n",) or len(other.places) < 2:
        return layout
    length, hint = shape[layout.place_dims[0]], _direct(other, other_shape)
    ways = [(extra, way) for way in (_in_proportion, _by_stride) for extra in range(_MOST_EXTRA_TOKENS + 1)]
    if len(set(hint.values())) > 1:  # the more tokens may be left over, the more wrong grids have the proportions
        ways.sort(key=lambda pair: pair[0] > 1)
    for extra, way in ways:
        if way(length - extra, other.places, hint):
            group = f"({' '.join(other.places)})"
            return Layout(re.sub(r"\bn\b", f"{extra}+{group}" if extra else group, layout.text))
    return layout


def _fold(layout: Layout, shape: Sequence[int], other: Layout, other_shape: Sequence[int]) -> Layout:
    """Leave a flattened grid flat, as one axis, where the other feature has the same one or no places at all."""
    others = {group: other_shape[dim] for dim, group in enumerate(other.dimensions)}
    for dim, group in enumerate(layout.dimensions):
        same = others.get(group) == shape[dim] and layout.extra == other.extra
        if len(group) > 1 and (same or not other.places):
            layout = Layout(layout.text.replace(" ".join(group), "".join(group)))
    return layout


def _pair(source: tuple[str, ...], target: tuple[str, ...]) -> dict[str, str]:
    """Pair place axes by name; those left over in order, if as many are left on both sides."""
    left = [axis for axis in source if axis not in target], [axis for axis in target if axis not in source]
    return dict(zip(*left, strict=True)) if len(left[0]) == len(left[1]) else {}


def _direct(layout: Layout, shape: Sequence[int]) -> dict[str, int]:
    """Sizes of the places that have a dimension of their own."""
    return {layout.dimensions[dim][0]: shape[dim] for dim in layout.place_dims if len(layout.dimensions[dim]) == 1}


def _grid(layout: Layout, shape: Sequence[int], hint: Mapping[str, int]) -> dict[str, int]:
    """Sizes of all places; a flattened grid has the proportions of the hint, or is square."""
    grid: dict[str, int] = {}
    for dim in layout.place_dims:
        axes, length = layout.dimensions[dim], shape[dim] - layout.extra
        sizes = _unfold(length, axes, hint)
        if sizes is None:
            raise LayoutError(
                f"{length} tokens of a feature {tuple(shape)} of layout {layout.text!r} do not fill a grid "
                f"({' '.join(axes)}) like {dict(hint) or 'a square'}; name extra tokens as in 'b 1+(h w) c', or say "
                "'b t c' to take them as a sequence"
            )
        grid.update(sizes)
    return grid


def _unfold(length: int, axes: tuple[str, ...], hint: Mapping[str, int]) -> dict[str, int] | None:
    """Sizes of a flattened grid, by those of the other feature's grid, or None."""
    if len(axes) == 1 and length > 0:
        return {axes[0]: length}
    return _in_proportion(length, axes, hint) or _by_stride(length, axes, hint)


def _in_proportion(length: int, axes: tuple[str, ...], hint: Mapping[str, int]) -> dict[str, int] | None:
    """Sizes with the proportions of the hint, or square without one, whose product is `length`."""
    ratio = [hint[axis] for axis in axes] if all(axis in hint for axis in axes) else [1] * len(axes)
    scale = (max(length, 0) / math.prod(ratio)) ** (1 / len(axes))
    sizes = [round(size * scale) for size in ratio]
    return dict(zip(axes, sizes, strict=True)) if math.prod(sizes) == length > 0 else None


def _by_stride(length: int, axes: tuple[str, ...], hint: Mapping[str, int]) -> dict[str, int] | None:
    """Two sizes whose product is `length` and that are the hint's over a stride, or the other way round, rounded."""
    if len(axes) != 2 or not all(axis in hint for axis in axes):
        return None
    wanted = hint[axes[0]], hint[axes[1]]
    grids = [(size, length // size) for size in range(1, length + 1) if length % size == 0]
    found = [grid for grid in grids if _is_strided(grid, wanted) or _is_strided(wanted, grid)]
    return dict(zip(axes, found[0], strict=True)) if len(found) == 1 else None


def _is_strided(fine: tuple[int, int], coarse: tuple[int, int]) -> bool:
    """Whether a stride makes the one grid of the other, with what is left over dropped or kept on both sides."""
    (a, b), most = fine, max(fine) // max(max(coarse) - 1, 1) + 1
    return any(coarse in ((a // k, b // k), (-(-a // k), -(-b // k))) for k in range(2, most + 1))


def _resize(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Average-pool the places that shrink, then interpolate those that grow; (b, c, *places) in and out."""
    now = tuple(x.shape[2:])
    if now == sizes:
        return x
    smaller = tuple(map(min, now, sizes))
    if x.device.type == "cpu":
        x = _halved(x, smaller)
    if smaller != tuple(x.shape[2:]):
        x = _POOL[len(sizes)](x, smaller)
    if smaller != sizes:
        x = F.interpolate(x, size=sizes, mode=_INTERPOLATION[len(sizes)], align_corners=False)
    return x


def _halved(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Average neighbours as long as this leads to the sizes; adaptive pooling on a CPU takes three times as long."""
    for dim, size in enumerate(sizes, start=2):
        while size > 1 and x.shape[dim] % (2 * size) == 0:
            rows = x.movedim(dim, 0)
            x = ((rows[::2] + rows[1::2]) / 2).movedim(0, dim)
    return x
