"""A state is loaded where it belongs, and nowhere else; nothing has changed after a refusal."""

import copy
from collections import OrderedDict

import pytest
import torch
from helpers import assert_same
from torch import nn

from auxnas_layers import MTLNAS, AuxNAS, AuxNASWrapper, DepthLimited, TapError

X = torch.randn(2, 3)


def nets():
    return [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)) for _ in "12"]


def make(taps=("0", "1"), **options):
    return AuxNASWrapper(*nets(), list(taps), **{"example_inputs": X, **options})


OTHERS = {
    "another layer": (make(["0", "2"]), ["only in the state: tap aux '0', '0'", "'2'"][1:]),
    "another pair": (make([("0", "1"), ("1", "2")]), ["only in the wrapper: tap aux '0', '1'"]),
    "more taps": (make(["0", "1", "2"]), ["only in the wrapper: tap aux '2', '2'"]),
    "fewer edges": (
        make(search_space=DepthLimited(1)),
        ["only in the state: edge aux_to_primary '0' -> '1'", "only in the state: edge primary_to_aux '0' -> '1'"],
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_taps_or_edges_is_refused_and_nothing_changes(name, strict):
    other, messages = OTHERS[name]
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(TapError) as error:
        other.load_state_dict(make().state_dict(), strict=strict)
    for message in ["the state is of other taps or another search space", *messages]:
        assert message in str(error.value)
    assert_same(dict(other.state_dict()), dict(before))


def test_a_state_of_an_earlier_version_is_loaded():
    saved = make().state_dict()
    old = OrderedDict((key, value) for key, value in saved.items() if key != "_extra_state")
    assert len(old) == len(saved) - 1
    wrapper = make()
    assert not wrapper.load_state_dict(old).missing_keys
    assert_same(dict(wrapper.state_dict()), dict(saved))


def test_all_of_a_state_are_tensors_and_it_loads_before_sizes_are_known_and_within_another_module():
    state = make().state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert_same(dict(make(example_inputs=None).state_dict()) | dict(state), dict(state))
    fresh = make(example_inputs=None)
    fresh.load_state_dict(state)
    outer = nn.ModuleDict({"model": make()})
    outer.load_state_dict({f"model.{key}": value for key, value in state.items()})
    assert_same(dict(fresh.state_dict()), dict(outer["model"].state_dict()))


def test_names_that_wrappers_of_layers_add_do_not_count():
    plain, compiled = make(), nets()
    compiled[0][0].compile(backend="eager")
    wrapped = [nn.Sequential(OrderedDict(_orig_mod=net)) for net in nets()]
    taps = [f"_orig_mod.{name}" for name in ("0", "1")]
    assert torch.equal(AuxNASWrapper(*wrapped, taps, example_inputs=X).get_extra_state(), plain.get_extra_state())


def test_an_exported_pair_refuses_the_state_of_another():
    def exported(decide):
        wrapper = make(search=MTLNAS()).eval()
        decide(wrapper)
        return wrapper.export_multitask()

    whole = exported(lambda w: w.discretize_())
    none = exported(lambda w: [gate.settle_(0.0) for gate in w.gates.values()])
    with pytest.raises(TapError, match="only in the"):
        none.load_state_dict(make(search=AuxNAS()).state_dict())
    again = exported(lambda w: w.discretize_())
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again(X).primary, whole(X).primary)
