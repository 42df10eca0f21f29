"""Batches of labelled and other samples, from one data set or from two loaders."""

from collections import Counter

import pytest
import torch
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from auxnas_layers import LabelError, MixedBatchSampler, PairedLoaders

SIZES = st.integers(1, 12)


def sampler(labelled=4, other=10, batch_size=4, **options):
    """Labelled samples are 0, 1, ..., others 100, 101, ..."""
    return MixedBatchSampler(range(labelled), range(100, 100 + other), batch_size, **options)


# One data set


@given(labelled=SIZES, other=SIZES, batch_size=st.integers(2, 8), share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_every_batch_is_full_and_has_its_labelled_samples_first(labelled, other, batch_size, share, seed):
    mixed = sampler(labelled, other, batch_size, labelled_share=share, seed=seed)
    count = min(max(round(batch_size * share), 1), batch_size - 1)
    batches = list(mixed)
    assert len(batches) == len(mixed) == max(-(-labelled // count), -(-other // (batch_size - count)))
    for batch in batches:
        assert len(batch) == batch_size and [i < 100 for i in batch] == [True] * count + [False] * (batch_size - count)


@given(labelled=SIZES, other=SIZES, batch_size=st.integers(2, 8), share=st.floats(0.01, 0.99))
def test_each_pass_over_a_pool_has_all_of_its_samples_once(labelled, other, batch_size, share):
    drawn = [i for batch in sampler(labelled, other, batch_size, labelled_share=share) for i in batch]
    for size, pool in ((labelled, [i for i in drawn if i < 100]), (other, [i for i in drawn if i >= 100])):
        for start in range(0, len(pool) - size + 1, size):
            assert len(set(pool[start : start + size])) == size
        assert max(Counter(pool).values()) - min(Counter(pool).values()) <= 1


def test_each_pass_and_each_epoch_has_another_order():
    mixed = sampler(labelled=8, other=64, batch_size=16)
    first, second = list(mixed), list(mixed)
    passes = [tuple(batch[:8]) for batch in first + second]
    assert len(passes) == 16 and len(set(passes)) == 16
    assert [batch[8:] for batch in first] != [batch[8:] for batch in second]


def test_epochs_are_the_same_in_every_process_and_after_a_resume():
    mixed, twin = sampler(seed=3), sampler(seed=3)
    torch.manual_seed(7)
    epochs = [list(mixed) for _ in range(4)]
    torch.manual_seed(8)
    state = torch.get_rng_state()
    twin.set_epoch(2)
    assert [list(twin) for _ in range(2)] == epochs[2:]
    assert torch.equal(torch.get_rng_state(), state)
    assert list(sampler(seed=4)) != epochs[0]
    assert mixed.sampler is mixed  # where Lightning and accelerate look for set_epoch


def test_iterators_that_are_never_read_do_not_count_as_epochs():
    """A loader with workers makes two in its first epoch."""
    mixed = sampler()
    iter(mixed)
    assert list(mixed) == list(sampler())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_it(workers):
    data = TensorDataset(torch.arange(200))
    mixed = sampler()
    options = {"num_workers": workers, "persistent_workers": True} if workers else {}
    loader = DataLoader(data, batch_sampler=mixed, **options)
    assert len(loader) == len(mixed) == 5
    for epoch in range(3):
        expected = sampler()
        expected.set_epoch(epoch)
        assert [batch.tolist() for (batch,) in loader] == list(expected)


@given(replicas=st.integers(1, 5), other=st.integers(1, 30))
def test_processes_share_the_batches_and_have_equally_many(replicas, other):
    shards = [list(sampler(other=other, num_replicas=replicas, rank=rank)) for rank in range(replicas)]
    assert {len(shard) for shard in shards} == {len(sampler(other=other, num_replicas=replicas, rank=0))}
    together = [batch for turn in zip(*shards, strict=True) for batch in turn]
    whole = list(sampler(other=other))
    assert together[: len(whole)] == whole and len(together) - len(whole) < replicas
    assert all(len(batch) == 4 and sum(i < 100 for i in batch) == 2 for batch in together)


def test_pools_may_be_tensors():
    where = torch.tensor([True, False, False, True])
    pools = [mask.nonzero().flatten() for mask in (where, ~where)]
    (batch,) = MixedBatchSampler(*pools, batch_size=4)
    assert sorted(batch[:2]) == [0, 3] and sorted(batch[2:]) == [1, 2]
    assert all(type(i) is int for i in batch)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([], [1], 4), {}, "labelled holds no sample; without two pools take a plain DataLoader"),
        (([1], torch.ones(0), 4), {}, "other holds no sample; without two pools take a plain DataLoader"),
        (
            (torch.ones(3, dtype=torch.bool), [1], 4),
            {},
            "labelled holds the numbers of samples, a row of integers; found torch.bool of shape (3,). Of a mask "
            "they are mask.nonzero().flatten()",
        ),
        (
            ([1], [[1.5]], 4),
            {},
            "other holds the numbers of samples, a row of integers; found torch.float32 of shape (1, 1). Of a mask "
            "they are mask.nonzero().flatten()",
        ),
        (([1], [2], 1), {}, "batch_size is 2 or more, so that both pools are in each batch; found 1"),
        (([1], [2], 4), {"labelled_share": 1.0}, "labelled_share is between 0 and 1, such as 0.5; found 1.0"),
        (
            ([1], [2], 4),
            {"num_replicas": 2, "rank": 2},
            "rank is 0, ..., num_replicas - 1; found rank=2 of num_replicas=2",
        ),
    ],
)
def test_what_is_wrong_with_pools_is_said(arguments, options, message):
    refuses(LabelError, message, MixedBatchSampler, *arguments, **options)


# Two loaders


class Endless(IterableDataset):
    """Without a length."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Starts(list):
    """Counts how often it is started."""

    started = 0

    def __iter__(self):
        self.started += 1
        return super().__iter__()


@given(first=SIZES, second=SIZES)
def test_pairs_go_on_until_the_longer_loader_ends(first, second):
    loaders = Starts(range(first)), Starts(range(second))
    paired = PairedLoaders(*loaders)
    longer = max(first, second)
    expected = [(i % first, i % second) for i in range(longer)]
    assert list(paired) == expected and len(paired) == longer
    assert [loader.started for loader in loaders] == [-(-longer // first), -(-longer // second)]
    assert list(paired) == expected


def test_the_shorter_loader_is_shuffled_anew_at_each_start():
    data = list(range(20))
    short = DataLoader(data, batch_size=20, shuffle=True)
    orders = [tuple(batch.tolist()) for _, batch in PairedLoaders(range(5), short)]
    assert len(set(orders)) == 5 and all(sorted(order) == data for order in orders)


def test_no_batch_is_kept():
    """itertools.cycle would keep them all, and draw no new augmentations."""
    data = TensorDataset(torch.arange(3))
    drawn = [batch for _, (batch,) in PairedLoaders(range(9), DataLoader(data, sampler=RandomSampler(data)))]
    assert len({id(batch) for batch in drawn}) == 9


def test_loaders_without_a_length_pair_too():
    paired = PairedLoaders(DataLoader(Endless(5), batch_size=1), [0, 1])
    assert [(a.item(), b) for a, b in paired] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    with pytest.raises(TypeError, match="has no len"):
        len(paired)


@pytest.mark.parametrize("pair", [(Endless(0), Endless(3)), (Endless(3), Endless(0)), (Endless(0), Endless(0))])
def test_a_loader_without_a_batch_is_an_error(pair):
    empty = "first" if pair[0].count == 0 else "second"
    refuses(
        LabelError,
        f"the {empty} loader gave no batch; is it empty, or smaller than one batch under drop_last=True?",
        list,
        PairedLoaders(*pair),
    )


def test_empty_loaders_and_iterators_are_refused_at_once():
    refuses(
        LabelError,
        "the second loader gave no batch; is it empty, or smaller than one batch under drop_last=True?",
        PairedLoaders,
        [1],
        [],
    )
    refuses(
        LabelError,
        "the first loader cannot be started again; give the loader, not an iterator of it; found list_iterator",
        PairedLoaders,
        iter([1]),
        [1],
    )
