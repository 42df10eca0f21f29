"""Penalties and ramps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auxnas_layers.search import SigmoidGate, entropy_penalty, l1_penalty, linear_ramp

progresses = st.floats(0, 1)


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


@given(st.lists(st.floats(0, 1, width=32), max_size=6))
def test_the_entropy_penalty_is_the_mean_entropy(values):
    def entropy(p):
        return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log1p(-p)

    gates = torch.tensor(values, requires_grad=True)
    found = entropy_penalty(gates)
    mean = sum(map(entropy, values)) / len(values) if values else 0.0
    assert found.shape == () and found.item() == pytest.approx(mean, abs=2e-5)
    found.backward()
    assert gates.grad.isfinite().all()


def test_the_entropy_penalty_drives_every_gate_to_its_nearer_end():
    gate = SigmoidGate(4)
    gate.set_([0.3, 0.49, 0.51, 0.9])
    step = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(200):
        step.zero_grad()
        entropy_penalty(gate.soft()).backward()
        step.step()
    assert [round(value, 2) for value in gate.values()] == [0.0, 0.0, 1.0, 1.0]
