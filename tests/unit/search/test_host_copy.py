"""What the host knows of numbers on a device, and when it no longer believes it."""

import copy
import gc
import pickle

import pytest
import torch

from auxnas_layers.search.host_copy import HostCopy, stamp_of


def known(tensors, values=(0.0, 0.5)):
    host = HostCopy()
    host.note(values, stamp_of(tensors))
    return host


@pytest.mark.parametrize("tensor", [torch.tensor([0.0, 0.5]), torch.tensor([True, False])], ids=["values", "zeros"])
def test_values_are_known_until_somebody_changes_a_tensor(tensor):
    other = torch.zeros(1)
    host = known([other, tensor])
    assert host.values([other, tensor]) == (0.0, 0.5)
    assert host.values([other, tensor.clone()]) is None  # another tensor
    other.add_(1)
    assert host.values([other, tensor]) is None


def test_a_change_that_torch_does_not_count_is_seen_on_a_cpu():
    tensor = torch.tensor([0.0, 0.5])
    host = known([tensor])
    tensor.data[0] = 1.0
    assert host.values([tensor]) is None


def test_copies_and_pickles_know_nothing_and_nothing_is_kept_alive():
    tensor = torch.tensor([0.0, 0.5])
    host = known([tensor])
    assert copy.deepcopy(host).values([tensor]) is None and pickle.loads(pickle.dumps(host)).values([tensor]) is None
    del tensor
    gc.collect()
    assert host._known[0][0][0]() is None
    host.forget()
    assert host.values([]) is None


def test_tensors_without_numbers_are_believed_and_inference_tensors_never():
    meta = torch.ones(2, device="meta")
    assert known([meta]).values([meta]) == (0.0, 0.5)
    with torch.inference_mode():
        tensor = torch.tensor([0.0, 0.5])
    assert known([tensor]).values([tensor]) is None
