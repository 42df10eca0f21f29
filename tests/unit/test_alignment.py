"""What `Alignment` measures, and what it says of it."""

import copy
import warnings

import pytest
import torch
from mlps import Noisy
from torch import nn

from auxnas_layers import Alignment, AuxiliaryWarning, AuxNAS, AuxNASWrapper, SearchError, explained_loss


def wrap(primary: nn.Module | None = None) -> AuxNASWrapper:
    nets = [nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)) for _ in range(2)]
    return AuxNASWrapper(primary or nets[0], nets[1], ["0"], search=AuxNAS(), example_inputs=torch.ones(2, 2))


def aligned(*cosines: float) -> Alignment:
    """Losses whose gradients have these cosines."""
    wrapper = wrap()
    alignment = Alignment(wrapper)
    weight = wrapper.primary_net[0].weight
    for cosine in cosines:
        direction = torch.tensor([[cosine, (1 - cosine**2) ** 0.5], [0.0, 0.0]])
        alignment.measure(lambda: 3 * weight[0, 0], lambda d=direction: {"aux": (weight * d).sum()})
    return alignment


def test_the_cosine_is_that_of_both_gradients():
    torch.testing.assert_close(aligned(0.3, -0.8, 1.0).cosines["aux"], [0.3, -0.8, 1.0])


def test_evidence_is_the_mean_and_its_standard_error():
    average, error = aligned(*[0.1, 0.3] * 8).evidence()
    assert average == pytest.approx(0.2)
    assert error == pytest.approx(0.1 * (16 / 15) ** 0.5 / 4)


@pytest.mark.parametrize(
    "cosines, helps",
    [
        ([0.1, 0.3] * 5, True),
        ([-0.2, 0.3] * 5, False),
        ([-0.16, 0.3] * 5, False),  # 0.07 +- 0.077
        ([-0.14, 0.3] * 5, True),  # 0.08 +- 0.073
        ([-0.3, -0.1] * 5, False),
        ([0.0] * 10, False),
    ],
)
def test_it_warns_just_where_nothing_says_that_the_auxiliary_helps(cosines, helps):
    alignment = aligned(*cosines)
    assert alignment.helps() is helps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alignment.check()
    assert [w.category for w in caught] == [AuxiliaryWarning] * (not helps)
    assert all("'aux' helps" in str(w.message) and "the primary trained alone" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)


@pytest.mark.parametrize("noise", [False, True])
def test_it_tells_a_true_auxiliary_from_noise(noise):
    """Least squares on held-out samples, and an auxiliary task with the same or with random labels."""
    torch.manual_seed(0)
    truth, net = torch.randn(16, 1), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))
    wrapper = AuxNASWrapper(net, copy.deepcopy(net), ["0"], example_inputs=torch.ones(2, 16))
    alignment = Alignment(wrapper)
    for _ in range(40):
        held_out, inputs = torch.randn(2, 64, 16)
        labels = torch.randn(64, 1) if noise else inputs @ truth
        alignment.measure(
            lambda: (wrapper.primary_net(held_out) - held_out @ truth).square().mean(),
            lambda: -(wrapper(inputs).aux * labels).mean(),
        )
    average, error = alignment.evidence()
    assert average < 2 * error if noise else alignment.helps() and average > 5 * error


def test_measuring_leaves_no_trace():
    net = Noisy()
    wrapper = AuxNASWrapper(net, Noisy(), ["first", "norm"], example_inputs=torch.ones(2, 2))
    wrapper.aux_net.norm.eval()  # as frozen norms are
    wrapper(torch.randn(6, 2)).primary.sum().backward()
    state = {key: value.clone() for key, value in wrapper.state_dict().items() if isinstance(value, torch.Tensor)}
    flags = {module: module.training for module in wrapper.modules()}
    grads = {key: None if p.grad is None else p.grad.clone() for key, p in wrapper.named_parameters()}
    random, modes = torch.get_rng_state(), []

    def primary_loss():
        modes.append((net.norm.training, wrapper.aux_net.norm.training))
        return wrapper.primary_net(torch.randn(6, 2)).square().mean()

    with torch.no_grad():
        Alignment(wrapper).measure(primary_loss, lambda: wrapper(torch.randn(6, 2)).aux.square().mean())
    assert modes == [(True, False)] and {module: module.training for module in wrapper.modules()} == flags
    assert all(torch.equal(state[key], value) for key, value in wrapper.state_dict().items() if key in state)
    for key, parameter in wrapper.named_parameters():
        assert (parameter.grad is None) == (grads[key] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, grads[key])
    assert torch.equal(torch.get_rng_state(), random)


def test_an_exception_from_a_loss_leaves_no_trace_either():
    wrapper = AuxNASWrapper(Noisy(), Noisy(), ["first"], example_inputs=torch.ones(2, 2))
    alignment, mean = Alignment(wrapper), wrapper.primary_net.norm.running_mean.clone()
    with pytest.raises(KeyError):
        alignment.measure(lambda: wrapper.primary_net(torch.randn(4, 2)).sum(), lambda: {}["missing"])
    assert torch.equal(wrapper.primary_net.norm.running_mean, mean) and not alignment.cosines


def test_frozen_parameters_do_not_count():
    wrapper = wrap()
    weight, bias = wrapper.primary_net[0].weight, wrapper.primary_net[0].bias.requires_grad_(False)
    alignment = Alignment(wrapper)
    alignment.measure(lambda: weight.sum() + bias.sum(), lambda: weight.sum() - bias.sum())
    assert alignment.cosines["aux"] == [pytest.approx(1.0)]


def test_what_is_wrong_is_said():
    wrapper = wrap()
    alignment, x = Alignment(wrapper), torch.ones(2, 2)
    loss = wrapper.primary_net(x).sum()
    with pytest.raises(
        SearchError,
        match=r"no parameter of the primary requires gradients, .*, as by wrapper.primary_net.requires_grad_\(\)",
    ):
        Alignment(wrap(nn.Sequential(nn.Linear(2, 2)).requires_grad_(False))).measure(lambda: loss, lambda: loss)
    with pytest.raises(SearchError, match="the wrapper is in eval mode; measure in train mode"):
        Alignment(wrap().eval()).measure(lambda: loss, lambda: loss)
    with pytest.raises(SearchError, match="the gradient of aux is not finite"):
        alignment.measure(lambda: loss, lambda: (0 * wrapper.primary_net(x)).sqrt().sum())
    with pytest.raises(SearchError, match="primary_loss is nan; check the loss and the labels"):
        alignment.measure(
            lambda: nn.functional.cross_entropy(wrapper.primary_net(x), torch.tensor([-100, -100])), lambda: loss
        )
    with pytest.raises(SearchError, match="primary_loss has no gradient; compute it anew at each call, outside"):
        alignment.measure(lambda: loss.detach(), lambda: loss)
    other = nn.Linear(2, 1)
    with pytest.raises(SearchError, match="aux does not depend on the primary: compute it from the wrapper's own"):
        alignment.measure(lambda: loss, lambda: other(x).sum())
    assert not alignment.cosines
    with pytest.raises(SearchError, match="0 measurements of 'aux'; measure at least 10 times"):
        alignment.helps()
    with pytest.raises(SearchError, match="0 measurements of 'aux'"):
        alignment.check()
    for _ in range(9):
        alignment.measure(lambda: loss, lambda: loss)
    with pytest.raises(SearchError, match="9 measurements of 'aux'"):
        alignment.check()
    assert repr(alignment) == "Alignment(aux: +1.000 over 9)"


def test_a_measurement_reads_its_device_once(monkeypatch):
    reads = []
    monkeypatch.setattr("auxnas_layers.alignment.numbers", lambda tensor: reads.append(1) or tensor.tolist())
    monkeypatch.setattr(torch.Tensor, "item", None)
    monkeypatch.setattr(torch.Tensor, "__bool__", None)
    wrapper = wrap()
    alignment, x = Alignment(wrapper), torch.ones(2, 2)
    loss = wrapper.primary_net(x).sum()
    alignment.measure(lambda: loss, lambda: {"aux": loss})
    assert reads == [1] and alignment.cosines == {"aux": [pytest.approx(1.0)]}


def pair() -> AuxNASWrapper:
    nets = {name: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)) for name in "pab"}
    primary, taps = nets.pop("p"), {name: ["0"] for name in "ab"}
    return AuxNASWrapper(primary, nets, taps, example_inputs=torch.ones(2, 2))


@pytest.mark.parametrize(
    "bad, found",
    [
        (lambda loss: loss, "one loss"),
        (lambda loss: {"A": loss}, "losses of ['A']"),
        (lambda loss: {"a": loss, "c": loss}, "losses of ['a', 'c']"),
        (lambda loss: {}, "losses of []"),
    ],
)
def test_losses_are_named_as_the_auxiliaries_are(bad, found):
    wrapper = pair()
    alignment, loss = Alignment(wrapper), wrapper(torch.ones(2, 2)).primary.sum()
    with pytest.raises(SearchError) as caught:
        alignment.measure(lambda: loss, lambda: bad(loss))
    assert str(caught.value) == f"aux_loss gives a mapping from names among ['a', 'b'] to losses; found {found}"
    assert not alignment.cosines
    alignment.measure(lambda: loss, lambda: {"a": loss})
    with pytest.raises(
        SearchError, match=r"^0 measurements of 'aux', and others of \['a'\]; measure at least 10 times"
    ):
        alignment.helps()


def test_an_auxiliary_that_has_been_removed_is_not_asked_for():
    wrapper = pair()
    alignment = Alignment(wrapper)
    for step in range(15):
        if step == 5:
            wrapper.remove_aux_("b", allow_open=True)
        loss = wrapper(torch.ones(2, 2)).primary.sum()
        alignment.measure(lambda: loss, lambda: dict.fromkeys("ab" if step < 5 else "a", loss))
    alignment.check()
    assert len(alignment.cosines["b"]) == 5


def test_a_module_with_a_head_for_each_task_will_do():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.heads = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 1) for _ in range(2)])
            self.primary_net = nn.Sequential(self.backbone, self.heads[0])

    net, x = Heads(), torch.randn(4, 2)
    alignment = Alignment(net)
    for _ in range(10):
        labels = net.primary_net(x).sum()
        alignment.measure(lambda: labels, lambda: {"any name": net.heads[0](net.backbone(x)).sum()})
    alignment.check()
    assert alignment.helps("any name")


def test_sparse_gradients_are_as_good_as_dense_ones():
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))
    wrapper = AuxNASWrapper(net, copy.deepcopy(net), ["2"], example_inputs=torch.zeros(4, 3, dtype=torch.long))
    alignment, x = Alignment(wrapper), torch.randint(10, (4, 3))
    alignment.measure(lambda: wrapper.primary_net(x).sum(), lambda: wrapper.primary_net(x).sum())
    assert alignment.cosines["aux"] == [pytest.approx(1.0)]


def test_gradients_of_complex_parameters_have_two_parts():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, dtype=torch.cfloat))

    net = nn.Module()
    net.primary_net = Spectral()
    alignment, weight = Alignment(net), net.primary_net.weight
    alignment.measure(lambda: (weight.real + 3 * weight.imag).sum(), lambda: (weight.real - 3 * weight.imag).sum())
    assert alignment.cosines["aux"] == [pytest.approx(-0.8)]


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e20])
def test_the_unit_of_a_loss_does_not_count(scale):
    wrapper = wrap()
    alignment, weight = Alignment(wrapper), wrapper.primary_net[0].weight
    direction = torch.tensor([[0.3, 0.91**0.5], [0.0, 0.0]])
    alignment.measure(lambda: scale * weight[0, 0], lambda: scale * (weight * direction).sum())
    assert alignment.cosines["aux"] == [pytest.approx(0.3)]


def test_several_losses_may_come_from_one_forward():
    net, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(2, 2)
    wrapper = AuxNASWrapper(
        net, {"a": copy.deepcopy(net), "b": copy.deepcopy(net)}, {"a": ["0"], "b": ["0"]}, example_inputs=x
    )
    alignment = Alignment(wrapper)
    alignment.measure(
        lambda: wrapper.primary_net(x).sum(), lambda: {k: v.square().sum() for k, v in wrapper(x).aux.items()}
    )
    assert set(alignment.cosines) == {"a", "b"}


@pytest.mark.parametrize("noise", [False, True])
def test_an_auxiliary_is_learned_if_its_labels_can_be_predicted(noise):
    torch.manual_seed(0)
    train, held_out, truth, net = torch.randn(64, 8), torch.randn(256, 8), torch.randn(8, 3), nn.Linear(8, 3)
    labels = (train @ truth).argmax(1)
    labels = labels[torch.randperm(64)] if noise else labels
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(train), labels).backward()
        optimiser.step()
    share = explained_loss(nn.functional.cross_entropy, net(held_out), (held_out @ truth).argmax(1))
    assert abs(share) < 0.1 if noise else share > 0.5


def test_the_share_is_that_of_the_loss_with_the_labels_of_others():
    outputs, labels = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 5.0])
    others = torch.tensor([2.0, 3.0, 5.0, 1.0])  # three further
    wanted = 1 - (outputs - labels).abs().mean() / (outputs - others).abs().mean()
    assert explained_loss(nn.functional.l1_loss, outputs.requires_grad_(), labels) == pytest.approx(wanted.item())
    assert explained_loss(nn.functional.l1_loss, torch.ones(4), torch.ones(4)) == 0  # nothing to tell apart
    with pytest.raises(SearchError, match="1 samples have no labels of others"):
        explained_loss(nn.functional.l1_loss, outputs[:1], labels[:1])
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(
            SearchError, match=f"explained_loss takes losses that are finite and not negative; found {bad}; check"
        ):
            explained_loss(lambda _, chosen: torch.tensor(2.0 if chosen is labels else bad), outputs, labels)


@pytest.mark.parametrize("classes, samples", [(2, 4), (10, 100), (3, 9), (2, 2)])
def test_labels_that_come_in_turn_are_not_compared_with_themselves(classes, samples):
    labels = torch.arange(classes).repeat(samples // classes)
    outputs = 9 * nn.functional.one_hot(labels, classes).float()
    assert explained_loss(nn.functional.cross_entropy, outputs, labels) > 0.9
