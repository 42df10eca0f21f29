"""Search spaces: from which taps a tap may receive."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st
from zoo import Cnn

from auxnas_layers import AuxNASWrapper, DepthLimited, Edge, SearchError, Tap
from auxnas_layers.search import Direction, EdgeMatrix
from auxnas_layers.search.spaces import as_search_space, possible_edges


@given(st.integers(0, 8), st.integers(1, 10), st.booleans())
def test_a_depth_limited_space_has_all_pairs_within_reach(taps, reach, inward):
    everything = [(s, t) for s in range(taps) for t in range(taps)]
    allowed = [(s, t) for s, t in everything if s <= t and t - s < reach]
    edges = DepthLimited(reach).edges(taps, to_primary=inward)
    assert edges == tuple(sorted(allowed, key=lambda edge: (edge[1], edge[0])))


def test_a_tap_receives_from_three_taps_by_default():
    assert DepthLimited().edges(5, to_primary=True)[-3:] == ((2, 4), (3, 4), (4, 4))


@pytest.mark.parametrize("reach", [0, -1, 1.5, 2.0, True, None, "3"])
def test_a_reach_that_is_no_number_of_taps_is_an_error(reach):
    refuses(SearchError, f"reach must be a whole number of taps, at least 1; found {reach!r}", DepthLimited, reach)


AS_MATRIX = {
    "lists": lambda rows: rows,
    "integers": lambda rows: [[int(cell) for cell in row] for row in rows],
    "tuples": lambda rows: tuple(map(tuple, rows)),
    "tensor": torch.tensor,
    "float tensor": lambda rows: torch.tensor(rows, dtype=torch.float32),
    "array": np.array,
    "list of arrays": lambda rows: [np.array(row) for row in rows],
    "list of tensors": lambda rows: [torch.tensor(row) for row in rows],
}


@st.composite
def causal(draw, taps):
    return [[s <= t and draw(st.booleans()) for s in range(taps)] for t in range(taps)]


@given(st.data(), st.integers(1, 5), st.sampled_from(list(AS_MATRIX)), st.booleans())
def test_a_matrix_gives_its_true_cells_row_hears_column(data, taps, kind, both):
    rows = data.draw(causal(taps)), data.draw(causal(taps))
    make = AS_MATRIX[kind]
    space = EdgeMatrix(make(rows[0]), make(rows[1])) if both else EdgeMatrix(make(rows[0]))
    for inward in (True, False):
        matrix = rows[0 if inward or not both else 1]
        expected = [(s, t) for t in range(taps) for s in range(taps) if matrix[t][s]]
        assert list(space.edges(taps, to_primary=inward)) == expected
    assert space == (EdgeMatrix(rows[0], rows[1]) if both else EdgeMatrix(rows[0]))
    assert hash(space) == hash(copy.deepcopy(space))


def test_a_matrix_is_copied():
    matrix = torch.tensor([[1, 0], [1, 1]])
    space = EdgeMatrix(matrix)
    matrix.zero_()
    assert space.edges(2, to_primary=True) == ((0, 0), (0, 1), (1, 1))


HEAD = "this is not a matrix of edges (row receives from column):"
SQUARE = "must be square, one row and one column for each tap"
LATER = "a tap cannot receive from a later one, which has not run yet:"
BAD_MATRICES = [
    ([], SQUARE),
    ([[]], SQUARE),
    ([[1, 0]], SQUARE),
    ([[1], [0]], SQUARE),
    ([[1, 0], [1]], SQUARE),
    ([[1, 0, 0], [1, 1, 0]], SQUARE),
    (torch.zeros(2, 3), SQUARE),
    (torch.zeros(4), SQUARE),
    (np.zeros((3, 2)), SQUARE),
    ([[2]], "cells must be true or false; found 2"),
    ([[1, 0], [-1, 5]], "cells must be true or false; found -1"),
    ([[0.5]], "cells must be true or false; found 0.5"),
    ([[math.nan]], "cells must be true or false; found nan"),
    ([["x"]], "cells must be true or false; found 'x'"),
    ([[None]], "cells must be true or false; found None"),
    (torch.full((1, 1), 0.25), "cells must be true or false; found 0.25"),
    ([[1, 1], [0, 0]], f"{LATER} tap 0 from tap 1"),
    (np.ones((3, 3), dtype=bool), f"{LATER} tap 0 from tap 1, tap 0 from tap 2, tap 1 from tap 2"),
]


@pytest.mark.parametrize("matrix, problem", BAD_MATRICES, ids=str)
def test_a_matrix_that_is_none_of_edges_is_an_error(matrix, problem):
    refuses(SearchError, f"{HEAD}\n  - aux_to_primary: {problem}", EdgeMatrix, matrix)
    refuses(SearchError, f"{HEAD}\n  - primary_to_aux: {problem}", EdgeMatrix, [[1]], matrix)
    refuses(SearchError, f"{HEAD}\n  - aux_to_primary: {problem}", as_search_space, matrix)


def test_all_problems_of_both_matrices_come_in_one_message():
    message = (
        f"{HEAD}\n  - aux_to_primary: cells must be true or false; found 3\n"
        f"  - aux_to_primary: {LATER} tap 0 from tap 1\n  - primary_to_aux: {SQUARE}"
    )
    refuses(SearchError, message, EdgeMatrix, [[3, 1], [0, 1]], [[1, 0]])


@pytest.mark.parametrize("matrix", [[1, 0], [[1, 0], 0], torch.tensor(1), 5], ids=str)
def test_something_without_rows_is_no_matrix_either(matrix):
    refuses(SearchError, f"{HEAD}\n  - aux_to_primary: {SQUARE}", EdgeMatrix, matrix)


@pytest.mark.parametrize("taps", [0, 1, 3])
def test_a_matrix_for_another_number_of_taps_is_an_error(taps):
    message = f"the search space is for 2 taps, and there are {taps}; give a matrix of {taps} rows and columns"
    for space in (EdgeMatrix([[1, 0], [1, 1]]), EdgeMatrix([[1, 0], [1, 1]], [[0, 0], [0, 0]])):
        for inward in (True, False):
            refuses(SearchError, message, space.edges, taps, to_primary=inward)
    refuses(
        SearchError,
        "the search space is for 1 taps, and there are 2; give a matrix of 2 rows and columns",
        EdgeMatrix([[1, 0], [1, 1]], [[1]]).edges,
        2,
        to_primary=False,
    )


def test_the_edges_of_one_direction_have_the_names_of_their_layers():
    space = EdgeMatrix([[1, 0], [1, 0]], [[0, 0], [0, 1]])
    taps = [Tap("p0", "d0"), Tap("p1", "d1")]
    inward = possible_edges(space, Direction("depth", inward=True), taps)
    assert inward == (Edge("depth_to_primary", 0, 0), Edge("depth_to_primary", 0, 1))
    assert [edge.ends for edge in inward] == [("d0", "p0"), ("d0", "p1")]
    outward = possible_edges(space, Direction("depth", inward=False), taps)
    assert outward == (Edge("primary_to_depth", 1, 1),) and outward[0].ends == ("p1", "d1")
    assert as_search_space(space) is space


IMAGES = torch.randn(2, 3, 8, 8)


def test_a_custom_search_space_gives_just_its_edges():
    space = EdgeMatrix([[0, 0], [1, 0]], primary_to_aux=[[1, 0], [0, 0]])
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search_space=space, example_inputs=IMAGES)
    found = [(edge.direction, edge.source, edge.target) for edge in wrapper.architecture()]
    assert found == [("aux_to_primary", 0, 1), ("primary_to_aux", 0, 0)]
    matrix = torch.tensor([[True, False], [False, True]])
    assert len(AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search_space=matrix).architecture()) == 4
