"""Outputs: picking one feature out of whatever a layer returns, and putting another one in its place."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from auxnas_layers.errors import TapError

Key = int | str
Path = tuple[Key, ...]
Select = Key | Path | None


def features(output: Any, path: Path = (), above: tuple[int, ...] = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in an output with its path, through tuples, lists, mappings and dataclasses.

    Not by `torch.utils._pytree`: it takes a model's own output class for a leaf, looks into caches, and does not end
    on an output that contains itself.
    """
    if isinstance(output, Tensor):
        yield path, output
    elif id(output) not in above:
        for key, value in _items(output):
            yield from features(value, (*path, key), (*above, id(output)))


def _items(output: Any) -> Iterable[tuple[Key, Any]]:
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, tuple | list):
        return enumerate(output)
    if is_dataclass(output) and not isinstance(output, type):
        return ((field.name, getattr(output, field.name, None)) for field in fields(output))
    return ()


def is_transparent(output: Any, above: tuple[int, ...] = ()) -> bool:
    """Whether `features` finds all that is in an output: it has no objects of other kinds, which may keep tensors."""
    if output is None or isinstance(output, Tensor | int | float | str) or id(output) in above:
        return True
    known = isinstance(output, Mapping | tuple | list) or is_dataclass(output)
    return known and all(is_transparent(value, (*above, id(output))) for _, value in _items(output))


def is_feature(tensor: Tensor) -> bool:
    """Whether a tensor can be fused: dense and floating-point, with a batch and channels."""
    return _is_dense(tensor) and tensor.is_floating_point() and tensor.dim() >= 2


def _is_dense(tensor: Tensor) -> bool:
    """Whether it is neither sparse nor nested; nested tensors may be strided, too."""
    return tensor.layout is torch.strided and not tensor.is_nested


def find_feature(output: Any, select: Select) -> tuple[Path, Tensor]:
    """Find the feature in a layer's output, and the path to it: of a tuple the first one, as recurrent layers have it.

    Args:
        output: Whatever the layer returned. Where that is one tensor, in train mode say, there is nothing to select.
        select: The user's choice; None if there is nothing to choose.

    Raises:
        TapError: If there is no feature, or a list, mapping or dataclass has several.

    >>> find_feature({"hidden": (torch.ones(2, 3), torch.zeros(2, 3)), "length": 7}, None)[0]
    ('hidden', 0)
    """
    if isinstance(output, Tensor):
        found: dict[Path, Tensor] = {(): output}
    elif select is None:
        found = _choices(output)
    else:
        path = select if isinstance(select, tuple) else (select,)
        found = {key: tensor for key, tensor in features(output) if key == path}
    if len(found) > 1:
        choices = ", ".join(f"{as_select(path)!r}: {tuple(tensor.shape)}" for path, tensor in found.items())
        first = as_select(next(iter(found)))
        how = f"Tap(..., primary_select={first!r}), or aux_select={first!r} if the layer is the auxiliary's"
        raise TapError(f"returns several tensors ({choices}); choose one by {how}")
    for path, tensor in found.items():
        if is_feature(tensor):
            return path, tensor
    raise TapError(_why_none(output, select, [*found.values()]))


def _choices(output: Any, path: Path = (), above: tuple[int, ...] = ()) -> dict[Path, Tensor]:
    """The features among which a select must choose; of a tuple only those in its first item that has any."""
    if isinstance(output, Tensor):
        return {path: output} if is_feature(output) else {}
    found: dict[Path, Tensor] = {}
    for key, value in () if id(output) in above else _items(output):
        found |= _choices(value, (*path, key), (*above, id(output)))
        if found and isinstance(output, tuple):
            break
    return found


def _why_none(output: Any, select: Select, found: list[Tensor]) -> str:
    """Why a layer's output has no feature there."""
    for tensor in found:
        kind = (
            f"a {tensor.dtype} tensor of {tensor.dim()} dimensions" if _is_dense(tensor) else "a nested or sparse one"
        )
        return f"returns no feature but {kind}; a feature is a dense floating-point tensor, (batch, ..., channels)"
    there = ", ".join(repr(as_select(path)) for path, _ in features(output) if path) or "no tensor"
    at = "" if select is None else f" at {select!r}"
    return f"returns no feature{at}; it returns a {type(output).__name__} with {there}"


def as_select(path: Path) -> Select:
    """A path as a user would write it."""
    return path[0] if len(path) == 1 else path


def put_feature(output: Any, path: Path, feature: Tensor) -> Any:
    """A copy of a layer's output with another feature at `path`; the output itself does not change.

    >>> put_feature((1, 2), (0,), torch.ones(()))
    (tensor(1.), 2)
    """
    if not path:
        return feature
    key, rest = path[0], path[1:]
    if isinstance(output, tuple):
        items = [put_feature(item, rest, feature) if i == key else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    changed = copy.copy(output)
    if isinstance(output, Mapping | list):
        changed[key] = put_feature(output[key], rest, feature)  # type: ignore[index]
    else:
        object.__setattr__(changed, str(key), put_feature(getattr(output, str(key)), rest, feature))
    return changed


def check_rebuilds(output: Any, path: Path, feature: Tensor) -> None:
    """Check that an output can be rebuilt with another feature, as a hook on its layer will do.

    Raises:
        TapError: If it cannot.
    """
    try:
        rebuilt = put_feature(output, path, feature)
        same = type(rebuilt) is type(output) and dict(features(rebuilt)).get(path) is feature
        problem = "" if same else "the copy is another one"
    except Exception as error:
        problem = str(error)
    if problem:
        kind = type(output).__name__
        raise TapError(
            f"returns a {kind}, which cannot be rebuilt with another tensor in it ({problem}); tap a layer within"
        )
