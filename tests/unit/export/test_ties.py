"""A copy computes with its own parameters and buffers, whatever was patched onto the original."""

import functools
import gc
import threading
import types
import weakref

import pytest
import torch
from helpers import assert_unchanged, snapshot
from pairs import IMAGES, TAPS
from torch import nn
from zoo import Cnn

from auxnas_layers import AuxNASWrapper, ExportError
from auxnas_layers.export import ties
from auxnas_layers.export.copying import copy_networks
from auxnas_layers.export.ties import references

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Holder:
    """An object of the user's that keeps a network."""

    def __init__(self, net):
        self.net = net

    def __call__(self, module, args, output):
        return output + self.net[3].bias + self.net[1].running_mean[:2]


def closure(net):
    plain = net.forward
    net.forward = lambda x: 2 * plain(x)


def method(net):
    plain = net.forward
    net.forward = types.MethodType(lambda self, x: plain(x) + self[3].bias, net)


def weak_reference(net):
    def call(itself, x):
        return type(itself()).forward(itself(), x)

    net.forward = functools.partial(call, weakref.ref(net))


def default(net):
    def forward(x, *, itself=net):
        return nn.Sequential.forward(itself, x)

    net.forward = forward


def cached(net):
    last = net[3]
    last.weights = functools.lru_cache(1)(lambda: last.weight)
    last.forward = types.MethodType(lambda self, x: x @ self.weights().t(), last)


def recursive(net):
    def forward(x, again=True):
        return forward(x, False) if again else nn.Sequential.forward(net, x)

    net.forward = forward


def bound_builtin(net):
    transposed = net[3].weight.t
    net[3].forward = lambda x: x @ transposed()


def hook(net):
    weight = net[3].weight
    net[3].register_forward_hook(lambda module, args, output: output + args[0] @ weight.t())


def hook_of_a_view(net):
    weight = net[3].weight.data
    net[3].register_forward_hook(lambda module, args, output: args[0] @ weight.t())


def hook_of_an_object(net):
    holder = Holder(net)
    net[3].register_forward_hook(lambda *given: holder(*given))


def hook_in_containers(net):
    kept = {"nets": [(net[3],)]}
    net[3].register_forward_hook(lambda module, args, output: output + kept["nets"][0][0].bias)


def object_that_is_a_hook(net):
    net[3].register_forward_hook(Holder(net))


def attribute_that_is_a_view(net):
    net[3].first = net[3].weight.data[:1]
    net[3].forward = types.MethodType(lambda self, x: x @ self.first.t(), net[3])


def attribute_of_a_parameter(net):
    net[3].weight.partner = (net[0].weight, lambda: net[3].bias)
    net[3].forward = types.MethodType(lambda self, x: x @ self.weight.t() + self.weight.partner[1](), net[3])


def nested_attribute(net):
    net.helpers = ({"deep": (Holder(net),)},)
    net.forward = lambda x: nn.Sequential.forward(net.helpers[0]["deep"][0].net, x)


def wrapped(net):
    plain = net.forward

    @functools.wraps(plain)
    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(x)

    net.forward = forward


PATCHES = [
    *[closure, method, weak_reference, default, cached, recursive, bound_builtin, hook, hook_of_a_view],
    *[hook_of_an_object, hook_in_containers, object_that_is_a_hook, attribute_that_is_a_view],
    *[attribute_of_a_parameter, nested_attribute, wrapped],
]


def patched(patch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    nn.init.normal_(net[1].running_mean)
    patch(net)
    return net


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_copy_computes_with_its_own_weights(patch):
    net = patched(patch)
    expected = net(X)
    (copied,) = copy_networks([net])
    assert torch.equal(copied(X), expected)
    with torch.no_grad():
        for parameter in copied[3].parameters():
            parameter.zero_()
    assert not torch.equal(copied(X), expected) and torch.equal(net(X), expected)
    (copied,) = copy_networks([net])
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.zero_()
    net[1].num_batches_tracked.zero_()
    assert torch.equal(copied(X), expected)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_copy_keeps_nothing_of_the_original_alive(patch):
    net = patched(patch)
    (copied,) = copy_networks([net])
    last = weakref.ref(net[3])
    del net
    gc.collect()
    assert last() is None and copied(X).shape[0] == 5


def test_functions_that_lead_to_no_network_stay_shared():
    log = []
    net = patched(lambda net: net.register_forward_hook(lambda *_: log.append(1)))
    net.note = len
    (copied,) = copy_networks([net])
    copied(X)
    assert log == [1] and copied.note is len
    assert list(copied._forward_hooks.values()) == list(net._forward_hooks.values())


def test_two_functions_that_share_a_variable_share_it_in_the_copy():
    def patch(net):
        scale = torch.ones(())

        def grow(module, args):
            nonlocal scale
            scale = scale + net[3].bias.sum() * 0 + 1

        net.register_forward_pre_hook(grow)
        net.register_forward_hook(lambda module, args, output: output * scale * (1 + 0 * net[3].bias.sum()))

    net = patched(patch)
    (copied,) = copy_networks([net])
    first = copied(X)
    torch.testing.assert_close(copied(X), first * 1.5)
    torch.testing.assert_close(net(X), first)


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        (torch.randn(8), lambda t: t.view(torch.int32)),
        (torch.polar(torch.ones(8), torch.arange(8.0)), torch.view_as_real),
        (torch.arange(8.0), lambda t: t[2:4]),
    ],
    ids=["other dtype", "complex", "slice"],
)
@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer])
def test_a_part_of_a_tensor_is_a_part_of_its_copy(whole, part, kind):
    net = nn.Module()
    net.whole = kind(whole.clone())
    net.part = part(net.whole.detach())
    (copied,) = copy_networks([net])
    assert copied.part.dtype is net.part.dtype and torch.equal(copied.part, net.part)
    copied.whole.detach().zero_()
    assert not copied.part.any() and net.part.any()


@pytest.mark.parametrize("first", [0, 5])
def test_a_flat_tensor_whose_parts_are_parameters_keeps_its_values(first):
    """A parameter's copy has its own part alone."""
    net = nn.Module()
    net.flat = torch.arange(1.0, 21.0)
    net.weight, net.head = nn.Parameter(net.flat[first:13]), net.flat[:3]
    (copied,) = copy_networks([net])
    assert torch.equal(copied.flat, net.flat) and torch.equal(copied.head, net.head)
    copied.flat.zero_()
    assert net.flat.all()


def test_an_object_that_cannot_be_copied_blocks_no_export():
    """A hook of a logger, say, that has a lock and the network."""
    net = patched(lambda net: None)
    logger = Holder(net)
    logger.lock, logger.loader = threading.Lock(), (i for i in range(3))
    net[3].register_forward_hook(lambda module, args, output: logger(module, args, output))
    (copied,) = copy_networks([net])
    (hook,) = copied[3]._forward_hooks.values()
    held = hook.__closure__[0].cell_contents
    assert held.net is copied and held.lock is logger.lock and logger.net is net
    assert torch.equal(copied(X), net(X))


def test_containers_of_weak_references_refer_to_the_copy():
    net = patched(lambda net: setattr(net, "by_name", weakref.WeakValueDictionary({"last": net[3]})))
    (copied,) = copy_networks([net])
    assert copied.by_name["last"] is copied[3] and net.by_name["last"] is net[3]


def test_partials_keep_their_class_and_attributes():
    class Named(functools.partial):
        pass

    net = patched(lambda net: None)
    net.plain, net.tied = Named(torch.relu), Named(lambda: net[3])
    net.plain.label = net.tied.label = "relu"
    (copied,) = copy_networks([net])
    assert type(copied.plain) is type(copied.tied) is Named
    assert copied.plain.label == copied.tied.label == "relu" and copied.tied() is copied[3]


def test_an_object_behind_many_hooks_is_searched_once(monkeypatch):
    searched = []
    kept = [[i] for i in range(100)]
    monkeypatch.setattr(ties, "references", lambda value: searched.append(value) or references(value))

    def record(name):
        return lambda *_: kept.append(name)

    net = patched(lambda net: [net.register_forward_hook(record(i)) for i in range(20)])
    copy_networks([net])
    assert sum(value is kept for value in searched) == 1


def test_a_long_chain_of_functions_is_refused_as_an_export():
    net = Cnn()

    def wrap(inner):
        return lambda: inner()

    net.chain = functools.reduce(lambda inner, _: wrap(inner), range(2000), lambda: net)
    with pytest.raises(ExportError, match="Cnn cannot be copied by copy.deepcopy: maximum recursion depth exceeded"):
        copy_networks([net])


def test_an_attribute_of_a_parameter_that_cannot_be_copied_is_named():
    net = Cnn()
    net.head.weight.lock = threading.Lock()
    with pytest.raises(ExportError, match=r"Cnn\.head\.weight\.lock cannot be copied by copy.deepcopy"):
        copy_networks([net])


def test_the_name_of_an_attribute_is_not_that_of_a_global(monkeypatch):
    net = Cnn()
    monkeypatch.setitem(globals(), "head", net.head)
    net.register_forward_hook(lambda module, args, output: module.head and None)
    closed(net).export_primary(check=False)
    net.register_forward_hook(lambda *_: head and None)  # noqa: F821  defined above
    with pytest.raises(ExportError, match="by the name of a global variable"):
        closed(net).export_primary(check=False)


def test_attributes_of_parameters_are_copied():
    net = Cnn()
    net.head.weight.no_decay, net.head.weight.partner = True, net.head.bias
    (copied,) = copy_networks([net])
    assert copied.head.weight.no_decay is True and copied.head.weight.partner is copied.head.bias


# Whole exports

GLOBAL = []


class Borrows(Cnn):
    """Its forward uses whatever network is in a global variable."""

    def forward(self, x):
        return super().forward(x) + sum(net.head.bias.sum() for net in GLOBAL)


def closed(primary, **options):
    wrapper = AuxNASWrapper(primary, Cnn(), TAPS, **{"example_inputs": IMAGES, **options})
    wrapper.close_aux_to_primary_()
    return wrapper


def test_a_network_that_computes_with_the_original_is_refused_by_name(monkeypatch):
    net = Borrows()
    monkeypatch.setattr(f"{__name__}.GLOBAL", [net])
    wrapper = closed(net)
    before = snapshot(wrapper), torch.get_rng_state()
    with pytest.raises(ExportError, match="exported Borrows computes with 'head.bias' of the original"):
        wrapper.export_primary()
    assert_unchanged(wrapper, before[0])
    assert torch.equal(before[1], torch.get_rng_state()) and wrapper.export_report is None


def test_a_forward_that_finds_the_original_by_its_global_name_is_refused(monkeypatch):
    net = Cnn()
    monkeypatch.setitem(globals(), "plain", net.forward)
    wrapper = closed(net)
    net.forward = lambda x: 2 * plain(x)  # noqa: F821
    with pytest.raises(ExportError, match=r"computes with 'layer1.*' of the original by Cnn\.forward") as error:
        wrapper.export_primary()
    assert "global variable" in str(error.value)
    with pytest.raises(ExportError, match=r"Cnn\.forward uses the original by the name of a global variable"):
        wrapper.export_primary(check=False)


@pytest.mark.parametrize("check", [True, False])
def test_a_hook_that_leads_to_the_wrapper_is_refused(check):
    net = Cnn()
    wrapper = closed(net)
    net.register_forward_hook(lambda *_: wrapper.search and None)
    with pytest.raises(ExportError, match=r"Cnn\._forward_hooks.* -> wrapper refers to what an export leaves behind"):
        wrapper.export_primary(check=check)


@pytest.mark.parametrize("kept", [lambda w: w, lambda w: w.aux_net, lambda w: {"x": [w.aux_net.layer1]}])
def test_a_network_that_refers_to_the_wrapper_or_the_auxiliary_is_refused(kept):
    net = Cnn()
    wrapper = closed(net)
    object.__setattr__(net, "companion", Holder(kept(wrapper)))
    with pytest.raises(ExportError, match=r"Cnn\.companion\.net.* refers to what an export leaves behind"):
        wrapper.export_primary()


def test_what_cannot_be_copied_is_named():
    net = Cnn()
    net.layer1.cache = {"lock": threading.Lock()}
    wrapper = closed(net)
    message = r"Cnn.*layer1.*\.cache\['lock'\] cannot be copied by copy.deepcopy: .*lock.*Delete it"
    with pytest.raises(ExportError, match=message):
        wrapper.export_primary()


def test_an_export_without_a_check_calls_no_network():
    calls = []
    net = Cnn()
    wrapper = closed(net)
    net.register_forward_hook(lambda *_: calls.append(1))
    wrapper.aux_net.register_forward_hook(lambda *_: calls.append(1))
    exported = wrapper.export_primary(check=False)
    assert not calls and wrapper.export_report.exact is None
    assert torch.equal(exported.head.weight, net.head.weight)


def test_patches_on_the_wrapper_itself_are_not_the_exports_business():
    """As accelerate and the Trainer of Hugging Face patch the model that they prepare."""
    wrapper = closed(Cnn())
    plain = wrapper.forward

    def forward(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(*args, **kwargs)

    wrapper.forward = forward
    wrapper.register_forward_hook(lambda *_: pytest.fail("a hook of the wrapper"))
    exported = wrapper.export_primary()
    assert wrapper.export_report.exact and exported(IMAGES).dtype is torch.float32
