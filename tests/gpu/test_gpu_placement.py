"""Gates, fusions and constants are on the device of the layer that receives, in the dtypes that the user has chosen."""

import pytest
import torch
from gpu_pairs import CUDA, DEVICE, Net, cast, images, kinds, needs_cuda, needs_two, nets, taps_of, train_, wrap
from helpers import loss_of

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, CrossStitchFusion, FixedArchitecture, NDDRFusion

searches = pytest.mark.parametrize("search", [AuxNAS(), AuxG(), MTLNAS()], ids=lambda one: type(one).__name__)


def places(wrapper: AuxNASWrapper, role: str) -> set[torch.device]:
    """Where the fusions, gates and costs are by which a network receives."""
    directions = [d for d in wrapper.gates.by_direction() if d.target == role]
    modules = [wrapper.fusions[role], *(wrapper.gates[direction] for direction in directions)]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return {t.device for t in [*tensors, *map(wrapper.gates.costs, directions)]}


@searches
def test_all_that_wrapping_adds_is_on_the_device_of_the_networks(search):
    wrapper = wrap(nets(), images(), search)
    roles = ("aux",) if isinstance(search, AuxG) else ("primary", "aux")
    assert [places(wrapper, role) for role in roles] == [{DEVICE}] * len(roles)
    assert wrapper.search_penalty(0.3).device == DEVICE


@searches
@pytest.mark.parametrize("fusion", [NDDRFusion, CrossStitchFusion])
def test_other_fusions_are_there_too(search, fusion):
    if isinstance(search, AuxNAS):
        search = FixedArchitecture()
    wrapper = wrap(nets(), images(), search, fusion=fusion)
    loss_of(wrapper(images())).backward()
    assert places(wrapper, "aux") == {DEVICE}


@searches
def test_a_wrapper_that_is_moved_takes_all_along(search):
    torch.manual_seed(0)
    wrapper = AuxNASWrapper(Net(), Net(out=7), taps_of(Net()), search=search, example_inputs=images().cpu())
    wrapper.search_penalty(0.0)  # makes the costs
    wrapper.to(DEVICE)
    loss_of(wrapper(images())).backward()
    assert wrapper.search_penalty(0.2).device == DEVICE and places(wrapper, "aux") == {DEVICE}


@needs_two
@searches
def test_networks_on_two_gpus_receive_on_their_own(search):
    both = nets()
    both[1].to("cuda:1")
    x = images()
    wrapper = AuxNASWrapper(*both, taps_of(both[0]), search=search, example_inputs=x, aux_inputs=x.to("cuda:1"))
    out = wrapper(x, aux_inputs=x.to("cuda:1"))
    assert places(wrapper, "aux") == {torch.device("cuda:1")}
    assert out.primary.device == DEVICE and out.aux.device == torch.device("cuda:1")
    (loss_of(out.primary) + loss_of(out.aux).to(DEVICE) + wrapper.search_penalty(0.2).to(DEVICE)).backward()
    assert all(p.grad is not None and p.grad.device == p.device for p in wrapper.fusion_parameters())


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=needs_cuda)], ids=str)
def test_half_precision_parameters_train(kind, dtype):
    wrapper = wrap(nets(kind), images()).to(dtype)
    out = wrapper(images().to(dtype))
    (loss_of(out) + wrapper.search_penalty(0.2)).backward()
    assert out.primary.dtype is dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in wrapper.parameters() if p.requires_grad)


def test_a_gradient_scaler_unscales_gates_and_sees_their_overflow():
    wrapper = wrap(nets("vit"), images())
    gates = list(wrapper.arch_parameters())
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10)
    optimizer = torch.optim.SGD(gates, lr=1e-2)
    for overflows in (False, False, True):
        with cast(torch.float16 if CUDA else torch.bfloat16):
            loss = loss_of(wrapper(images())) + wrapper.search_penalty(0.05)
        scaled, alone = (torch.autograd.grad(one, gates, retain_graph=True)[0] for one in (scaler.scale(loss), loss))
        gates[0].grad, before = scaled.fill_(torch.inf) if overflows else scaled, gates[0].detach().clone()
        if CUDA:
            torch.cuda._sleep(20_000_000)  # whoever does not wait reads gradients that are not there yet
        scaler.unscale_(optimizer)
        if not overflows:
            torch.testing.assert_close(gates[0].grad, alone, rtol=5e-2, atol=1e-4)
        scaler.step(optimizer)
        scaler.update()
        assert gates[0].equal(before) == overflows


@pytest.mark.child
def test_all_works_under_a_default_device():
    torch.set_default_device(DEVICE)
    both, x = [Net("vit"), Net("vit", out=7)], torch.randn(4, 3, 16, 16)
    wrapper, seen = wrap(both, x), []
    both[1].blocks[0].register_forward_hook(lambda *_: seen.append(torch.zeros(()).device))
    train_(wrapper, x, 4)
    assert seen[0] == DEVICE  # in the auxiliary's thread
    other = AuxNASWrapper(Net("vit"), Net("vit", out=7), taps_of(both[0]), search=wrapper.search)
    other.load_state_dict(wrapper.state_dict())
    assert all(a.equal(b) for a, b in zip(wrapper.eval()(x), other.eval()(x), strict=True))
    wrapper.export_primary()
    assert wrapper.export_report.exact
    assert {t.device for t in (*wrapper.parameters(), *wrapper.buffers())} == {DEVICE}


def test_edges_that_start_scaled_leave_the_random_generators_alone():
    both, x = nets("vit"), images()
    draw = torch.cuda.get_rng_state if CUDA else torch.get_rng_state
    before = draw()
    wrapper = AuxNASWrapper(*both, taps_of(both[0]), search=AuxNAS(start="scaled"), example_inputs=x)
    assert draw().equal(before)
    assert any(p.std() > 0 for p in wrapper.fusion_parameters())
