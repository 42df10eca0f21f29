"""The result of a search as data: which edges are there, under which gates."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from auxnas_layers.errors import SearchError, bullets


@dataclass(frozen=True)
class Edge:
    """One edge between two taps.

    Args:
        direction: ``"aux_to_primary"`` or ``"primary_to_aux"``; with several auxiliaries their name stands for ``aux``.
        source: Number of the tap that is heard.
        target: Number of the tap that hears; never less than `source`.
        gate: Value of its gate, unitless, in [0, 1]; exactly 0 where closed.
        open: Whether it carries anything.
    """

    direction: str
    source: int
    target: int
    gate: float
    open: bool

    @property
    def key(self) -> tuple[str, int, int]:
        """Which edge it is: direction, source and target."""
        return self.direction, self.source, self.target

    def __str__(self) -> str:
        state = f"open, gate {self.gate:.4g}" if self.open else "closed"
        return f"{self.direction} {self.source} -> {self.target} ({state})"


@dataclass(frozen=True)
class Architecture:
    """All edges of a search space with their gates; iterates over them, prints as a table, goes to and from JSON.

    Args:
        edges: The edges.

    >>> architecture = Architecture((Edge("aux_to_primary", 0, 1, 0.25, True),))
    >>> Architecture.from_dict(architecture.to_dict()) == architecture
    True
    >>> print(architecture)
    direction       source  target    gate
    aux_to_primary       0       1  0.2500
    """

    edges: tuple[Edge, ...]

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def __len__(self) -> int:
        return len(self.edges)

    def open_edges(self, direction: str) -> tuple[Edge, ...]:
        """The open edges of one direction."""
        return tuple(edge for edge in self.edges if edge.open and edge.direction == direction)

    def __str__(self) -> str:
        width = max([len(edge.direction) for edge in self.edges], default=0)
        lines = [f"{'direction':{width}}  source  target    gate"]
        for edge in self.edges:
            gate = f"{edge.gate:.4f}" if edge.open else "closed"
            lines.append(f"{edge.direction:{width}}  {edge.source:6}  {edge.target:6}  {gate:>6}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The architecture as plain data that `json.dumps` takes."""
        return {"edges": [asdict(edge) for edge in self.edges]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """The architecture that `to_dict` wrote.

        Raises:
            SearchError: If an edge lacks a field, has another one, or one of another kind.
        """
        fields = list(Edge.__dataclass_fields__)
        edges = data.get("edges") if isinstance(data, Mapping) else None
        if not isinstance(edges, list | tuple):
            raise SearchError(f"an architecture is a mapping with a list of 'edges'; found {data!r}")
        if problems := [f"edge {edge!r}" for edge in edges if not _is_edge(edge)]:
            kinds = f"{', '.join(fields)}: a string, two numbers of taps, a number in [0, 1] and true or false"
            raise SearchError(bullets(f"the edges of an architecture have the fields {kinds}; found", problems))
        return cls(tuple(Edge(**edge) for edge in edges))


def _is_edge(data: Any) -> bool:
    if not isinstance(data, Mapping) or set(data) != set(Edge.__dataclass_fields__):
        return False
    whole = all(type(data[name]) is int and data[name] >= 0 for name in ("source", "target"))
    gate = isinstance(data["gate"], int | float) and 0 <= data["gate"] <= 1
    return whole and gate and isinstance(data["direction"], str) and isinstance(data["open"], bool)


def check_architecture(given: Any) -> None:
    """Refuse what is no `Architecture`.

    Raises:
        SearchError: If it is something else, such as what `Architecture.to_dict` returns.
    """
    if not isinstance(given, Architecture):
        raise SearchError(
            f"found {type(given).__name__} for an Architecture; Architecture.from_dict(...) reads what to_dict() wrote"
        )
