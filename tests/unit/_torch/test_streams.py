"""Streams of accelerators: set where they differ, and nothing read on one before another has written it."""

import threading
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from mlps import Mlp, X, wrap
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from auxnas_layers._torch import streams
from auxnas_layers._torch.streams import Streams


class Stream:
    """A stream that knows what has been done when its next operation runs."""

    def __init__(self, device_index=0):
        self.device_index, self.done = device_index, set()

    def wait_stream(self, other):
        self.done |= other.done


class Gpus:
    """GPUs, each with a current stream in every thread."""

    def __init__(self, *default):
        self.default, self.calls = list(default), []
        self.local = threading.local()

    def _now(self):
        if not hasattr(self.local, "device"):
            self.local.device, self.local.streams = 0, list(self.default)
        return self.local

    def device_count(self):
        return len(self.default)

    def current_device_index(self):
        return self._now().device

    def current_stream(self, number):
        return self._now().streams[number]

    def set_stream(self, stream):
        self.set_device_index(stream.device_index)
        self._now().streams[stream.device_index] = stream
        self.calls.append(stream)

    def set_device_index(self, number):
        self._now().device = number
        self.calls.append(number)

    @contextmanager
    def device_index(self, number):
        before, self._now().device = self._now().device, number
        yield
        self._now().device = before  # torch does so only where there is a context


def use(gpus, monkeypatch):
    monkeypatch.setattr(streams, "_accelerator", gpus)
    monkeypatch.setattr(streams, "device_types", lambda: ("cpu", "cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return gpus


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(10)


def test_no_stream_is_asked_for_before_the_accelerator_is_in_use(monkeypatch):
    use(Gpus(Stream()), monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert streams.accelerator_devices() == [] == Streams().all


@pytest.mark.parametrize("device", [0, 1])
def test_another_thread_sets_only_what_differs(device, monkeypatch):
    """A device that is made the current one takes memory for a context, in each process."""
    first, second, side = Stream(0), Stream(1), Stream(1)
    gpus = use(Gpus(first, second), monkeypatch)
    gpus.set_stream(side)
    gpus.set_device_index(device)
    found = Streams()
    assert streams.accelerator_devices() == [0, 1] and found.all == [first, side]
    gpus.calls.clear()
    for expected in ([1, side, *([1] if device else [])], []):
        gpus.calls.clear()
        if not expected:  # the same thread once more, as a worker that lasts
            found.set_()
            assert not gpus.calls
            continue
        in_thread(found.set_)
        assert gpus.calls == expected
        gpus.set_stream(side)
        gpus.set_device_index(device)


WRITES = count(1)


class Races(TorchDispatchMode):
    """Notes each operation that reads what its stream does not know to be written."""

    def __init__(self, gpus):
        super().__init__()
        self.gpus, self.made, self.found, self.kept = gpus, {}, [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        stream = self.gpus.current_stream(0)
        for tensor in args:
            if isinstance(tensor, Tensor) and self.made.get(tensor.untyped_storage()._cdata, 0) not in {
                0,
                *stream.done,
            }:
                self.found.append(str(function))
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.kept.append(tensor)  # whose storage is not used again
                self.made[tensor.untyped_storage()._cdata] = written = next(WRITES)
                stream.done.add(written)
        return out


class OnASideStream(Mlp):
    """A network that runs its tapped layers on a stream of its own, as torch's documentation says."""

    def __init__(self, gpus):
        super().__init__()
        self.gpus = [gpus]

    def forward(self, x):
        (gpus,) = self.gpus
        outer, inner = gpus.current_stream(0), Stream()
        inner.wait_stream(outer)
        gpus.set_stream(inner)
        x = self.b(self.a(x).relu())
        gpus.set_stream(outer)
        outer.wait_stream(inner)
        return self.head(x)


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)], ids=["primary", "aux", "both"])
def test_networks_that_run_their_tapped_layers_on_streams_of_their_own_wait_for_each_other(
    sides, lockstep, monkeypatch
):
    gpus = Gpus(Stream())
    wrapper = wrap(*(OnASideStream(gpus) if own else Mlp() for own in sides))
    if not lockstep:
        wrapper.close_aux_to_primary_()
    use(gpus, monkeypatch)
    with Races(gpus) as races:
        wrapper(X)
    assert not races.found and gpus.current_device_index() == 0
    monkeypatch.setattr(Streams, "meet", lambda self, feature, fuse: fuse(feature))
    with Races(gpus) as races:
        wrapper(X)
    assert bool(races.found) == lockstep  # one after the other, networks that wait themselves need no more


def test_one_stream_costs_no_wait(monkeypatch):
    wrapper = wrap()
    gpus = use(Gpus(Stream()), monkeypatch)
    monkeypatch.setattr(Stream, "wait_stream", lambda *_: pytest.fail("waits"))
    wrapper(X)
    assert not gpus.calls


def test_the_allocator_learns_on_which_streams_a_feature_is_used(monkeypatch):
    ours, inner = Stream(1), Stream(1)
    gpus = use(Gpus(Stream(0), ours), monkeypatch)
    found = Streams()
    gpus.set_stream(inner)
    own, fused = (SimpleNamespace(device=torch.device("cuda", 1), used=[]) for _ in range(2))
    for tensor in (own, fused):
        tensor.record_stream = tensor.used.append
    elsewhere = SimpleNamespace(device=torch.device("cuda", 0))
    assert found.meet(own, lambda feature: fused) is fused
    assert own.used == [ours] and fused.used == [inner]
    assert found.meet(elsewhere, lambda feature: elsewhere) is elsewhere
