"""Edges between the layers of two networks, and an architecture: all edges of a search with their gates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from typing_extensions import Self, override

from auxnas_layers.errors import SearchError, bullets
from auxnas_layers.features.taps import PRIMARY, Layer
from auxnas_layers.tables import html_table

_HEAD = ("direction", "source", "target", "gate")


class Direction(str):
    """From an auxiliary to the primary, or the other way; it is also the string ``"aux_to_primary"``, say.

    Args:
        aux: Name of the auxiliary.
        inward: Whether it leads to the primary.

    >>> Direction("aux", inward=True), Direction("depth", inward=False)
    ('aux_to_primary', 'primary_to_depth')
    """

    aux: str
    inward: bool

    def __new__(cls, aux: str, inward: bool) -> Self:  # noqa: D102
        self = super().__new__(cls, f"{aux}_to_{PRIMARY}" if inward else f"{PRIMARY}_to_{aux}")
        self.aux, self.inward = aux, inward
        return self

    @override
    def __getnewargs__(self) -> tuple[str, bool]:  # type: ignore[override]
        """The arguments with which copies and pickles are made."""
        return self.aux, self.inward

    @property
    def source(self) -> str:
        """Role of the network that the edges leave."""
        return self.aux if self.inward else PRIMARY

    @property
    def target(self) -> str:
        """Role of the network that the edges enter."""
        return PRIMARY if self.inward else self.aux

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a string names a direction."""
        return text.endswith(f"_to_{PRIMARY}") or text.startswith(f"{PRIMARY}_to_")

    @classmethod
    def read(cls, text: str) -> "Direction":
        """The direction that a string names.

        Raises:
            SearchError: If it names none.
        """
        if isinstance(text, Direction):
            return text
        if text.endswith(f"_to_{PRIMARY}"):
            return cls(text.removesuffix(f"_to_{PRIMARY}"), inward=True)
        if text.startswith(f"{PRIMARY}_to_"):
            return cls(text.removeprefix(f"{PRIMARY}_to_"), inward=False)
        raise SearchError(
            f"a direction is 'aux_to_primary' or 'primary_to_aux', or has another name for aux; found {text!r}"
        )


@dataclass(frozen=True)
class Edge:
    """One edge between two taps; in a search space, where it has no gate yet, it is open under gate 1.

    Two edges are equal if they join taps of the same numbers, in the same direction and under the same gate, whatever
    the layers are called: so an architecture can move to other networks.

    Args:
        direction: A `Direction`, or its string, such as ``"aux_to_primary"``.
        source: Number of the tap that it leaves.
        target: Number of the tap that it enters; never less than `source`.
        gate: Value of its gate, unitless, in [0, 1]; exactly 0 if closed.
        open: Whether it carries features.
        source_name, target_name: Dotted module names of the two layers, if known.

    Raises:
        SearchError: If the direction is none.
    """

    direction: Direction
    source: int
    target: int
    gate: float = 1.0
    open: bool = True
    source_name: str = field(default="", compare=False)
    target_name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", Direction.read(self.direction))

    @property
    def key(self) -> tuple[str, int, int]:
        """Which edge it is: direction, source and target."""
        return self.direction, self.source, self.target

    @property
    def source_layer(self) -> Layer:
        """The layer that it leaves."""
        return Layer(self.direction.source, self.source_name)

    @property
    def target_layer(self) -> Layer:
        """The layer that it enters."""
        return Layer(self.direction.target, self.target_name)

    @property
    def ends(self) -> tuple[str, str]:
        """Its two ends for people: names of layers, or numbers of taps if the names are unknown."""
        return self.source_name or str(self.source), self.target_name or str(self.target)

    @property
    def label(self) -> str:
        """Which edge it is, for messages: names of layers in quotes, or numbers of taps."""
        source = repr(self.source_name) if self.source_name else self.source
        target = repr(self.target_name) if self.target_name else self.target
        return f"{self.direction} {source} -> {target}"

    @override
    def __str__(self) -> str:
        return f"{self.label} ({f'open, gate {self.gate:.4g}' if self.open else 'closed'})"


@dataclass(frozen=True)
class Architecture:
    """All edges of a search space with their gates; iterates over them, prints as a table, converts to JSON and back.

    Args:
        edges: The edges.
        bare: Taps whose fusion is kept although no edge enters it, since it acts without edges: direction and number.

    >>> architecture = Architecture((Edge("aux_to_primary", 0, 1, 0.25, True, "layer1", "layer2"),))
    >>> Architecture.from_dict(architecture.to_dict()) == architecture
    True
    >>> print(architecture)
    direction       source  target    gate
    aux_to_primary  layer1  layer2  0.2500
    """

    edges: tuple[Edge, ...]
    bare: tuple[tuple[str, int], ...] = ()

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def __len__(self) -> int:
        return len(self.edges)

    def open_edges(self, direction: str) -> tuple[Edge, ...]:
        """The open edges of one direction."""
        return tuple(edge for edge in self.edges if edge.open and edge.direction == direction)

    @override
    def __str__(self) -> str:
        rows = [_HEAD, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)), row[3].rjust(widths[3])]
            )
            for row in rows
        )

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), numbers=[3])

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(edge.direction, *edge.ends, f"{edge.gate:.4f}" if edge.open else "closed") for edge in self.edges]

    def to_dict(self) -> dict[str, Any]:
        """The architecture as plain data that `json.dumps` takes."""
        edges = [asdict(edge) | {"direction": str(edge.direction)} for edge in self.edges]
        return {"edges": edges} | ({"bare": [[str(one), tap] for one, tap in self.bare]} if self.bare else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """The architecture that `to_dict` wrote, also one without names of layers.

        Raises:
            SearchError: If an edge lacks a field, or has one of another kind or name.
        """
        edges = data.get("edges") if isinstance(data, Mapping) else None
        if not isinstance(edges, list | tuple):
            raise SearchError(f"an architecture is a mapping with a list of 'edges'; found {data!r}")
        if problems := [f"edge {edge!r}" for edge in edges if not _is_edge(edge)]:
            names = ", ".join(f.name for f in fields(Edge) if f.compare)
            kinds = f"{names}: a string, two numbers of taps, a number in [0, 1] and true or false"
            raise SearchError(bullets(f"the edges of an architecture have the fields {kinds}; found", problems))
        return cls(tuple(Edge(**edge) for edge in edges), tuple((one, tap) for one, tap in data.get("bare", ())))


def _is_edge(data: Any) -> bool:
    names = {f.name for f in fields(Edge)}
    needed = {f.name for f in fields(Edge) if f.compare}
    if not isinstance(data, Mapping) or not needed <= set(data) <= names:
        return False
    whole = all(type(data[name]) is int and data[name] >= 0 for name in ("source", "target"))
    gate = isinstance(data["gate"], int | float) and 0 <= data["gate"] <= 1
    texts = all(isinstance(data[name], str) for name in data if name not in ("source", "target", "gate", "open"))
    return whole and gate and texts and isinstance(data["open"], bool) and Direction.is_one(data["direction"])


def check_architecture(given: Any) -> None:
    """Refuse what is no `Architecture`.

    Raises:
        SearchError: If it is something else, such as what `Architecture.to_dict` returns.
    """
    if not isinstance(given, Architecture):
        raise SearchError(
            f"found {type(given).__name__} for an Architecture; Architecture.from_dict(...) reads what to_dict() wrote"
        )


def by_target(edges: Mapping[Direction, Sequence[Edge]]) -> dict[Layer, tuple[Edge, ...]]:
    """The edges into each layer; a layer of the primary receives from every auxiliary that shares it."""
    found: dict[Layer, list[Edge]] = {}
    for edge in (edge for side in edges.values() for edge in side):
        found.setdefault(edge.target_layer, []).append(edge)
    return {layer: tuple(side) for layer, side in found.items()}
