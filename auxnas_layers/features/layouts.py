"""Layouts: what the axes of a feature mean, as axis strings, and guessing them from shapes and layers.

A layout names every dimension of a feature: ``b`` the batch, ``c`` the channels, any other name a place axis.
``(h w)`` is one dimension that holds a flattened grid; ``1+(h w)`` has one extra token (a class token) before the grid.
"""

import keyword
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from auxnas_layers.errors import LayoutError

_AXIS = re.compile(r"(?:(?P<extra>\d+)\+)?\((?P<group> *[a-z][a-z ]*)\)|(?P<name>[a-z]+)")
ALONE = ("b",), ("c",)
_TAKEN = {*keyword.kwlist, "tensor", "pattern"}  # einops takes sizes as keyword arguments
_FIRST = {3: "b c t", 4: "b c h w", 5: "b c d h w"}
_LAST = {3: "b n c", 4: "b h w c", 5: "b d h w c"}


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
            or any(self.dimensions.count(alone) != 1 for alone in ALONE)
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
        return tuple(dim for dim, group in enumerate(self.dimensions) if group not in ALONE)

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
            raise LayoutError(
                f"layout {self.text!r} has {len(self.dimensions)} dimensions, the feature {tuple(shape)}; name each of "
                "its dimensions"
            )
        return shape[self.channel_dim]


def infer_layout(shape: Sequence[int], leaves: Iterable[nn.Module], batches: Collection[int] = ()) -> Layout:
    """Guess the layout of a feature from its shape and the layers before it.

    Args:
        shape: Shape of the feature.
        leaves: Layers registered up to the one that returned the feature, the latest first. The first one decides whose
            number of output channels is the size of dimension 1 or of the last one.
        batches: Batch sizes of the layers that take ``(time, batch, channels)``, if the network has any. They tell
            ``t b c`` from ``b n c``.

    Raises:
        LayoutError: If neither the shape nor the layers decide.

    >>> infer_layout((2, 8, 5, 5), [nn.Conv2d(3, 8, 1)]).text
    'b c h w'
    >>> infer_layout((2, 5, 8), [nn.Linear(3, 8)]).text
    'b n c'
    """
    if len(shape) == 2:
        return Layout("b c")
    if len(shape) not in _FIRST:
        raise LayoutError(f"no layout is known for a feature of shape {tuple(shape)}")
    if len(shape) == 3 and batches and _is_time_first(shape, batches):
        return Layout("t b c")
    for leaf in leaves:
        channels, first = _output_channels(leaf)
        at_first, at_last = shape[1] == channels, shape[-1] == channels
        if at_first or at_last:
            return Layout((_FIRST if at_first and (first or not at_last) else _LAST)[len(shape)])
        if len(shape) == 5 and channels in shape[2:4]:
            raise LayoutError(f"a feature of shape {tuple(shape)} has its {channels} channels in an unusual dimension")
    if len(shape) > 3:
        return Layout(_FIRST[len(shape)])
    raise LayoutError(f"a feature of shape {tuple(shape)} may be 'b n c' or 'b c t', and no layer before it decides")


def _is_time_first(shape: Sequence[int], batches: Collection[int]) -> bool:
    """Whether the second dimension holds the batch, and not the first one."""
    first, second = (size in batches for size in shape[:2])
    if first == second:
        found = " or ".join(map(str, sorted(batches)))
        raise LayoutError(
            f"a feature of shape {tuple(shape)} may be 't b c' or 'b n c': the network has layers that take (time, "
            f"batch, channels), here with a batch of {found}"
        )
    return second


def _output_channels(leaf: nn.Module) -> tuple[int | None, bool]:
    """The number of channels that a layer returns, and whether they are at dimension 1."""
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
