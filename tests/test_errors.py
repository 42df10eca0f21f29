"""Bad input: one clear error that lists all problems and says what to type; the networks stay as they were."""

import warnings
from functools import partial

import pytest
import torch
from helpers import assert_unchanged, snapshot, stir_, workers
from torch import nn
from zoo import Cnn, Conv1d, Flattening, Recurrent, Vit

from auxnas_layers import (
    MTLNAS,
    Architecture,
    AuxNAS,
    AuxNASError,
    AuxNASWrapper,
    CrossTaskFusion,
    Edge,
    EdgeMatrix,
    ExportError,
    FixedArchitecture,
    Inputs,
    LayoutError,
    SearchError,
    SigmoidGate,
    Tap,
    TapError,
    list_taps,
)

IMAGES = torch.randn(2, 3, 8, 8)


class Twice(Cnn):
    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.layer1(x)[:, :3])))


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.count, self.pair = nn.Identity(), Length(), nn.Identity()

    def forward(self, x):
        return self.tokens(x.long()), self.count(x), self.pair((x, x))


class Length(nn.Module):
    def forward(self, x):
        return len(x)


class ThreeD(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Identity()

    def forward(self, x):
        return self.plain(x.flatten(2))


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


@pytest.mark.parametrize("names", [(0,), ("0", 1)])
def test_a_tap_names_layers(names):
    with pytest.raises(TapError, match="Tap names layers as list_taps prints them; found "):
        Tap(*names)


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


def test_the_trial_call_tells_everything_that_the_taps_miss_at_once():
    class Partly(Twice):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    with pytest.raises(TapError) as error:
        AuxNASWrapper(
            Cnn(),
            Partly(),
            taps=[("layer1.0", "spare"), ("layer1", "layer1"), ("layer2", "layer2")],
            example_inputs=IMAGES,
        )
    assert "aux 'spare' is not called on these inputs in eval mode; list_taps(net, *inputs) prints what is" in str(
        error.value
    )
    assert "aux 'layer1' is called 2 times in one forward; tap a layer that is called once" in str(error.value)


@pytest.mark.parametrize(
    "tap, message",
    [
        ("tokens", "primary 'tokens' gives no feature but a torch.int64 of 4 dimensions"),
        ("count", "primary 'count' gives no feature; it returns a int with no tensor"),
        ("pair", "primary 'pair' returns several tensors (0: (2, 3, 8, 8), 1: (2, 3, 8, 8)); choose one by Tap"),
        (Tap("pair", primary_select=7), "primary 'pair' gives no feature at 7; it returns a tuple with 0, 1"),
    ],
    ids=["integer", "number", "several", "missing"],
)
def test_outputs_without_a_feature_are_described(tap, message):
    with pytest.raises(TapError) as error:
        AuxNASWrapper(Integers(), Integers(), taps=[tap], example_inputs=IMAGES)
    assert message in str(error.value)


def test_an_unknown_layout_is_an_error_that_says_how_to_name_it():
    with pytest.raises(LayoutError) as error:
        AuxNASWrapper(ThreeD(), ThreeD(), taps=["plain"], example_inputs=IMAGES)
    assert "primary 'plain': a feature of shape (2, 3, 64) may be 'b n c' or 'b c t'" in str(error.value)
    assert "write Tap(..., primary_layout='b c h w')" in str(error.value)
    tap = Tap("plain", primary_layout="b c t", aux_layout="b c t")
    AuxNASWrapper(ThreeD(), ThreeD(), taps=[tap], example_inputs=IMAGES)(IMAGES)


@pytest.mark.parametrize("layout", ["b c", "b c h", "b c h w d"])
def test_a_layout_of_another_rank_is_an_error(layout):
    with pytest.raises(LayoutError, match=r"layout '.*' has \d dimensions, the feature \(2, 6, 8, 8\)"):
        AuxNASWrapper(Cnn(), Cnn(), taps=[Tap("layer1", primary_layout=layout)], example_inputs=IMAGES)


def test_features_that_cannot_be_aligned_are_named_by_edge():
    tap = Tap("layer1", "blocks.0", aux_layout="b (h w) c")  # the class token does not fit a grid
    with pytest.raises(LayoutError) as error:
        AuxNASWrapper(Cnn(), Vit(), taps=[tap], example_inputs=IMAGES)
    assert "'aux blocks.0' -> 'primary layer1'" in str(error.value)
    assert "'primary layer1' -> 'aux blocks.0'" in str(error.value)
    assert "name extra tokens as in 'b 1+(h w) c'" in str(error.value)
    tap = Tap("layer1", "blocks.0", aux_layout="b 1+(h w) c")
    AuxNASWrapper(Cnn(), Vit(), taps=[tap], example_inputs=IMAGES)(IMAGES)


def test_different_numbers_of_samples_are_an_error():
    example = Inputs((IMAGES,), {"aux_inputs": (torch.randn(3, 3, 8, 8),)})
    with pytest.raises(LayoutError, match="2 samples cannot meet 3|3 samples cannot meet 2"):
        AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=example)
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=IMAGES)
    with pytest.raises(LayoutError, match="'primary layer1' -> 'aux layer1': 2 samples cannot meet 3"):
        wrapper(IMAGES, aux_inputs=(torch.randn(3, 3, 8, 8),))
    assert not workers()


def test_a_flattened_map_of_another_size_at_run_time_still_aligns():
    wrapper = AuxNASWrapper(Cnn(), Vit(), taps=[("layer1", "blocks.0")], example_inputs=IMAGES)
    wrapper(torch.randn(5, 3, 12, 12))
    assert "Flattening" in repr(AuxNASWrapper(Flattening(), Cnn(), taps=[("conv", "layer1")], example_inputs=IMAGES))


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan"), float("inf")])
def test_progress_outside_its_range_is_an_error(progress):
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    before = wrapper.architecture()
    with pytest.raises(SearchError, match=r"in \[0, 1\]; found .*Pass step / total_steps"):
        wrapper.search_penalty(progress)
    assert wrapper.architecture() == before


def test_gates_that_are_nan_are_named():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], example_inputs=IMAGES)
    with torch.no_grad():
        wrapper.gates["aux_to_primary"].alpha[1] = torch.nan
    for use in (
        lambda: wrapper(IMAGES),
        lambda: wrapper.search_penalty(0.5),
        wrapper.architecture,
        wrapper.export_primary,
    ):
        with pytest.raises(
            SearchError, match="gates of aux_to_primary are NaN: 0 -> 1. .*load_state_dict an earlier state"
        ):
            use()
    assert not workers()


def test_the_optimiser_cannot_be_made_before_the_edges_are_sized():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    with pytest.raises(LayoutError, match="give AuxNASWrapper.*example_inputs=.*or call the wrapper once"):
        wrapper.weight_parameters()
    wrapper(IMAGES)
    torch.optim.SGD(wrapper.weight_parameters(), lr=0.1)


@pytest.mark.parametrize(
    "space, message",
    [
        ([[1, 1], [0, 1]], "aux_to_primary: a tap cannot hear a later one, which has not run yet: tap 0 hears tap 1"),
        ([[1, 0]], "aux_to_primary: must be square"),
        ([[1, 0], [0, 7]], "cells must be true or false; found 7"),
        (torch.ones(3, 3).tril(), "the search space is for 3 taps, and there are 2"),
    ],
)
def test_search_spaces_that_cannot_be(space, message):
    with pytest.raises(SearchError) as error:
        AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search_space=space)
    assert message in str(error.value)


def test_a_custom_search_space_gives_just_its_edges():
    space = EdgeMatrix([[0, 0], [1, 0]], primary_to_aux=[[1, 0], [0, 0]])
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search_space=space, example_inputs=IMAGES)
    found = [(edge.direction, edge.source, edge.target) for edge in wrapper.architecture()]
    assert found == [("aux_to_primary", 0, 1), ("primary_to_aux", 0, 0)]
    matrix = torch.tensor([[True, False], [False, True]])
    assert len(AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search_space=matrix).architecture()) == 4


def test_architectures_of_another_search_space_are_refused_whole():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"])
    before = wrapper.architecture()
    other = Architecture((Edge("aux_to_primary", 0, 0, 0.5, True), Edge("elsewhere", 0, 1, 0.5, True)))
    with pytest.raises(SearchError) as error:
        wrapper.load_architecture(other)
    assert "elsewhere 0 -> 1: only in the architecture" in str(error.value)
    assert "primary_to_aux 1 -> 1: only in the wrapper" in str(error.value)
    assert wrapper.architecture() == before


def test_export_of_open_edges_says_what_to_do():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    with pytest.raises(ExportError) as error:
        wrapper.export_primary()
    for message in (
        "1 edge(s) into the primary",
        "search_penalty(step / total_steps)",
        "allow_open=True",
        "0 -> 0 (open, gate 0.1)",
    ):
        assert message in str(error.value)
    assert isinstance(error.value, RuntimeError)


def test_export_refuses_a_network_whose_copy_is_another():
    class Odd(Cnn):
        def __deepcopy__(self, memo):
            return Cnn(width=3)

    wrapper = AuxNASWrapper(Odd(), Cnn(), taps=["layer1"], search=AuxNAS())
    wrapper.close_aux_to_primary_()
    with pytest.raises(
        ExportError, match="deepcopy of Odd does not give the same network:\n  - 'layer1.0.weight' differs"
    ):
        wrapper.export_primary()


def test_export_refuses_outputs_that_differ():
    class Noisy(Cnn):
        calls = 0

        def forward(self, x):
            Noisy.calls += 1
            return super().forward(x) + Noisy.calls

    wrapper = AuxNASWrapper(Noisy(), Cnn(), taps=["layer1"])
    wrapper.close_aux_to_primary_()
    with pytest.raises(ExportError, match="differs from the wrapper's primary output by 1"):
        wrapper.export_primary(IMAGES)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_wrapper_cannot_be_traced_or_exported_but_what_it_exports_can():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=IMAGES).eval()
    message = "cannot be traced or exported; export what wrapper.export_primary"
    with pytest.raises(ExportError, match=message):
        torch.jit.trace(wrapper, (IMAGES,))
    with pytest.raises(ExportError, match=message):
        torch.export.export(wrapper, (IMAGES,))
    wrapper.close_aux_to_primary_()
    net = wrapper.export_primary()
    torch.testing.assert_close(torch.export.export(net, (IMAGES,)).module()(IMAGES), net(IMAGES))


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
            "none of a direction, '.._to_primary' or 'primary_to_..'",
        ),
        ({"a_to_primary": ["layer1"]}, {"a_to_primary": Cnn()}, "'primary_to_..'; found ['a_to_primary']"),
    ],
)
def test_several_auxiliaries_need_their_names(taps, nets, message):
    with pytest.raises(TapError) as error:
        AuxNASWrapper(Cnn(), nets, taps)
    assert message in str(error.value)


def test_one_layer_under_two_names_is_named_once():
    net = Cnn()
    net.alias = net.layer1
    with pytest.raises(TapError, match="primary 'alias' is the same layer as 'layer1'; name it once"):
        AuxNASWrapper(net, Cnn(), ["layer1", ("alias", "layer2")])
    with pytest.raises(TapError, match="primary 'alias' is the same layer as 'layer1'; name it once"):
        AuxNASWrapper(net, {"a": Cnn(), "b": Cnn()}, {"a": ["layer1"], "b": [("alias", "layer1")]})


def test_a_norm_that_does_not_take_rows_is_an_error_when_it_is_made():
    fusion = partial(CrossTaskFusion, norm=nn.BatchNorm2d)
    with pytest.raises(SearchError, match=r"norm makes a norm of rows \(rows, 6\), .*BatchNorm2d does not take"):
        AuxNASWrapper(Cnn(), Cnn(), ["layer1"], fusion=fusion, example_inputs=IMAGES)


def test_what_is_no_architecture_says_how_to_read_one():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1"])
    data = wrapper.architecture().to_dict()
    for call in (wrapper.load_architecture, FixedArchitecture):
        with pytest.raises(SearchError, match=r"found dict for an Architecture; Architecture.from_dict\(...\)"):
            call(data)


@pytest.mark.parametrize("field, value", [("gate", "x"), ("gate", 1.5), ("source", 0.5), ("target", -1), ("open", 1)])
def test_an_edge_of_another_kind_is_not_read(field, value):
    data = AuxNASWrapper(Cnn(), Cnn(), ["layer1"]).architecture().to_dict()
    data["edges"][1][field] = value
    with pytest.raises(SearchError, match="the fields direction, source, target, gate, open: a string, .*\n  - edge"):
        Architecture.from_dict(data)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AuxNAS(close=(1, 0), l1=-1), "close must be .* found \\(1, 0\\); l1 must not be negative; found -1"),
        (lambda: AuxNAS(aux_to_primary="sigmoid"), "aux_to_primary makes gates, as a class does: .*; found 'sigmoid'"),
        (lambda: AuxNAS(primary_to_aux=SigmoidGate(3)), "primary_to_aux makes gates, as a class does"),
        (lambda: MTLNAS(gate=SigmoidGate(3)), "gate makes gates, as a class does: write gate=SigmoidGate"),
    ],
)
def test_options_of_a_search_of_another_kind_are_said_together(make, message):
    with pytest.raises(SearchError, match=message):
        make()


def test_one_layer_described_in_two_ways_is_an_error():
    taps = {"a": [Tap("layer1", primary_layout="b c h w")], "b": [Tap("layer1", primary_layout="b c y x")]}
    with pytest.raises(TapError, match="a layer of the primary network must be described once"):
        AuxNASWrapper(Cnn(), {"a": Cnn(), "b": Cnn()}, taps)


def test_inputs_for_an_unknown_auxiliary_are_an_error():
    wrapper = AuxNASWrapper(Cnn(), {"a": Cnn()}, {"a": ["layer1"]})
    with pytest.raises(
        SearchError,
        match=r"aux_inputs of the auxiliaries \['a'\] is a mapping by name, .*aux_inputs={'a': \(x,\)}; found \['b'\]",
    ):
        wrapper(IMAGES, aux_inputs={"b": (IMAGES,)})


def test_user_errors_in_a_trial_call_come_through():
    with pytest.raises(RuntimeError, match="expected input"):
        AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=torch.randn(2, 4, 8, 8))


def test_loading_weights_of_other_channels_is_an_error():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=IMAGES)
    other = AuxNASWrapper(Cnn(4), Cnn(4), taps=["layer1"], example_inputs=IMAGES)
    with pytest.raises(RuntimeError, match="size mismatch"):
        wrapper.load_state_dict(other.state_dict())
    lazy = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    lazy.load_state_dict({**lazy.primary_net.state_dict(), **other.fusions.state_dict(prefix="fusions.")}, strict=False)
    with pytest.raises(LayoutError, match="the fusion has weights"):
        lazy(IMAGES)


def test_list_taps_prints_every_layer_in_call_order():
    table = str(list_taps(Recurrent(), torch.randn(2, 4, 9)))
    assert table.splitlines()[0].split() == ["name", "class", "calls", "shape", "layout", "or", "why", "not"]
    assert "lstm  LSTM       1                  returns several tensors (0: (2, 9, 10)" in table
    assert "norm  LayerNorm  1      (2, 9, 10)  b n c" in table
    assert [name for name, *_ in list_taps(Conv1d(), Inputs((torch.randn(2, 4, 9),)))] == ["a", "b", "head"]


def test_fusions_with_norm_and_activation_leave_an_exact_export():
    for norm in (nn.LayerNorm, nn.BatchNorm1d):
        fusion = partial(CrossTaskFusion, norm=norm, activation=torch.nn.functional.gelu)
        net = Cnn()
        wrapper = AuxNASWrapper(net, Vit(), taps=[("layer1", "blocks.0")], fusion=fusion, example_inputs=IMAGES)
        assert torch.equal(wrapper(IMAGES).primary, net(IMAGES))
        stir_(wrapper)
        wrapper(IMAGES).primary.sum().backward()
        wrapper.eval().close_aux_to_primary_()
        assert torch.equal(wrapper.export_primary()(IMAGES), wrapper(IMAGES).primary)
