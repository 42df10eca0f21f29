"""torch.func, over a wrapper."""

import pytest
import torch
from helpers import workers
from ways import IMAGES, X, backward, every_way, wrap
from zoo import Vit

from auxnas_layers import AuxG, AuxNASWrapper, FixedArchitecture


@every_way
def test_gradients_of_each_sample_add_up_to_those_of_the_batch(way):
    wrapper = wrap(way).eval()
    parameters = dict(wrapper.named_parameters())

    def loss(parameters, x):
        output = torch.func.functional_call(wrapper, parameters, (x[None],))
        return output.primary.sum() + output.aux.square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X)
    found = backward(wrapper, wrapper(X).primary.sum() + wrapper(X).aux.square().sum())
    for name, gradient in found.items():
        assert each[name].shape == (4, *parameters[name].shape)
        wanted = torch.zeros_like(parameters[name]) if gradient is None else gradient
        torch.testing.assert_close(each[name].sum(0), wanted, msg=name)


@every_way
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own jvp uses it
def test_forward_derivatives_agree_with_backward_ones(way):
    wrapper = wrap(way).eval()
    parameters = dict(wrapper.named_parameters())
    directions = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}

    def loss(parameters):
        output = torch.func.functional_call(wrapper, parameters, (X,))
        return output.primary.square().sum() + output.aux.sum()

    _, along = torch.func.jvp(loss, (parameters,), (directions,))
    found = backward(wrapper, loss(parameters))
    products = [(directions[name] * gradient).sum() for name, gradient in found.items() if gradient is not None]
    torch.testing.assert_close(along, torch.stack(products).sum())


@pytest.mark.parametrize("way", ["aux-nas", "mtl-nas"])
def test_transforms_over_searched_gates_in_training_are_refused(way):
    wrapper = wrap(way)
    parameters = dict(wrapper.named_parameters())
    for transform in (
        lambda: torch.func.grad(lambda x: wrapper(x).primary.sum())(X),
        lambda: torch.func.grad(lambda p: torch.func.functional_call(wrapper, p, (X,)).primary.sum())(parameters),
    ):
        with pytest.raises(RuntimeError, match="in-place operation"):
            transform()
    assert not workers()
    wrapper(X)


@every_way
@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="which edges are open is read by item() of gates")
def test_an_ensemble_of_wrappers_runs_in_one_call(way):
    ensemble = [wrap(way).eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(ensemble)
    found = torch.func.vmap(lambda p, b: torch.func.functional_call(ensemble[0], (p, b), (X,)))(parameters, buffers)
    for i, wrapper in enumerate(ensemble):
        torch.testing.assert_close(found.primary[i], wrapper(X).primary)


@pytest.mark.parametrize("search", [AuxG(), FixedArchitecture()], ids=["aux-g", "fixed"])
def test_transforms_of_torch_go_through_a_wrapper_in_training_whose_gates_are_fixed(search):
    wrapper = AuxNASWrapper(Vit(), Vit(), ["blocks.0"], search=search, example_inputs=IMAGES)
    found = torch.func.grad(lambda x: wrapper(x).aux.sum())(IMAGES)
    x = IMAGES.clone().requires_grad_()
    wrapper(x).aux.sum().backward()
    torch.testing.assert_close(found, x.grad)
