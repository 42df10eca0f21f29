"""Tensors without numbers: the meta device and fake tensors."""

import pytest
import torch
from helpers import assert_same
from torch._subclasses import FakeTensorMode
from ways import WAYS, Mlp, X, every_way, wrap

from auxnas_layers import AuxNASError, AuxNASWrapper, CrossStitchFusion, CrossTaskFusion, NDDRFusion


@every_way
def test_a_wrapper_made_on_the_meta_device_gets_its_numbers_from_a_checkpoint(way):
    trained = wrap(way).eval()
    with torch.device("meta"):
        nets = Mlp(), Mlp()
        sized = AuxNASWrapper(*nets, ["a", "b"], **WAYS[way], example_inputs=X.to("meta"))
        unsized = AuxNASWrapper(Mlp(), Mlp(), ["a", "b"], **WAYS[way])
    assert {p.device.type for p in sized.parameters()} == {"meta"}
    assert [p.shape for p in sized.parameters()] == [p.shape for p in trained.parameters()]
    for wrapper in (sized, unsized):
        wrapper.load_state_dict(trained.state_dict(), assign=True)
        assert_same(tuple(wrapper.eval()(X)), tuple(trained(X)))
    for use in (lambda: sized.export_primary(allow_open=True), sized.cost):
        with pytest.raises(AuxNASError, match=r"example inputs .* meta device .* export_primary\(x\) or cost\(x\)"):
            use()
    emptied = wrap(way).eval().to("meta").to_empty(device="cpu")
    emptied.load_state_dict(trained.state_dict())
    assert_same(tuple(emptied(X)), tuple(trained(X)))


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
def test_edges_that_get_their_size_from_a_state_are_where_the_networks_are():
    """The meta device stands for a GPU: without numbers, what is there stays there."""
    state = wrap("aux-nas").state_dict()
    wrapper = AuxNASWrapper(Mlp().to("meta"), Mlp().to("meta"), ["a", "b"])
    wrapper.load_state_dict(state)
    assert {p.device.type for p in wrapper.fusion_parameters()} == {"meta"}


def test_networks_on_the_meta_device_can_be_wrapped_outside_of_it():
    with torch.device("meta"):
        nets = Mlp(), Mlp()
    wrapper = AuxNASWrapper(*nets, ["a", "b"], example_inputs=X.to("meta"))
    assert {p.device.type for p in wrapper.fusion_parameters()} == {"meta"}


def test_a_wrapper_on_the_meta_device_prints():
    assert "AuxNASWrapper" in repr(wrap("aux-nas").to("meta"))


NO_NUMBERS = pytest.mark.xfail(strict=True, raises=RuntimeError, reason="searched gates are read, and have no numbers")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[NO_NUMBERS] if way in ("aux-nas", "mtl-nas") else []) for way in WAYS]
)
def test_a_wrapper_runs_in_fake_tensor_mode(way):
    wrapper = wrap(way).eval()
    wrapper(X)  # constant gates are known from then on
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = wrapper(mode.from_tensor(X))
    assert [out.shape for out in output] == [(4, 2), (4, 2)]


def decided(fusion=NDDRFusion):
    wrapper = wrap("mtl-nas", fusion=fusion).eval()
    wrapper.discretize_()
    return wrapper.export_multitask()


def test_what_is_exported_runs_in_fake_tensor_mode():
    for net in (decided(), wrap("aux-g").export_primary()):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            output = net(mode.from_tensor(X))
        for out in output if isinstance(output, tuple) else [output]:
            assert type(out).__name__ == "FakeTensor" and out.shape == (4, 2)


@pytest.mark.parametrize("fusion", [CrossStitchFusion, NDDRFusion, CrossTaskFusion])
def test_an_exported_pair_runs_on_the_meta_device(fusion):
    output = decided(fusion).to("meta")(X.to("meta"))
    assert [(out.device.type, out.shape) for out in output] == [("meta", (4, 2))] * 2
