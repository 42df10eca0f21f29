"""Calls that leave no trace: buffers, random states and cast weights."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import loss_of
from mlps import Mlp, X
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from auxnas_layers import Alignment, AuxG, AuxNASWrapper, list_taps, suggest_taps
from auxnas_layers.features.undisturbed import all_same, same, undisturbed


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", ["nan", "coo", "csr"])
def test_buffers_that_do_not_equal_themselves_are_left_as_they_were(kind):
    class Graph(nn.Module):
        def __init__(self, out=1):
            super().__init__()
            adjacency = torch.eye(4) * (float("nan") if kind == "nan" else 1.0)
            layouts = {"coo": adjacency.to_sparse(), "csr": adjacency.to_sparse_csr()}
            self.register_buffer("adjacency", layouts.get(kind, adjacency))
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, out)

        def forward(self, x):
            y = x.mT.nan_to_num() * self.a.weight.mean()
            return self.b(self.a((self.adjacency @ y).mT.nan_to_num() * self.adjacency.to_dense().nan_to_num().sum()))

    wrapper = AuxNASWrapper(Graph(), Graph(3), ["a"], example_inputs=torch.randn(2, 4))
    version = wrapper.primary_net.adjacency._version
    loss = sum(output.sum() for output in wrapper(torch.randn(2, 4)))
    wrapper.cost()  # between a forward and its backward
    loss.backward()
    assert kind != "nan" or wrapper.primary_net.adjacency._version == version


def test_trial_calls_leave_the_random_numbers_of_python_numpy_and_torch():
    class Draws(Mlp):
        def forward(self, x):
            return super().forward(x + random.random() + np.random.rand() + torch.rand(()))

    primary, aux = Draws(), Draws()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    wrapper = AuxNASWrapper(primary, aux, taps=["a"], search=AuxG(start="scaled"), example_inputs=X)
    wrapper.cost(X)
    wrapper.export_primary(X)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


DRY_RUNS = {
    "list_taps": lambda net: list_taps(net, X),
    "suggest_taps": lambda net: suggest_taps(net, Mlp(), X),
    "construction": lambda net: AuxNASWrapper(net, Mlp(), ["a"], example_inputs=X),
    "cost": lambda net: AuxNASWrapper(net, Mlp(), ["a"]).cost(X),
    "alignment": lambda net: Alignment(AuxNASWrapper(net, Mlp(), ["a"], search=AuxG(), example_inputs=X)).measure(
        lambda: net(X).sum(), lambda: net(X).square().sum()
    ),
}


@pytest.mark.parametrize("dry_run", DRY_RUNS.values(), ids=list(DRY_RUNS))
def test_a_dry_run_under_autocast_leaves_no_cast_weights(dry_run):
    """Torch keeps them until autocast ends: those of a call without gradients have none, in older torch."""
    net = Mlp()
    with torch.autocast("cpu", torch.bfloat16):
        dry_run(net)
        loss_of(net(X)).backward()
    assert all(parameter.grad.any() for parameter in net.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        dry_run(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        assert not net(X).any()  # with the weights as they are now


def test_a_dry_run_leaves_the_random_states_of_all_accelerators_in_use(monkeypatch):
    """Also where no network is given, as when edges are started on a GPU."""
    forked = []

    @contextmanager
    def fork_rng(devices, **kind):
        forked.append((devices, kind))
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with undisturbed():
        pass
    monkeypatch.setattr("auxnas_layers.features.undisturbed.accelerator_devices", lambda: [0, 1])
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    with undisturbed():
        pass
    assert forked == [([], {}), ([0, 1], {"device_type": "cuda"})]


@pytest.mark.parametrize("change", ["copy_", "data", "resized", "replaced", "none"])
def test_buffers_are_restored_by_one_comparison(change, monkeypatch):
    net = nn.BatchNorm1d(3)
    net.register_buffer("nan", torch.tensor([torch.nan, 1.0]))
    net.register_buffer("flags", torch.tensor([True, False]))
    net.register_buffer("one", torch.tensor(1.5, dtype=torch.bfloat16))
    net.register_buffer("empty", torch.ones(0))
    before = {name: (buffer, buffer.clone(), buffer._version) for name, buffer in net.named_buffers()}
    with Waits() as waits, undisturbed(net):
        if change == "copy_":
            net.running_mean.fill_(7.0)
        elif change == "data":
            net.nan.data[1] = 2.0
        elif change == "resized":
            net.flags.data = torch.ones(5, dtype=torch.bool)
        elif change == "replaced":
            net.one = torch.tensor(2.0)
    for name, buffer in net.named_buffers():
        same, value, version = before[name]
        assert buffer is same and buffer.shape == value.shape
        assert all_same([(buffer, value)]) == [True], name
        assert buffer._version == version or change == "copy_" or (change, name) == ("data", "nan")
    assert waits.count <= 1


class Waits(TorchDispatchMode):
    """Counts what waits for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("equal", "_local_scalar_dense", "nonzero")
        return function(*args, **(kwargs or {}))


STRIDED = {
    "expanded": lambda: torch.ones(1).expand(8),
    "expanded rows": lambda: torch.ones(3, 1).expand(3, 4),
    "real part": lambda: torch.ones(3, dtype=torch.complex64).real,
    "column": lambda: torch.ones(4, 3)[:, 0],
    "one element": lambda: torch.ones(4)[::2][:1],
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "subclass": lambda: torch.ones(3).as_subclass(OfTheUser),
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


class OfTheUser(torch.Tensor):
    pass


@pytest.mark.parametrize("kind", STRIDED)
def test_buffers_of_every_stride_and_kind_are_restored_and_exported(kind):
    net = Mlp()
    net.register_buffer("table", STRIDED[kind]())
    wrapper = AuxNASWrapper(net, Mlp(), ["a"], search=AuxG(), example_inputs=X)
    assert all_same([(net.table, net.table)]) == [None if kind in ("conjugate", "subclass") else True]
    if kind != "subclass":  # which torch does not copy
        assert same(wrapper.export_primary().table, net.table) and wrapper.export_report.exact


def test_equal_means_the_same_bits():
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0])) and same(
        torch.tensor([torch.nan]), torch.tensor([torch.nan])
    )
    assert same(torch.ones(2, device="meta"), torch.ones(2, device="meta")) and not same(
        torch.ones(1), torch.ones(1).double()
    )


class Remembers(Mlp):
    """Keeps what people keep in plain attributes."""

    def __init__(self):
        super().__init__()
        self.steps, self.seen, self.cache, self.hidden = 0, [], {"first": X}, None

    def forward(self, x):
        y = super().forward(x)
        self.steps += 1
        self.seen.append(x)
        self.cache[len(self.cache)], self.cache["first"] = y, y
        self.hidden, self.a.last = y, y
        return y


@pytest.mark.parametrize("dry_run", DRY_RUNS.values(), ids=list(DRY_RUNS))
def test_plain_attributes_are_as_before(dry_run):
    net = Remembers()
    with torch.no_grad():
        net(X)
    before = net.steps, list(net.seen), dict(net.cache), net.hidden, net.a.last
    dry_run(net)
    after = net.steps, list(net.seen), dict(net.cache), net.hidden, net.a.last
    assert after[0] == before[0] and after[3] is before[3] and after[4] is before[4]
    assert len(after[1]) == 1 and after[1][0] is before[1][0]
    assert list(after[2]) == list(before[2]) and all(
        a is b for a, b in zip(after[2].values(), before[2].values(), strict=True)
    )


def test_a_module_that_a_call_has_built_stays_built():
    class Builds(nn.Module):
        def __init__(self):
            super().__init__()
            self.built, self.calls = False, 0

        def forward(self, x):
            if not self.built:
                self.layer, self.built = nn.Linear(4, 2), True
            return self.layer(x)

    net = Builds()
    with undisturbed(net):
        net(X)
    layer = net.layer
    net(X)
    assert net.built and net.layer is layer
    lazy = nn.LazyLinear(2)
    with undisturbed(lazy):
        lazy(X)
    assert lazy.in_features == 4


def test_a_wrapper_that_a_cost_has_sized_stays_sized():
    wrapper = AuxNASWrapper(Mlp(), Mlp(), ["a"])
    wrapper.cost(X)
    for weight in wrapper.fusion_parameters():
        nn.init.ones_(weight)
    wrapper(X)
    assert all((weight == 1).all() for weight in wrapper.fusion_parameters())
