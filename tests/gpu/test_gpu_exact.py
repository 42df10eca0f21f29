"""Joining changes no bit, gradients are those of a loop by hand, closed edges are gone."""

import copy
import threading

import pytest
import torch
from gpu_pairs import CUDA, DEVICE, Net, cast, images, kinds, nets, train_, worst, wrap
from helpers import PLAIN, loss_of
from torch import Tensor

from auxnas_layers import AuxNASWrapper
from auxnas_layers.features import Layout, align

benchmarks = pytest.mark.parametrize("benchmark", [False, True], ids=["", "benchmark"])
dtypes = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])


@kinds
@dtypes
@benchmarks
def test_wrapping_changes_no_bit(kind, dtype, benchmark):
    both, x = [net.eval() for net in nets(kind)], images()
    wrapper = AuxNASWrapper(*both, [f"blocks.{i}" for i in range(3)], search=PLAIN, example_inputs=x)
    with torch.no_grad(), cast(dtype), torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False):
        primary, aux = (net(x) for net in both)
        out = wrapper(x)
    assert out.primary.equal(primary)
    if benchmark:  # each thread chooses its algorithms by its own measurements
        torch.testing.assert_close(out.aux, aux, rtol=0.02, atol=0.02)
    else:
        assert out.aux.equal(aux)


def staged(wrapper: AuxNASWrapper, x: Tensor, share: float = 0.1, reach: int = 3) -> tuple[Tensor, Tensor]:
    """The joined forward by hand, for two networks of equal blocks; takes nothing of the library but its weights."""
    primary, aux = wrapper.primary_net, wrapper.aux_net
    assert isinstance(primary, Net) and isinstance(aux, Net)
    gates = {name: iter(gate().unbind()) for name, gate in wrapper.gates.items()}
    formula = "bdhw,cd->bchw" if primary.kind == "cnn" else "bnd,cd->bnc"
    p, a = primary.begin(x), aux.begin(x)
    of_primary: list[Tensor] = []
    of_aux: list[Tensor] = []
    for i, (block, aux_block) in enumerate(zip(primary.blocks, aux.blocks, strict=True)):
        p, a = block(p), aux_block(a)
        of_primary.append(p)
        of_aux.append(a)
        a = share * a
        for j, source in enumerate(range(max(0, i - reach + 1), i + 1)):
            weights = (wrapper.fusions[role][str(i)].weights[j] for role in ("primary", "aux"))
            into_primary, into_aux = weights
            p = p + torch.einsum(formula, of_aux[source], next(gates["aux_to_primary"]) * into_primary)
            a = a + torch.einsum(formula, of_primary[source], next(gates["primary_to_aux"]) * into_aux)
    return primary.end(p), aux.end(a)


@kinds
@pytest.mark.parametrize("dtype, most", [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["float64", "float32"])
def test_gradients_are_those_of_a_loop_by_hand_on_the_cpu(kind, dtype, most):
    wrapper = wrap(nets(kind), images(4)).double()
    reference = copy.deepcopy(wrapper).cpu()
    loss_of(staged(reference, images(4).double().cpu())).backward()
    wrapper.to(dtype)
    loss_of(wrapper(images(4).to(dtype))).backward()
    assert worst(wrapper, reference) < most
    assert all(parameter.grad is not None for parameter in wrapper.fusion_parameters())


@kinds
def test_gradients_under_autocast_are_near_those_without(kind):
    both = nets(kind)
    wrapper, dtypes = wrap(both, images(4)), []
    plain = copy.deepcopy(wrapper)
    loss_of(plain(images(4))).backward()
    for net in both:
        layer = net.blocks[1].conv if kind == "cnn" else net.blocks[1].qkv
        layer.register_forward_hook(lambda _, args, output: dtypes.append(output.dtype))
    with cast(torch.bfloat16):
        out = wrapper(images(4))
    loss_of(out).backward()
    assert dtypes == [torch.bfloat16] * 2  # in the auxiliary's thread, too
    found, wanted = (
        torch.cat([p.grad.flatten().double() for p in one.parameters() if p.grad is not None])
        for one in (wrapper, plain)
    )
    assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()


LAYOUTS = [
    ((2, 6, 8, 8), "b c h w", (2, 5, 4, 4), "b c h w"),
    ((2, 6, 4, 4), "b c h w", (2, 5, 8, 8), "b c h w"),
    ((2, 6, 7, 9), "b c h w", (2, 5, 3, 4), "b c h w"),
    ((2, 17, 6), "b p c", (2, 5, 8, 8), "b c h w"),
    ((2, 6, 8, 8), "b c h w", (2, 17, 5), "b 1+(h w) c"),
    ((2, 6, 9), "b c t", (2, 12, 5), "b t c"),
    ((2, 6, 4, 6, 6), "b c d h w", (2, 5, 2, 3, 3), "b c d h w"),
]


@pytest.mark.parametrize("shape, layout, target, wanted", LAYOUTS, ids=str)
def test_features_are_aligned_as_on_the_cpu(shape, layout, target, wanted):
    x = torch.randn(shape, dtype=torch.float64)
    leaves = [x.clone().requires_grad_(), x.to(DEVICE, copy=True).requires_grad_()]
    outs = [align(leaf, Layout(layout), target, Layout(wanted)) for leaf in leaves]
    torch.testing.assert_close(outs[1].cpu(), outs[0], rtol=0, atol=1e-12)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(leaves[1].grad.cpu(), leaves[0].grad, rtol=0, atol=1e-12)


@kinds
def test_closed_edges_need_no_thread_and_leave_the_primary_as_it_is_alone(kind):
    both, x = nets(kind), images()
    wrapper = wrap(both, x)
    threads = []
    both[1].blocks[0].register_forward_hook(lambda *_: threads.append(threading.current_thread()))
    counts = train_(wrapper, x, dtype=torch.bfloat16 if CUDA or kind == "vit" else None)
    assert counts[0] == 6 and counts[-1] == 0
    assert threads[0] is not threading.current_thread() and threads[-1] is threading.current_thread()
    wrapper.eval()
    with torch.no_grad():
        assert wrapper(x).primary.equal(both[0](x))
