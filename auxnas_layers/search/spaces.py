"""Search spaces: from which taps of the other network a tap may receive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from auxnas_layers.errors import SearchError, bullets
from auxnas_layers.features.flops import REACH
from auxnas_layers.features.taps import Tap
from auxnas_layers.search.edges import Direction, Edge


class SearchSpace(Protocol):
    """Anything that lists, for a number of taps, the (source, target) pairs that may be an edge."""

    def edges(self, taps: int, *, to_primary: bool) -> tuple[tuple[int, int], ...]:
        """Pairs (source, target) of tap numbers, sorted by target, then by source; source <= target."""
        ...


@dataclass(frozen=True)
class DepthLimited:
    """Tap l receives from taps l, l-1, ..., l-reach+1 of the other network (MTL-NAS, arXiv 2003.14058: reach 3).

    Args:
        reach: From how many taps each tap receives, at least 1.

    Raises:
        SearchError: If `reach` is below 1.

    >>> DepthLimited(2).edges(3, to_primary=True)
    ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
    """

    reach: int = REACH

    def __post_init__(self) -> None:
        if isinstance(self.reach, bool) or not isinstance(self.reach, int) or self.reach < 1:
            raise SearchError(f"reach must be a whole number of taps, at least 1; found {self.reach!r}")

    def edges(self, taps: int, *, to_primary: bool) -> tuple[tuple[int, int], ...]:
        """All pairs within reach, the same in both directions."""
        return tuple((s, t) for t in range(taps) for s in range(max(0, t - self.reach + 1), t + 1))


@dataclass(frozen=True)
class EdgeMatrix:
    """A search space written out: row = the tap that receives, column = the source.

    Args:
        aux_to_primary: Square boolean matrix (nested sequences, a tensor or an array), zero above the diagonal.
        primary_to_aux: The same for the other direction; `None` means the same matrix.

    Raises:
        SearchError: If a matrix is not square, not boolean, or lets a tap receive from a later one.

    >>> EdgeMatrix([[1, 0], [1, 0]]).edges(2, to_primary=False)
    ((0, 0), (0, 1))
    """

    aux_to_primary: Sequence[Sequence[bool]]
    primary_to_aux: Sequence[Sequence[bool]] | None = None

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name in ("aux_to_primary", "primary_to_aux"):
            matrix = getattr(self, name)
            if matrix is not None:
                object.__setattr__(self, name, _as_rows(matrix, name, problems))
        if problems:
            raise SearchError(bullets("this is not a matrix of edges (row receives from column):", problems))

    def edges(self, taps: int, *, to_primary: bool) -> tuple[tuple[int, int], ...]:
        """The pairs that the matrix of this direction allows."""
        matrix = self.aux_to_primary if to_primary or self.primary_to_aux is None else self.primary_to_aux
        if len(matrix) != taps:
            raise SearchError(
                f"the search space is for {len(matrix)} taps, and there are {taps}; give a matrix of {taps} rows and "
                "columns"
            )
        return tuple((s, t) for t, row in enumerate(matrix) for s, allowed in enumerate(row) if allowed)


def _as_rows(matrix: Any, name: str, problems: list[str]) -> tuple[tuple[bool, ...], ...]:
    rows = matrix.tolist() if hasattr(matrix, "tolist") else matrix
    if isinstance(rows, Sequence):
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if (
        not isinstance(rows, Sequence)
        or not rows
        or any(not isinstance(r, Sequence) or len(r) != len(rows) for r in rows)
    ):
        problems.append(f"{name}: must be square, one row and one column for each tap")
        return ()
    cells = [(t, s, cell) for t, row in enumerate(rows) for s, cell in enumerate(row)]
    if odd := [cell for _, _, cell in cells if cell not in (0, 1)]:
        problems.append(f"{name}: cells must be true or false; found {odd[0]!r}")
    if early := [f"tap {t} from tap {s}" for t, s, cell in cells if cell and s > t]:
        problems.append(f"{name}: a tap cannot receive from a later one, which has not run yet: {', '.join(early)}")
    return tuple(tuple(map(bool, row)) for row in rows)


def as_search_space(space: Any) -> SearchSpace:
    """A `SearchSpace` unchanged, and a bare boolean matrix as an `EdgeMatrix`.

    Raises:
        SearchError: If it is neither.
    """
    if isinstance(space, type | int):
        raise SearchError(f"search_space is a search space, such as DepthLimited(3), or a matrix; found {space!r}")
    return space if hasattr(space, "edges") else EdgeMatrix(space)


def possible_edges(space: SearchSpace, direction: Direction, taps: Sequence[Tap]) -> tuple[Edge, ...]:
    """The edges that a search space allows in one direction, with the names of their layers.

    Raises:
        SearchError: If the search space lets a tap receive from a later one, or from one that does not exist.

    >>> [str(edge) for edge in possible_edges(DepthLimited(1), Direction("aux", inward=True), [Tap("a", "b")])]
    ["aux_to_primary 'b' -> 'a' (open, gate 1)"]
    """
    pairs = sorted(set(space.edges(len(taps), to_primary=direction.inward)), key=lambda pair: (pair[1], pair[0]))
    names = [(tap.aux, tap.primary) if direction.inward else (tap.primary, tap.aux) for tap in taps]
    if wrong := [pair for pair in pairs if not 0 <= pair[0] <= pair[1] < len(taps)]:
        known = dict(enumerate(names))
        ends = [f"{known.get(s, [s])[0]!r} -> {known.get(t, [t])[-1]!r} (taps {s}, {t})" for s, t in wrong]
        rule = f"edges (source -> target) need 0 <= source <= target < {len(taps)} taps; found"
        raise SearchError(bullets(rule, ends))
    return tuple(Edge(direction, s, t, source_name=names[s][0], target_name=names[t][1]) for s, t in pairs)
