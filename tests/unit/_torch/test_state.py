"""The state of torch at the call: the auxiliary runs under it, and no network's own state reaches the other."""

import contextvars

import pytest
import torch
import torch.nn.functional as F
from helpers import PLAIN, assert_same, loss_of
from mlps import Mlp, X, wrap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# State that a network sets around a tap


def test_autocast_and_modes_inside_one_network_do_not_reach_the_other():
    linear = []

    class Note(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.linear:
                linear.append(args[1])
            return function(*args, **(kwargs or {}))

    dtypes = []
    wrapper = wrap(aux=Mlp(lambda: torch.autocast("cpu", torch.bfloat16)), primary=Mlp(Note))
    for net in (wrapper.primary_net, wrapper.aux_net):
        net.b.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    wrapper(X)
    assert dtypes == [torch.float32, torch.float32]
    aux = {id(parameter) for parameter in wrapper.aux_net.parameters()}
    assert linear[0] is wrapper.primary_net.a.weight and not aux & {id(weight) for weight in linear}


# State of the call, which a fresh thread would not have


@pytest.mark.parametrize("lockstep", [True, False])
def test_the_auxiliary_runs_under_the_state_of_the_call(lockstep):
    seen = {}

    class Look(Mlp):
        def forward(self, x):
            seen.update(
                grad=torch.is_grad_enabled(),
                inference=torch.is_inference_mode_enabled(),
                autocast=torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
                device=torch.empty(0).device.type,
                context=variable.get(),
            )
            return super().forward(x)

    variable = contextvars.ContextVar("variable", default=None)
    wrapper = wrap(aux=Look())
    if not lockstep:
        wrapper.close_aux_to_primary_()
    variable.set("user's")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wrapper(X)
    assert seen == dict(grad=False, inference=False, autocast=torch.bfloat16, device="cpu", context="user's")
    with torch.inference_mode():
        wrapper(X)
    assert seen["inference"]
    wrapper(X)
    assert seen == dict(grad=True, inference=False, autocast=False, device="cpu", context="user's")
    with torch.device("meta"):
        wrapper(X)
    assert seen["device"] == "meta"


def test_dispatch_modes_and_saved_tensor_hooks_of_the_call_see_the_auxiliary():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += function is torch.ops.aten.addmm.default
            return function(*args, **(kwargs or {}))

    wrapper, packed = wrap(), []
    with Count() as count:
        wrapper(X)
    assert count.calls == 6 + len(list(wrapper.architecture()))  # three linear layers in each network, and edges
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t)[1], lambda t: t):
        output = wrapper(X)
    assert any(
        t is wrapper.aux_net.head.weight or t.data_ptr() == wrapper.aux_net.head.weight.data_ptr() for t in packed
    )
    loss_of(output.aux).backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own jvp uses it
def test_torch_func_transforms_agree_with_autograd():
    wrapper = wrap().eval()
    parameters = dict(wrapper.named_parameters())

    def loss(parameters, x):
        output = torch.func.functional_call(wrapper, parameters, (x,))
        return output.primary.sum() + output.aux.square().sum()

    found = torch.func.grad(loss)(parameters, X)
    loss(parameters, X).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    batched = torch.func.vmap(lambda x: wrapper(x[None]).primary[0])(X)
    torch.testing.assert_close(batched, wrapper(X).primary)
    _, tangent = torch.func.jvp(lambda x: wrapper(x).aux, (X,), (torch.ones_like(X),))
    step = (wrapper(X.double().float() + 1e-2).aux - wrapper(X - 1e-2).aux) / 2e-2
    torch.testing.assert_close(tangent, step, atol=0.05, rtol=0.05)


def test_flop_counter_sees_both_networks():
    wrapper = wrap()
    with FlopCounterMode(display=False) as counter:
        wrapper(X)
    plain = 2 * 3 * (4 * 8 + 8 * 8 + 8 * 2)
    edges = 6 * 2 * 3 * 8 * 8
    assert counter.get_total_flops() == 2 * plain + edges


# torch.compile


def test_compiled_wrapper_runs_eagerly_and_rightly():
    wrapper = wrap().eval()
    compiled = torch.compile(wrapper, backend="eager")
    assert_same(compiled(X), wrapper(X))
    wrapper.close_aux_to_primary_()
    assert_same(compiled(X), wrapper(X))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch._dynamo's own check of its inputs
def test_blocks_compiled_before_or_after_wrapping_keep_their_taps():
    wrapper = wrap(search=PLAIN).eval()
    expected = wrapper(X)
    wrapper.primary_net.b.compile(backend="eager")
    wrapper.aux_net.b.compile(backend="eager")
    assert_same(wrapper(X), expected)
