"""How networks are called on trial: with copies of whatever inputs there are, and with errors that say how."""

import sys
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from auxnas_layers import AuxNASWrapper, ExportError, Inputs, list_taps, suggest_taps


class Pair(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True)
class Sample:
    x: Tensor


def mlp(out=1, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, out))


class Doubles(nn.Module):
    """Takes its tensor out of a container, and changes it in place."""

    def __init__(self, take=lambda x: x, out=1):
        super().__init__()
        self.a, self.b, self.take = nn.Linear(4, 8), nn.Linear(8, out), take

    def forward(self, batch):
        return self.b(self.a(self.take(batch).mul_(2.0)))


BOXES = {
    "tensor": (lambda x: x, lambda box: box),
    "list": (lambda x: [x], lambda box: box[0]),
    "dict": (lambda x: {"x": x}, lambda box: box["x"]),
    "ordered dict": (lambda x: OrderedDict(x=x), lambda box: box["x"]),
    "user dict": (lambda x: UserDict(x=x), lambda box: box["x"]),
    "named tuple": (lambda x: Pair(x, "a"), lambda box: box.x),
    "dataclass": (lambda x: Sample(x), lambda box: box.x),
    "nested": (lambda x: {"samples": [Pair(x, "a"), None]}, lambda box: box["samples"][0].x),
}


@pytest.mark.parametrize("kind", BOXES)
def test_trial_calls_change_no_tensor_in_any_container(kind):
    put, take = BOXES[kind]
    x = torch.ones(2, 4)
    primary, aux = Doubles(take), Doubles(take, 3)
    own = Inputs((put(x),), {"aux_inputs": (put(torch.ones(2, 4)),)})  # or the second would change what the first has
    list_taps(primary, put(x))
    suggest_taps(primary, aux, put(x))
    wrapper = AuxNASWrapper(primary, aux, ["a"], example_inputs=own)
    wrapper.cost(own)
    wrapper.close_aux_to_primary_()
    wrapper.export_primary(own)
    assert wrapper.export_report.exact
    wrapper.double().export_primary()  # those of the construction, in double precision
    assert wrapper.export_report.exact
    assert torch.equal(x, torch.ones(2, 4))


def test_what_a_container_holds_beside_tensors_is_passed_as_it_is():
    thing = object()
    copied = Inputs((Pair(torch.ones(1), thing), [thing]), {"more": {"thing": thing}}).copied()
    assert copied.args[0].name is copied.args[1][0] is copied.kwargs["more"]["thing"] is thing
    holds_itself = [torch.ones(1)]
    holds_itself.append(holds_itself)
    assert torch.equal(Inputs((holds_itself,)).copied().args[0][0], torch.ones(1))


def test_inputs_made_in_inference_mode_will_do():
    with torch.inference_mode():
        x = torch.randn(2, 4)
    wrapper = AuxNASWrapper(mlp(), mlp(3), ["0"], example_inputs=x)
    assert str(suggest_taps(mlp(), mlp(3), x)) and wrapper.cost(x).primary.flops
    wrapper.close_aux_to_primary_()
    wrapper.export_primary(x)
    assert wrapper.export_report.exact


def test_networks_of_two_precisions_are_exported_with_the_inputs_that_they_were_given():
    x = torch.randn(2, 4)
    example = Inputs((x.double(),), {"aux_inputs": (x,)})
    wrapper = AuxNASWrapper(mlp().double(), mlp(3), ["0"], example_inputs=example)
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact
    wrapper.bfloat16().export_primary()
    assert wrapper.export_report.exact


def test_inputs_of_another_dtype_than_the_network_stay_so():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            assert x.dtype == torch.float64
            return self.b(self.a(x.to(self.a.weight.dtype)))

    wrapper = AuxNASWrapper(Casts(), Casts(), ["a"], example_inputs=torch.randn(2, 4).double())
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact


def test_a_network_may_be_empty_by_its_length():
    class Empty(nn.Sequential):
        def __len__(self):
            return 0

    wrapper = AuxNASWrapper(Empty(*mlp()), mlp(3), ["0"], example_inputs=torch.randn(2, 4)).double()
    wrapper.close_aux_to_primary_()
    wrapper.export_primary()
    assert wrapper.export_report.exact


def test_cost_takes_keyword_arguments_or_what_the_wrapper_was_made_with():
    class Named(nn.Module):
        def __init__(self, out=1):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, out)

        def forward(self, *, x, scale=1.0):
            return self.b(self.a(x * scale))

    x = torch.randn(2, 4)
    wrapper = AuxNASWrapper(Named(), Named(3), ["a"], example_inputs=Inputs((), {"x": x}))
    assert wrapper.cost() == wrapper.cost(x=x) == wrapper.cost(Inputs((), {"x": x}))
    assert wrapper.cost(x=x, aux_inputs=Inputs((), {"x": x, "scale": 2.0})) == wrapper.cost()
    assert AuxNASWrapper(Named(), Named(3), ["a"]).cost(x=x).primary == wrapper.cost().primary


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    "example, found",
    [
        ({"x": torch.ones(2, 4)}, "Sequential(dict)"),
        ([torch.ones(2, 4)], "Sequential(list)"),
        ((torch.ones(2, 4), torch.ones(2)), "Sequential(Tensor(2, 4), Tensor(2,))"),
        (Inputs((), {"x": torch.ones(2, 4)}), "Sequential(x=Tensor(2, 4))"),
    ],
)
def test_an_error_in_a_trial_call_says_what_was_called_and_how_to_write_inputs(example, found):
    wrapper = AuxNASWrapper(mlp(), mlp(3), ["0"], example_inputs=torch.ones(2, 4))
    wrapper.close_aux_to_primary_()
    for call in (
        lambda: AuxNASWrapper(mlp(), mlp(3), ["0"], example_inputs=example),
        lambda: suggest_taps(mlp(), mlp(3), *(example if isinstance(example, tuple) else (example,))),
        lambda: wrapper.cost(*(example if isinstance(example, tuple) else (example,))),
        lambda: wrapper.export_primary(example),
    ):
        with pytest.raises((TypeError, AttributeError)) as caught:
            call()
        note = f"auxnas_layers called {found} on trial. Example inputs are a tensor, a tuple of positional arguments"
        said = caught.value.__notes__[0].replace("AuxNASWrapper(", "Sequential(")
        assert note in said and "go to a wrapper as 'aux_inputs': (y,)" in said


@pytest.mark.parametrize(
    "output, difference",
    [
        (lambda x, more: torch.complex(x, x + 0.5 * more), 0.5),
        (lambda x, more: (2**60 + more * torch.ones(1)).long() + more, None),
        (lambda x, more: x.double() * 0 + more * 5e-324, 5e-324),
        (lambda x, more: torch.stack([x * 0, x / (1 - more)]), float("inf")),
    ],
    ids=["complex", "large integers", "tiny", "infinite"],
)
def test_outputs_that_differ_never_pass_for_equal(output, difference):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.more = nn.Linear(4, 4), 0

        def __deepcopy__(self, memo):
            copied = Returns()
            copied.load_state_dict(self.state_dict())
            copied.more = 1  # a copy that is not the network
            return copied

        def forward(self, x):
            self.a(x)
            return output(x[0, 0], self.more)

    wrapper = AuxNASWrapper(Returns(), mlp(3, 4), [("a", "0")], example_inputs=torch.ones(2, 4))
    wrapper.close_aux_to_primary_()
    with pytest.raises(ExportError, match="differs from the wrapper's primary output by") as caught:
        wrapper.export_primary()
    if difference is not None:
        assert str(caught.value).endswith(f"{difference:g}")


def test_what_a_network_adds_to_its_arguments_stays_in_the_trial():
    class Logs(nn.Module):
        def __init__(self, out=1):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, out)

        def forward(self, x, log, more):
            log.append("called")
            more["seen"][0] += 1
            return self.b(self.a(x))

    log, more = [], {"seen": [0]}
    AuxNASWrapper(Logs(), Logs(3), ["a"], example_inputs=(torch.randn(2, 4), log, more))
    assert log == [] and more == {"seen": [0]}


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
