"""Gates: values, closing, gradients, and gates that are drawn."""

import copy
import math

import pytest
import torch
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from auxnas_layers import AuxNAS, AuxNASWrapper, SearchError
from auxnas_layers.search import ClampedGate, FixedGate, Gate, RelaxedBernoulliGate, SigmoidGate

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


# Gates that are drawn


@pytest.mark.parametrize("start", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
def test_relaxed_gates_have_the_distribution_of_the_paper(start, temperature):
    """P(gate < v) = 1 - sigmoid(alpha - T logit(v)), since the noise is logistic."""
    torch.manual_seed(0)
    gate = RelaxedBernoulliGate(20_000, start)
    gate.anneal_(temperature)
    drawn = gate()
    alpha = math.log(start / (1 - start))
    for v in (0.05, 0.3, 0.5, 0.7, 0.95):
        expected = 1 / (1 + math.exp(alpha - temperature * math.log(v / (1 - v))))
        assert (drawn < v).float().mean().item() == pytest.approx(expected, abs=0.012)
    assert not torch.equal(gate(), drawn)
    assert gate.soft().tolist() == pytest.approx([start] * 20_000, abs=1e-5)


def test_relaxed_gates_have_gradients_and_samples_that_a_seed_fixes():
    gate = RelaxedBernoulliGate(3, 0.4)
    gate.anneal_(0.5)
    torch.manual_seed(7)
    first = gate()
    first.sum().backward()
    torch.testing.assert_close(gate.alpha.grad, first * (1 - first) / 0.5)
    torch.manual_seed(7)
    assert torch.equal(gate(), first)


@pytest.mark.parametrize("gate", [RelaxedBernoulliGate, SigmoidGate])
def test_evaluation_is_soft_hard_or_stochastic(gate):
    torch.manual_seed(0)
    values = [0.3, 0.7] * 2000
    found = {}
    for evaluation in ("soft", "hard", "stochastic"):
        gates = gate(len(values), evaluation=evaluation).eval()
        gates.set_(values)
        found[evaluation] = gates()
        assert gates.undecided() == [evaluation != "hard"] * len(values)
        assert gates.values() == pytest.approx(values)
    assert found["soft"].tolist() == pytest.approx(values)
    assert found["hard"].tolist() == [0.0, 1.0] * 2000
    assert set(found["stochastic"].tolist()) == {0.0, 1.0}
    assert found["stochastic"].view(-1, 2).mean(0).tolist() == pytest.approx([0.3, 0.7], abs=0.04)
    with pytest.raises(SearchError, match="evaluation must be one of 'soft', 'hard', 'stochastic'; found 'firm'"):
        gate(2, evaluation="firm")


@pytest.mark.parametrize("gate", [ClampedGate, SigmoidGate, RelaxedBernoulliGate])
def test_decided_gates_are_exactly_0_or_1_and_stay_so(gate):
    gates = gate(4)
    gates.set_([0.2, 0.5, 0.51, 1.0])
    gates.discretize_()
    step = torch.optim.Adam(gates.parameters(), lr=0.5, weight_decay=0.1)
    for mode in (True, False):
        gates.train(mode)
        for _ in range(3):
            assert gates().tolist() == gates.values() == [0.0, 0.0, 1.0, 1.0]
            gates().sum().backward()
            assert gates.alpha.grad.tolist() == [0.0] * 4
            step.step()
            gates.settle_()
    assert gates.undecided() == [False] * 4
    gates.settle_(0.5)  # a ceiling holds for kept gates too
    assert max(gates.values()) <= 0.5 + 1e-6
    gates.settle_(0.0)
    assert gates.values() == [0.0] * 4
    gates.set_([0.9] * 4)
    gates.discretize_()
    gates.set_([0.25, 0.75, 0.5, 0.0])  # a hand may undo it
    assert gates.values() == pytest.approx([0.25, 0.75, 0.5, 0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gate", [ClampedGate, RelaxedBernoulliGate, FixedGate])
def test_gates_go_to_no_dtype_below_float32(gate, dtype):
    gates = gate(3, start=0.999)
    gates.alpha.grad = torch.ones(3) if gates.searched else None
    assert gates.to(dtype) is gates
    wanted = torch.float64 if dtype is torch.float64 else torch.float32
    assert {t.dtype for t in (*gates.parameters(), *gates.buffers()) if t.is_floating_point()} == {wanted}
    assert gates.alpha.grad is None or gates.alpha.grad.dtype == wanted
    assert gates.values() == pytest.approx([0.999] * 3, abs=1e-6) and gates.to("meta").to_empty(
        device="cpu"
    )().shape == (3,)
    assert gates.half().double().alpha.dtype == torch.float64
    assert gates.to("meta", dtype).to_empty(device="cpu").alpha.dtype == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_wrapper_in_half_precision_trains_its_gates_by_adam(dtype):
    """Edges start at zero, so the first gradient of their gates is 0, by which Adam divides 0 + eps in float16."""
    nets = [nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)) for _ in range(2)]
    x = torch.randn(3, 4, dtype=dtype)
    wrapper = AuxNASWrapper(*nets, ["0"], search=AuxNAS(aux_to_primary_start=0.5), example_inputs=x.float()).to(dtype)
    weights = torch.optim.SGD(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-3)
    for _ in range(20):
        out = wrapper(x)
        (out.primary.float().square().mean() + out.aux.float().sum() + wrapper.search_penalty(0.0)).backward()
        for optimiser in (weights, gates):
            optimiser.step()
            optimiser.zero_grad()
    assert out.primary.dtype == out.aux.dtype == dtype
    ((value,),) = [gate.values() for gate in wrapper.gates.values() if gate.searched]
    assert 0.001 < abs(value - 0.5) < 0.02
