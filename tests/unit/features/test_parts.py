"""The record of a network: which layers it has, in call order, and which of them can be tapped."""

from collections import OrderedDict

import pytest
import torch
from helpers import assert_same, assert_unchanged, snapshot
from torch import nn

from auxnas_layers import Inputs
from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.layouts import Layout
from auxnas_layers.features.parts import Part, record

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by name, and how to call them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def linear(out=4):
    return nn.Linear(4, out)


def linears(count=2):
    return nn.Sequential(*(linear() for _ in range(count)))


def parts(net, *args, **kwargs):
    """What is recorded about each layer, by name; the network itself is ''."""

    def below(part):
        return {part.name: part, **{name: one for child in part.parts for name, one in below(child).items()}}

    return below(record(net, Inputs(args or (ROWS,), kwargs)))


def good(net, *args, **kwargs):
    return [name for name, part in parts(net, *args, **kwargs).items() if part.good]


def selects(net, *args, **kwargs):
    return {name: part.select for name, part in parts(net, *args, **kwargs).items()}


def returned(net, *args):
    return [name for name, part in parts(net, *args).items() if part.returned]


# The tree


def test_layers_stand_in_call_order_and_those_never_called_are_left_out():
    net = Net(lambda net, x: net.a(net.b(x)), a=linears(), spare=linear(), b=linear())
    found = parts(net)
    assert list(found) == ["", "b", "a", "a.0", "a.1"]
    assert [found[name].order for name in ("b", "a.0", "a.1", "a")] == [0, 1, 2, 3]
    assert [name for name, part in found.items() if part.compound] == ["", "a"]


def test_containers_count_as_their_contents():
    deep = nn.ModuleList([nn.ModuleList([linear()]), nn.ModuleList([linear(), linear()])])
    net = Net(lambda net, x: net.deep[1][1](net.deep[0][0](net.by["name"](x))), by=nn.ModuleDict({"name": linear()}))
    net.deep = deep
    assert [part.name for part in record(net, Inputs((ROWS,))).parts] == ["by.name", "deep.0.0", "deep.1.1"]


def test_a_layer_under_two_names_stands_under_the_first():
    layer = linear()
    net = Net(lambda net, x: net.head(net.b(x)), a=layer, b=layer, head=linear())
    assert list(parts(net)) == ["", "a", "head"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_compiled_torch_script_is_left_out():
    net = Net(lambda net, x: net.b(net.a(x)), a=torch.jit.script(linears()), b=linear())
    assert list(parts(net)) == ["", "b"]


def test_work_counts_calls_of_single_layers():
    stages = nn.Sequential(linears(1), linears(3))
    twice = nn.Sequential(linear(), nn.ReLU())
    net = Net(lambda net, x: net.twice(net.twice(net.stages(x))), stages=stages, twice=twice, spare=linear())
    work = {name: part.work for name, part in parts(net).items()}
    assert work == {
        **{"": 8, "stages": 4, "stages.0": 1, "stages.0.0": 1},
        **{"stages.1": 3, "stages.1.0": 1, "stages.1.1": 1, "stages.1.2": 1},
        **{"twice": 4, "twice.0": 2, "twice.1": 2},
    }


class Own(nn.Sequential):
    pass


def test_the_kind_is_the_class_and_of_a_sequence_of_sequences_stages():
    layers = {
        "sequence": linears(),
        "stages": nn.Sequential(linears(), linear()),
        "later": nn.Sequential(linear(), linears()),
        "own": Own(linears()),
        "of_own": nn.Sequential(Own(linear())),
        "empty": nn.Sequential(),
    }
    kinds = {part.name: part.kind for part in record(Own(OrderedDict(layers)), Inputs((ROWS,))).parts}
    assert kinds == {
        **{"sequence": "Sequential", "stages": "stages", "later": "Sequential"},
        **{"own": "Own", "of_own": "Sequential", "empty": "Sequential"},
    }


class RMSNorm2d(nn.RMSNorm):
    pass


def test_runs_start_with_layers_that_have_weights_and_are_no_norms():
    layers = linear(), nn.ReLU(), nn.PReLU(), nn.LayerNorm(4), nn.BatchNorm1d(4), RMSNorm2d(4), linear()
    found = parts(nn.Sequential(*layers))
    assert [name for name, part in found.items() if part.starts_run] == ["", "0", "6"]


def test_numbered_rank_and_positions():
    assert Part("0").numbered and Part("a.b.12").numbered
    assert not any(Part(name).numbered for name in ("", "a", "0.a", "a1"))
    image = Part("a", info=LayerInfo(shape=(2, 3, 5, 7), layout=Layout("b c h w")))
    assert image.rank == 4 and image.positions == (5, 7)
    assert Part("a").rank == 0 and Part("a").positions == ()
    assert Part("a", info=LayerInfo(shape=(2, 3, 5))).positions == ()


# What is good


def test_a_layer_that_is_called_twice_is_not_good():
    net = Net(lambda net, x: net.head(net.twice(net.twice(net.once(x)))), once=linear(), twice=linear(), head=linear())
    assert good(net) == ["once", "head"]


def test_a_layer_without_a_feature_or_with_an_unknown_layout_is_not_good():
    integers = Net(lambda net, x: x.long())
    vector = Net(lambda net, x: x.mean(0))
    unknown = Net(lambda net, x: x.view(1, 3, 1, 2, 2, 1))

    def run(net, x):
        x = net.a(x)
        return net.head(x + net.integers(x) + net.vector(x) + net.unknown(x).sum())

    assert good(Net(run, a=linear(), integers=integers, vector=vector, unknown=unknown, head=linear())) == ["a", "head"]


def test_a_layer_whose_feature_is_thrown_away_is_not_good():
    net = Net(lambda net, x: (net.away(net.before(x)), net.b(net.a(x)))[1], away=linear(), before=linears())
    net.a, net.b = linear(), linear()
    assert good(net) == ["a", "b"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_not_good_where_gradients_are_off_either(mode):
    net = Net(lambda net, x: (net.away(x), net.b(net.a(x)))[1], away=linear(), a=linear(), b=linear())
    with mode():
        assert good(net) == ["a", "b"]


def test_it_is_not_good_beside_features_and_outputs_without_gradients_either():
    def run(net, x):
        net.away(x)
        with torch.no_grad():
            x = net.a(x)
        return net.b(x), x.argmax(1)

    assert good(Net(run, away=linear(), a=linear(), b=linear())) == ["a", "b"]


def test_it_is_not_good_in_a_network_of_complex_output_either():
    net = Net(lambda net, x: (net.away(x), torch.fft.fft(net.a(x)))[1], away=linear(), a=linear())
    assert good(net) == ["a"]


def test_a_layer_whose_use_gradients_cannot_tell_counts_as_used():
    def a_without(net, x):
        with torch.no_grad():
            return net.a(x)

    runs = {
        "without gradients": lambda net, x: net.b(a_without(net, x)),
        "an output without gradients": lambda net, x: net.b(net.a(x)).argmax(1),
        "both": lambda net, x: net.b(a_without(net, x)).argmax(1),
        "what gradients need is overwritten": lambda net, x: net.b(net.a(x)).sigmoid().add_(1),
        "both of these": lambda net, x: net.b(a_without(net, x)).sigmoid().add_(1),
    }
    for name, run in runs.items():
        assert good(Net(run, a=linear(), b=linear())) == ["a", "b"], name
        assert good(Net(run, a=linear(), b=linear()).requires_grad_(False)) == ["a", "b"], name


def test_a_layer_that_returns_its_input_is_good():
    net = Net(lambda net, x: net.b(net.same(net.a(x))), a=linear(), same=nn.Identity(), b=linear())
    assert good(net) == ["a", "same", "b"]


def test_the_layers_whose_output_the_network_returns_are_known():
    net = Net(lambda net, x: (y := net.body(x), {"b": net.head(y)}), body=linears(), head=linear())
    assert returned(net) == ["body", "head"]
    assert returned(Net(lambda net, x: net.head(net.body(x)).relu(), body=linears(), head=linear())) == []
    pair = Net(lambda net, x: (net.a(x), net.b(x)), a=linear(), b=linear())
    assert returned(Net(lambda net, x: net.head(net.pair(x)[1]) + 1, pair=pair, head=linear())) == []
    assert returned(Net(lambda net, x: net.head(net.pair(x)[0]), pair=pair, head=nn.Identity())) == ["head"]
    assert returned(Net(lambda net, x: net.pair(x)[1], pair=pair)) == ["pair"]


# The batch size


FRAMES = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))


def test_features_of_another_number_of_samples_are_not_good():
    net = Net(lambda net, x: net.c(net.b(net.a(x)).mean(0, keepdim=True) + x), a=linear(), b=linear(), c=linear())
    assert good(net) == ["a", "b", "c"]
    net.b, net.run = linear(), lambda net, x: net.c(net.a(x) + net.b(x.mean(0, keepdim=True)))
    assert good(net) == ["a", "c"]


def test_the_batch_size_is_that_of_the_first_input_with_axes():
    net = Net(lambda net, scale, x, y: net.b(net.a(x) * scale) + net.c(y).mean(0), a=linear(), b=linear(), c=linear())
    assert good(net, torch.tensor(2.0), ROWS, torch.ones(5, 4)) == ["a", "b"]


def test_it_is_that_of_most_inner_layers_if_none_has_that_of_the_input():
    def run(net, frames):
        x = net.b(net.a(net.summary(frames.mean(0))[:1] + frames.flatten(0, 1)))
        return net.head(x.unflatten(0, (6, 2)).mean(1))  # has the batch of the input, as the only layer

    net = Net(run, summary=linear(), a=linear(), b=linear(), head=linear())
    assert good(net, FRAMES) == ["a", "b"]


def test_a_single_inner_layer_with_the_batch_size_of_the_input_decides():
    def run(net, x):
        pixels = net.b(net.a(x.repeat(5, 1)))
        return net.head(net.c(x) + pixels.view(5, 3, 4).sum(0)) + 1

    assert good(Net(run, a=linear(), b=linear(), c=linear(), head=nn.Identity())) == ["c", "head"]


def test_it_does_not_matter_in_a_network_without_tensors_or_inner_features():
    assert good(Net(lambda net, count: net.a(torch.ones(count, 4)), a=linear()), 3) == ["a"]
    assert good(Net(lambda net, count: net.b(net.a(torch.ones(count, 4))), a=linear(), b=linear()), 3) == ["a", "b"]


# Which of several tensors


def several(run, **layers):
    """A network whose layer `several` returns what `run` does, and uses the item 1 of it."""
    inner = Net(run, **layers)
    return Net(lambda net, x: net.head(net.several(net.a(x))[1]), a=linear(), several=inner, head=linear())


def test_of_several_features_the_first_one_that_is_used_is_selected():
    net = several(lambda net, x: (net.p(x), net.q(x)), p=linear(3), q=linear())
    found = parts(net)
    assert {name: part.select for name, part in found.items() if part.select is not None} == {"several": 1}
    assert found["several"].info.shape == (3, 4) and found["several"].good
    assert selects(several(lambda net, x: (x[0], net.q(x), x.long()), q=linear()))["several"] is None  # one feature


def test_a_feature_that_is_used_inside_alone_is_not_the_one_that_is_used():
    assert selects(several(lambda net, x: ((y := net.p(x)), net.q(y)), p=linear(), q=linear()))["several"] == 1


@pytest.mark.parametrize(
    "pack, unpack, select",
    [
        (lambda p, q: {"p": p, "q": q}, lambda out: out["q"], "q"),
        (lambda p, q: {"p": p, "q": (q, q + 1)}, lambda out: out["q"][1], ("q", 1)),
        (lambda p, q: (p, q), lambda out: sum(out), None),
        (lambda p, q: (p, [q]), lambda out: out[0] + out[1][0], None),
        (lambda p, q: ([p, q],), lambda out: sum(out[0]), (0, 0)),
        (lambda p, q: (p, q), lambda out: 0 * torch.ones(3, 4), None),
        (lambda p, q: (p.mT, q.mT.mT), lambda out: out[0].mT + out[1], None),
        (lambda p, q: (p[:2], q), lambda out: out[0].sum() + out[1], 1),
        (lambda p, q: (p[:2], q[:2]), lambda out: out[0].sum() + out[1].sum() + torch.ones(3, 4), None),
        (lambda p, q: (q,), lambda out: out[0], None),
        (lambda p, q: (7, p.long()), lambda out: out[1].float(), None),
    ],
    ids=[
        *["key", "path", "both", "one deeper", "both deeper", "none", "transposed", "of all samples"],
        *["neither of all", "one", "no feature"],
    ],
)
def test_selects(pack, unpack, select):
    inner = Net(lambda net, x: pack(net.p(x), net.q(x)), p=linear(), q=linear())
    net = Net(lambda net, x: net.head(unpack(net.inner(x))), inner=inner, head=linear())
    assert selects(net)["inner"] == select


def test_tensors_that_a_layer_was_given_are_not_selected():
    def passing(net, x, skip):
        return skip, net.p(x)

    inner = Net(passing, p=linear())
    net = Net(lambda net, x: sum(net.inner(net.a(x), net.b(x))), a=linear(), b=linear(), inner=inner)
    assert selects(net)["inner"] == 1
    net = Net(lambda net, x: sum(net.inner(net.a(x), skip=x)), a=linear(), inner=inner)
    assert selects(net)["inner"] == 1


# The network itself


def test_the_network_and_its_inputs_are_unchanged():
    def run(net, x):
        return net.norm(net.drop(net.a(x.add_(1))))

    net, x = Net(run, a=linear(), drop=nn.Dropout(), norm=nn.BatchNorm1d(4)), ROWS.clone()
    before, state = snapshot(net), torch.get_rng_state()
    record(net, Inputs((x,)))
    assert_unchanged(net, before)
    assert_same(x, ROWS)
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())


def test_errors_of_the_network_say_how_it_was_called():
    with pytest.raises(RuntimeError) as found:
        record(linear(), Inputs((torch.ones(2, 3),)))
    assert "dry run" in getattr(found.value, "__notes__", ["dry run"])[0]
