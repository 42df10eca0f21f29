"""Early warnings of a search that a loop leaves open."""

import copy
import pickle
import warnings

import pytest
import torch
from pairs import IMAGES, TAPS
from zoo import Cnn

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, FixedArchitecture
from auxnas_layers.errors import AuxNASWarning
from auxnas_layers.search import watch


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(watch, "MANY", 5)


def make(search=None):
    return AuxNASWrapper(Cnn(), Cnn(), TAPS, search=search or AuxNAS(), example_inputs=IMAGES)


def warned(run):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    assert all(issubclass(one.category, AuxNASWarning) for one in seen)
    return [str(one.message) for one in seen]


def test_progress_that_starts_again_with_each_epoch_is_noticed_once():
    wrapper = make()

    def train():
        for _epoch in range(3):
            for step in range(3):
                wrapper.search_penalty(step / 10)

    (message,) = warned(train)
    assert "progress has fallen from 0.2 to 0" in message and "epoch * len(loader) + i" in message
    assert not warned(train)


def test_progress_that_rises_or_stays_is_right():
    wrapper = make()
    assert not warned(lambda: [wrapper.search_penalty(p) for p in (0.0, 0.1, 0.1, 0.5, 1.0)])
    again = copy.deepcopy(wrapper)
    assert not warned(lambda: (again.search_penalty(0.0), pickle.loads(pickle.dumps(wrapper)).search_penalty(0.0)))


def test_a_loop_may_go_back_to_an_earlier_state():
    wrapper = make()
    state = copy.deepcopy(wrapper.state_dict())

    def train():
        for _fold in range(2):
            wrapper.load_state_dict(state)
            wrapper.search_penalty(0.0)
            wrapper.search_penalty(0.5)

    assert not warned(train)
    assert len(warned(lambda: wrapper.search_penalty(0.1))) == 1
    wrapper.load_state_dict(state)
    assert not warned(lambda: [wrapper.search_penalty(p) for p in (0.5, 0.1)])  # once is enough


@pytest.mark.parametrize("search", [AuxNAS(), MTLNAS()])
def test_a_forgotten_penalty_is_noticed_once(search):
    wrapper = make(search)
    (message,) = warned(lambda: [wrapper(IMAGES) for _ in range(20)])
    assert "5 training forwards without wrapper.search_penalty(progress)" in message


@pytest.mark.parametrize(
    "search, use",
    [
        (AuxG(), lambda w: w(IMAGES)),
        (FixedArchitecture(), lambda w: w(IMAGES)),
        (AuxNAS(), lambda w: (w(IMAGES), w.search_penalty(0.05))),
        (AuxNAS(), lambda w: (w.close_aux_to_primary_(), w(IMAGES))),
        (AuxNAS(), lambda w: w.eval()(IMAGES)),
        (MTLNAS(), lambda w: (w.discretize_(), w(IMAGES))),
    ],
    ids=["nothing searched", "fixed", "called", "closed", "eval mode", "decided"],
)
def test_no_penalty_is_needed_where_nothing_waits_for_it(search, use):
    wrapper = make(search)
    assert not warned(lambda: [use(wrapper) for _ in range(20)])
    with torch.no_grad():
        assert not warned(lambda: [make()(IMAGES) for _ in range(20)])


def test_an_evaluation_with_open_edges_is_noticed_once_when_training_has_begun():
    wrapper = make()
    assert not warned(lambda: wrapper.eval()(IMAGES))  # right after construction the primary's output is its own
    wrapper.train()(IMAGES)
    wrapper.search_penalty(0.0)
    (message,) = warned(lambda: [wrapper.eval()(IMAGES) for _ in range(3)])
    assert "evaluated with 3 edge(s) into the primary open" in message
    assert message.endswith("watch wrapper.primary_net(...) instead, and choose the best checkpoint by its score")


@pytest.mark.parametrize("search", [AuxNAS(), AuxG(), MTLNAS(), FixedArchitecture()])
def test_an_evaluation_is_right_once_edges_are_closed_or_if_they_are_to_stay(search):
    wrapper = make(search)
    wrapper(IMAGES)
    wrapper.search_penalty(1.0)
    assert not warned(lambda: wrapper.eval()(IMAGES))


def test_exports_and_costs_are_no_evaluations():
    wrapper = make()
    wrapper(IMAGES)
    wrapper.search_penalty(0.0)
    assert not warned(lambda: (wrapper.export_primary(allow_open=True), wrapper.eval().cost()))


def test_progress_that_stays_at_zero_is_noticed_once():
    wrapper = make()
    (message,) = warned(lambda: [wrapper.search_penalty(step / float("inf")) for step in range(20)])
    assert "progress was 0 in 5 calls of search_penalty" in message
    assert not warned(lambda: [make().search_penalty(step / 20) for step in range(20)])


def train(wrapper, parameters, steps=12, accumulate=1, zero=None):
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    for step in range(steps):
        penalty = wrapper.search_penalty(step / steps)
        out = wrapper(IMAGES)
        (out.primary.mean() + out.aux.mean() + penalty).backward()
        if step % accumulate == accumulate - 1:
            optimiser.step()
            (zero or optimiser).zero_grad()


@pytest.mark.parametrize("search", [AuxNAS(), AuxG()])
def test_an_optimiser_without_the_wrappers_parameters_is_noticed_once(search, monkeypatch):
    monkeypatch.setattr(watch, "UNSTEPPED", 10)
    wrapper = make(search)
    (message,) = warned(lambda: train(wrapper, wrapper.primary_net.parameters()))
    assert "after 10 training forwards the auxiliaries and the edges have gradients and have not changed" in message
    assert "wrapper.param_groups(lr=...)" in message
    assert not warned(lambda: train(make(search), make(search).param_groups(lr=0.1), 3))
    wrapper = make(search)
    assert not warned(lambda: train(wrapper, wrapper.param_groups(lr=0.1)))
    wrapper = make(search)
    assert not warned(lambda: train(wrapper, wrapper.param_groups(lr=0.1), accumulate=6))
    wrapper = make(search)
    wrapper.aux_net.requires_grad_(False)
    assert not warned(lambda: train(wrapper, [*wrapper.primary_parameters(), *wrapper.fusion_parameters()]))
