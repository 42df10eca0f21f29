"""Nothing is left behind: after a failure anywhere, in several threads, and after many forwards."""

import gc
import threading
import weakref

import pytest
import torch
from helpers import HOOKS, assert_same, assert_unchanged, loss_of, snapshot, workers
from torch import nn
from ways import OTHER_WAYS, WAYS, Mlp, X, every_way, run, wrap
from zoo import CASES, Case

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, NDDRFusion
from auxnas_layers._engine.workers import pool_of

ERRORS = {
    "exception": ValueError("from a layer"),
    "interrupt": KeyboardInterrupt(),
    "out of memory": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "system exit": SystemExit(3),
}
SEARCHES = {
    "lock-step": {"search": AuxNAS()},
    "sequential": {"search": AuxG()},
    "symmetric": {"search": MTLNAS(), "fusion": NDDRFusion},
}
PAIRS = [case for case in CASES if case.name in ("cnn", "vit-x-cnn", "nested", "checkpointed", "lstm")]
PLACES = [(case, side, i) for case in PAIRS for side in ("primary", "aux") for i in range(len(case.taps))]


class Raise:
    """A hook that raises in its forward, and remembers what it saw without keeping it."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.seen = error, None

    def __call__(self, module, args, output):
        tensor = output if isinstance(output, torch.Tensor) else None
        self.seen = None if tensor is None else weakref.ref(tensor)
        raise self.error


@pytest.mark.pairwise
@pytest.mark.filterwarnings("ignore:evaluated with")
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("way", SEARCHES)
@pytest.mark.parametrize("case, side, number", PLACES, ids=lambda value: str(value))
def test_a_failure_at_any_tap_leaves_nothing(case: Case, side, number, way, kind):
    wrapper = case.wrapper(**SEARCHES[way])
    case.example().call(wrapper)
    before = [snapshot(net) for net in (wrapper.primary_net, wrapper.aux_net)]
    ambient = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
    )
    net = wrapper.primary_net if side == "primary" else wrapper.aux_net
    hook = Raise(ERRORS[kind])
    handle = net.get_submodule(wrapper._points[side][number].name).register_forward_hook(hook)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(type(ERRORS[kind])) as raised:
            case.example().call(wrapper)
        assert raised.value is ERRORS[kind]
        raised.value.__traceback__ = raised.value.__context__ = None
        del raised
        assert hook.seen is None or hook.seen() is None, "the feature is kept alive"
    finally:
        gc.enable()
    handle.remove()
    assert not workers() and len(pool_of(wrapper)._idle) <= 1
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == ambient
    for one, was in zip((wrapper.primary_net, wrapper.aux_net), before, strict=True):
        now = snapshot(one)
        assert all(now[key] == was[key] for key in ("hooks", "training", "requires_grad", "attributes", "identities"))
    wrapper.eval()
    assert_same(case.example().call(wrapper).primary, case.example().call(wrapper).primary)


@pytest.mark.parametrize("way", SEARCHES)
@pytest.mark.filterwarnings("ignore:after 200 training forwards")
def test_hundreds_of_forwards_leave_threads_hooks_and_memory_as_they_are(way):
    nets = [nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2)]
    x = torch.randn(2, 4)
    wrapper = AuxNASWrapper(*nets, ["0", "2"], example_inputs=x, **SEARCHES[way])
    if way == "symmetric":
        wrapper.eval()  # batch norm counts its batches
    counts = []
    for _ in range(4):
        for _ in range(60):
            out = wrapper(x)
            (out.primary.sum() + out.aux.sum() + wrapper.search_penalty(0.0)).backward()
        wrapper.zero_grad()
        del out
        gc.collect()
        counts.append(len(gc.get_objects()))
        assert not workers() and len(pool_of(wrapper)._idle) <= 1
        assert not any(getattr(module, hooks) for module in wrapper.modules() for hooks in HOOKS)
    assert max(counts[1:]) - counts[1] < 50, counts


# Threads, interrupts, exceptions


@every_way
def test_four_threads_differentiate_one_wrapper_while_a_fifth_uses_its_network_alone(way):
    wrapper, failures = wrap(way).eval(), []
    inputs = [torch.randn(4, 5, requires_grad=True) for _ in range(4)]

    def gradient(x):
        return torch.autograd.grad(loss_of(wrapper(x)), x)[0]

    expected, plain = [gradient(x) for x in inputs], wrapper.primary_net(X)

    def call(i):
        try:
            for _ in range(10):
                if i == 4:
                    assert_same(wrapper.primary_net(X), plain)
                else:
                    torch.testing.assert_close(gradient(inputs[i]), expected[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert not workers() and not any(module._forward_hooks for module in wrapper.modules())


class Stop(Exception):
    pass


@pytest.mark.parametrize("way", OTHER_WAYS)
@pytest.mark.parametrize("side", ["primary_net", "aux_net"])
@pytest.mark.parametrize("layer", ["a", "b", "head"])
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
def test_an_exception_or_an_interrupt_on_any_way_leaves_nothing_behind(way, side, layer, kind):
    def fail(*_):
        raise kind("user's own")

    wrapper = wrap(way)
    expected = run(wrapper)
    nets = wrapper.primary_net, wrapper.aux_net
    handle = getattr(getattr(wrapper, side), layer).register_forward_pre_hook(fail)
    before = [snapshot(net) for net in nets]
    with pytest.raises(kind, match="user's own"):
        run(wrapper)
    for net, state in zip(nets, before, strict=True):
        assert_unchanged(net, state)
    assert not workers()
    handle.remove()
    assert_same(tuple(run(wrapper)), tuple(expected))


class Swallow(Mlp):
    def forward(self, x):
        try:
            return super().forward(x)
        except BaseException:
            return torch.zeros(4, 2)


@pytest.mark.parametrize(
    "way, side",
    [("aux-nas", "primary"), ("mtl-nas", "primary"), *((way, "aux") for way in WAYS)],
)
def test_a_failure_of_a_fusion_gets_out_of_a_network_that_swallows_exceptions(way, side, monkeypatch):
    def fail(*_):
        raise Stop

    wrapper = wrap(way, **{side: Swallow()})
    monkeypatch.setattr(wrapper.fusions[side]["1"], "fuse", fail)
    with pytest.raises(Stop):
        wrapper(X)
    assert not workers() and not any(module._forward_hooks for module in wrapper.modules())
    monkeypatch.undo()
    assert run(wrapper).aux.any() and run(wrapper).primary.any()


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_an_exception_that_the_other_network_would_swallow_gets_out(way):
    def fail(*_):
        raise Stop

    for side, other in (("primary", "aux_net"), ("aux", "primary_net")):
        wrapper = wrap(way, **{side: Swallow()})
        getattr(wrapper, other).b.register_forward_hook(fail)
        with pytest.raises(Stop):
            wrapper(X)
        assert not workers()
