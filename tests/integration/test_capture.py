"""The capture of a CUDA graph around a forward: what it forbids is not done, or refused. Without a GPU."""

import re

import pytest
import torch
from helpers import refuses, workers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from ways import Mlp, X, wrap

from auxnas_layers import AuxG, AuxNASWrapper, ExportError, SearchError

FOUND = {
    False: "there was no forward yet",
    True: "some still move, or may have been changed elsewhere",
}


@pytest.fixture
def capture(monkeypatch):
    """A capture begins when this is called; gates are looked at as on a GPU."""

    def begin():
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    monkeypatch.setattr("auxnas_layers.search.host_copy._agrees", lambda *_: True)
    return begin


class Captured(TorchDispatchMode):
    """Refuses what waits for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("equal", "_local_scalar_dense", "nonzero"), name
        assert name != "_to_copy" or "device" not in (kwargs or {}), "a copy between devices"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["aux-nas-closed", "aux-g", "mtl-nas"])
def test_a_forward_with_settled_gates_reads_nothing_from_a_device(way, training, capture, monkeypatch):
    wrapper = wrap(way)
    if way == "mtl-nas":
        wrapper.discretize_()
    expected = wrapper.train(training)(X)
    capture()
    for name in ("tolist", "item", "numpy", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("reads a device"))
    with Captured():
        output = wrapper(X)
    monkeypatch.undo()
    torch.testing.assert_close(tuple(output), tuple(expected))


def test_gates_that_move_are_read():
    with pytest.raises(AssertionError, match="a copy between devices"), Captured():
        wrap("aux-nas")(X)


@pytest.mark.parametrize("called", [True, False])
def test_a_forward_with_gates_that_move_or_without_sizes_is_refused(called, capture):
    wrapper = wrap("aux-nas") if called else AuxNASWrapper(Mlp(), Mlp(), ["a", "b"], search=AuxG())
    capture()
    message = (
        "a CUDA graph records which edges are open, so every gate must be closed, kept or fixed, and known from a "
        f"forward before the capture; {FOUND[called]}. Call wrapper(...) once before, capture after "
        "wrapper.close_aux_to_primary_() or wrapper.discretize_(), or capture blocks of the networks"
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        wrapper(X)
    assert not workers()


def test_the_penalty_is_refused_in_a_capture(capture):
    wrapper = wrap("aux-nas-closed")
    before = wrapper.gates.state_dict()
    capture()
    refuses(
        SearchError,
        "a CUDA graph would repeat search_penalty(0.5) in every step, whatever the progress is by then; call it "
        "outside the capture, and capture the forward pass",
        wrapper.search_penalty,
        0.5,
    )
    assert all(torch.equal(value, before[key]) for key, value in wrapper.gates.state_dict().items())
