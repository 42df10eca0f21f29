"""The price of a step, as docs/guides/cost.md opens with it."""

import importlib
import json

import pytest
from helpers import ROOT


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
    return importlib.import_module("steps")


def test_the_flops_of_a_step_are_those_of_its_products(steps):
    found = steps.flops(steps.NETWORKS["MLP, 4 taps"])
    primary = 2 * 64 * (4 * 256 * 256 + 256 * 10)
    edges = 1 + 2 + 3 + 3  # of a direction: from three taps at most
    for name, edge in (("full", 2 * 64 * 256 * 256), (f"rank {steps.RANK}", 2 * 64 * steps.RANK * (256 + 256))):
        assert found[name] == {
            "primary": primary,
            "both": 2 * primary,
            "open": 2 * primary + 2 * edges * edge,
            "closed": 2 * primary + edges * edge,
        }


def test_a_joined_step_takes_longer_than_that_of_the_primary(steps, monkeypatch):
    monkeypatch.setattr(importlib.import_module("bench"), "WARM_UP", 2)
    found = steps.times(steps.NETWORKS["MLP, 4 taps"], rounds=5)
    assert list(found) == list(steps.FUSIONS) and min(found.values()) > 1.5


def test_every_network_is_counted_and_the_small_ones_are_timed(steps):
    found = json.loads((steps.RESULTS / "steps.json").read_text())
    assert list(found) == [*steps.NETWORKS, *steps.LARGE]
    for name, by_fusion in found.items():
        assert list(by_fusion) == list(steps.FUSIONS)
        assert all(("time" in of) == (name in steps.NETWORKS) for of in by_fusion.values())


@pytest.mark.parametrize(("name", "most"), [("ViT-B/16, 12 taps", 1.05), ("ResNet-50, 16 taps", 1.25)])
def test_edges_of_low_rank_add_little_to_both_networks(steps, name, most):
    full, low = json.loads((steps.RESULTS / "steps.json").read_text())[name].values()
    assert low["open"] / low["both"] <= most < full["open"] / full["both"]
