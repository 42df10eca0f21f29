"""Which tap may feed which: search spaces as pure data, and the edges that they give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from auxnas_layers.errors import SearchError, bullets


class SearchSpace(Protocol):
    """Anything that lists, for a number of taps, the (source, target) pairs that may be an edge."""

    def edges(self, taps: int, *, to_primary: bool) -> tuple[tuple[int, int], ...]:
        """Pairs (source, target) of tap numbers, sorted by target, then by source; source <= target."""
        ...


@dataclass(frozen=True)
class DepthLimited:
    """Tap l hears taps l, l-1, ..., l-reach+1 of the other network (MTL-NAS, arXiv 2003.14058: reach 3).

    Args:
        reach: How many taps each tap hears, at least 1.

    Raises:
        SearchError: If `reach` is below 1.

    >>> DepthLimited(2).edges(3, to_primary=True)
    ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
    """

    reach: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.reach, bool) or not isinstance(self.reach, int) or self.reach < 1:
            raise SearchError(f"reach must be a whole number of taps, at least 1; found {self.reach!r}")

    def edges(self, taps: int, *, to_primary: bool) -> tuple[tuple[int, int], ...]:
        """All pairs within reach, in both directions alike."""
        return tuple((s, t) for t in range(taps) for s in range(max(0, t - self.reach + 1), t + 1))


@dataclass(frozen=True)
class EdgeMatrix:
    """A search space written out: row = the tap that hears, column = the tap that is heard.

    Args:
        aux_to_primary: Square boolean matrix (nested sequences, a tensor or an array), zero above the diagonal.
        primary_to_aux: The same for the other direction; `None` means the same matrix.

    Raises:
        SearchError: If a matrix is not square, not boolean, or lets a tap hear a later one.

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
            raise SearchError(bullets("this is not a matrix of edges (row hears column):", problems))

    def edges(self, taps: int, *, to_primary: bool) -> tuple[tuple[int, int], ...]:
        """The pairs that the matrix of this direction allows."""
        matrix = self.aux_to_primary if to_primary or self.primary_to_aux is None else self.primary_to_aux
        if len(matrix) != taps:
            raise SearchError(f"the search space is for {len(matrix)} taps, and there are {taps}")
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
    if early := [f"tap {t} hears tap {s}" for t, s, cell in cells if cell and s > t]:
        problems.append(f"{name}: a tap cannot hear a later one, which has not run yet: {', '.join(early)}")
    return tuple(tuple(map(bool, row)) for row in rows)


def as_search_space(space: Any) -> SearchSpace:
    """Take a `SearchSpace` as it is, and a bare boolean matrix as an `EdgeMatrix`.

    Raises:
        SearchError: If it is neither.
    """
    if isinstance(space, type | int):
        raise SearchError(f"search_space is a search space, such as DepthLimited(3), or a matrix; found {space!r}")
    return space if hasattr(space, "edges") else EdgeMatrix(space)


@dataclass(frozen=True)
class Wire:
    """One edge that may exist between two taps, and the gate that it obeys.

    Args:
        direction: ``"aux_to_primary"``, ``"primary_to_aux"``, or with the auxiliary's own name for ``aux``.
        aux: Name of the auxiliary network.
        gate: Number of the gate within its direction.
        source: Number of the tap that is heard.
        target: Number of the tap that hears.
    """

    direction: str
    aux: str
    gate: int
    source: int
    target: int

    @property
    def key(self) -> tuple[str, int, int]:
        """Which edge it is: direction, source and target, as in `Edge`."""
        return self.direction, self.source, self.target

    @property
    def inward(self) -> bool:
        """Whether it leads to the primary."""
        return self.direction == to_primary(self.aux)

    def __str__(self) -> str:
        return f"{self.direction} {self.source} -> {self.target}"


def to_primary(aux: str) -> str:
    """Name of the direction from an auxiliary to the primary.

    >>> to_primary("aux")
    'aux_to_primary'
    """
    return f"{aux}_to_primary"


def from_primary(aux: str) -> str:
    """Name of the direction from the primary to an auxiliary.

    >>> from_primary("depth")
    'primary_to_depth'
    """
    return f"primary_to_{aux}"


def lay_wires(space: SearchSpace, aux: str, taps: int, *, inward: bool) -> tuple[Wire, ...]:
    """The wires between the primary and one auxiliary, in one direction (`inward`: to the primary)."""
    direction = to_primary(aux) if inward else from_primary(aux)
    edges = sorted(set(space.edges(taps, to_primary=inward)), key=lambda edge: (edge[1], edge[0]))
    if wrong := [f"{s} -> {t}" for s, t in edges if not 0 <= s <= t < taps]:
        raise SearchError(bullets(f"edges (source -> target) need 0 <= source <= target < {taps} taps; found", wrong))
    return tuple(Wire(direction, aux, gate, s, t) for gate, (s, t) in enumerate(edges))
