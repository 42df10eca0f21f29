"""What a wrapper does beside its forward: several auxiliaries that come and go, states, and errors of its methods."""

import copy
import pickle

import pytest
import torch
from helpers import assert_same, loss_of, snapshot, stir_
from pairs import IMAGES, make
from torch import nn
from zoo import Cnn

import auxnas_layers
from auxnas_layers import (
    MTLNAS,
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    CrossTaskFusion,
    DepthLimited,
    ExportError,
    FixedArchitecture,
    Inputs,
    LayoutError,
    NDDRFusion,
    SearchError,
)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan"), float("inf")])
def test_progress_outside_its_range_is_an_error(progress):
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    before = wrapper.architecture()
    with pytest.raises(SearchError, match=r"in \[0, 1\]; found .*Pass step / total_steps"):
        wrapper.search_penalty(progress)
    assert wrapper.architecture() == before


def test_the_optimiser_cannot_be_made_before_the_edges_are_sized():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    with pytest.raises(LayoutError, match="give AuxNASWrapper.*example_inputs=.*or call the wrapper once"):
        wrapper.weight_parameters()
    wrapper(IMAGES)
    torch.optim.SGD(wrapper.weight_parameters(), lr=0.1)


def test_inputs_for_an_unknown_auxiliary_are_an_error():
    wrapper = AuxNASWrapper(Cnn(), {"a": Cnn()}, {"a": ["layer1"]})
    with pytest.raises(
        SearchError,
        match=r"aux_inputs of the auxiliaries \['a'\] is a mapping by name, .*aux_inputs={'a': \(x,\)}; found \['b'\]",
    ):
        wrapper(IMAGES, aux_inputs={"b": (IMAGES,)})


def test_loading_weights_of_other_channels_is_an_error():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=IMAGES)
    other = AuxNASWrapper(Cnn(4), Cnn(4), taps=["layer1"], example_inputs=IMAGES)
    with pytest.raises(RuntimeError, match="size mismatch"):
        wrapper.load_state_dict(other.state_dict())
    lazy = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    lazy.load_state_dict({**lazy.primary_net.state_dict(), **other.fusions.state_dict(prefix="fusions.")}, strict=False)
    with pytest.raises(LayoutError, match="the fusion has weights"):
        lazy(IMAGES)


# Several auxiliaries


class Three(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))


def several(names=("a", "b", "c"), search=None, **options):
    auxes = {name: Three() for name in names}
    taps = {name: [("layer1", "0"), ("layer2", "2")] if name != "b" else [("layer2", "2")] for name in names}
    options = {"example_inputs": IMAGES, **options}
    return AuxNASWrapper(Cnn(), auxes, taps, search=search or AuxNAS(own_share=0.5, start="scaled"), **options)


def test_each_auxiliary_has_its_own_table_and_penalty():
    searches = {"a": AuxNAS(l1=1.0), "b": AuxG(), "c": AuxNAS(l1=3.0, close=(0.0, 0.5))}
    wrapper = several(search=searches)
    assert {edge.direction for edge in wrapper.architecture("a")} == {"a_to_primary", "primary_to_a"}
    assert {edge.direction for edge in wrapper.architecture("b")} == {"primary_to_b"}
    assert set(wrapper.architecture()) == {edge for name in searches for edge in wrapper.architecture(name)}
    torch.testing.assert_close(wrapper.search_penalty(0.25), torch.tensor((0.5 * 1.0 + 0.5 * 3.0) * 0.1))
    wrapper.search_penalty(0.45)
    assert not wrapper.architecture("a").open_edges("a_to_primary")
    with pytest.raises(SearchError, match="no auxiliary is called 'z'; there are 'a', 'b', 'c'"):
        wrapper.architecture("z")


@pytest.mark.parametrize(
    "search, message",
    [
        ({"a": AuxNAS()}, "a mapping of searches has the names of the auxiliaries: ['a', 'b', 'c']; found ['a']"),
        (
            {"a": AuxNAS(), "b": MTLNAS(), "c": AuxG()},
            "primary 'layer2': the auxiliaries' searches want its fusion to start differently: {'a': ",
        ),
    ],
    ids=["names", "starts"],
)
def test_searches_that_do_not_go_together_are_an_error(search, message):
    with pytest.raises(SearchError) as error:
        several(search=search)
    assert message in str(error.value)
    with pytest.raises(SearchError, match="a mapping of searches has the names of the auxiliaries: search=AuxNAS"):
        make({"aux": MTLNAS()})


def test_an_auxiliary_leaves_in_the_middle_of_training():
    """From then on all is as if the others had been wrapped alone; the optimisers stay."""
    wrapper = several()
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)

    def step(joined, optimisers, progress):
        out = joined(IMAGES)
        for optimiser in optimisers:
            optimiser.zero_grad()
        losses = [loss_of(out.primary), *map(loss_of, out.aux.values())]
        (sum(losses) + joined.search_penalty(progress)).backward()
        for optimiser in optimisers:
            optimiser.step()

    step(wrapper, (weights, gates), 0.05)
    stir_(wrapper)
    leaving = wrapper.aux_net["b"]
    before, mine = snapshot(leaving), [id(p) for p in wrapper.weight_parameters()]
    with pytest.raises(ExportError) as error:
        wrapper.remove_aux_("b")
    assert str(error.value).startswith(
        "1 edge(s) into the primary are still open, so the export would differ from what was trained. Train on until "
        "search_penalty has closed them; allow_open=True cuts them anyway:\n  - b_to_primary '2' -> 'layer2'"
    )
    assert list(wrapper.aux_net) == ["a", "b", "c"]
    assert wrapper.remove_aux_("b", allow_open=True) is leaving
    assert snapshot(leaving)["attributes"] == before["attributes"]
    assert list(wrapper.aux_net) == ["a", "c"] == list(wrapper(IMAGES).aux)
    assert {edge.direction for edge in wrapper.architecture()} == {
        "a_to_primary",
        "c_to_primary",
        "primary_to_a",
        "primary_to_c",
    }
    assert {id(p) for p in wrapper.weight_parameters()} < set(mine)

    fresh = several(names=("a", "c"))
    assert list(fresh.state_dict()) == list(wrapper.state_dict())
    fresh.load_state_dict(wrapper.state_dict())
    assert fresh.architecture() == wrapper.architecture()
    for joined in (wrapper, fresh):
        joined.train()
    assert_same(fresh(IMAGES).primary, wrapper(IMAGES).primary)
    for progress in (0.1, 0.3, 0.5):
        step(wrapper, (weights, gates), progress)
    assert not wrapper.architecture().open_edges("a_to_primary")
    wrapper.eval().export_primary(IMAGES)
    assert wrapper.export_report.exact


def test_an_auxiliary_whose_edges_are_closed_leaves_without_a_word():
    wrapper = several(search={"a": AuxG(), "b": AuxNAS(), "c": AuxG()})
    wrapper.close_aux_to_primary_()
    before = wrapper.eval()(IMAGES)
    wrapper.remove_aux_("b")
    after = wrapper(IMAGES)
    assert_same(after.primary, before.primary)
    assert_same(after.aux, {name: before.aux[name] for name in ("a", "c")})
    assert list(wrapper.search) == ["a", "c"] and "b_to_primary" not in repr(wrapper)


@pytest.mark.parametrize("fusion", [NDDRFusion, CrossTaskFusion])
def test_an_auxiliary_does_not_silently_take_a_fusion_of_the_primary_with_it(fusion):
    """Only it taps layer1; the fusion there acts without edges, too."""
    auxes, taps = {"a": Three(), "b": Three()}, {"a": [("layer2", "2")], "b": [("layer1", "0"), ("layer2", "2")]}
    wrapper = AuxNASWrapper(Cnn(), auxes, taps, search=MTLNAS(), fusion=fusion, example_inputs=IMAGES).eval()
    stir_(wrapper)
    wrapper.close_aux_to_primary_()
    before = wrapper(IMAGES).primary
    with pytest.raises(ExportError, match=rf"1 fusion\(s\) change the primary's .*\n  - {fusion.__name__} at 'layer1'"):
        wrapper.remove_aux_("b")
    assert_same(wrapper(IMAGES).primary, before)
    wrapper.remove_aux_("b", allow_open=True)
    assert not torch.equal(wrapper(IMAGES).primary, before)


def test_sizing_and_loading_after_one_has_left_follow_the_networks():
    def pair():
        auxes, taps = {"a": Three().double(), "b": Three().double()}, dict.fromkeys("ab", (("layer1", "0"),))
        search = {"a": MTLNAS(), "b": AuxG()}
        wrapper = AuxNASWrapper(Cnn().double(), auxes, taps, search=search, fusion=NDDRFusion)
        wrapper.remove_aux_("a", allow_open=True)
        return wrapper

    wrapper, other = pair(), pair()
    wrapper(IMAGES.double())
    assert {p.dtype for p in wrapper.fusion_parameters()} == {torch.float64}
    other.load_state_dict(wrapper.state_dict())
    assert_same(other.eval()(IMAGES.double()).aux, wrapper.eval()(IMAGES.double()).aux)


def test_the_inputs_of_an_auxiliary_leave_with_it():
    example = Inputs((IMAGES,), {"aux_inputs": {"b": (2 * IMAGES,)}})
    wrapper = several(example_inputs=example)
    wrapper.remove_aux_("b", allow_open=True)
    wrapper.close_aux_to_primary_()
    wrapper.eval().export_primary()
    assert wrapper.export_report.exact
    with pytest.raises(SearchError, match=r"aux_inputs of the auxiliaries \['a', 'c'\]"):
        wrapper(IMAGES, aux_inputs={"b": (IMAGES,)})


def test_the_only_auxiliary_cannot_leave_nor_one_that_is_not_there():
    for wrapper, name in ((make(), "aux"), (several(names=("a",)), "a")):
        with pytest.raises(SearchError, match="the only auxiliary cannot be removed; wrapper.export_primary"):
            wrapper.remove_aux_(name)
    with pytest.raises(SearchError, match="no auxiliary is called 'z'"):
        several().remove_aux_("z")


def test_several_are_searched_and_exported_by_mtl_nas_also_after_one_has_left():
    wrapper = several(search=MTLNAS(), fusion=NDDRFusion)
    stir_(wrapper)
    wrapper.remove_aux_("c", allow_open=True)
    for gate in wrapper.gates.values():
        gate.set_([0.9] * len(gate.closed))
    net = wrapper.eval().export_multitask(IMAGES)
    assert wrapper.export_report.exact and list(net(IMAGES).aux) == ["a", "b"]
    assert not any(module.training for module in net.modules())


# What each auxiliary may have of its own


def test_each_auxiliary_may_have_a_search_space_of_its_own():
    spaces = {"a": [[1, 0], [1, 1]], "b": DepthLimited(1)}
    nets, taps = {"a": Cnn(), "b": Cnn()}, {"a": ["layer1", "layer2"], "b": ["layer1"]}
    wrapper = AuxNASWrapper(Cnn(), nets, taps, search_space=spaces)
    assert len(wrapper.architecture("a")) == 6 and len(wrapper.architecture("b")) == 2
    for wrong in ({"a": DepthLimited(1)}, {"a": DepthLimited(1), "c": DepthLimited(1)}):
        with pytest.raises(SearchError, match=r"search spaces has the names of the auxiliaries: \['a', 'b'\]"):
            AuxNASWrapper(Cnn(), nets, taps, search_space=wrong)
    with pytest.raises(SearchError, match=r"search_space=DepthLimited\(3\), say, with one auxiliary"):
        AuxNASWrapper(Cnn(), Cnn(), ["layer1"], search_space={"aux": DepthLimited(1)})


@pytest.mark.parametrize("taps", [{"a": ["layer1"], "b": ["layer2"]}, {"a": ["layer1"], "b": ["layer1"]}])
def test_the_order_in_which_auxiliaries_are_named_decides_nothing(taps):
    """A state goes to the edge that it came from, and an optimiser's to its parameter."""

    def wrap(order):
        nets = {name: Cnn() for name in order}
        return AuxNASWrapper(Cnn(), nets, {name: taps[name] for name in order}, example_inputs=IMAGES).eval()

    one, other = wrap("ab"), wrap("ba")
    stir_(one)
    other.load_state_dict(one.state_dict())
    assert_same(other(IMAGES).primary, one(IMAGES).primary)
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in one.named_parameters()]


@pytest.mark.parametrize("search", [MTLNAS(), FixedArchitecture()], ids=["mtl-nas", "fixed"])
def test_layers_that_only_a_removed_auxiliary_tapped_are_forgotten(search):
    """Also where their fusions act without any edge; then more may leave, and the rest is exported."""
    taps = {"a": ["layer1"], "b": [("layer2", "layer1")], "c": ["layer1"]}
    wrapper = AuxNASWrapper(Cnn(), {name: Cnn() for name in taps}, taps, search=search, example_inputs=IMAGES)
    for leaving in "bc":
        wrapper.remove_aux_(leaving, allow_open=True)
        wrapper(IMAGES)
    wrapper.discretize_()
    wrapper.eval().export_multitask()
    assert wrapper.export_report.exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_state_is_loaded_in_the_precision_of_the_networks(dtype):
    """As torch does it, also into edges that have no size yet."""
    state = make(search=MTLNAS()).state_dict()
    made_so = AuxNASWrapper(Cnn().to(dtype), Cnn().to(dtype), ["layer1", "layer2"], search=MTLNAS(), fusion=NDDRFusion)
    brought = AuxNASWrapper(Cnn(), Cnn(), ["layer1", "layer2"], search=MTLNAS(), fusion=NDDRFusion).to(dtype)
    for wrapper in (made_so, brought):
        wrapper.load_state_dict(state)
        assert {p.dtype for p in wrapper.weight_parameters()} == {dtype}
        wrapper.eval()(IMAGES.to(dtype))


def test_a_pickle_holds_no_example_inputs_and_copies_share_them():
    x = torch.randn(40, 3, 32, 32)
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1"], example_inputs=x)
    wrapper.close_aux_to_primary_()
    data = pickle.dumps(wrapper)
    assert len(data) < x.nbytes / 5 and x[0].numpy().tobytes() not in data
    for other, compared in ((copy.deepcopy(wrapper), True), (pickle.loads(data), None)):
        other.export_primary()
        assert other.export_report.exact is compared
    restored = pickle.loads(data)
    restored.export_primary(x)
    assert restored.export_report.exact


MOVED = ["Cost", "ExportReport", "MultitaskNet", "Layout", "align", "Fusion", "project", "ClampedGate", "EdgeMatrix"]


@pytest.mark.parametrize("name", MOVED)
def test_names_that_have_moved_are_still_there_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=rf"{name} has moved: from auxnas_layers\.\w+ import {name}") as caught:
        found = getattr(auxnas_layers, name)
    assert caught[0].filename == __file__ and found.__name__ == name
    assert name not in auxnas_layers.__all__


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Wire'"):
        auxnas_layers.Wire  # noqa: B018
