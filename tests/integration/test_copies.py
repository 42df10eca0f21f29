"""Copies of a wrapper and its optimisers in the middle of a search."""

import copy
import io
import pickle

import pytest
import torch
from ways import every_way, optimisers_of, step, wrap


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def by_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_way
@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_file])
def test_a_copy_of_wrapper_and_optimisers_in_the_middle_of_a_search_goes_on_as_they_do(way, copied):
    wrapper = wrap(way)
    optimisers = optimisers_of(wrapper)
    for progress in (0.0, 0.2):
        step(wrapper, optimisers, progress)
    other, others = copied((wrapper, optimisers))
    groups = [group["params"] for optimiser in others for group in optimiser.param_groups]
    assert {id(p) for group in groups for p in group} == {id(p) for p in other.parameters()}
    before = copy.deepcopy(wrapper.state_dict())
    for progress in (0.3, 0.6):
        step(other, others, progress)
    for name, value in wrapper.state_dict().items():
        assert torch.equal(value, before[name]), name  # the two share nothing
    for progress in (0.3, 0.6):
        step(wrapper, optimisers, progress)
    for name, value in wrapper.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert any(not torch.equal(value, before[name]) for name, value in wrapper.state_dict().items())
