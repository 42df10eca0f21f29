"""Held-out batches: without end, resumed, with the labels of other samples."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from helpers import refuses
from torch.utils.data import DataLoader, TensorDataset

from auxnas_layers import SearchError
from auxnas_layers.held_out import HeldOut, on_device, other_samples


def test_batches_begin_again_after_the_last():
    batches = HeldOut([1, 2, 3])
    assert [next(batches) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5])
def test_batches_go_on_where_they_were(taken):
    read = []
    source = [1, 2, 3]
    batches = HeldOut(read.append(batch) or batch for batch in source * 3)
    batches.skip_to_(taken)
    assert not read  # only when the next one is asked for
    assert next(batches) == (source * 3)[taken] and len(read) == taken + 1 == batches.taken


def test_without_a_batch_it_says_what_to_give():
    refuses(SearchError, "held_out gives no batch; give a list of batches or a data loader, not []", HeldOut, [])
    batches = HeldOut(iter([1]))
    next(batches)
    with pytest.raises(SearchError, match=r"no batch \(1 so far\).*not a list_iterator that has ended"):
        next(batches)


def test_a_data_loader_leaves_random_numbers_as_they_are():
    loader = DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2)
    batches, state = HeldOut(loader), torch.get_rng_state()
    assert [next(batches)[0].tolist() for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]
    assert torch.equal(torch.get_rng_state(), state)
    iter(loader)
    assert not torch.equal(torch.get_rng_state(), state)  # alone it does not


def test_batches_drawn_from_the_global_generator_differ():
    batches = HeldOut(iter(lambda: torch.rand(2), None))
    assert not torch.equal(next(batches), next(batches))


Named = namedtuple("Named", ["labels", "name"])


@dataclass
class Data:
    labels: torch.Tensor


class Encoding(UserDict):
    pass


@pytest.mark.parametrize(
    "wrap, labels",
    [
        (lambda x: x, lambda batch: batch),
        (lambda x: (x, "name", torch.tensor(1.0)), lambda batch: batch[0]),
        (lambda x: [{"labels": (x, None)}], lambda batch: batch[0]["labels"][0]),
        (lambda x: Named(x, "name"), lambda batch: batch.labels),
        (Data, lambda batch: batch.labels),
        (lambda x: Encoding(labels=x), lambda batch: batch["labels"]),
    ],
)
def test_every_tensor_of_a_batch_comes_in_the_same_other_order(wrap, labels):
    x = torch.arange(12.0).view(6, 2)
    batch = wrap(x)
    found = other_samples(batch)
    assert type(found) is type(batch) and labels(batch) is x
    assert torch.equal(labels(found), x.roll(5, 0))  # by a number that has no factor in common with 6
    moved = on_device(batch, torch.device("cpu"))
    assert type(moved) is type(batch) and labels(moved) is x


def test_samples_that_do_not_come_first_are_refused():
    with pytest.raises(SearchError, match=r"samples first; found tensors of \[3, 4\] samples. Say.*other_labels="):
        other_samples((torch.ones(3), torch.ones(4)))
    with pytest.raises(SearchError, match="found no tensor in a str"):
        other_samples("text")
    with pytest.raises(SearchError, match="1 samples have no labels of others to compare with; give two or more"):
        other_samples(torch.ones(1))
