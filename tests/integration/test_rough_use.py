"""What users do without thinking of it: each was once silent, or an error in somebody else's words."""

import copy
import pickle
import random
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import PLAIN, assert_same, loss_of, stir_
from torch import nn

from auxnas_layers import (
    MTLNAS,
    Architecture,
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    CrossTaskFusion,
    DepthLimited,
    Edge,
    Inputs,
    LayoutError,
    SearchError,
    Tap,
    TapError,
    list_taps,
    suggest_taps,
)

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def after(self, x):
        return x

    def forward(self, x):
        return self.head(self.b(self.after(self.a(x)).relu()))


def wrap(primary=None, aux=None, taps=("a", "b"), **options):
    options = {"search": AuxG(own_share=0.5, start="scaled"), "example_inputs": X, **options}
    return AuxNASWrapper(primary or Mlp(), aux or Mlp(), taps, **options)


# Features that are overwritten


def test_in_place_dropout_after_a_tap_does_not_reach_what_is_heard():
    class Drop(Mlp):
        def __init__(self, inplace):
            super().__init__()
            self.drop = nn.Dropout(0.5, inplace=inplace)

        def after(self, x):
            return self.drop(x)

    outputs = []
    for inplace in (True, False):
        torch.manual_seed(1)
        outputs.append(wrap(Drop(inplace), Mlp())(X))
    assert_same(outputs[0], outputs[1])


def test_a_feature_that_is_overwritten_in_train_mode_alone_is_an_error():
    class Doubles(Mlp):
        def after(self, x):
            return x.mul_(2) if self.training else x

    wrapper = wrap(Doubles())
    with pytest.raises(TapError, match="primary tap 'a': the network overwrote the feature in place .*out-of-place"):
        wrapper(X)
    wrapper.eval()(X)


def test_a_feature_that_is_overwritten_in_train_mode_alone_does_not_end_training_when_edges_close():
    class Drops(Mlp):
        def after(self, x):
            return F.dropout(x, 0.5, self.training, inplace=True)

    wrapper = wrap(Drops(), Drops(), search=AuxNAS())
    for progress in (0.0, 0.2, 0.5, 1.0):
        output = wrapper(X)
        (loss_of(output.primary) + loss_of(output.aux) + wrapper.search_penalty(progress)).backward()
    assert not any(wrapper.gates["aux_to_primary"].values())


def test_the_user_may_overwrite_an_output_that_is_a_tapped_feature():
    wrapper = wrap(taps=["a", "head"])
    output = wrapper(X)
    (output.primary.sigmoid_().sum() + output.aux.sum()).backward()


# The first forward, under whatever


def test_the_first_forward_may_run_under_autocast():
    wrapper = wrap(example_inputs=None, search=AuxNAS(own_share=0.5, start="scaled"))
    with torch.autocast("cpu", torch.bfloat16):
        output = wrapper(X)
        (loss_of(output.primary) + loss_of(output.aux)).backward()
    for net in (wrapper.primary_net, wrapper.aux_net):
        assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_first_forward_may_run_without_gradients(mode):
    class Overwrites(Mlp):
        def after(self, x):
            return F.relu(x, inplace=True)

    wrapper = wrap(Overwrites(), example_inputs=None)
    with mode():
        wrapper(X.clone())
    assert wrapper._layers["primary", "a"].overwritten
    loss_of(wrapper(X).aux).backward()
    assert all(parameter.grad is not None for parameter in wrapper.fusion_parameters())


def test_a_first_forward_that_fails_fails_again_in_the_same_words():
    wrapper = wrap(example_inputs=None, search=AuxG(), fusion=partial(CrossTaskFusion, norm=nn.BatchNorm2d))
    for _ in range(2):
        with pytest.raises(SearchError, match=r"norm makes a norm of rows \(rows, 8\)"):
            wrapper(X)


# What trial calls must leave


def test_buffers_that_a_forward_resizes_are_left_as_they_were():
    class Observes(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("least", torch.empty(0))

        def after(self, x):
            random.random()
            self.least.resize_(8).copy_(x.detach().amin(0))
            return x

    primary, state = Observes(), random.getstate()
    wrapper = wrap(primary)
    assert primary.least.shape == (0,) and random.getstate() == state
    loss_of(wrapper(X).primary).backward()
    assert primary.least.shape == (8,)


def test_buffers_that_a_forward_reassigns_are_left_as_they_were():
    class Average(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def after(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return x - self.mean

    net = Average()
    buffer = net.mean
    wrapper = wrap(net, search=PLAIN)
    wrapper.cost(X)
    wrapper.close_aux_to_primary_()
    exported = wrapper.export_primary()
    assert net.mean is buffer and not buffer.any() and not exported.mean.any()
    assert wrapper.export_report.exact


def test_inputs_that_a_network_changes_are_left_as_they_were():
    class Scales(Mlp):
        def forward(self, x):
            return super().forward(x.div_(2))

    x = X.clone()
    AuxNASWrapper(Scales(), Mlp(), ["a"], example_inputs={"x": x}["x"])
    list_taps(Scales(), x)
    assert torch.equal(x, X)


def test_trial_calls_do_not_call_the_users_own_eval():
    class Merges(Mlp):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    net = Merges()
    wrap(net)
    assert net.training and not net.merged


# Export


def test_example_inputs_follow_the_wrapper_to_another_precision():
    wrapper = wrap(example_inputs=(2 * X.clone().requires_grad_())).double()
    wrapper.export_primary()
    assert wrapper.export_report.exact
    copy.deepcopy(wrapper)
    pickle.dumps(wrapper)


def test_a_network_that_keeps_what_it_computed_can_be_exported():
    class Keeps(Mlp):
        def after(self, x):
            self.last, self.cache = x, {"by name": [x, (x * 2,)]}
            return x

    wrapper = wrap(Keeps())
    loss_of(wrapper(X).primary).backward()
    exported = wrapper.eval().export_primary()
    assert torch.equal(exported(X), wrapper(X).primary)


def test_outputs_without_tensors_are_not_called_compared():
    class Space(Mlp):
        def forward(self, x):
            return types.SimpleNamespace(out=super().forward(x))

    wrapper = wrap(Space())
    wrapper.export_primary()
    assert wrapper.export_report.exact is None and "no tensors in the outputs" in str(wrapper.export_report)


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"padding": True}], ids=str)
def test_torchs_own_encoder_is_exported(options):
    """It has a fast path in eval mode, in which hooks and masks decide, and which differs in the last digits."""

    class Encoder(nn.Module):
        def __init__(self, classes):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, classes)

        def forward(self, x, mask=None, padding=None):
            return self.head(self.encoder(x, mask=mask, src_key_padding_mask=padding))

    x, length = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    masks = {"mask": nn.Transformer.generate_square_subsequent_mask(5), "padding": length >= 1 + length[:3, None]}
    call = Inputs((x,), {name: masks[name] for name in options})
    wrapper = AuxNASWrapper(Encoder(2), Encoder(3), ["encoder.layers.0", "encoder.layers.1"], example_inputs=call)
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact and torch.backends.mha.get_fastpath_enabled()


def test_networks_are_taken_out_and_read_in_inference_mode_too():
    wrapper, both, net = wrap(), wrap(search=MTLNAS(gate_start=0.6)), Mlp()
    both.discretize_()
    with torch.inference_mode():
        exported = [wrapper.export_primary(), both.export_multitask()]
        assert wrapper.export_report.exact and both.export_report.exact
        assert suggest_taps(net, net, X) == ["a", "b"]
    assert not any(p.is_inference() for one in exported for p in [*one.parameters(), *one.buffers()])
    loss_of(exported[1](X)).backward()  # its constant gates are ordinary tensors, too


def test_sparse_buffers_and_outputs_are_compared():
    class Graph(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("adjacency", torch.eye(len(X)).to_sparse())

        def forward(self, x):
            return torch.sparse.mm(self.adjacency, super().forward(x)), self.adjacency

    wrapper = wrap(Graph())
    wrapper.export_primary()
    assert wrapper.export_report.exact


# Kinds of arguments


def test_taps_may_come_from_any_iterable():
    assert len(wrap(taps=zip(["a", "b"], ["a", "b"], strict=True)).architecture()) == 3
    assert len(wrap(taps=(name for name in ["a", "b"])).architecture()) == 3


def test_containers_with_a_forward_of_their_own_are_layers():
    class Stack(nn.ModuleDict):
        def forward(self, x):
            for layer in self.values():
                x = layer(x)
            return x

    def net():
        return nn.Sequential(Stack({"a": nn.Linear(4, 8), "b": nn.Linear(8, 8)}), nn.Linear(8, 2))

    wrapper = AuxNASWrapper(net(), net(), ["0"], example_inputs=X)
    assert isinstance(wrapper(X).aux, torch.Tensor)
    assert isinstance(AuxNASWrapper(net(), net()[0], [("0", "a")], example_inputs=X)(X).aux, torch.Tensor)


def test_one_network_may_serve_as_two_auxiliaries():
    net = Mlp()
    wrapper = AuxNASWrapper(Mlp(), {"a": net, "b": net}, {"a": ["a"], "b": ["b"]}, search=PLAIN, example_inputs=X)
    output = wrapper(X)
    assert_same(output.aux["a"], net(X))
    assert_same(output.aux["b"], net(X))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch._dynamo's own check of its inputs
def test_networks_compiled_as_a_whole_run_or_say_why_not():
    net = Mlp()
    expected = net(X)
    compiled = torch.compile(net, backend="eager")
    wrapper = AuxNASWrapper(compiled, Mlp(), [("_orig_mod.a", "a")], search=PLAIN, example_inputs=X)
    assert_same(wrapper(X).primary, expected)
    net = Mlp()
    compiled = torch.compile(net, backend="eager")
    compiled(X)  # may keep code without hooks, depending on what it guards on
    try:
        output = AuxNASWrapper(compiled, Mlp(), [("_orig_mod.a", "a")], search=PLAIN, example_inputs=X)(X)
    except TapError as error:
        assert "is not called on these inputs" in str(error) or "without reaching" in str(error)
    else:
        assert_same(output.primary, net(X))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"taps": {"a": "b"}}, TapError, "taps is a list, such as taps=[('a', 'b')]; found a mapping"),
        ({"taps": Tap("a")}, TapError, "taps must be a list of names, pairs (primary name, aux name) or Tap(...)"),
        ({"taps": None}, TapError, "taps must be a list of names"),
        ({"search": AuxNAS}, SearchError, "search is an object, not its class: write search=AuxNAS()"),
        ({"search_space": DepthLimited}, SearchError, "search_space is a search space, such as DepthLimited(3)"),
        ({"search_space": 3}, SearchError, "such as DepthLimited(3), or a matrix; found 3"),
        ({"aux": [Mlp()]}, TapError, "several auxiliaries a mapping from names to them; found ['list']"),
        (
            {"fusion": partial(CrossTaskFusion, start="scaled")},
            SearchError,
            "the wrapper sets ['start'] of each fusion; write search=AuxNAS(own_share=..., start=...)",
        ),
        (
            {"aux": {"type": Mlp()}, "taps": {"type": ["a"]}},
            TapError,
            "names of auxiliaries are identifiers other than",
        ),
    ],
)
def test_arguments_of_another_kind_say_what_to_type(arguments, error, message):
    with pytest.raises(error) as caught:
        wrap(**arguments)
    assert message in str(caught.value)


def test_values_of_another_kind_say_what_to_type():
    with pytest.raises(TypeError, match=r"Inputs\(\(x,\), {}\); found Tensor"):
        Inputs(X)
    with pytest.raises(SearchError, match="close must be"):
        AuxNAS(close=0.4)
    with pytest.raises(TypeError, match=r"Inputs\(\(x,\), {}\); found tuple and list"):
        Inputs((X,), [X])
    for progress in ("a", None, float("nan"), [0.5]):
        with pytest.raises(SearchError, match="progress is the share"):
            wrap().search_penalty(progress)
    with pytest.raises(SearchError, match=r"aux_inputs={'n': \(x,\)}; found tuple"):
        AuxNASWrapper(Mlp(), {"n": Mlp()}, {"n": ["a"]})(X, aux_inputs=(X,))
    with pytest.raises(LayoutError, match="the channels are not known yet"):
        CrossTaskFusion(None, [None])(X, [X], [1.0])


def test_edges_of_a_search_space_of_ones_own_are_checked_and_sorted():
    class Own:
        def __init__(self, *pairs):
            self.pairs = pairs

        def edges(self, taps, *, to_primary):
            return self.pairs

    for pair in ((1, 0), (0, 5), (-1, 0)):
        found = rf"0 <= source <= target < 2 taps; found\n  - .* -> .* \(taps {pair[0]}, {pair[1]}\)"
        with pytest.raises(SearchError, match=found):
            wrap(search_space=Own(pair))
    wrapper = wrap(search_space=Own((1, 1), (0, 1), (0, 1)), search=AuxG())
    assert [(edge.source, edge.target) for edge in wrapper.architecture()] == [(0, 1), (1, 1)]
    assert torch.equal(wrapper.fusions["aux"]["1"].weights[1], 0.9 * torch.eye(8))  # the same tap passes through


def test_an_edge_that_is_not_open_is_loaded_closed():
    wrapper = wrap(taps=["a"], search=AuxNAS())
    wrapper.load_architecture(
        Architecture((Edge("aux_to_primary", 0, 0, 0.1, False), Edge("primary_to_aux", 0, 0, 0.5, True)))
    )
    assert [edge.open for edge in wrapper.architecture()] == [False, True]


def test_norms_of_a_lazy_fusion_follow_its_dtype():
    fusion = CrossTaskFusion(None, [None], norm=nn.LayerNorm).to(torch.float64)
    fusion.materialise(4, [4])
    assert fusion(X.double(), [X.double()], [1.0]).dtype == torch.float64


def test_a_search_of_ones_own_needs_five_methods():
    class Plain:
        def choose(self, wires):
            return [wire for wire in wires if wire.source == wire.target]

        def make_gates(self, wires, *, to_primary):
            return AuxNAS().make_gates(wires, to_primary=to_primary)

        def make_fusion(self, fusion, sources, *, to_primary):
            return fusion(None, [None] * sources)

        def advance_(self, gates, progress, *, to_primary):
            gates.settle_(1.0 - progress if to_primary else 1.0)

        def penalty(self, gates, costs, progress, *, to_primary):
            return 0.0

    wrapper = wrap(search=Plain())
    stir_(wrapper)
    assert wrapper.search_penalty(0.5) == 0
    wrapper.search_penalty(1.0)
    assert not wrapper.architecture().open_edges("aux_to_primary")
