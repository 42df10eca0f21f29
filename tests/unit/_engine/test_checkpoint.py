"""Taps in activation checkpoints."""

import gc
import weakref
from functools import partial

import pytest
import torch
from helpers import gradients, loss_of, stir_, workers
from mlps import Mlp, X, wrap
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from zoo import Checkpointed, Unchecked

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, NDDRFusion, TapError


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
    with pytest.raises(TapError, match="tap .*: it lies in an activation checkpoint inside another.*leave one"):
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
    with pytest.raises(TapError, match="it lies in a selective activation checkpoint.*leave out its context_fn"):
        wrapper(X)
    with torch.no_grad():
        wrapper(X)
    assert not workers()
