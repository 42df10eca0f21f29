"""A small selection of a large grid of cases, in which all pairs of values still occur."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations


def pairwise(rows: Sequence[Sequence[Hashable]]) -> list[int]:
    """Choose rows that together have every value, and every pair of values of two columns, that any row has.

    The choice is greedy and the same each time: the row that has most of what is still missing, and the first of them
    where several have as much.

    Args:
        rows: Cases; each has one value in each column.

    Returns:
        The numbers of the chosen rows, in order.

    >>> pairwise(["ax1", "ax2", "ay1", "ay2", "bx1", "bx2", "by1", "by2"])
    [0, 1, 2, 4, 7]
    """
    parts = [_parts(row) for row in rows]
    owners: dict[Hashable, list[int]] = defaultdict(list)
    for number, having in enumerate(parts):
        for part in having:
            owners[part].append(number)
    missing, chosen = [len(having) for having in parts], []
    while any(missing):
        best = max(range(len(rows)), key=missing.__getitem__)
        chosen.append(best)
        for part in parts[best]:
            for number in owners.pop(part, ()):
                missing[number] -= 1
    return sorted(chosen)


def _parts(row: Sequence[Hashable]) -> list[Hashable]:
    """The values of a row and their pairs, each with its columns."""
    cells = list(enumerate(row))
    return [*cells, *combinations(cells, 2)]
