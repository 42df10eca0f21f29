"""What `Alignment` measures, and what it says of it."""

import warnings

import pytest
import torch
from torch import nn

from auxnas_layers import Alignment, AuxiliaryWarning, AuxNAS, AuxNASWrapper, SearchError


def aligned(*cosines: float) -> Alignment:
    """Of a net of two weights and losses whose gradients have these cosines."""
    weights = nn.Parameter(torch.ones(2))
    alignment = Alignment([weights])
    for cosine in cosines:
        direction = torch.tensor([cosine, (1 - cosine**2) ** 0.5])
        alignment.measure(3 * weights[0], {"labels": (weights * direction).sum()})
    return alignment


def test_the_cosine_is_that_of_both_gradients():
    torch.testing.assert_close(aligned(0.3, -0.8, 1.0).cosines["labels"], [0.3, -0.8, 1.0])


def test_evidence_is_the_mean_and_its_standard_error():
    average, error = aligned(*[0.1, 0.3] * 8).evidence("labels")
    assert average == pytest.approx(0.2)
    assert error == pytest.approx(0.1 * (16 / 15) ** 0.5 / 4)


@pytest.mark.parametrize(
    "cosines, helps", [([0.1, 0.3] * 5, True), ([-0.2, 0.3] * 5, False), ([-0.3, -0.1] * 5, False), ([0.0] * 10, False)]
)
def test_it_warns_just_where_nothing_says_that_the_auxiliary_helps(cosines, helps):
    alignment = aligned(*cosines)
    assert alignment.helps("labels") is helps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alignment.check()
    assert [w.category for w in caught] == [AuxiliaryWarning] * (not helps)
    assert all("'labels' helps" in str(w.message) and "the primary trained alone" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)


def test_it_tells_a_true_auxiliary_from_noise():
    """Least squares: held-out samples, and an auxiliary task with the same or with random labels."""
    torch.manual_seed(0)
    truth = torch.randn(16, 1)
    for noise in (False, True):
        net = nn.Linear(16, 1)
        alignment = Alignment(net.parameters())
        for _ in range(30):
            held_out, inputs = torch.randn(2, 32, 16)
            targets = torch.randn(32, 1) if noise else inputs @ truth
            losses = [(net(x) - y).square().mean() for x, y in ((held_out, held_out @ truth), (inputs, targets))]
            if noise:
                losses[1] = (net(inputs) * torch.randn(32, 1)).mean()
            alignment.measure(*losses)
        assert alignment.helps() is not noise


def test_measuring_changes_nothing():
    nets = [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, n)) for n in (1, 3)]
    wrapper = AuxNASWrapper(*nets, ["0"], search=AuxNAS(), example_inputs=torch.ones(2, 4)).eval()
    state = {key: value.clone() for key, value in wrapper.state_dict().items() if isinstance(value, torch.Tensor)}
    alignment = Alignment(wrapper.primary_net.parameters())
    aux_loss = wrapper(torch.randn(6, 4)).aux.square().mean()
    alignment.measure(wrapper.primary_net(torch.randn(6, 4)).square().mean(), aux_loss)
    aux_loss.backward()  # its graph is still there
    assert all(p.grad is None for p in nets[0][2].parameters())
    assert all(torch.equal(state[key], value) for key, value in wrapper.state_dict().items() if key in state)
    assert -1 <= alignment.cosines["aux"][0] <= 1


def test_frozen_parameters_do_not_count():
    net = nn.Linear(4, 1)
    net.bias.requires_grad_(False)
    alignment = Alignment(net.parameters())
    alignment.measure(net(torch.ones(1, 4)).sum(), net(torch.ones(1, 4)).sum())
    assert alignment.cosines["aux"] == [pytest.approx(1.0)]


def test_what_is_wrong_is_said():
    with pytest.raises(SearchError, match="no parameter requires gradients"):
        Alignment(nn.Linear(4, 1).requires_grad_(False).parameters())
    net, other = nn.Linear(4, 1), nn.Linear(4, 1)
    alignment, x = Alignment(net.parameters()), torch.ones(2, 4)
    with pytest.raises(SearchError, match="primary_loss has no gradient: compute it outside"):
        alignment.measure(net(x).sum().detach(), net(x).sum())
    with pytest.raises(SearchError, match="aux does not depend on the primary's parameters: give those of"):
        alignment.measure(net(x).sum(), other(x).sum())
    assert not alignment.cosines
    with pytest.raises(SearchError, match="0 measurements of 'aux'; measure at least 10 times"):
        alignment.helps()
    for _ in range(9):
        alignment.measure(net(x).sum(), net(x).sum())
    with pytest.raises(SearchError, match="9 measurements of 'aux'"):
        alignment.check()
    assert repr(alignment) == "Alignment(aux: +1.000 over 9)"
