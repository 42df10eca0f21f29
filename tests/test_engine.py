"""Every pitfall of running two opaque forwards in lock-step, each as it was met."""

import contextvars
import gc
import random
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import PLAIN, assert_same, assert_unchanged, gradients, loss_of, snapshot, stir_, workers
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode
from zoo import CASES, Checkpointed, Cnn, Encoder, Unchecked

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, LayoutError, NDDRFusion, Tap, TapError

BY_NAME = {case.name: case for case in CASES}


class Mlp(nn.Module):
    """Two tapped layers; `around` is entered around the first one."""

    def __init__(self, around=None):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.around = around

    def forward(self, x):
        if self.around is None:
            x = self.a(x)
        else:
            with self.around():
                x = self.a(x)
        return self.head(self.b(x.relu().float()))


def wrap(primary=None, aux=None, search=None, **options):
    wrapper = AuxNASWrapper(
        primary or Mlp(),
        aux or Mlp(),
        taps=["a", "b"],
        search=search or AuxNAS(own_share=0.5, start="scaled", aux_to_primary_start=0.5),
        **{"example_inputs": torch.randn(3, 4), **options},
    )
    if search is not PLAIN:
        stir_(wrapper)
    return wrapper


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


# Pitfall 1: fusing under a network's local state


@pytest.mark.parametrize("side", ["primary", "aux"])
def test_no_grad_around_a_tap_does_not_cut_the_other_networks_gradient(side):
    frozen = Mlp(torch.no_grad)
    wrapper = wrap(**{side: frozen})
    other = wrapper.aux_net if side == "primary" else wrapper.primary_net
    output = wrapper(X)
    loss_of(getattr(output, side)).backward()
    assert other.a.weight.grad.abs().sum() > 0  # over the edge that enters at the frozen tap
    assert frozen.a.weight.grad is None


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("side", ["primary", "aux"])
def test_inference_mode_around_a_tap_is_an_error_where_edges_are_trained(side, lockstep):
    wrapper = wrap(**{side: Mlp(torch.inference_mode)})
    if not lockstep:
        wrapper.close_aux_to_primary_()
    with pytest.raises(
        TapError, match=rf"{side} tap 'a' lies in torch.inference_mode\(\).*use torch.no_grad\(\) there"
    ):
        wrapper(X)
    with torch.no_grad():
        wrapper(X)
    assert not workers()


def test_autocast_and_modes_inside_one_network_do_not_reach_the_other():
    linear = []

    class Note(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.linear:
                linear.append(args[1])
            return function(*args, **(kwargs or {}))

    dtypes = []
    wrapper = wrap(aux=Mlp(lambda: torch.autocast("cpu", torch.bfloat16)), primary=Mlp(Note))
    for net in (wrapper.primary_net, wrapper.aux_net):
        net.b.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    wrapper(X)
    assert dtypes == [torch.float32, torch.float32]
    aux = {id(parameter) for parameter in wrapper.aux_net.parameters()}
    assert linear[0] is wrapper.primary_net.a.weight and not aux & {id(weight) for weight in linear}


# Pitfalls 2, 3: state of the call that a fresh thread would not have


@pytest.mark.parametrize("lockstep", [True, False])
def test_the_auxiliary_runs_under_the_state_of_the_call(lockstep):
    seen = {}

    class Look(Mlp):
        def forward(self, x):
            seen.update(
                grad=torch.is_grad_enabled(),
                inference=torch.is_inference_mode_enabled(),
                autocast=torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
                device=torch.empty(0).device.type,
                context=variable.get(),
            )
            return super().forward(x)

    variable = contextvars.ContextVar("variable", default=None)
    wrapper = wrap(aux=Look())
    if not lockstep:
        wrapper.close_aux_to_primary_()
    variable.set("user's")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wrapper(X)
    assert seen == dict(grad=False, inference=False, autocast=torch.bfloat16, device="cpu", context="user's")
    with torch.inference_mode():
        wrapper(X)
    assert seen["inference"]
    wrapper(X)
    assert seen == dict(grad=True, inference=False, autocast=False, device="cpu", context="user's")
    with torch.device("meta"):
        wrapper(X)
    assert seen["device"] == "meta"


def test_dispatch_modes_and_saved_tensor_hooks_of_the_call_see_the_auxiliary():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += function is torch.ops.aten.addmm.default
            return function(*args, **(kwargs or {}))

    wrapper, packed = wrap(), []
    with Count() as count:
        wrapper(X)
    assert count.calls == 6  # three linear layers in each network
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t)[1], lambda t: t):
        output = wrapper(X)
    assert any(
        t is wrapper.aux_net.head.weight or t.data_ptr() == wrapper.aux_net.head.weight.data_ptr() for t in packed
    )
    loss_of(output.aux).backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own jvp uses it
def test_torch_func_transforms_agree_with_autograd():
    wrapper = wrap().eval()
    parameters = dict(wrapper.named_parameters())

    def loss(parameters, x):
        output = torch.func.functional_call(wrapper, parameters, (x,))
        return output.primary.sum() + output.aux.square().sum()

    found = torch.func.grad(loss)(parameters, X)
    loss(parameters, X).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    batched = torch.func.vmap(lambda x: wrapper(x[None]).primary[0])(X)
    torch.testing.assert_close(batched, wrapper(X).primary)
    _, tangent = torch.func.jvp(lambda x: wrapper(x).aux, (X,), (torch.ones_like(X),))
    step = (wrapper(X.double().float() + 1e-2).aux - wrapper(X - 1e-2).aux) / 2e-2
    torch.testing.assert_close(tangent, step, atol=0.05, rtol=0.05)


def test_flop_counter_sees_both_networks():
    wrapper = wrap()
    with FlopCounterMode(display=False) as counter:
        wrapper(X)
    plain = 2 * 3 * (4 * 8 + 8 * 8 + 8 * 2)
    edges = 6 * 2 * 3 * 8 * 8
    assert counter.get_total_flops() == 2 * plain + edges


# Pitfall 4: activation checkpoints


@pytest.mark.parametrize(
    "search", [AuxNAS(own_share=0.5, start="scaled"), AuxG(start="scaled")], ids=["lockstep", "sequential"]
)
def test_gradients_through_checkpointed_blocks_equal_those_without(search):
    wrappers = []
    for net in (Checkpointed, Unchecked):
        torch.manual_seed(1)
        wrapper = AuxNASWrapper(
            net(), net(), taps=["enter", "blocks.0.0", "blocks.1"], search=search, example_inputs=torch.randn(2, 5)
        )
        stir_(wrapper)
        output = wrapper(torch.randn(4, 5))
        (loss_of(output.primary) + loss_of(output.aux)).backward()
        wrappers.append(wrapper)
    for (name, a), b in zip(wrappers[0].named_parameters(), wrappers[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


class Region(nn.Module):
    """Computes its blocks in a region, or plainly."""

    def __init__(self, region=None, blocks=None):
        super().__init__()
        self.region = region or (lambda function, x: function(x))
        self.enter, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.blocks = blocks or nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))

    def forward(self, x):
        return self.head(self.region(self.blocks, self.enter(x)))


def recomputed(function, x, **options):
    return checkpoint(function, x, use_reentrant=False, **options)


def backward(wrapper):
    torch.manual_seed(2)
    output = wrapper(X)
    (loss_of(output.primary) + loss_of(output.aux)).backward()
    return gradients(wrapper)


def assert_region_changes_no_gradient(region, blocks, taps, search):
    found = []
    for used in (None, region):
        torch.manual_seed(1)
        nets = [Region(used, blocks()) for _ in range(2)]
        wrapper = AuxNASWrapper(*nets, taps, search=search, example_inputs=torch.randn(2, 4))
        stir_(wrapper)
        found.append(backward(wrapper))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize("search", [AuxNAS(own_share=0.5, start="scaled"), AuxG(start="scaled")], ids=repr)
@pytest.mark.parametrize("options", [{}, {"preserve_rng_state": False}], ids=str)
def test_dropout_after_a_tap_is_recomputed_as_it_was(search, options):
    """The other network has drawn at the tap in between."""

    def blocks():
        return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)) for _ in range(3)))

    region = partial(recomputed, **options)
    assert_region_changes_no_gradient(region, blocks, ["blocks.0.0", "blocks.1"], search)
    nets = [Region(region, blocks()) for _ in range(2)]
    output = AuxNASWrapper(*nets, ["blocks.0.0"], search=search, example_inputs=X)(X)
    state = torch.get_rng_state()
    (loss_of(output.primary) + loss_of(output.aux)).backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("search", [AuxNAS(own_share=0.5, start="scaled"), AuxG(start="scaled")], ids=repr)
@pytest.mark.parametrize("last", [nn.ReLU(inplace=True), nn.LeakyReLU(0.5, inplace=True)], ids=repr)
def test_a_tapped_feature_may_be_overwritten_in_a_checkpoint(search, last):
    def blocks():
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), last, nn.Linear(8, 8))

    assert_region_changes_no_gradient(recomputed, blocks, ["blocks.1"], search)


def nested(function, x):
    return recomputed(lambda x: recomputed(function, x).tanh(), x)


def on_cpu(function, x):
    with torch.autograd.graph.save_on_cpu():
        return function(x)


def doubled(function, x):
    with torch.autograd.graph.saved_tensors_hooks(partial(torch.mul, 2), partial(torch.mul, 0.5)):
        return function(x)


@pytest.mark.parametrize("search", [AuxNAS(), AuxG()], ids=repr)
@pytest.mark.parametrize(
    "region",
    [
        nested,
        lambda f, x: recomputed(lambda x: on_cpu(f, x), x),
        lambda f, x: recomputed(lambda x: doubled(f, x), x),
    ],
    ids=["two", "on cpu", "doubled"],
)
@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context")
def test_a_tap_in_a_region_that_is_kept_in_two_ways_is_an_error(search, region):
    wrapper = AuxNASWrapper(Region(region), Region(region), ["blocks.0"], search=search, example_inputs=X)
    with pytest.raises(TapError, match="a tap lies in an activation checkpoint inside another.*leave one"):
        wrapper(X)
    with torch.no_grad():
        wrapper(X)
    assert not workers()
    wrapper = AuxNASWrapper(Region(region), Mlp(), [("blocks.0", "a")], search=AuxG(), example_inputs=X)
    backward(wrapper)  # nothing is fused in the region


def test_a_checkpoint_in_saved_tensor_hooks_recomputes_as_ever():
    def blocks():
        return nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))

    assert_region_changes_no_gradient(
        lambda f, x: on_cpu(lambda x: recomputed(f, x), x), blocks, ["blocks.0", "blocks.1"], AuxNAS(start="scaled")
    )


class Recompute(torch.autograd.Function):
    """A checkpoint of the user's own."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.function(x), gradient)
        return None, x.grad


class RecomputeInTwoParts(torch.autograd.Function):
    """The same in the newer style."""

    @staticmethod
    @torch.no_grad()
    def forward(function, x):
        return function(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.function = inputs[0]
        ctx.save_for_backward(inputs[1])

    backward = Recompute.backward


@pytest.mark.parametrize("search", [AuxNAS(), AuxG()], ids=repr)
@pytest.mark.parametrize("function", [Recompute, RecomputeInTwoParts])
def test_a_tap_in_a_function_of_the_users_is_an_error(search, function):
    nets = [Region(function.apply) for _ in range(2)]
    wrapper = AuxNASWrapper(*nets, ["blocks.0"], search=search, example_inputs=X)
    with pytest.raises(TapError, match=r"tap 'blocks\.0' lies in a reentrant.*or another autograd.Function"):
        wrapper(X)
    with torch.no_grad():
        wrapper(X)
    plain = [Region(torch.no_grad()(lambda function, x: function(x))) for _ in range(2)]
    AuxNASWrapper(*plain, ["blocks.0"], search=search, example_inputs=X)(X)  # a decorator of many functions is none


@pytest.mark.parametrize("search", [AuxG(), MTLNAS()], ids=repr)
def test_a_fusion_that_saves_its_own_output_in_a_checkpoint_is_freed_with_its_graph(search):
    nets = [Region(recomputed) for _ in range(2)]
    wrapper = AuxNASWrapper(*nets, ["blocks.0"], search=search, fusion=NDDRFusion, example_inputs=X)
    kept = []
    wrapper.aux_net.blocks[1].register_forward_pre_hook(lambda _, args: kept.append(weakref.ref(args[0])))
    wrapper(X)
    gc.collect()
    assert kept
    assert not [ref for ref in kept if ref() is not None]


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_tap_in_a_reentrant_checkpoint_is_an_error(lockstep):
    class Reentrant(Mlp):
        def forward(self, x):
            x = checkpoint(self.a, x.requires_grad_(), use_reentrant=True)
            return self.head(self.b(x))

    wrapper = wrap(primary=Reentrant())
    if not lockstep:
        wrapper.close_aux_to_primary_()
    with pytest.raises(
        TapError, match=r"primary tap 'a' lies in a reentrant activation checkpoint.*use_reentrant=False"
    ):
        wrapper(X.clone())
    with torch.no_grad():
        wrapper(X.clone())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_the_whole_wrapper_gives_the_same_gradients(reentrant):
    wrapper, x = wrap(), X.clone().requires_grad_()
    loss_of(wrapper(x)).backward()
    expected = {name: p.grad.clone() for name, p in wrapper.named_parameters()}
    wrapper.zero_grad()
    loss_of(checkpoint(wrapper, x, use_reentrant=reentrant)).backward()
    for name, parameter in wrapper.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


# Pitfalls 5, 6, 8: threads, leaks, cancellation


def test_two_thousand_forwards_leave_no_thread_and_no_object():
    wrapper = wrap()
    for _ in range(100):
        loss_of(wrapper(X).primary).backward()
    gc.collect()
    before = len(gc.get_objects()), threading.active_count()
    for _ in range(2000):
        wrapper(X)
    gc.collect()
    assert len(gc.get_objects()) - before[0] < 100
    assert threading.active_count() == before[1]


def test_a_forward_leaves_no_reference_cycle_around_activations():
    wrapper = wrap()
    gc.collect()
    gc.disable()
    try:
        output = wrapper(X)
        alive = weakref.ref(output.aux)
        del output
        assert alive() is None
        wrapper.aux_net.b.register_forward_hook(raise_value_error)
        with pytest.raises(ValueError):
            wrapper(X)
    finally:
        gc.enable()
    assert not workers()


def raise_value_error(*_):
    raise ValueError("user's")


def test_four_threads_may_use_one_wrapper_while_a_fifth_uses_its_networks():
    wrapper, failures = wrap().eval(), []
    inputs = [torch.randn(3, 4) for _ in range(4)]
    expected = [wrapper(x) for x in inputs]
    plain = wrapper.primary_net(X)

    def call(i):
        try:
            for _ in range(50):
                if i == 4:
                    assert_same(wrapper.primary_net(X), plain)
                else:
                    assert_same(wrapper(inputs[i]), expected[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_interrupting_a_forward_leaves_nothing_behind():
    class Slow(Mlp):
        def forward(self, x):
            time.sleep(1)  # long enough for a late timer on a busy machine
            return super().forward(x)

    wrapper = wrap()
    wrapper.aux_net.__class__ = Slow
    before = snapshot(wrapper.primary_net)
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start a job without one
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            wrapper(X)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not workers()
    assert_unchanged(wrapper.primary_net, before)
    wrapper(X)


def test_a_thread_whose_start_was_interrupted_before_it_ran_ends_by_itself(monkeypatch):
    start = threading.Thread.start

    def interrupted(thread):
        late = threading.Timer(0.2, start, (thread,))
        start(late)
        raise KeyboardInterrupt

    wrapper = wrap()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", interrupted)
        wrapper(X)
    time.sleep(0.4)
    for _ in range(100):
        if not workers():
            break
        time.sleep(0.05)
    assert not workers()
    wrapper(X)


# Pitfall 7: exceptions, and networks that swallow them


@pytest.mark.parametrize("side", ["primary", "aux"])
@pytest.mark.parametrize("layer", ["a", "b", "head"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, RuntimeError])
def test_an_exception_comes_through_as_it_is_and_leaves_nothing(side, layer, kind):
    def fail(*_):
        raise kind("user's own")

    wrapper = wrap()
    net = wrapper.primary_net if side == "primary" else wrapper.aux_net
    handle = getattr(net, layer).register_forward_pre_hook(fail)
    before = snapshot(wrapper.primary_net), snapshot(wrapper.aux_net)
    with pytest.raises(kind, match="user's own") as error:
        wrapper(X)
    assert any(entry.name == "fail" for entry in error.traceback)
    assert_unchanged(wrapper.primary_net, before[0])
    assert_unchanged(wrapper.aux_net, before[1])
    assert not workers()
    handle.remove()
    wrapper(X)


@pytest.mark.parametrize("swallowed", [Exception, BaseException])
@pytest.mark.parametrize("side", ["primary", "aux"])
def test_a_network_that_swallows_exceptions_neither_hangs_nor_hides_them(side, swallowed):
    class Swallow(Mlp):
        def forward(self, x):
            try:
                return super().forward(x)
            except swallowed:
                return torch.zeros(3, 2)

    wrapper = wrap(**{side: Swallow()})
    other = wrapper.aux_net if side == "primary" else wrapper.primary_net
    other.b.register_forward_hook(raise_value_error)
    with pytest.raises((ValueError, TapError)):
        wrapper(X)
    assert not workers()


# Pitfalls 9, 10 and law 6: taps that do not fire once


def test_taps_inside_torchs_encoder_layers_switch_off_its_fast_path():
    wrapper = AuxNASWrapper(
        Encoder(), Encoder(), taps=["encoder.layers.0.linear2", "encoder.layers.1.self_attn"][:1], search=PLAIN
    ).eval()
    x = torch.randn(2, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(wrapper(x).primary, wrapper.primary_net(x))


def test_a_tap_that_another_path_leaves_out_is_named():
    class Choice(Mlp):
        def forward(self, x):
            return self.head(self.b(self.a(x)) if x.sum() > 0 else self.a(x))

    for side in ("primary", "aux"):
        wrapper = wrap(**{side: Choice()}, example_inputs=torch.ones(3, 4))
        with pytest.raises(TapError, match=f"the {side} forward ended without reaching 'b'.*list_taps"):
            wrapper(-torch.ones(3, 4))
        wrapper.close_aux_to_primary_()
        with pytest.raises(TapError, match=f"the {side} forward ended without reaching 'b'"):
            wrapper(-torch.ones(3, 4))
        assert not workers()


def test_a_tap_called_again_or_too_early_is_named():
    class Data(Mlp):
        def forward(self, x):
            layers = (
                [self.a, self.b, self.b] if x[0, 0] == 1 else [self.b, self.a] if x[0, 0] == 2 else [self.a, self.b]
            )
            for layer in layers:
                x = layer(x)
            return self.head(x)

    def square():
        net = Data()
        net.a = nn.Linear(8, 8)
        return net

    for side in ("primary", "aux"):
        for lockstep in (True, False):
            wrapper = AuxNASWrapper(square(), square(), taps=["a", "b"], example_inputs=torch.zeros(3, 8))
            if side == "primary":
                wrapper.aux_net.__class__ = Mlp
            else:
                wrapper.primary_net.__class__ = Mlp
            if not lockstep:
                wrapper.close_aux_to_primary_()
            with pytest.raises(TapError, match=f"{side} tap 'b' was called more than once in one forward"):
                wrapper(torch.full((3, 8), 1.0))
            with pytest.raises(TapError, match=f"{side} tap 'b' was reached before 'a'; list the taps in the order"):
                wrapper(torch.full((3, 8), 2.0))
            assert not workers()


# Pitfalls 11, 13, and the order of random numbers


def test_random_draws_of_the_sequential_path_are_those_of_two_plain_forwards():
    def net():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))

    wrapper = AuxNASWrapper(net(), net(), taps=["0"], search=AuxG(own_share=1.0, start="zero"), example_inputs=X)
    torch.manual_seed(5)
    output = wrapper(X)
    torch.manual_seed(5)
    assert_same(wrapper.primary_net(X), output.primary)
    assert_same(wrapper.aux_net(X), output.aux)


def test_lockstep_is_deterministic_for_a_seed():
    def net():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 2))

    wrapper = AuxNASWrapper(net(), net(), taps=["0", "2"], search=AuxNAS(start="scaled"), example_inputs=X)
    outputs = []
    for _ in range(3):
        torch.manual_seed(5)
        outputs.append(wrapper(X))
    assert_same(outputs[0], outputs[1])
    assert_same(outputs[0], outputs[2])


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


# Networks that share modules, and wrappers in wrappers


@pytest.mark.parametrize("search", [PLAIN, AuxG(own_share=1.0, start="zero")], ids=["lockstep", "sequential"])
def test_the_same_network_may_stand_on_both_sides(search):
    net = Mlp()
    wrapper = AuxNASWrapper(net, net, taps=["a", "b"], search=search, example_inputs=X)
    output = wrapper(X, aux_inputs=(2 * X,))
    assert_same(output.primary, net(X))
    assert_same(output.aux, net(2 * X))
    assert not list(wrapper.aux_parameters())
    assert len(list(wrapper.weight_parameters())) == len({id(p) for p in wrapper.weight_parameters()})


@pytest.mark.parametrize("search", [PLAIN, AuxG(own_share=1.0, start="zero")], ids=["lockstep", "sequential"])
def test_networks_may_share_a_tapped_trunk(search):
    primary, aux = Mlp(), Mlp()
    aux.a = primary.a
    wrapper = AuxNASWrapper(primary, aux, taps=["a", "b"], search=search, example_inputs=X)
    output = wrapper(X)
    assert_same(output.primary, primary(X))
    assert_same(output.aux, aux(X))


def test_a_wrapper_may_stand_inside_a_wrapped_network():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = wrap(search=PLAIN), nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.inner(x).primary)

    outer = Outer()
    wrapper = AuxNASWrapper(
        outer, Mlp(), taps=[("inner.primary_net.head", "a"), ("head", "b")], search=PLAIN, example_inputs=X
    )
    assert_same(wrapper(X).primary, outer(X))


def test_user_hooks_run_before_ours_and_stay():
    wrapper = wrap(search=PLAIN)
    handle = wrapper.primary_net.a.register_forward_hook(lambda module, args, output: output + 1)
    assert_same(wrapper(X).primary, wrapper.primary_net(X))
    assert len(wrapper.primary_net.a._forward_hooks) == 1
    handle.remove()


# torch.compile


def test_compiled_wrapper_runs_eagerly_and_rightly():
    wrapper = wrap().eval()
    compiled = torch.compile(wrapper, backend="eager")
    assert_same(compiled(X), wrapper(X))
    wrapper.close_aux_to_primary_()
    assert_same(compiled(X), wrapper(X))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch._dynamo's own check of its inputs
def test_blocks_compiled_before_or_after_wrapping_keep_their_taps():
    wrapper = wrap(search=PLAIN).eval()
    expected = wrapper(X)
    wrapper.primary_net.b.compile(backend="eager")
    wrapper.aux_net.b.compile(backend="eager")
    assert_same(wrapper(X), expected)


def test_in_place_layers_after_a_tap_do_not_corrupt_what_later_taps_hear():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(F.relu_(self.b(F.relu_(self.a(x)))))

    class OutOfPlace(InPlace):
        def forward(self, x):
            return self.head(F.relu(self.b(F.relu(self.a(x)))))

    for search in (AuxNAS(own_share=0.5, start="scaled"), AuxG(own_share=0.5, start="scaled")):
        outputs = []
        for make in (InPlace, OutOfPlace):
            torch.manual_seed(3)
            wrapper = AuxNASWrapper(make(), make(), taps=["a", "b"], search=search, example_inputs=X)
            stir_(wrapper)
            wrapper.gates["primary_to_aux"].set_([0.0, 1.0, 1.0])  # tap 0 hands its own feature on, tap 1 hears it
            output = wrapper(X)
            (loss_of(output.primary) + loss_of(output.aux)).backward()
            outputs.append((output, wrapper.primary_net.a.weight.grad))
        assert_same(outputs[0][0], outputs[1][0])
        torch.testing.assert_close(outputs[0][1], outputs[1][1])


def test_selecting_one_of_several_outputs_leaves_the_others():
    case = BY_NAME["lstm"]
    wrapper = case.wrapper(search=AuxG(start="scaled"))
    primary, aux = case.nets()
    output = case.example().call(wrapper)
    assert torch.equal(output.aux[1], aux(*case.example().args)[1])  # the state h, untouched
    assert not torch.equal(output.aux[0], aux(*case.example().args)[0])
    with pytest.raises(
        TapError, match=r"primary 'lstm' returns several tensors \(0: .*, \(1, 0\): .*\); choose one by Tap"
    ):
        AuxNASWrapper(primary, aux, taps=["lstm"], example_inputs=case.example())
    AuxNASWrapper(primary, aux, taps=[Tap("lstm", primary_select=(1, 0), aux_select=(1, 0))])


def test_cnn_in_train_mode_updates_running_statistics_once():
    plain, net = Cnn(), Cnn()
    net.load_state_dict(plain.state_dict())
    wrapper = AuxNASWrapper(net, Cnn(), taps=["layer1", "layer2"], search=PLAIN, example_inputs=torch.randn(2, 3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    wrapper(x)
    plain(x)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key


# What else a forward may be in


class Selective(Mlp):
    """Keeps its matrix products in a checkpoint, and computes the rest again."""

    def forward(self, x):
        keep = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default, torch.ops.aten.addmm.default])
        region = checkpoint(lambda x: self.b(self.a(x).relu()), x, use_reentrant=False, context_fn=keep)
        return self.head(region)


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context")  # torch says so of any hooks there
@pytest.mark.parametrize("side, search", [("primary", AuxNAS()), ("aux", AuxNAS()), ("aux", AuxG())])
def test_a_tap_in_a_selective_checkpoint_is_an_error(side, search):
    wrapper = wrap(**{side: Selective()}, search=search)
    with pytest.raises(TapError, match="a tap lies in a selective activation checkpoint.*leave out its context_fn"):
        wrapper(X)
    with torch.no_grad():
        wrapper(X)
    assert not workers()


def test_several_threads_may_make_the_first_forward():
    for _ in range(5):
        wrapper = AuxNASWrapper(Mlp(), Mlp(), ["a", "b"])
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(lambda _, w=wrapper: w(X).primary, range(8)))
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        assert all(module.training for module in wrapper.modules())


def test_edges_do_not_get_their_sizes_inside_a_transform():
    wrapper = AuxNASWrapper(Mlp(), Mlp(), ["a", "b"]).eval()
    with pytest.raises(
        LayoutError, match="cannot get one inside torch.func; give AuxNASWrapper.*or call the wrapper once"
    ):
        torch.func.grad(lambda x: wrapper(x).aux.sum())(X)
    wrapper(X)
    assert torch.func.grad(lambda x: wrapper(x).aux.sum())(X).shape == X.shape
