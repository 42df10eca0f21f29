"""The methods of the study of batches: single-task, a shared backbone and ours, under compositions of their batches."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from compositions import Composition
from methods import METHODS, NEVER_STOPPED, OURS, SHARED, SINGLE, Method

BASES = {SINGLE: METHODS[SINGLE], SHARED: METHODS[SHARED], OURS: replace(METHODS[OURS], **NEVER_STOPPED)}
JOINED = (SHARED, OURS)
NORMS = {"train": "", "frozen": ", frozen statistics", "labelled": ", labelled statistics", "group": ", group norm"}
BESIDE = {"": "alone", "unlabelled": "other samples", "labelled": "more labelled samples"}
ONE, TWO = Composition(), Composition(apart=True)
TOGETHER, SECOND = Composition(others="unlabelled"), Composition(others="unlabelled", apart=True)


def name(base: str, composition: Composition) -> str:
    """As tables print it."""
    way = "two forwards" if composition.apart else "one forward"
    if base == SINGLE:
        way = BESIDE[composition.others]
        way += (" in a second forward" if composition.apart else " in its batch") * bool(composition.others)
    larger = f", batches {composition.times} times as large" * (composition.times > 1)
    return f"{base}: {way}{NORMS[composition.norm]}{larger}"


def ways(bases: Sequence[str], *compositions: Composition) -> dict[str, Method]:
    """Each of the methods under each of the compositions, by name."""
    return {name(b, c): replace(BASES[b], composition=c) for c, b in product(compositions, bases)}


def under(norm: str, *compositions: Composition) -> list[Composition]:
    """The same compositions with another norm."""
    return [replace(composition, norm=norm) for composition in compositions]


FIRST = ways([SINGLE], ONE, TOGETHER) | ways(JOINED, TWO, ONE) | ways(BASES, *under("frozen", ONE))
"""The decisive ones. With frozen statistics nothing depends on what else is in a forward."""
OTHERS = (
    ways([SINGLE], SECOND)
    | ways(JOINED, *under("labelled", TWO, ONE))
    | ways([SINGLE], Composition(others="labelled"))
    | ways(BASES, *under("group", ONE))
)
LARGER = {
    name(way.partition(":")[0], larger): replace(method, composition=larger)
    for way, method in FIRST.items()
    for larger in [replace(method.composition, times=2)]
}
COMPOSED = FIRST | OTHERS | LARGER
