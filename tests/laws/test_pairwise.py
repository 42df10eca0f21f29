"""The selection of cases has every pair, is small, and is the same each time."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairwise import pairwise
from test_combinations import COMBOS


def pairs(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


grids = st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[st.integers(0, 3)] * width), max_size=40))


@given(grids)
def test_every_value_and_every_pair_that_occurs_is_chosen(rows):
    """Also in grids with holes, and with rows that occur twice."""
    chosen = pairwise(rows)
    assert chosen == sorted(set(chosen)) == pairwise(list(rows))
    found = [rows[number] for number in chosen]
    assert pairs(found) == pairs(rows)
    assert {cell for row in found for cell in enumerate(row)} == {cell for row in rows for cell in enumerate(row)}
    assert len(found) == len(set(found))


@pytest.mark.parametrize("sizes, largest", [((4, 4, 4), 24), ((2,) * 8, 12), ((7, 6, 5, 4), 60), ((5, 6), 30)])
def test_it_is_not_much_larger_than_it_must_be(sizes, largest):
    rows = list(product(*map(range, sizes)))
    assert len(pairwise(rows)) <= largest


def test_one_case_is_chosen_and_of_none_none():
    assert pairwise([("a", "b", "c")]) == pairwise([("a",)]) == [0]
    assert pairwise([]) == []


def test_the_combinations_that_are_run_have_every_pair():
    rows = [combo.factors for combo in COMBOS]
    chosen = [rows[number] for number in pairwise(rows)]
    assert pairs(chosen) == pairs(rows)
    assert len(chosen) < len(rows) / 3
