"""The taps in a state: a right state is loaded, whatever has been done to its tensors on the way."""

import copy

import numpy as np
import pytest
import torch
from pairs import IMAGES, TAPS
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from zoo import Cnn

from auxnas_layers import AuxNASWrapper, TapError


def make(taps=TAPS, net=None):
    return AuxNASWrapper(net or Cnn(), Cnn(), taps, example_inputs=IMAGES)


def sums(state):
    return {key: (value + value) / 2 for key, value in state.items()}


def means_in_float(state):
    return {key: torch.stack([value, value]).float().mean(0) for key, value in state.items()}


def numpy_sums(state):
    """As clients are averaged in federated learning, by their numbers of samples."""
    arrays = {key: value.numpy() for key, value in state.items()}
    return {key: torch.tensor((array * 1000 + array * 500) / 1500) for key, array in arrays.items()}


def half(state):
    return {key: value.half() for key, value in state.items()}


def bfloat16(state):
    return {key: value.bfloat16() for key, value in state.items()}


@pytest.mark.parametrize("change", [sums, means_in_float, numpy_sums, half, bfloat16])
def test_averages_and_casts_of_a_state_are_loaded_and_still_name_their_taps(change):
    state = change(make().state_dict())
    make().load_state_dict(state)
    with pytest.raises(TapError, match="only in the state: tap aux"):
        make(TAPS[:1]).load_state_dict(state)


def test_a_state_whose_tensors_have_noise_or_no_values_is_loaded():
    state = make().state_dict()
    make().load_state_dict({key: value + 3 * torch.randn(value.shape) for key, value in state.items()})
    make().load_state_dict({key: value.to("meta") for key, value in state.items()}, assign=True)


def test_layers_within_wrappers_of_layers_have_their_own_names():
    net = Cnn()
    net.layer1 = checkpoint_wrapper(net.layer1)
    wrapper = make([("layer1._checkpoint_wrapped_module", "layer1")], net)
    assert wrapper._names() == make([("layer1", "layer1")])._names()
    wrapper.load_state_dict(copy.deepcopy(make([("layer1", "layer1")]).state_dict()))
    np.testing.assert_array_equal(wrapper.state_dict()["_extra_state"], make(["layer1"]).state_dict()["_extra_state"])
