"""Bad arguments: one clear error that lists all problems and says what to type; the networks stay as they were."""

import re
import warnings
from functools import partial

import pytest
import torch
from helpers import assert_unchanged, snapshot
from pairs import make
from torch import nn
from zoo import Cnn

from auxnas_layers import (
    MTLNAS,
    AuxG,
    AuxNAS,
    AuxNASError,
    AuxNASWrapper,
    CrossTaskFusion,
    Inputs,
    Listener,
    NDDRFusion,
    SearchError,
    Tap,
    TapError,
)
from auxnas_layers.search import SigmoidGate

IMAGES = torch.randn(2, 3, 8, 8)
TAP_ERRORS = [
    (
        ["layr1", "layer22"],
        ["4 problem(s)", "'layr1' is not a module of the primary network (Cnn); did you mean 'layer1'"],
    ),
    (["backbone.layer1"], ["did you mean 'layer1'?"]),
    (["zzz"], ["'zzz' is not a module of the primary network (Cnn); print list_taps(net, *inputs)"]),
    ([""], ["'' is not a module"]),
    (["layer1", "layer1"], ["primary 'layer1' is tapped 2 times; name it once", "aux 'layer1' is tapped 2 times"]),
    ([("layer1", "layer1"), ("layer2", "layer1")], ["aux 'layer1' is tapped 2 times"]),
    ([], ["taps must be a list of names, pairs (primary name, aux name) or Tap(...); found []"]),
    ("layer1", ["taps must be a list of names", "found 'layer1'"]),
    ([1, ("a", "b", "c")], ["found 1, ('a', 'b', 'c')"]),
    (
        ["layer2", "layer1"],
        ["the primary network calls its taps in the order 'layer1', 'layer2'; list them in that order"],
    ),
]


@pytest.mark.parametrize("taps, messages", TAP_ERRORS, ids=[str(taps) for taps, _ in TAP_ERRORS])
def test_taps_that_cannot_be_are_named_with_what_to_type(taps, messages):
    primary, aux = Cnn(), Cnn()
    before = snapshot(primary), snapshot(aux)
    with pytest.raises(TapError) as error:
        AuxNASWrapper(primary, aux, taps, example_inputs=IMAGES)
    for message in messages:
        assert message in str(error.value)
    assert isinstance(error.value, AuxNASError) and isinstance(error.value, ValueError)
    assert_unchanged(primary, before[0])
    assert_unchanged(aux, before[1])


def test_all_problems_of_both_networks_come_in_one_message():
    class Containers(Cnn):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(2, 2)])
            self.script = torch.jit.script(nn.ReLU())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and ScriptModules are still about
        net = Containers()
    with pytest.raises(TapError) as error:
        AuxNASWrapper(Cnn(), net, taps=[("layr1", "blocks"), ("layer2", "script"), ("layer1", "layer1.9")])
    for message in (
        "4 problem(s) with the taps:",
        "'layr1' is not a module of the primary network",
        "aux 'blocks' only holds modules and is never called; tap one of them, such as 'blocks.0'",
        "aux 'script' is a ScriptModule, on which torch allows no hooks",
        "'layer1.9' is not a module of the aux network (Containers); did you mean",
    ):
        assert message in str(error.value)


@pytest.mark.parametrize(
    "space, message",
    [
        (
            [[1, 1], [0, 1]],
            "aux_to_primary: a tap cannot receive from a later one, which has not run yet: tap 0 from tap 1",
        ),
        ([[1, 0]], "aux_to_primary: must be square"),
        ([[1, 0], [0, 7]], "cells must be true or false; found 7"),
        (torch.ones(3, 3).tril(), "the search space is for 3 taps, and there are 2"),
    ],
)
def test_search_spaces_that_cannot_be(space, message):
    with pytest.raises(SearchError) as error:
        AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search_space=space)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "taps, nets, message",
    [
        (["layer1"], {"a": Cnn()}, "taps is a mapping with the same keys ['a']; found list"),
        ({"b": ["layer1"]}, {"a": Cnn()}, "taps is a mapping with the same keys ['a']; found ['b']"),
        ({"primary": ["layer1"]}, {"primary": Cnn()}, "names of auxiliaries are identifiers other than 'primary'"),
        ({"a.b": ["layer1"]}, {"a.b": Cnn()}, "names of auxiliaries are identifiers"),
        ({0: ["layer1"]}, {0: Cnn()}, "names of auxiliaries are identifiers"),
        ({}, {}, "there is no auxiliary network: aux_net is a network, or a mapping from names to networks"),
        (
            {"primary_to_a": ["layer1"]},
            {"primary_to_a": Cnn()},
            "none that read as a direction, '.._to_primary' or 'primary_to_..'",
        ),
        ({"a_to_primary": ["layer1"]}, {"a_to_primary": Cnn()}, "'primary_to_..'; found ['a_to_primary']"),
    ],
)
def test_several_auxiliaries_need_their_names(taps, nets, message):
    with pytest.raises(TapError) as error:
        AuxNASWrapper(Cnn(), nets, taps)
    assert message in str(error.value)


def test_a_norm_that_does_not_take_rows_is_an_error_when_it_is_made():
    fusion = partial(CrossTaskFusion, norm=nn.BatchNorm2d)
    with pytest.raises(SearchError, match=r"norm makes a norm of rows \(rows, 6\), .*BatchNorm2d does not take"):
        AuxNASWrapper(Cnn(), Cnn(), ["layer1"], fusion=fusion, example_inputs=IMAGES)


@pytest.mark.parametrize(
    "search, message",
    [
        ("aux", "search is a search, such as AuxNAS(), AuxG() or MTLNAS(); found 'aux'"),
        (AuxNAS, "search is an object, not its class: write search=AuxNAS()"),
    ],
    ids=["text", "class"],
)
def test_something_else_for_a_search_is_an_error(search, message):
    with pytest.raises(SearchError, match=f"^{re.escape(message)}$"):
        make(search)


def test_a_search_of_ones_own_that_makes_too_few_gates_is_an_error():
    class Short(type(MTLNAS())):
        def make_gates(self, wires, *, to_primary):
            return SigmoidGate(1, 0.5)

    with pytest.raises(
        SearchError, match="the search made 1 gates for 3 edges of aux_to_primary; make_gates returns one for each"
    ):
        make(Short())


@pytest.mark.parametrize("options", [{"norm": nn.LayerNorm(6)}, {"activation": nn.ReLU}], ids=["norm", "activation"])
@pytest.mark.parametrize("fusion", [NDDRFusion, CrossTaskFusion])
def test_norms_and_activations_of_another_kind_are_an_error(fusion, options):
    with pytest.raises(SearchError, match=r"norm makes a module .* as norm=torch.nn.LayerNorm does; activation is a"):
        make(AuxG(), fusion=partial(fusion, **options))
    with pytest.raises(
        SearchError, match="fusion makes an auxnas_layers.fusion.Fusion; found Identity; derive its class from Fusion"
    ):
        make(AuxNAS(), fusion=nn.Identity)


def test_a_primary_with_a_parameter_of_the_wrappers_own_name_is_refused():
    class Taken(Cnn):
        def forward(self, x, aux_inputs=None):
            return super().forward(x)

    primary, aux = Taken(), Cnn()
    before = snapshot(primary), snapshot(aux)
    with pytest.raises(TapError, match="Taken.forward has a parameter 'aux_inputs', .* rename it there"):
        AuxNASWrapper(primary, aux, ["layer1"])
    assert_unchanged(primary, before[0])
    assert_unchanged(aux, before[1])
    AuxNASWrapper(aux, primary, ["layer1"], example_inputs=IMAGES)  # an auxiliary gets its own as Inputs


def test_a_wrapper_may_be_the_primary_of_another_one():
    inner = AuxNASWrapper(Cnn(), Cnn(), ["layer1"], search=AuxG(), example_inputs=IMAGES)
    taps = [("primary_net.layer1", "layer1")]
    assert AuxNASWrapper(inner, Cnn(), taps, example_inputs=IMAGES)(IMAGES).primary.aux.shape == (2, 2, 4, 4)


class TwoListeners(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = Listener(8), Listener(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.out(self.first(x, 4, 4) + self.second(x, 4, 4))


def warned_of_listeners(taps, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        AuxNASWrapper(Cnn(), TwoListeners(), taps, example_inputs=IMAGES, **options)
    return [str(one.message) for one in seen]


LISTENING = [("layer1", "first"), ("layer2", "second")]


def test_listeners_that_no_edge_enters_are_named_once():
    assert not warned_of_listeners(LISTENING, search=AuxG())
    (message,) = warned_of_listeners(LISTENING[:1], search=AuxG())
    assert (
        message
        == "a Listener returns zeros unless an edge enters it; tap these too, as suggest_taps does: aux 'second'"
    )
    only_first = [[True, False], [False, False]]
    assert warned_of_listeners(LISTENING, search=AuxG(), search_space=only_first) == [message]


def test_listeners_that_feed_the_primary_are_named_once():
    (message,) = warned_of_listeners(LISTENING, search=AuxNAS())
    assert message == (
        "a Listener has no feature of its own, so its edges into the primary carry zeros; give search=AuxG(), which "
        "has none of them: aux 'first', aux 'second'"
    )


def test_own_inputs_of_an_auxiliary_at_construction():
    primary, aux = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), nn.Sequential(nn.Linear(7, 8), nn.Linear(8, 2))
    x, own = torch.randn(3, 4), torch.randn(3, 7)
    for given in (own, (own,), Inputs((own,))):
        wrapper = AuxNASWrapper(primary, aux, ["0"], search=AuxG(), example_inputs=x, aux_inputs=given)
        assert wrapper(x, aux_inputs=own).aux.shape == (3, 2) and wrapper.export_primary()(x).shape == (3, 2)
        assert wrapper.export_report.exact and wrapper.taps == (Tap("0"),)
    with pytest.raises(SearchError, match="aux_inputs are example inputs too"):
        AuxNASWrapper(primary, aux, ["0"], aux_inputs=own)
    named = {"own": aux, "same": nn.Sequential(nn.Linear(4, 8))}
    options = {"search": AuxG(), "example_inputs": x, "aux_inputs": {"own": own}}
    wrapper = AuxNASWrapper(primary, named, {"own": ["0"], "same": ["0"]}, **options)
    assert wrapper.taps == {"own": (Tap("0"),), "same": (Tap("0"),)} and wrapper.cost().auxiliary.flops


def test_groups_for_one_optimiser():
    wrapper = make(AuxNAS(), fusion=CrossTaskFusion)
    weights, gates = wrapper.param_groups(1e-3, gate_lr=1e-2, weight_decay=0.1)
    assert (weights["lr"], weights["weight_decay"], gates["lr"], gates["weight_decay"]) == (1e-3, 0.1, 1e-2, 0.0)
    assert set(weights["params"]) == set(wrapper.weight_parameters())
    assert set(gates["params"]) == set(wrapper.arch_parameters())
    weights, gates = wrapper.param_groups(1e-3)
    assert "weight_decay" not in weights and gates["lr"] == 1e-3 and gates["weight_decay"] == 0.0
    (only,) = make(AuxG()).param_groups(lr=1e-3, gate_lr=1e-2)
    assert only["lr"] == 1e-3
