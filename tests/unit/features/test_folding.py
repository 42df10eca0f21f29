"""Repeated layers in one line."""

import pytest

from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.folding import Repeat, fold


def folded(*rows):
    """What is printed of rows: a name, or a name and its class."""
    pairs = [row if isinstance(row, tuple) else (row, "Layer") for row in rows]
    found = fold([(name, kind, LayerInfo(calls=1)) for name, kind in pairs])
    return [f"{one.first}..{one.last}={one.like}" if isinstance(one, Repeat) else one[0] for one in found]


def blocks(base, *numbers, inside=("a", "b")):
    return [name for i in numbers for name in (*(f"{base}.{i}.{layer}" for layer in inside), f"{base}.{i}")]


def test_blocks_with_the_same_layers_are_one_line():
    rows = ["stem", *blocks("blocks", 0, 1, 2, 3), "head"]
    shown = ["stem", "blocks.0.a", "blocks.0.b", "blocks.0"]
    assert folded(*rows) == [*shown, "blocks.1..blocks.3=blocks.0", "head"]
    assert folded(*blocks("blocks", 0, 1)) == [*shown[1:], "blocks.1..blocks.1=blocks.0"]


@pytest.mark.parametrize("other", [("b.1.x", "Layer"), ("b.1.a", "Other"), ("b.1.a.c", "Layer")])
def test_blocks_with_other_names_or_classes_are_not(other):
    rows = [("b.0.a", "Layer"), ("b.0", "Block"), other, ("b.1", "Block")]
    assert folded(*rows) == [name for name, _ in rows]


@pytest.mark.parametrize("change", [{"calls": 2}, {"shape": (2, 3)}, {"problem": "none"}])
def test_blocks_with_other_features_are_not(change):
    rows = [(name, "Layer", LayerInfo(calls=1)) for name in blocks("b", 0, 1)]
    assert len(fold(rows)) == 4
    rows[-1] = ("b.1", "Layer", LayerInfo(**{"calls": 1, **change}))
    assert fold(rows) == rows


def test_a_block_that_differs_starts_anew():
    rows = [*blocks("b", 0, 1, 2), *blocks("b", 3, 4, inside=("a", "c"))]
    assert folded(*rows) == ["b.0.a", "b.0.b", "b.0", "b.1..b.2=b.0", "b.3.a", "b.3.c", "b.3", "b.4..b.4=b.3"]


def stage(number, count):
    return [*blocks(f"s.{number}.b", *range(count)), f"s.{number}"]


def test_repeats_in_repeats():
    first = ["s.0.b.0.a", "s.0.b.0.b", "s.0.b.0", "s.0.b.1..s.0.b.2=s.0.b.0", "s.0"]
    assert folded(*stage(0, 3), *stage(1, 3), *stage(2, 3)) == [*first, "s.1..s.2=s.0"]
    second = ["s.1.b.0.a", "s.1.b.0.b", "s.1.b.0", "s.1.b.1..s.1.b.3=s.1.b.0", "s.1"]
    assert folded(*stage(0, 3), *stage(1, 4)) == [*first, *second]


def test_lists_that_are_never_called_count_as_their_contents():
    rows = [f"l.{i}.{j}.{k}" for i in range(2) for j in range(3) for k in "ab"]
    assert folded(*rows) == ["l.0.0.a", "l.0.0.b", "l.0.1..l.0.2=l.0.0", "l.1..l.1=l.0"]


def test_of_one_layer_in_each_block_the_whole_name_is_shown():
    rows = [f"blocks.{i}.attn" for i in range(6)]
    assert folded(*rows) == ["blocks.0.attn", "blocks.1.attn..blocks.5.attn=blocks.0.attn"]


def test_a_single_layer_is_shown_rather_than_what_it_is_like():
    assert folded("0", "1") == ["0", "1"]
    assert folded("0", "1", "2") == ["0", "1..2=0"]


@pytest.mark.parametrize(
    "rows",
    [
        ["a.0", "b.0", "a.1", "b.1", "a.2", "b.2"],
        ["b.0.x", "b.0", "other", "b.1.x", "b.1"],
        ["b.0.x", "b.1.x", "b.1.y", "b.0.y"],
        ["b.0.x", "b.0.y", "b.1.x", "other", "b.1.y"],
        ["a.0.x", "a.0.y", "b.1.x", "b.1.y"],
    ],
    ids=["in turn", "apart", "within", "interrupted", "another list"],
)
def test_what_is_called_in_another_order_is_shown_so(rows):
    assert folded(*rows) == rows


def test_a_layer_of_another_place_in_the_first_block_does_not_matter():
    assert folded("b.0.x", "shared", "b.0", *blocks("b", 1, 2, inside="x")) == [
        "b.0.x",
        "shared",
        "b.0",
        "b.1..b.2=b.0",
    ]
