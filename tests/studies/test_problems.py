"""What a run asks of a data set, for every one of the studies; nothing is downloaded or rendered."""

import pytest
import torch
from problems import KNOWN
from torch import nn

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper


@pytest.fixture(scope="module", params=KNOWN.values(), ids=lambda problem: problem.name)
def problem(request):
    return request.param


@pytest.fixture(scope="module")
def splits(problem):
    return problem.load(True)


@pytest.fixture
def batch(splits):
    return {key: values[:6] for key, values in splits["train"].items()}


def test_splits_have_the_same_keys_types_and_shapes(problem, splits):
    assert list(splits) == ["train", "validation", "test"]
    kinds = [{key: (t.dtype, t.shape[1:]) for key, t in part.items()} for part in splits.values()]
    assert kinds[0] == kinds[1] == kinds[2] and set(kinds[0]) == {"input", "primary", *problem.auxes}
    assert all(len({len(t) for t in part.values()}) == 1 for part in splits.values())


def test_losses_and_errors_take_what_the_networks_give(problem, batch):
    batch = problem.augment(batch, torch.Generator())
    outputs = problem.net()(batch["input"])
    assert problem.loss(outputs, batch["primary"]).shape == ()
    errors = problem.errors(outputs, batch["primary"])
    assert errors.shape == (6,) and (errors >= 0).all() and errors.isfinite().all()
    for name, aux in problem.auxes.items():
        loss = aux.loss(aux.net()(batch["input"]), batch[name])
        assert loss.shape == () and loss.isfinite()


def test_a_network_is_its_head_on_its_features_and_heads_can_be_exchanged(problem, batch):
    net = problem.net().eval()
    features = net.features(batch["input"])
    assert torch.equal(net.predict(features), net(batch["input"]))
    for aux in problem.auxes.values():
        other = aux.net().eval()
        own = other(batch["input"])
        assert torch.equal(other.predict(other.features(batch["input"])), own)
        assert other.predict(features).shape == own.shape


@pytest.mark.parametrize("light", [False, True], ids=["networks", "heads"])
def test_auxiliaries_train_the_primary_and_are_taken_out(problem, batch, light):
    nets = {name: (aux.head[0] if light else aux.net)() for name, aux in problem.auxes.items()}
    taps = {name: aux.head[1] if light else aux.taps for name, aux in problem.auxes.items()}
    search = AuxG() if light else AuxNAS()
    primary = problem.net()
    for module in primary.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's ResNet starts its branches at zero, through which no gradient comes
    wrapper = AuxNASWrapper(primary, nets, taps, search=search, example_inputs=batch["input"][:1])
    outputs = wrapper(batch["input"]).aux
    for name, aux in problem.auxes.items():
        heard = taps[name][0] if isinstance(taps[name][0], str) else taps[name][0][0]
        weights = [next(primary.parameters()), *primary.get_submodule(heard).parameters()]
        gradients = torch.autograd.grad(aux.loss(outputs[name], batch[name]), weights, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    wrapper.close_aux_to_primary_()
    served = wrapper.eval().export_primary()
    assert wrapper.export_report.exact and torch.equal(served(batch["input"]), primary.eval()(batch["input"]))
