"""Cheaper steps: what each leaves out, what it costs, and the table."""

from dataclasses import replace

import cheaper
import price
import pytest
import torch
from cheaper import CHEAPER, EVERY_STEP, Cheaper
from methods import LIGHT, METHODS, OURS, SINGLE
from problems import PROBLEMS
from runs import Run
from studies import FEW, MAIN, Cell, price_cells
from tables import price_of, price_table
from training import Regime, Settings, fit

PROBLEM = PROBLEMS[MAIN[0]]


@pytest.fixture(scope="module")
def data():
    return PROBLEM.load(True)


def calls(method, data, steps):
    """Whether the auxiliary's loss was taken in each step, and of how many samples."""
    seen, starts = [], []
    loss = PROBLEM.auxes["segmentation"].loss
    aux = replace(
        PROBLEM.auxes["segmentation"], loss=lambda out, y: seen.append((len(starts) - 1, len(y))) or loss(out, y)
    )
    problem = replace(PROBLEM, auxes={"segmentation": aux})
    method = price.unstopped(method)
    model = fit(problem, method, data["train"], FEW, Settings(1e-3, 0.01, steps), 0, lambda *_: starts.append(1))
    return dict(seen), model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (EVERY_STEP, range(10)),
        ("every 2nd step", [0, 2, 4, 6, 8]),
        ("every 4th step", [0, 4, 8]),
        ("every 2nd step once closed", [0, 1, 2, 3, 4, 6, 8]),
        ("every 4th step once closed", [0, 1, 2, 3, 4, 8]),
    ],
)
def test_the_auxiliary_takes_part_in_its_steps_alone(name, expected, data):
    found, model = calls(CHEAPER[name], data, 10)
    assert list(found) == list(expected) and set(found.values()) == {16}
    assert not any(edge.open for edge in model.architecture() if edge.direction.inward)


@pytest.mark.parametrize(
    ("name", "count"), [("half as many other samples", 12), ("a quarter as many other samples", 10)]
)
def test_a_step_keeps_the_samples_with_the_primary_label_and_some_of_the_others(name, count, data):
    found, _ = calls(CHEAPER[name], data, 3)
    assert found == {0: count, 1: count, 2: count}
    batch = {"input": torch.arange(16)}
    assert CHEAPER[name].thinned(batch, 8, 0.0)["input"].tolist() == list(range(count))


def test_frozen_layers_keep_their_weights_and_the_head_and_the_edges_go_on(data):
    _, whole = calls(CHEAPER[EVERY_STEP], data, 10)
    _, model = calls(CHEAPER["backbone frozen once closed"], data, 10)
    frozen = [name for name, p in model.aux_net.named_parameters() if not p.requires_grad]
    trained = [name for name, p in model.aux_net.named_parameters() if p.requires_grad]
    assert frozen and trained and all(name.startswith("segmentation.head.") for name in trained)
    assert not any(name.startswith("segmentation.head.") for name in frozen)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all((gradients[f"aux_net.{name}"] is None) == (name in frozen) for name in frozen + trained)
    towards_aux = [gradient for name, gradient in gradients.items() if name.startswith("fusions.segmentation")]
    assert towards_aux and all(gradient is not None for gradient in towards_aux)
    assert not torch.equal(model.primary_net.stage1[0].weight, whole.primary_net.stage1[0].weight)


def test_ours_again_is_ours(data):
    models = [
        fit(PROBLEM, price.unstopped(m), data["train"], Regime(16, True), Settings(1e-3, 0.01, 4), 0)
        for m in (METHODS[OURS], CHEAPER[EVERY_STEP])
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_the_price_is_measured_and_less_where_less_is_done():
    ways = [
        SINGLE,
        OURS,
        LIGHT,
        "every 2nd step",
        "half as many other samples",
        "backbone frozen once closed",
        "edges of rank 4",
    ]
    found = price.measure(rounds=1, steps=5, fast=True, ways=ways)
    flops = {name: of["flops"] / found[SINGLE]["flops"] for name, of in found.items()}
    assert list(flops) == ways and all(len(of["seconds"]) == 1 for of in found.values())
    assert set(ways) < set(price.WAYS)
    assert 4 < flops[OURS] < 5 and 2 < flops[LIGHT] < 3
    assert flops["every 2nd step"] == pytest.approx((flops[OURS] + 1) / 2, rel=0.1)
    assert flops["half as many other samples"] == pytest.approx(0.75 * flops[OURS], rel=0.01)
    assert flops["backbone frozen once closed"] < flops[OURS] and flops["edges of rank 4"] < flops[OURS]
    assert price_of("every 2nd step", found)[0] == f"{flops['every 2nd step']:.2f}x"


def test_cheaper_steps_are_compared_with_ours_of_their_own_machine(capsys):
    cells = [cell for cell in price_cells() if cell.problem == MAIN[0]]
    found = {run: {"error": 5.0} for cell in cells for run in cell.trials()}
    for name, error in {SINGLE: 20.0, OURS: 10.0, EVERY_STEP: 12.0, "every 2nd step": 15.0}.items():
        cell = next(cell for cell in cells if cell.method == name)
        found |= {run: {"error": error} for run in cell.runs(found)}
    price_table(cells, found)
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:3] for line in lines[4:] if line}
    assert shown == {
        SINGLE: ["100.0 %, 5 seeds", "+100.0 +- 0.0 %, 0 of 5"],
        OURS: ["50.0 %, 5 seeds", ""],
        EVERY_STEP: ["60.0 %, 5 seeds", "+20.0 +- 0.0 %, 0 of 5"],
        "every 2nd step": ["75.0 %, 5 seeds", "+25.0 +- 0.0 %, 0 of 5"],
    }


def test_cheaper_steps_take_the_settings_of_ours():
    cells = {cell.method: cell for cell in price_cells() if cell.problem == MAIN[1]}
    ours = Cell(MAIN[1], OURS, FEW)
    assert set(CHEAPER) < set(cells) and all(cells[name].trials() == ours.trials() for name in CHEAPER)
    assert {type(run) for run in ours.trials()} == {Run} and {cell.seeds for cell in cells.values()} == {5}
    assert all(isinstance(method, Cheaper) for method in CHEAPER.values()) and 0 < cheaper.CLOSED < 1
