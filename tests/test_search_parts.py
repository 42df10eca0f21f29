"""The parts of a search by themselves: spaces, gates, schedules, architectures, and picking features out of outputs."""

import collections
import copy
import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from auxnas_layers import (
    Architecture,
    AuxG,
    AuxNAS,
    AuxNASError,
    ClampedGate,
    DepthLimited,
    Edge,
    EdgeMatrix,
    FixedGate,
    Gate,
    SearchError,
    SigmoidGate,
    TapError,
    l1_penalty,
    linear_ramp,
)
from auxnas_layers.search_space import Wire, as_search_space, lay_wires
from auxnas_layers.taps import find_feature, put_feature


def refuses(error, message, call, *args, **kwargs):
    """The call raises this error with just this message."""
    with pytest.raises(error, match=f"^{re.escape(message)}$") as found:
        call(*args, **kwargs)
    assert isinstance(found.value, AuxNASError) and isinstance(found.value, ValueError)


# Search spaces


@given(st.integers(0, 8), st.integers(1, 10), st.booleans())
def test_a_depth_limited_space_has_all_pairs_within_reach(taps, reach, inward):
    everything = [(s, t) for s in range(taps) for t in range(taps)]
    allowed = [(s, t) for s, t in everything if s <= t and t - s < reach]
    edges = DepthLimited(reach).edges(taps, to_primary=inward)
    assert edges == tuple(sorted(allowed, key=lambda edge: (edge[1], edge[0])))


def test_a_tap_hears_three_taps_by_default():
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


HEAD = "this is not a matrix of edges (row hears column):"
SQUARE = "must be square, one row and one column for each tap"
LATER = "a tap cannot hear a later one, which has not run yet:"
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
    ([[1, 1], [0, 0]], f"{LATER} tap 0 hears tap 1"),
    (np.ones((3, 3), dtype=bool), f"{LATER} tap 0 hears tap 1, tap 0 hears tap 2, tap 1 hears tap 2"),
]


@pytest.mark.parametrize("matrix, problem", BAD_MATRICES, ids=str)
def test_a_matrix_that_is_none_of_edges_is_an_error(matrix, problem):
    refuses(SearchError, f"{HEAD}\n  - aux_to_primary: {problem}", EdgeMatrix, matrix)
    refuses(SearchError, f"{HEAD}\n  - primary_to_aux: {problem}", EdgeMatrix, [[1]], matrix)
    refuses(SearchError, f"{HEAD}\n  - aux_to_primary: {problem}", as_search_space, matrix)


def test_all_problems_of_both_matrices_come_in_one_message():
    message = (
        f"{HEAD}\n  - aux_to_primary: cells must be true or false; found 3\n"
        f"  - aux_to_primary: {LATER} tap 0 hears tap 1\n  - primary_to_aux: {SQUARE}"
    )
    refuses(SearchError, message, EdgeMatrix, [[3, 1], [0, 1]], [[1, 0]])


@pytest.mark.parametrize("matrix", [[1, 0], [[1, 0], 0], torch.tensor(1), 5], ids=str)
def test_something_without_rows_is_no_matrix_either(matrix):
    refuses(SearchError, f"{HEAD}\n  - aux_to_primary: {SQUARE}", EdgeMatrix, matrix)


@pytest.mark.parametrize("taps", [0, 1, 3])
def test_a_matrix_for_another_number_of_taps_is_an_error(taps):
    message = f"the search space is for 2 taps, and there are {taps}"
    for space in (EdgeMatrix([[1, 0], [1, 1]]), EdgeMatrix([[1, 0], [1, 1]], [[0, 0], [0, 0]])):
        for inward in (True, False):
            refuses(SearchError, message, space.edges, taps, to_primary=inward)
    refuses(
        SearchError,
        "the search space is for 1 taps, and there are 2",
        EdgeMatrix([[1, 0], [1, 1]], [[1]]).edges,
        2,
        to_primary=False,
    )


def test_wires_number_the_gates_of_one_direction():
    space = EdgeMatrix([[1, 0], [1, 0]], [[0, 0], [0, 1]])
    wires = lay_wires(space, "depth", 2, inward=True)
    assert wires == (Wire("depth_to_primary", "depth", 0, 0, 0), Wire("depth_to_primary", "depth", 1, 0, 1))
    assert lay_wires(space, "depth", 2, inward=False) == (Wire("primary_to_depth", "depth", 0, 1, 1),)
    assert as_search_space(space) is space


# Gates

SEARCHED = [ClampedGate, SigmoidGate]
GATES = [*SEARCHED, FixedGate]
ROUNDING = 2e-6  # a sigmoid gate cannot tell values nearer to 0 or 1 than 1e-6
anything = st.floats(width=32, allow_nan=False)
shares = st.floats(0, 1, width=32)


def with_alpha(gate, alpha):
    gate.alpha.data = torch.tensor(alpha)
    return gate


@pytest.mark.parametrize("gate", GATES)
def test_gates_start_at_their_value_and_open(gate):
    for start in (1.0, 0.5, 1e-3, 1):
        gates = gate(3, start)
        assert gates().shape == (3,) and gates.values() == pytest.approx([start] * 3, abs=ROUNDING)
        assert not gates.closed.any() and all(value > 0 for value in gates.values())
    assert gate(2).values() == pytest.approx([1.0, 1.0], abs=ROUNDING)
    assert gate(0).values() == []


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("start", [0, 0.0, -0.5, 1.0001, 2, math.inf, math.nan])
def test_a_start_outside_its_range_is_an_error(gate, start):
    refuses(SearchError, f"a gate must start in (0, 1]; found start={start!r}", gate, 2, start)


def test_only_searched_gates_have_parameters():
    assert [name for name, _ in FixedGate(2).named_parameters()] == []
    assert FixedGate(2)().requires_grad is False
    for gate in GATES:
        assert list(gate(2).state_dict()) == ["alpha", "closed", "kept"]
    for gate in SEARCHED:
        assert [name for name, _ in gate(2).named_parameters()] == ["alpha"]


def test_a_gate_of_ones_own_says_how_alpha_and_value_belong_together():
    class Halves(Gate):
        def squash(self, alpha):
            return alpha.exp2()

        def unsquash(self, value):
            return value.log2()

    gate = Halves(2, 0.25)
    assert gate.alpha.tolist() == [-2.0, -2.0] and gate.values() == [0.25, 0.25]
    gate.settle_(0.125)
    assert gate.values() == [0.125, 0.125]
    gate.settle_(0.0)
    assert gate.values() == [0.0, 0.0] and gate.closed.all()
    with pytest.raises(NotImplementedError):  # the base class has no squashing
        Gate(1)


@given(st.sampled_from(SEARCHED), st.lists(anything, min_size=1, max_size=5))
def test_values_are_in_range_for_any_alpha(gate, alpha):
    gates = with_alpha(gate(len(alpha)), alpha)
    assert all(0 <= value <= 1 for value in gates.values())
    for value, a in zip(gates.values(), alpha, strict=True):
        expected = min(max(a, 0.0), 1.0) if gate is ClampedGate else 1 / (1 + math.exp(-max(min(a, 700), -700)))
        assert value == pytest.approx(expected, abs=1e-6)


change = st.floats(-1, 1, width=32) | anything
history = st.lists(st.tuples(st.lists(change, min_size=3, max_size=3), st.none() | shares | st.just(0.0)))


@given(st.sampled_from(SEARCHED), st.floats(0.01, 1), history)
def test_whatever_happens_to_alpha_gates_stay_in_range_and_closed_ones_closed(gate, start, steps):
    gates = gate(3, start)
    for change, ceiling in steps:
        gates.alpha.data += torch.tensor(change)
        gates.alpha.data.nan_to_num_(nan=0.5)  # inf - inf
        before, closed = gates.values(), gates.closed.tolist()
        assert all(0 <= value <= 1 for value in before)
        gates.settle_() if ceiling is None else gates.settle_(ceiling)
        for old, new, was, now in zip(before, gates.values(), closed, gates.closed.tolist(), strict=True):
            highest = 1.0 if ceiling is None else ceiling
            assert new <= old and new <= highest + ROUNDING
            assert new == pytest.approx(min(old, highest), abs=ROUNDING)  # and no lower than it must
            assert now or not was
            assert (new == 0) == now
            assert now or highest > 0


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 5.0])
def test_a_closed_gate_stays_closed_whatever_alpha_becomes(gate, bad):
    gates = gate(2, 0.5)
    gates.set_([0.0, 0.5])
    with torch.no_grad():
        gates.alpha[0] = bad
    for _ in range(2):
        assert gates.values() == [0.0, 0.5]
        assert gates()[0].item() == 0.0 and gates.closed.tolist() == [True, False]
        gates.settle_()


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_that_is_nan_says_so_until_it_is_closed(gate):
    gates = gate(2, 0.5)
    with torch.no_grad():
        gates.alpha[0] = torch.nan
    gates.settle_(0.25)
    assert math.isnan(gates.values()[0]) and gates.values()[1] == pytest.approx(0.25)
    gates.settle_(0.0)
    assert gates.values() == [0.0, 0.0]


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD], ids=lambda o: o.__name__)
@pytest.mark.parametrize("gate", SEARCHED)
def test_no_optimiser_opens_a_closed_gate(gate, optimiser):
    gates = gate(3, 0.5)
    options = {"momentum": 0.9} if optimiser is torch.optim.SGD else {}
    step = optimiser(gates.parameters(), lr=0.05, weight_decay=0.1, **options)
    for epoch in range(12):
        gates.settle_()
        (-gates().sum()).backward()  # all gates are pushed up
        step.step()
        step.zero_grad()
        if epoch == 4:
            gates.set_([0.0, *gates.values()[1:]])
        if epoch > 4:
            assert gates.values()[0] == 0.0 and min(gates.values()[1:]) > 0.5


@given(st.sampled_from(GATES), st.lists(st.just(0.0) | st.floats(0.01, 0.99), min_size=1, max_size=5))
def test_values_that_are_set_come_back(gate, values):
    gates = gate(len(values))
    gates.set_(values)
    assert gates.values() == pytest.approx(values, abs=ROUNDING)
    assert [value == 0.0 for value in gates.values()] == [value == 0.0 for value in values] == gates.closed.tolist()
    found = gates.values()
    gates.settle_()
    assert gates.values() == found
    other = gate(len(values))
    other.load_state_dict(gates.state_dict())
    assert other.values() == found
    gates.set_([0.5] * len(values))  # a hand may open what no optimiser can
    assert gates.values() == pytest.approx([0.5] * len(values)) and not gates.closed.any()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("ceiling, expected", [(1.0, [0.9, 0.3, 0]), (0.5, [0.5, 0.3, 0]), (0.2, [0.2, 0.2, 0])])
def test_a_ceiling_lowers_what_is_above_it_only(gate, ceiling, expected):
    gates = gate(3)
    gates.set_([0.9, 0.3, 0.0])
    gates.settle_(ceiling)
    assert gates.values() == pytest.approx(expected, abs=ROUNDING)
    assert gates.closed.tolist() == [False, False, True]
    gates.settle_(0.0)
    assert gates.values() == [0.0] * 3 and gates.closed.all()


def test_clamped_gates_close_by_themselves_and_sigmoid_gates_do_not():
    clamped, sigmoid = with_alpha(ClampedGate(2), [-0.1, 0.1]), with_alpha(SigmoidGate(2), [-30.0, 0.1])
    for gates, closed in ((clamped, [True, False]), (sigmoid, [False, False])):
        gates.settle_()
        assert gates.closed.tolist() == closed
    assert 0 < sigmoid.values()[0] < 1e-12


# Gradients of gates


@pytest.mark.parametrize("gate", SEARCHED)
def test_the_gradient_of_a_closed_gate_is_exactly_zero_and_others_are_not(gate):
    gates = gate(4, 0.5)
    gates.set_([0.0, 0.25, 0.0, 0.75])
    with torch.no_grad():
        gates.alpha[2] = 0.5  # moved after it closed
    gates().pow(2).sum().backward()
    assert gates.alpha.grad[0] == 0 and gates.alpha.grad[2] == 0
    slopes = [1.0, 1.0] if gate is ClampedGate else [0.25 * 0.75, 0.75 * 0.25]
    found = [gates.alpha.grad[i].item() for i in (1, 3)]
    assert found == pytest.approx([2 * 0.25 * slopes[0], 2 * 0.75 * slopes[1]], rel=1e-4)


@pytest.mark.parametrize(
    "gate",
    [
        ClampedGate,
        SigmoidGate,
    ],
)
def test_the_gradient_of_a_closed_gate_is_zero_even_where_alpha_is_nan(gate):
    gates = gate(2, 0.5)
    gates.set_([0.0, 0.5])
    with torch.no_grad():
        gates.alpha[0] = torch.nan
    gates().sum().backward()
    assert gates.alpha.grad[0] == 0 and gates.alpha.grad[1] > 0


@given(st.sampled_from(SEARCHED), st.lists(st.floats(0.02, 0.98), min_size=3, max_size=3), shares | st.just(0.0))
def test_settling_between_forward_and_backward_changes_no_gradient(gate, values, ceiling):
    grads = []
    for settle in (False, True):
        gates = gate(3)
        gates.set_(values)
        loss = gates().pow(2).sum()
        if settle:
            gates.settle_(ceiling)
        loss.backward()
        grads.append(gates.alpha.grad)
    assert torch.equal(*grads) and grads[0].ne(0).all()


@pytest.mark.parametrize("above", [1.5, 100.0, math.inf])
def test_a_clamped_gate_above_one_gets_its_gradient_back(above):
    gates = with_alpha(ClampedGate(1), [above])
    gates().sum().backward()
    assert gates.alpha.grad.tolist() == [0.0]
    gates.alpha.grad = None
    gates.settle_()
    assert gates.values() == [1.0]
    gates().sum().backward()
    assert gates.alpha.grad.tolist() == [1.0]


def test_a_clamped_alpha_is_brought_back_into_its_range():
    gates = with_alpha(ClampedGate(4), [-3.0, 3.0, math.inf, 0.5])
    gates.settle_()
    assert gates.alpha.tolist() == [0.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("gate", GATES)
def test_gates_print_how_many_are_open(gate):
    gates = gate(3)
    gates.set_([0.5, 0.0, 0.5])
    assert repr(gates) == f"{gate.__name__}(3 edges, 2 open)"


# Schedules and penalties

progresses = st.floats(0, 1)


def wires(count, inward=True):
    """As many edges of one direction, each between taps of one level."""
    direction = "aux_to_primary" if inward else "primary_to_aux"
    return [Wire(direction, "aux", i, i, i) for i in range(count)]


@given(progresses, progresses, st.floats(0, 0.49), st.floats(0.51, 1))
def test_a_ramp_rises_from_zero_to_one_between_its_ends(p, q, start, end):
    low, high = linear_ramp(min(p, q), start, end), linear_ramp(max(p, q), start, end)
    assert 0.0 <= low <= high <= 1.0
    for progress, value in ((min(p, q), low), (max(p, q), high)):
        if progress <= start:
            assert value == 0.0
        elif progress >= end:
            assert value == 1.0
        else:
            assert value == pytest.approx((progress - start) / (end - start))


def test_a_ramp_without_width_is_a_step():
    assert [linear_ramp(p, 0.5, 0.5) for p in (0.0, 0.4, 0.5, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert all(type(linear_ramp(p, 0, 1)) is float for p in (0, 1))


@given(st.lists(st.floats(-2, 2, width=32), max_size=6))
def test_the_l1_penalty_is_the_mean_absolute_gate(values):
    total = 0.0
    for value in values:
        total += abs(value)
    found = l1_penalty(torch.tensor(values))
    assert found.shape == () and found.item() == pytest.approx(total / len(values) if values else 0.0, abs=1e-6)


@given(progresses, progresses, st.floats(0, 0.99), st.floats(0, 1))
def test_the_ceiling_falls_from_one_to_exactly_zero(p, q, start, share):
    end = start + (1 - start) * max(share, 0.01)
    search = AuxNAS(close=(start, end))
    before, after = search.ceiling(min(p, q)), search.ceiling(max(p, q))
    assert 1.0 >= before >= after >= 0.0
    for progress in (p, q, start, end, 1.0, math.nextafter(end, 0.0)):
        value = search.ceiling(progress)
        assert value == 1.0 if progress <= start else value == pytest.approx(max(0.0, (end - progress) / (end - start)))
        if progress >= end:
            assert value == 0.0
    gates = search.make_gates(wires(2), to_primary=True)
    search.advance_(gates, end, to_primary=True)
    assert gates.values() == [0.0, 0.0]


@given(progresses, st.lists(shares, max_size=4), st.floats(0, 10))
def test_the_penalty_of_auxnas_is_on_gates_into_the_primary_only(progress, values, weight):
    search = AuxNAS(close=(0.2, 0.6), l1=weight)
    gates = torch.tensor(values, requires_grad=True)
    costs = [7.0] * len(values)
    found = search.penalty(gates, costs, progress, to_primary=True)
    assert search.penalty(gates, costs, progress, to_primary=False) == 0
    mean = sum(values) / len(values) if values else 0.0
    assert found.shape == ()
    assert found.item() == pytest.approx(weight * min(max((progress - 0.2) / 0.4, 0.0), 1.0) * mean, rel=1e-4, abs=1e-6)
    found.backward()
    assert gates.grad is not None


def test_auxnas_makes_gates_of_both_directions():
    search = AuxNAS()
    inward, outward = search.make_gates(wires(3), to_primary=True), search.make_gates(wires(2), to_primary=False)
    assert type(inward) is ClampedGate and inward.values() == pytest.approx([0.1] * 3)
    assert type(outward) is FixedGate and outward.values() == [1.0] * 2
    search = AuxNAS(
        aux_to_primary=SigmoidGate, aux_to_primary_start=0.75, primary_to_aux=ClampedGate, primary_to_aux_start=0.5
    )
    inward, outward = search.make_gates(wires(3), to_primary=True), search.make_gates(wires(2), to_primary=False)
    assert type(inward) is SigmoidGate and inward.values() == pytest.approx([0.75] * 3)
    assert type(outward) is ClampedGate and outward.values() == [0.5] * 2


@given(progresses)
def test_auxg_searches_nothing_on_the_primarys_side(progress):
    search = AuxG(primary_to_aux=ClampedGate, primary_to_aux_start=0.25)
    assert search.choose(wires(3)) == [] and search.choose(wires(2, inward=False)) == wires(2, inward=False)
    gates = search.make_gates(wires(2), to_primary=False)
    search.advance_(gates, progress, to_primary=False)
    assert type(gates) is ClampedGate and gates.values() == [0.25, 0.25]
    penalty = search.penalty(gates(), [1.0, 1.0], progress, to_primary=False)
    assert penalty.shape == () and penalty.item() == 0.0 and not penalty.requires_grad
    assert not list(AuxG().make_gates(wires(2), to_primary=False).parameters())


@pytest.mark.parametrize("close", [(0.4, 0.1), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5), (0.5, math.nan)])
def test_closing_in_no_interval_is_an_error(close):
    refuses(SearchError, f"close must be (from, to) with 0 <= from < to <= 1; found {close!r}", AuxNAS, close=close)


@pytest.mark.parametrize("l1", [-1, -1e-9, -math.inf])
def test_a_negative_penalty_is_an_error(l1):
    refuses(SearchError, f"l1 must not be negative; found {l1!r}", AuxNAS, l1=l1)


@pytest.mark.parametrize("start", [0.0, 1.5, math.nan])
def test_gates_that_cannot_start_so_are_an_error(start):
    message = f"a gate must start in (0, 1]; found start={start!r}"
    for search in (AuxNAS(primary_to_aux_start=start), AuxG(primary_to_aux_start=start)):
        refuses(SearchError, message, search.make_gates, wires(2), to_primary=False)
    refuses(SearchError, message, AuxNAS(aux_to_primary_start=start).make_gates, wires(2), to_primary=True)


@pytest.mark.parametrize("search", [AuxNAS, AuxG])
def test_options_that_do_not_exist_are_an_error(search):
    with pytest.raises(TypeError, match="unexpected keyword argument 'closing'"):
        search(closing=(0, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        search().own_share = 1.0
    assert search() == search() and search(own_share=0.5) != search()


# Architectures

edges = st.builds(
    Edge, st.text(max_size=20), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.booleans()
)


@given(st.lists(edges, max_size=6))
def test_an_architecture_survives_json(found):
    architecture = Architecture(tuple(found))
    back = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
    assert back == architecture and hash(back) == hash(architecture)
    assert back.to_dict() == architecture.to_dict()
    assert list(back) == found and len(back) == len(found)
    for direction in {edge.direction for edge in found} | {"none"}:
        opened = [edge for edge in found if edge.open and edge.direction == direction]
        assert list(back.open_edges(direction)) == opened


GOOD = {"direction": "aux_to_primary", "source": 0, "target": 1, "gate": 0.5, "open": True}
FIELDS = (
    "the edges of an architecture have the fields direction, source, target, gate, open: a string, two numbers of "
    "taps, a number in [0, 1] and true or false; found"
)


@pytest.mark.parametrize(
    "data, odd",
    [
        ({"edges": [{}]}, [{}]),
        ({"edges": [{**GOOD, "weight": 1}]}, [{**GOOD, "weight": 1}]),
        ({"edges": [GOOD, {"source": 0}, GOOD, {"target": 0}]}, [{"source": 0}, {"target": 0}]),
        ({"edges": [{k: v for k, v in GOOD.items() if k != "gate"}]}, [{k: v for k, v in GOOD.items() if k != "gate"}]),
    ],
    ids=str,
)
def test_a_malformed_dict_is_an_error_that_lists_every_odd_edge(data, odd):
    refuses(SearchError, "\n".join([FIELDS, *(f"  - edge {edge!r}" for edge in odd)]), Architecture.from_dict, data)


@pytest.mark.parametrize(
    "data", [GOOD, {}, {"edge": []}, {"edges": [3]}, {"edges": [list(GOOD)]}, {"edges": None}, [GOOD]], ids=str
)
def test_something_that_holds_no_edges_at_all_is_an_error_of_this_package_too(data):
    with pytest.raises(SearchError):
        Architecture.from_dict(data)


def test_the_table_lines_up():
    architecture = Architecture(
        (
            Edge("aux_to_primary", 0, 1, 0.25, True),
            Edge("primary_to_longer", 10, 123, 1.0, True),
            Edge("aux_to_primary", 3, 4, 0.0, False),
            Edge("aux_to_primary", 3, 4, 0.5, False),
        )
    )
    assert str(architecture) == (
        "direction          source  target    gate\n"
        "aux_to_primary          0       1  0.2500\n"
        "primary_to_longer      10     123  1.0000\n"
        "aux_to_primary          3       4  closed\n"
        "aux_to_primary          3       4  closed"
    )
    assert str(Architecture(())) == "direction  source  target    gate"


def test_an_edge_prints_on_one_line():
    assert str(Edge("aux_to_primary", 0, 1, 0.123456, True)) == "aux_to_primary 0 -> 1 (open, gate 0.1235)"
    assert str(Edge("primary_to_aux", 2, 2, 0.0, False)) == "primary_to_aux 2 -> 2 (closed)"


# Features in outputs

Pair = collections.namedtuple("Pair", "first second")


class Plain(dict):
    """A dict subclass with attributes of its own."""

    note = "of the class"


@dataclasses.dataclass
class Box:
    feature: Any
    other: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    feature: Any
    other: Any = None


class Row(list):
    pass


class Triple(tuple):
    __slots__ = ()


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):
    """Both an ordered dict and a dataclass, kept alike, as in transformers."""

    feature: Any = None
    other: Any = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            super().__setitem__(field.name, getattr(self, field.name))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


X = torch.ones(2, 3)
CONTAINERS = {
    "tuple": (lambda feature, other: (other, feature), 1),
    "list": (lambda feature, other: [other, feature], 1),
    "list subclass": (lambda feature, other: Row([feature, other]), 0),
    "tuple subclass": (lambda feature, other: Triple([other, other, feature]), 2),
    "namedtuple": (Pair, 0),
    "dict": (lambda feature, other: {"x": feature, 7: other}, "x"),
    "dict with numbers": (lambda feature, other: {"x": other, 7: feature}, 7),
    "dict subclass": (lambda feature, other: Plain(x=feature, y=other), "x"),
    "ordered dict": (lambda feature, other: collections.OrderedDict(y=other, x=feature), "x"),
    "default dict": (lambda feature, other: collections.defaultdict(list, x=feature, y=other), "x"),
    "dataclass": (Box, "feature"),
    "frozen dataclass": (Frozen, "feature"),
    "model output": (ModelOutput, "feature"),
}


def entries(output):
    """The entries of one container by key."""
    if isinstance(output, dict):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_feature_is_found_and_put_into_a_copy_of_its_container(kind):
    make, key = CONTAINERS[kind]
    other, new = object(), torch.zeros(2, 3)
    output = make(X, other)
    for select in (None, key, (key,)):
        path, feature = find_feature(output, select)
        assert path == (key,) and feature is X
    if isinstance(output, Plain):
        output.note = "of the object"
    changed = put_feature(output, (key,), new)
    assert type(changed) is type(output) and changed is not output
    assert list(entries(changed)) == list(entries(output))
    for name, value in entries(output).items():
        assert value is (X if name == key else other)
        assert entries(changed)[name] is (new if name == key else other)
    if isinstance(output, Plain):
        assert changed.note == "of the object"
    if isinstance(output, collections.defaultdict):
        assert changed.default_factory is list
    if isinstance(output, ModelOutput):
        assert changed.feature is new and output.feature is X and changed.other is other


@given(st.lists(st.sampled_from(list(CONTAINERS)), max_size=4), st.sampled_from([None, 3, "text", X.long(), X[0]]))
def test_a_feature_is_found_and_put_at_any_depth(kinds, other):
    levels, path = [X], ()
    for kind in kinds:
        make, key = CONTAINERS[kind]
        levels.append(make(levels[-1], other))
        path = (key, *path)
    output, new = levels[-1], torch.zeros(2, 3)
    found, feature = find_feature(output, None)
    assert found == path and feature is X
    if path:
        assert find_feature(output, path)[1] is X
    changed = put_feature(output, path, new)
    assert find_feature(changed, None)[1] is new and find_feature(output, None)[1] is X
    for key, level in zip(path, reversed(levels[1:]), strict=True):
        assert type(changed) is type(level) and changed is not level
        for name, value in entries(level).items():
            if name != key:
                assert value is other and entries(changed)[name] is other
        changed = entries(changed)[key]
    assert changed is new


def test_other_branches_of_an_output_are_shared_not_copied():
    branch = {"deep": [X.long()]}
    output = {"a": (X, branch), "b": branch}
    changed = put_feature(output, ("a", 0), X + 1)
    assert changed["b"] is branch and changed["a"][1] is branch


def test_results_of_torch_functions_keep_their_type():
    output = torch.max(torch.randn(2, 3, 4), dim=2)
    path, feature = find_feature(output, None)
    assert path == (0,) and feature is output[0]
    changed = put_feature(output, path, X)
    assert type(changed) is type(output) and changed.values is X and changed.indices is output.indices


def test_one_tensor_is_its_own_feature():
    path, feature = find_feature(X, None)
    new = torch.zeros(2, 3)
    assert path == () and feature is X and put_feature(X, (), new) is new


def test_tensors_that_cannot_be_fused_are_no_choice():
    path, feature = find_feature({"ids": X.long(), "length": X[0], "loss": X.sum(), "x": X, "mask": X > 0}, None)
    assert path == ("x",) and feature is X


FUSED = "a feature is dense and floating, (batch, ..., channels)"


def choose(select):
    return (
        f"choose one by Tap(..., primary_select={select!r}), or aux_select={select!r} if the layer is the auxiliary's"
    )


@pytest.mark.parametrize(
    "output, select, message",
    [
        ((X, X), None, f"returns several tensors (0: (2, 3), 1: (2, 3)); {choose(0)}"),
        (
            {"a": {"b": X}, "c": X[None]},
            None,
            f"returns several tensors (('a', 'b'): (2, 3), 'c': (1, 2, 3)); {choose(('a', 'b'))}",
        ),
        (Pair(X[0], [X, X]), None, f"returns several tensors ((1, 0): (2, 3), (1, 1): (2, 3)); {choose((1, 0))}"),
        (X.long(), None, f"gives no feature but a torch.int64 of 2 dimensions; {FUSED}"),
        ((X, X.long()), 1, f"gives no feature but a torch.int64 of 2 dimensions; {FUSED}"),
        (X > 0, None, f"gives no feature but a torch.bool of 2 dimensions; {FUSED}"),
        (X[0], None, f"gives no feature but a torch.float32 of 1 dimensions; {FUSED}"),
        ({"x": X[0]}, "x", f"gives no feature but a torch.float32 of 1 dimensions; {FUSED}"),
        (X.sum(), None, f"gives no feature but a torch.float32 of 0 dimensions; {FUSED}"),
        (X.to_sparse(), None, f"gives no feature but a nested or sparse one; {FUSED}"),
        ((X, 1), 1, "gives no feature at 1; it returns a tuple with 0"),
        ((X, X), 2, "gives no feature at 2; it returns a tuple with 0, 1"),
        ({"a": {"b": X}, "c": X}, "b", "gives no feature at 'b'; it returns a dict with ('a', 'b'), 'c'"),
        ({"a": {"b": X}}, "a", "gives no feature at 'a'; it returns a dict with ('a', 'b')"),
        ({"a": {"b": X}}, ("a", "c"), "gives no feature at ('a', 'c'); it returns a dict with ('a', 'b')"),
        (Box(X), "features", "gives no feature at 'features'; it returns a Box with 'feature'"),
        (None, None, "gives no feature; it returns a NoneType with no tensor"),
        ((), None, "gives no feature; it returns a tuple with no tensor"),
        (X, 0, "gives no feature at 0; it returns one tensor, so leave out the select"),
        ({"n": 3}, "n", "gives no feature at 'n'; it returns a dict with no tensor"),
        ((X.long(), X[0]), None, "gives no feature; it returns a tuple with 0, 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outputs_without_one_feature_are_described(output, select, message):
    refuses(TapError, message, find_feature, output, select)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # older torch says so once
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_is_no_feature(layout):
    nested = torch.nested.nested_tensor([X, X], layout=layout)
    refuses(TapError, f"gives no feature but a nested or sparse one; {FUSED}", find_feature, nested, None)


def test_gates_of_ones_own_that_nobody_searches_are_not_decided():
    class Constant(ClampedGate):
        searched = False

    gate = Constant(2, 0.3)
    gate.discretize_()
    assert gate.values() == pytest.approx([0.3, 0.3]) and gate.undecided() == [False, False]


def test_gates_move_and_copy_as_modules_do():
    gates = nn.ModuleDict({"a": ClampedGate(2, 0.5)}).double()
    gates["a"].set_([0.0, 0.25])
    twin = copy.deepcopy(gates)["a"]
    assert twin().dtype == torch.float64 and twin.values() == [0.0, 0.25] and twin.closed.tolist() == [True, False]
