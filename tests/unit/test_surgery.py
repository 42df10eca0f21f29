"""Gradients of each task, joined in the primary's parameters by an aggregator."""

import copy

import pytest
import torch
from helpers import gradients, refuses, stir_
from torch import nn
from zoo import Cnn

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, SearchError, surgery_backward

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu())


def wrap(primary=None, aux=None, search=None, **options):
    search = search or AuxNAS(aux_to_primary_start=0.5)
    wrapper = AuxNASWrapper(primary or Mlp(), aux or Mlp(), ["a", "b"], search=search, example_inputs=X, **options)
    stir_(wrapper)
    return wrapper


def losses_of(wrapper, x=X):
    out = wrapper(x)
    auxes = out.aux if isinstance(out.aux, dict) else {"aux": out.aux}
    return [out.primary.square().mean(), *(aux.sin().sum() for aux in auxes.values())]


def total(matrix):
    return matrix.sum(0)


def pcgrad(matrix):
    """PCGrad for two tasks, by hand: each gradient without its part against the other."""
    a, b = matrix
    dot = torch.dot(a, b)
    return a + b - (dot / b.dot(b) * b + dot / a.dot(a) * a if dot < 0 else 0)


def assert_same_gradients(found, expected, **tolerance):
    for name, gradient in gradients(expected).items():
        other = found.get_parameter(name).grad
        assert (other is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(other, gradient, msg=name, **tolerance)


def shared_parameters(wrapper):
    """Those of the primary that both losses reach: all but the head, which has no tap after it."""
    return [p for name, p in wrapper.primary_net.named_parameters() if not name.startswith("head")]


def two():
    wrapper = wrap()
    return wrapper, copy.deepcopy(wrapper)


def test_with_the_sum_it_is_plain_backward():
    found, expected = two()
    surgery_backward(found, losses_of(found), total, penalty=found.search_penalty(0.2))
    (sum(losses_of(expected)) + expected.search_penalty(0.2)).backward()
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_a_hand_computation_in_what_both_reach_and_plain_elsewhere(sign):
    found, expected = two()
    losses = losses_of(found)
    surgery_backward(found, [losses[0], sign * losses[1]], pcgrad)
    losses = losses_of(expected)
    (losses[0] + sign * losses[1]).backward(retain_graph=True)
    shared = shared_parameters(expected)
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in (losses[0], sign * losses[1])]
    joined = pcgrad(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))
    plain = torch.cat([p.grad.flatten() for p in shared])
    for parameter, gradient in zip(shared, joined.split([p.numel() for p in shared]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    assert_same_gradients(found, expected)
    conflict = torch.dot(*(torch.cat([g.flatten() for g in row]) for row in rows)) < 0
    assert torch.allclose(joined, plain) is not bool(conflict)


def test_one_of_the_signs_above_is_a_conflict():
    wrapper = wrap()
    shared = shared_parameters(wrapper)
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses_of(wrapper)]
    assert torch.dot(*(torch.cat([g.flatten() for g in row]) for row in rows)) != 0


def test_the_aggregator_gets_one_row_for_each_task_without_a_graph():
    wrapper, seen = wrap(), []
    losses = losses_of(wrapper)
    surgery_backward(wrapper, losses, lambda matrix: seen.append(matrix) or matrix.sum(0))
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()  # the graph is freed
    (matrix,) = seen
    assert matrix.shape == (2, sum(p.numel() for p in shared_parameters(wrapper)))
    assert not matrix.requires_grad and matrix.dtype == torch.float32


def test_several_auxiliaries_are_a_task_each():
    auxes = {"depth": Mlp(), "parts": Mlp()}
    taps = {"depth": ["a"], "parts": ["b"]}
    wrapper = AuxNASWrapper(Mlp(), auxes, taps, search={"depth": AuxG(), "parts": AuxNAS()}, example_inputs=X)
    stir_(wrapper)
    seen = []
    surgery_backward(wrapper, losses_of(wrapper), lambda matrix: seen.append(matrix) or matrix.sum(0))
    (matrix,) = seen
    assert matrix.shape[0] == 3
    assert not matrix[1, -wrapper.primary_net.b.weight.numel() :].any() and matrix[2].any()  # depth does not reach b


def test_it_adds_to_gradients_as_backward_does():
    found, expected = two()
    for x in (X, 2 * X):
        surgery_backward(found, losses_of(found, x), total, penalty=found.search_penalty(0.2))
        (sum(losses_of(expected, x)) + expected.search_penalty(0.2)).backward()
    assert_same_gradients(found, expected)
    bucket = found.primary_net.a.weight.grad
    surgery_backward(found, losses_of(found), total)
    assert found.primary_net.a.weight.grad is bucket  # in place, as views of a flat buffer need


def test_parameters_that_the_networks_share_are_the_primarys():
    primary, aux = Mlp(), Mlp()
    aux.b = primary.b
    wrapper = wrap(primary, aux, search=AuxG())
    losses = losses_of(wrapper)
    rows = [torch.autograd.grad(loss, primary.b.weight, retain_graph=True)[0] for loss in losses]
    surgery_backward(wrapper, losses, lambda matrix: matrix[0] - 2 * matrix[1])
    torch.testing.assert_close(aux.b.weight.grad, rows[0] - 2 * rows[1])


def test_parameters_without_a_gradient_keep_none():
    primary = Mlp()
    primary.unused, primary.a.bias.requires_grad = nn.Linear(2, 2), False
    wrapper = wrap(primary)
    surgery_backward(wrapper, losses_of(wrapper), total)
    assert primary.unused.weight.grad is None and primary.a.bias.grad is None and primary.head.bias.grad is not None


def test_without_anything_that_several_tasks_reach_it_is_plain_backward():
    def refuse(matrix):
        raise AssertionError("there is nothing to join")

    alone, expected = Mlp(), Mlp()
    expected.load_state_dict(alone.state_dict())
    model, twin = nn.ModuleDict({"primary_net": alone}), nn.ModuleDict({"primary_net": expected})
    surgery_backward(model, [alone(X).sum()], refuse)
    expected(X).sum().backward()
    assert_same_gradients(model, twin)


def test_parameters_outside_the_wrapper_get_their_gradients():
    """Such as the log-variances of uncertainty weighting."""
    found, expected = two()
    s, t = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    surgery_backward(found, [torch.exp(-v) * loss + v for v, loss in zip(s, losses_of(found), strict=True)], total)
    (torch.exp(-t) * torch.stack(losses_of(expected)) + t).sum().backward()
    assert_same_gradients(found, expected)
    torch.testing.assert_close(s.grad, t.grad)


@pytest.mark.parametrize("search", [AuxNAS(), AuxG(), MTLNAS()])
def test_every_search_has_a_penalty_to_give(search):
    wrapper = wrap(search=search)
    surgery_backward(wrapper, losses_of(wrapper), total, penalty=wrapper.search_penalty(0.3))
    assert all(p.grad is not None for p in wrapper.arch_parameters())


def test_layouts_and_precisions_are_those_of_the_parameters():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1", "layer2"], example_inputs=torch.ones(2, 3, 8, 8))
    wrapper = wrapper.to(memory_format=torch.channels_last).to(torch.bfloat16)
    out, seen = wrapper(torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)), []
    losses = [out.primary.square().mean(), out.aux.square().mean()]
    surgery_backward(wrapper, losses, lambda matrix: seen.append(matrix.dtype) or matrix.sum(0))
    assert seen == [torch.float32]  # products of rows may be out of the range of half precision
    for parameter in wrapper.primary_net.parameters():
        assert parameter.grad.dtype == torch.bfloat16 and parameter.grad.stride() == parameter.stride()


def test_complex_parameters_count_with_both_parts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5, dtype=torch.complex64), nn.Linear(5, 5)

        def forward(self, x):
            return self.b(self.a(x.to(torch.complex64)).abs())

    wrapper = AuxNASWrapper(Net(), Mlp(), [("b", "b")], search=AuxG(), example_inputs=X)
    expected = copy.deepcopy(wrapper)
    surgery_backward(wrapper, losses_of(wrapper), total)
    sum(losses_of(expected)).backward()
    assert_same_gradients(wrapper, expected)


def test_a_gradient_scaler_sees_overflow_and_skips_the_step():
    """The aggregator does not get what is not finite: some raise on it, some return zeros."""
    wrapper = wrap()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimiser = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    for factor, stepped in ((1.0, True), (float("inf"), False)):
        before = wrapper.primary_net.a.weight.detach().clone()
        optimiser.zero_grad()
        losses = [scaler.scale(factor * loss) for loss in losses_of(wrapper)]
        surgery_backward(
            wrapper, losses, lambda m: m.nan_to_num(0, 0, 0).sum(0), penalty=scaler.scale(wrapper.search_penalty(0.2))
        )
        scaler.step(optimiser)
        scaler.update()
        assert torch.equal(wrapper.primary_net.a.weight, before) is not stepped
        assert wrapper.primary_net.a.weight.grad.isfinite().all() == stepped


def test_scaled_losses_give_scaled_gradients():
    found, expected = two()
    surgery_backward(found, [1024 * loss for loss in losses_of(found)], pcgrad)
    surgery_backward(expected, losses_of(expected), pcgrad)
    for parameter in found.parameters():
        if parameter.grad is not None:
            parameter.grad /= 1024
    assert_same_gradients(found, expected)


def test_an_exception_keeps_the_primarys_gradients():
    wrapper = wrap()
    losses = losses_of(wrapper)
    losses[0].backward()  # frees the graph
    before = [p.grad.clone() for p in wrapper.primary_parameters()]
    with pytest.raises(RuntimeError, match="second time"):
        surgery_backward(wrapper, losses, total)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(wrapper.primary_parameters(), before, strict=True))


def test_what_is_wrong_is_said():
    wrapper = wrap()
    losses = losses_of(wrapper)
    constant = torch.ones(())
    refuses(
        SearchError,
        "losses[1] has no gradient; compute it from the outputs of the wrapper, outside torch.no_grad()",
        surgery_backward,
        wrapper,
        [losses[0], constant],
        total,
    )
    refuses(
        SearchError,
        "losses is a sequence of one loss for each task, the primary's first; found none",
        surgery_backward,
        wrapper,
        [],
        total,
    )
    refuses(
        SearchError,
        "surgery_backward takes the wrapper, or another module that has a primary_net; found a Linear. Where it is "
        "inside another one, as in DistributedDataParallel, give the inner one, ddp.module, and average gradients by "
        "hand",
        surgery_backward,
        nn.Linear(2, 2),
        losses,
        total,
    )
    count = sum(p.numel() for p in shared_parameters(wrapper))
    refuses(
        SearchError,
        f"an aggregator maps a matrix (tasks, parameters) to a vector (parameters,), here ({count},); found (2,)",
        surgery_backward,
        wrapper,
        losses,
        lambda matrix: matrix.sum(1),
    )
