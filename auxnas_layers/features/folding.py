"""Repeated layers in one line: items of a container that have the same layers as the item before them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from auxnas_layers.features.dry_run import LayerInfo

Row = tuple[str, str, LayerInfo]
"""Name, class and what is known of a layer."""

_Items = Mapping[str, Sequence[int]]  # the numbers of the rows of each item of a container


class Repeat(NamedTuple):
    """Items of a container that repeat an earlier one, with all layers in them.

    Args:
        first, last: Names of the first and the last of them.
        kind: Their class; empty if they are no layers themselves.
        like: Name of the item that they repeat.
    """

    first: str
    last: str
    kind: str
    like: str


def fold(rows: Sequence[Row]) -> list[Row | Repeat]:
    """The rows in their order, with one `Repeat` in place of two or more of them that repeat those right before them.

    >>> info = LayerInfo(calls=1)
    >>> [one[0] for one in fold([(name, "Linear", info) for name in ("blocks.0", "blocks.1", "blocks.2", "head")])]
    ['blocks.0', 'blocks.1', 'head']
    """
    items: dict[str, list[int]] = {}
    for i, (name, _, _) in enumerate(rows):
        for item in _items(name):
            items.setdefault(item, []).append(i)
    found: list[Row | Repeat] = []
    i = 0
    while i < len(rows):
        end, repeat = _repeat(rows, items, i)
        found.append(repeat or rows[i])
        i = end
    return found


def _items(name: str) -> list[str]:
    """The items of containers that a layer is in, or is, the outermost first."""
    words = name.split(".")
    return [".".join(words[: i + 1]) for i, word in enumerate(words) if word.isdigit()]


def _repeat(rows: Sequence[Row], items: _Items, start: int) -> tuple[int, Repeat | None]:
    """The repeat that starts at a row, if one does, and the row after it."""
    for item in _items(rows[start][0]):
        before = _neighbour(rows, item, start - 1)
        if not before or items[before][-1] != start - 1:
            continue
        last, end = "", start
        following: str | None = item
        while following and _repeats(rows, items, before, following, end):
            last, end = following, end + len(items[following])
            following = _neighbour(rows, item, end)
        if end - start > 1:
            return end, _named(rows, items, before, item, last)
    return start + 1, None


def _neighbour(rows: Sequence[Row], item: str, row: int) -> str | None:
    """The item of the same container to which a row belongs."""
    if not 0 <= row < len(rows):
        return None
    same = (other for other in _items(rows[row][0]) if other.rpartition(".")[0] == item.rpartition(".")[0])
    return next(same, None)


def _repeats(rows: Sequence[Row], items: _Items, before: str, item: str, start: int) -> bool:
    """Whether an item has the same layers as the one before, and all of its rows in one place."""
    numbers = items[item]
    if numbers[0] != start or numbers[-1] - start + 1 != len(numbers):
        return False
    old, new = ([(rows[i][0][len(one) :], *rows[i][1:]) for i in items[one]] for one in (before, item))
    return old == new


def _named(rows: Sequence[Row], items: _Items, before: str, first: str, last: str) -> Repeat:
    """What is printed; where an item has a single row, it is that one's name."""
    if len(items[first]) == 1:
        before, first, last = (rows[items[item][0]][0] for item in (before, first, last))
    kind = next((kind for name, kind, _ in rows if name == first), "")
    return Repeat(first, last, kind, before)
