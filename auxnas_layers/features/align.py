"""Alignment: bringing a feature into the layout and resolution of another one."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from auxnas_layers.errors import LayoutError
from auxnas_layers.features.layouts import ALONE, Layout

_MOST_EXTRA_TOKENS = 5
_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_WINDOW: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d}  # in 3d it does not take bfloat16
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def align(source: Tensor, source_layout: Layout, target_shape: Sequence[int], target_layout: Layout) -> Tensor:
    """Bring a feature into the layout and resolution of another one; its channels do not change.

    - Place axes pair by name; the others pair in order, if both features have equally many of them.
    - A paired axis is average-pooled where it shrinks and interpolated linearly where it grows.
    - An axis of the source alone is averaged; one of the target alone is repeated.
    - An axis ``p`` (patches) opposite a grid is read as that grid if its length fits, after up to 5 extra tokens. Any
      other axis, such as ``n`` (tokens of a text), never is, whatever its length.
    - Extra tokens of the target get those of the source if it has equally many, otherwise the source's mean.

    Args:
        source: Feature to align.
        source_layout: Its layout.
        target_shape: Shape of the feature that it will be added to; its channels are ignored.
        target_layout: Layout of that feature.

    Shape:
        - source: as in `source_layout`, with batch ``b`` and channels ``c``
        - output: as in `target_layout`, with the target's ``b`` and places and the source's ``c``

    Raises:
        LayoutError: If the batches differ, or a flattened grid cannot be unfolded.

    >>> import torch
    >>> align(torch.zeros(2, 8, 4, 4), Layout("b c h w"), (2, 197, 6), Layout("b p c")).shape
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
    return " ".join(group[0] if group in ALONE else "n" for group in layout.dimensions)


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
        raise LayoutError(
            f"at most {max(_POOL)} place axes can be resized at once, here {len(kept)}: {' '.join(kept)}; tap layers "
            "whose sizes agree in all of them"
        )
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
    """Read a row of patches ``p`` as the grid of the other feature, after as few extra tokens as its length allows."""
    if "p" not in layout.text.split() or layout.places != ("p",) or len(other.places) < 2:
        return layout
    length, hint = shape[layout.place_dims[0]], _direct(other, other_shape)
    ways = [(extra, way) for way in (_in_proportion, _by_stride) for extra in range(_MOST_EXTRA_TOKENS + 1)]
    if len(set(hint.values())) > 1:  # the more tokens may be left over, the more wrong grids have the proportions
        ways.sort(key=lambda pair: pair[0] > 1)
    for extra, way in ways:
        if way(length - extra, other.places, hint):
            group = f"({' '.join(other.places)})"
            return Layout(re.sub(r"\bp\b", f"{extra}+{group}" if extra else group, layout.text))
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
    """Two sizes whose product is `length`, and that a stride turns into the hint's, or the hint's into them."""
    if len(axes) != 2 or not all(axis in hint for axis in axes):
        return None
    wanted = hint[axes[0]], hint[axes[1]]
    grids = [(size, length // size) for size in range(1, length + 1) if length % size == 0]
    found = [grid for grid in grids if _is_strided(grid, wanted) or _is_strided(wanted, grid)]
    return dict(zip(axes, found[0], strict=True)) if len(found) == 1 else None


def _is_strided(fine: tuple[int, int], coarse: tuple[int, int]) -> bool:
    """Whether a stride turns the fine grid into the coarse one, rounding down or up on both sides."""
    (a, b), most = fine, max(fine) // max(max(coarse) - 1, 1) + 1
    return any(coarse in ((a // k, b // k), (-(-a // k), -(-b // k))) for k in range(2, most + 1))


def _resize(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Average-pool the places that shrink, then interpolate those that grow; (b, c, *places) in and out."""
    now = tuple(x.shape[2:])
    if now == sizes:
        return x
    smaller = tuple(map(min, now, sizes))
    if smaller != now:
        x = _pool(x, now, smaller)
    if smaller != sizes:
        x = F.interpolate(x, size=sizes, mode=_INTERPOLATION[len(sizes)], align_corners=False)
    return x


def _pool(x: Tensor, now: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """Average-pool; by a window of one size where there is one: faster, and with a deterministic gradient on a GPU."""
    if len(sizes) in _WINDOW and all(a % b == 0 for a, b in zip(now, sizes, strict=True)):
        return _WINDOW[len(sizes)](x, [a // b for a, b in zip(now, sizes, strict=True)])
    return _POOL[len(sizes)](x, sizes)
