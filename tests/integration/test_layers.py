"""Layers that are not plain: weights that are computed, adapters, frozen parts, layers exchanged for others."""

import copy

import pytest
import torch
from helpers import assert_same, assert_unchanged, gradients, loss_of, snapshot
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from ways import IMAGES, Mlp, X, every_way, optimisers_of, run, step, wrap
from zoo import Cnn

# Weights that are computed


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def spectral():
    net = Mlp()
    parametrizations.spectral_norm(net.a)
    return net


def spectral_by_hooks():
    net = Mlp()
    nn.utils.spectral_norm(net.a)
    return net


def symmetric():
    net = Mlp()
    parametrize.register_parametrization(net.b, "weight", Symmetric())
    return net


@every_way
@pytest.mark.parametrize("make", [spectral, spectral_by_hooks, symmetric])
def test_weights_that_are_computed_are_computed_once_in_each_forward(way, make):
    """The power iteration of a spectral norm makes one step in every call in train mode, and none on trial."""
    primary, aux = make(), make()
    plain = copy.deepcopy(primary), copy.deepcopy(aux)
    wrapper = wrap(way, primary, aux)
    for _ in range(2):
        output = wrapper(X)
        for net in plain:
            net(X)
    for net, other in zip((primary, aux), plain, strict=True):
        for (name, found), wanted in zip(net.named_buffers(), other.buffers(), strict=True):
            assert torch.equal(found, wanted), name
    optimiser = torch.optim.SGD(wrapper.weight_parameters(), lr=0.1)
    loss_of(output).backward()
    optimiser.step()
    wrapper.eval()
    if way == "mtl-nas":
        wrapper.discretize_()
        assert_same(wrapper.export_multitask()(X), wrapper(X))
    else:
        exported = wrapper.export_primary(allow_open=way == "aux-nas")
        assert list(exported.state_dict()) == list(plain[0].state_dict())
        assert_same(exported(X), primary(X))


@every_way
def test_a_weight_may_be_parametrized_and_baked_in_again_after_wrapping(way):
    wrapper = wrap(way).eval()
    for net in (wrapper.primary_net, wrapper.aux_net):
        parametrize.register_parametrization(net.b, "weight", Symmetric())
    output = wrapper(X)
    with parametrize.cached():
        assert_same(tuple(wrapper(X)), tuple(output))
        assert_same(tuple(wrapper(X)), tuple(output))
    loss_of(output).backward()
    original = wrapper.primary_net.b.parametrizations.weight.original
    assert original.grad.tril(-1).abs().sum() == 0 < original.grad.triu().abs().sum()
    assert id(original) in {id(parameter) for parameter in wrapper.weight_parameters()}
    for net in (wrapper.primary_net, wrapper.aux_net):
        parametrize.remove_parametrizations(net.b, "weight")
    assert_same(tuple(wrapper(X)), tuple(output))


# Adapters and frozen parts


@every_way
def test_low_rank_adapters_learn_inside_a_wrapper_and_merge_after_export(way):
    peft = pytest.importorskip("peft")
    base = Mlp()
    plain = copy.deepcopy(base)
    net = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["a", "b"]))
    prefix = "base_model.model."
    wrapper = wrap(way, net, Mlp(), taps=[(prefix + "a", "a"), (prefix + "b", "b")])
    for progress in (0.0, 1.0):
        step(wrapper, optimisers_of(wrapper), progress)
    learned = {name for name, gradient in gradients(net).items() if gradient is not None}
    assert learned == {name for name, _ in net.named_parameters() if "lora_" in name}
    wrapper.eval()
    with net.disable_adapter():
        assert_same(net(X), plain(X))
    assert not torch.equal(net(X), plain(X))
    exported = wrapper.export_primary(allow_open=way == "mtl-nas")
    assert type(exported) is type(net)
    assert_same(exported(X), net(X))
    merged = exported.merge_and_unload()
    assert type(merged) is Mlp and list(merged.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(merged(X), net(X))


@every_way
def test_low_rank_adapters_may_take_the_place_of_tapped_layers_after_wrapping(way):
    peft = pytest.importorskip("peft")
    wrapper = wrap(way)
    expected = run(wrapper)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["a", "b"]), wrapper.primary_net)
    assert type(wrapper.primary_net.a) is not nn.Linear
    output = run(wrapper)
    assert_same(tuple(output), tuple(expected))
    loss_of(output).backward()
    assert all(p.grad is not None for name, p in wrapper.named_parameters() if "lora_" in name)
    assert wrapper.primary_net.a.base_layer.weight.grad is None


@every_way
def test_a_frozen_primary_is_heard_and_never_moves(way):
    primary = Mlp().requires_grad_(False).eval()
    before = snapshot(primary)
    wrapper = wrap(way, primary)
    for progress in (0.0, 0.1):
        step(wrapper, optimisers_of(wrapper), progress)
    assert_unchanged(primary, before)
    assert all(p.grad is not None and p.grad.any() for p in wrapper.aux_net.parameters())
    heard = [p for name, p in wrapper.fusions["aux"].named_parameters() if "weights" in name]
    assert len(heard) == 3 and all(p.grad is not None and p.grad.any() for p in heard)


# Layers that are exchanged for others


@every_way
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norms_may_be_exchanged_for_synchronised_ones_before_and_after_wrapping(way, training):
    primary, aux = Cnn(), Cnn()
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    taps = ["layer1.1", "layer2"]
    options = {"taps": taps, "example_inputs": IMAGES}
    plain = wrap(way, copy.deepcopy(primary), copy.deepcopy(aux), **options).train(training)
    before = wrap(way, convert(copy.deepcopy(primary)), convert(copy.deepcopy(aux)), **options).train(training)
    after = wrap(way, primary, aux, **options).train(training)
    parameters = {id(parameter) for parameter in after.parameters()}
    assert convert(after) is after and {id(parameter) for parameter in after.parameters()} == parameters
    kinds = {type(m) for m in after.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
    for wrapper in (before, after):
        wrapper.load_state_dict(plain.state_dict())
    expected = run(plain, IMAGES)
    for wrapper in (before, after):
        assert isinstance(wrapper.primary_net.layer1[1], nn.SyncBatchNorm)
        assert_same(tuple(run(wrapper, IMAGES)), tuple(expected))
        for key, value in plain.state_dict().items():
            assert torch.equal(wrapper.state_dict()[key], value), key


@pytest.mark.parametrize("way", ["aux-nas-closed", "aux-g"])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_what_is_exported_can_be_quantised(way):
    wrapper = wrap(way).eval()
    exported = wrapper.export_primary()
    quantised = torch.ao.quantization.quantize_dynamic(exported, {nn.Linear}, dtype=torch.qint8)
    assert "DynamicQuantizedLinear" in repr(quantised)
    found, wanted = quantised(X), wrapper(X).primary
    assert 0 < (found - wanted).abs().max() < 0.05 * wanted.abs().max() + 0.02
